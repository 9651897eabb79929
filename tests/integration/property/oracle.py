"""What bronze and silver must be: PostgreSQL's own answers, and an independent reader of its log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import psycopg
from psycopg import sql

from headrace.lake.fold import fold_sql
from headrace.schema import TableSchema
from tests.integration.property.kinds import Kind, of_source, shown
from tests.integration.property.tables import Column, Table, identifier
from tests.unit.source.reference_decoder import UNCHANGED, ReferenceDecoder, Row

SLOT = "witness"
PINNED = (
    "SET DateStyle = ISO; SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = hex"
)
OWN = ("_epoch", "_commit_lsn", "_ordinal", "_commit_time")

Shown = tuple[Any, ...]
"""A row or a change, every value as exact text."""


@contextmanager
def _pinned(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(PINNED)
        yield connection


class Witness:
    """A second slot on the same publications, decoded message by message."""

    def __init__(self, url: str, publications: Sequence[str]) -> None:
        self._url = url
        self._publications = publications
        self._decoder = ReferenceDecoder()
        with _pinned(url) as connection:
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [SLOT])

    def read(self) -> list[Row]:
        """Every row change since the slot was made, in commit order."""
        with _pinned(self._url) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT (lsn - '0/0')::bigint, data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL,"
                " 'proto_version', '1', 'publication_names', %s)",
                [SLOT, ",".join(self._publications)],
            )
            for lsn, data in cursor:
                self._decoder.message(lsn, data)
        return self._decoder.rows


def source_rows(url: str, table: Table) -> Counter[Shown]:
    """The table's rows at the source, as silver must have them: the columns' values and the flags."""
    with _pinned(url) as connection:
        texts = sql.SQL(", ").join(
            sql.SQL("CASE WHEN {0} IS DISTINCT FROM NULL THEN concat({0}) END").format(sql.Identifier(column.name))
            for column in table.columns
        )
        rows = connection.execute(
            sql.SQL("SELECT {} FROM {}").format(texts, sql.Identifier(table.id.schema, table.id.name))
        ).fetchall()
    return Counter(_as_silver(table.columns, row) for row in rows)


def _as_silver(columns: Sequence[Column], texts: Sequence[str | None]) -> Shown:
    values, misfits = of_source(texts, [column.kind for column in columns])
    return (*values, tuple(sorted(f"{columns[number].name}:unrepresentable" for number in misfits)))


def appended_rows(table: Table, copied: Counter[Shown], changes: Iterable[Row]) -> Counter[Shown]:
    """What silver must be for a table without key: what was copied and inserted since it was last truncated.

    A column that came later is null in rows from before.
    """
    rows: Counter[Shown] = Counter()
    for row, count in copied.items():
        rows[_widened(table, row)] += count
    for change in changes:
        if change.op == "t":
            rows = Counter()
        else:
            assert change.op == "c" and change.after is not None
            # A text is a value of the type that its column had then: 0.1 as real is another number than as double precision.
            rows[_widened(table, _as_silver(table.columns_at(change.commit_lsn), change.after))] += 1
    return rows


def _widened(table: Table, row: Shown) -> Shown:
    *values, flags = row
    return (*values, *[shown(None)] * (len(table.columns) - len(values)), flags)


# --- what the lake has --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LakeTable:
    """``copied``: bronze's ``r`` rows as silver rows. ``changes``: its other rows by position, ``silver`` and ``folded`` without
    and ``own`` and ``folded_own`` with silver's own columns."""

    changes: list[Shown]
    copied: Counter[Shown]
    silver: Counter[Shown]
    own: Counter[Shown]
    folded_own: Counter[Shown]


def lake_table(engine: duckdb.DuckDBPyConnection, table: Table, schema: TableSchema, copy_lsn: int) -> LakeTable:
    bronze, silver = (f"lake.{namespace}.{identifier(table.id.lake_name)}" for namespace in ("bronze", "silver"))
    rows = _rows(engine, f"SELECT * FROM {bronze}")
    names = [column.name for column in table.columns]
    silver_rows = _rows(engine, f"SELECT * FROM {silver}")
    folded = _rows(engine, fold_sql(bronze, schema))
    assert {row["epoch"] for row in rows} <= {1}
    return LakeTable(
        changes=sorted(
            (_change(names, row) for row in rows if row["op"] != "r" and row["commit_lsn"] >= copy_lsn), key=_position
        ),
        copied=Counter(
            (*(shown(row["after"].get(name)) for name in names), tuple(sorted(_flags_of(row["after_text"]))))
            for row in rows
            if row["op"] == "r"
        ),
        silver=Counter(_silver(names, row) for row in silver_rows),
        own=Counter((*_silver(names, row), *(shown(row[name]) for name in OWN)) for row in silver_rows),
        folded_own=Counter((*_silver(names, row), *(shown(row[name]) for name in OWN)) for row in folded),
    )


def _rows(engine: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = engine.execute(query).to_arrow_table().to_pylist()
    return result


def _silver(names: Sequence[str], row: Mapping[str, Any]) -> Shown:
    # A column added at the source comes to silver with the next change; until then it is null everywhere.
    return (*(shown(row.get(name)) for name in names), tuple(sorted(row["_flags"] or ())))


def _flags_of(texts: Sequence[tuple[str, str]] | None) -> Iterator[str]:
    return (f"{name}:unrepresentable" for name, _ in texts or ())


# --- changes ------------------------------------------------------------------------------------------------------------------------


def _position(change: Shown) -> tuple[int, int]:
    return change[0], change[1]


def _change(names: Sequence[str], row: Mapping[str, Any]) -> Shown:
    def side(values: Mapping[str, Any] | None) -> Shown | None:
        return None if values is None else tuple(shown(values.get(name)) for name in names)

    return (
        *(row[name] for name in ("commit_lsn", "ordinal", "op", "change_lsn", "xid")),
        int(row["commit_time"].timestamp() * 1_000_000 + 0.5),
        side(row["before"]),
        side(row["after"]),
        tuple(sorted(row["unavailable"] or ())),
        tuple(sorted(row["before_text"] or ())),
        tuple(sorted(row["after_text"] or ())),
    )


CHANGE_FIELDS = (
    *("commit_lsn", "ordinal", "op", "change_lsn", "xid", "commit_time"),
    *("before", "after", "unavailable", "before_text", "after_text"),
)


def expected_change(table: Table, row: Row) -> Shown:
    """A change as bronze must have it."""
    columns = table.columns_at(row.commit_lsn)
    names, kinds = [column.name for column in columns], [column.kind for column in columns]
    missing = len(table.columns) - len(columns)
    before, before_text = _side(row.before, names, kinds, missing)
    after, after_text = _side(row.after, names, kinds, missing)
    unavailable = [name for name, text in zip(names, row.after or (), strict=row.after is not None) if text is UNCHANGED]
    return (
        *(row.commit_lsn, row.ordinal, row.op, row.change_lsn, row.xid, row.commit_us),
        *(before, after, tuple(sorted(unavailable)), before_text, after_text),
    )


def _side(
    texts: Sequence[Any] | None, names: Sequence[str], kinds: Sequence[Kind], missing: int
) -> tuple[Shown | None, tuple[tuple[str, str], ...]]:
    if texts is None:
        return None, ()
    sent: list[str | None] = [None if text is UNCHANGED else text for text in texts]
    values, misfits = of_source(sent, kinds)
    exact = tuple(sorted((names[number], str(sent[number])) for number in misfits))
    return (*values, *[shown(None)] * missing), exact


# --- differences --------------------------------------------------------------------------------------------------------------------


def assert_same_changes(table: Table, found: Sequence[Shown], expected: Sequence[Shown]) -> None:
    positions, wanted = Counter(map(_position, found)), Counter(map(_position, expected))
    assert positions == wanted, (
        f"bronze of {table.id}: missing {sorted(wanted - positions)}, doubled or invented {sorted(positions - wanted)}"
    )
    for one, other in zip(found, expected, strict=True):
        for field, is_, should in zip(CHANGE_FIELDS, one, other, strict=True):
            assert is_ == should, (
                f"bronze of {table.id} at {_position(one)}, {one[2]}: {field} is\n  {_short(is_)}, not\n  {_short(should)}"
            )


def assert_same_rows(what: str, table: Table, found: Counter[Shown], expected: Counter[Shown]) -> None:
    if found == expected:
        return
    extra, missing = list((found - expected).elements()), list((expected - found).elements())
    columns = [column.name for column in table.columns]
    lines = [f"{what} of {table.id}: {len(extra)} rows too many, {len(missing)} missing; columns {columns}"]
    lines += [f"  + {_short(row)}" for row in extra[:5]] + [f"  - {_short(row)}" for row in missing[:5]]
    raise AssertionError("\n".join(lines))


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) < 60 else f"{value[:20]}…{value[-12:]} ({len(value)})"
    return tuple(map(_short, value)) if isinstance(value, tuple) else value
