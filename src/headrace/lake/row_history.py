"""Every version of one row, from bronze: what became of a key, change by change.

The key is looked for while DuckDB scans bronze's key columns; only the changes that are listed are then read whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import duckdb

from headrace.catalog.history import moment_of
from headrace.errors import ProjectError
from headrace.lake.ask import reading
from headrace.lake.engine import LAKE, identifier, quoted
from headrace.lake.layout import BRONZE
from headrace.schema import TableSchema

OPERATIONS = {"c": "create", "u": "update", "d": "delete", "r": "copy", "t": "truncate"}
COPIED_AGAIN = "copied again"
"""Of the ``t`` that stands before the rows of a repeated copy: the source was not emptied."""

_WHOLE = {"tinyint", "smallint", "integer", "bigint", "hugeint"}
_NATIVE = {"boolean", "float", "double", *_WHOLE}
_FITS_OR_IS_NONE = {"boolean", "float", "double", "uuid", *_WHOLE}
"""Types that hold every value of their source types: what cannot be cast to them is no value of the column."""

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RowVersion:
    """One change of the row. Values are JSON's: whole numbers, floats and booleans as such, lists, everything else as text.

    ``before`` is as far as the source logs it. ``after`` lacks the columns in ``unavailable``, which the source did not send,
    since they did not change. A column in ``exact`` has its exact text, since its lake type cannot hold the value.
    ``renamed``: the key before and after a change of key.
    """

    operation: str
    before: Values | None
    after: Values | None
    unavailable: Sequence[str]
    exact: Sequence[str]
    renamed: tuple[Values, Values] | None
    epoch: int
    commit_lsn: int
    ordinal: int
    xid: int
    commit_time: datetime


@dataclass(frozen=True, kw_only=True)
class RowHistory:
    """The last versions of a row, oldest first. ``more``: there are earlier ones."""

    versions: Sequence[RowVersion]
    more: bool


def key_of(schema: TableSchema, words: Sequence[str]) -> dict[str, str]:
    """The key that these words mean: values in the key's order, or ``column=value`` for each. Raises ProjectError."""
    named = [word.partition("=") for word in words]
    if all(equals and name in schema.key for name, equals, _ in named) and len({name for name, _, _ in named}) == len(words):
        found = {name: value for name, _, value in named}
    else:
        found = dict(zip(schema.key, words, strict=False))
    if not schema.key:
        raise ProjectError(
            f"table {schema.table} has no key: nothing tells which of its changes are of one row",
            remedy=f'Look for them by their values: headrace query "SELECT * FROM bronze.{schema.table.lake_name} WHERE …".',
        )
    if found.keys() != set(schema.key) or len(words) != len(schema.key):
        raise ProjectError(
            f"the key of table {schema.table} is ({', '.join(schema.key)}), which the {len(words)} given do not say",
            remedy=f"Give one value for each column, in this order, or as {' '.join(f'{name}=VALUE' for name in schema.key)}.",
        )
    return {name: found[name] for name in schema.key}


def row_history(
    engine: duckdb.DuckDBPyConnection,
    schema: TableSchema,
    key: Mapping[str, str],
    *,
    limit: int,
    columns: Sequence[str] = (),
) -> RowHistory:
    """The last ``limit`` versions of the row with this key, of every column or of these.

    Truncates count where the row was there. Raises ProjectError for a value that the key cannot have and for an unknown column,
    LakeUnavailable.
    """
    bronze = f"{LAKE}.{BRONZE}.{identifier(schema.table.lake_name)}"
    with reading():
        kinds = dict(engine.sql(f"SELECT after FROM {bronze} LIMIT 0").types[0].children)
        for name in columns:
            if name not in kinds:
                raise ProjectError(
                    f"table {schema.table} has no column {name} in bronze", remedy=f"It has {', '.join(sorted(kinds))}."
                )
        chosen = {name: kind for name, kind in kinds.items() if not columns or name in columns or name in schema.key}
        found = engine.execute(_query(engine, bronze, schema, key, kinds, chosen, limit + 1)).fetchall()
    shown = list(columns) or list(kinds)
    versions = [_version(schema, list(chosen), shown, row) for row in reversed(found[:limit])]
    return RowHistory(versions=versions, more=len(found) > limit)


def _query(
    engine: duckdb.DuckDBPyConnection,
    bronze: str,
    schema: TableSchema,
    key: Mapping[str, str],
    kinds: Mapping[str, Any],
    chosen: Mapping[str, Any],
    limit: int,
) -> str:
    is_old, is_new, moved = [], [], []
    for name, text in key.items():
        value = _literal(engine, schema, name, text, kinds[name])
        old, new = f"before.{identifier(name)}", f"after.{identifier(name)}"
        is_old.append(_matches(old, "before_text", name, value, text))
        # A key that lies outside its row is not sent again; then the old row has it.
        sent_before = f"list_contains(unavailable, {quoted(name)}) AND {is_old[-1]}"
        is_new.append(f"({_matches(new, 'after_text', name, value, text)} OR coalesce({sent_before}, false))")
        moved.append(
            f"(coalesce({new}, CASE WHEN list_contains(unavailable, {quoted(name)}) THEN {old} END) IS DISTINCT FROM {old}"
            f" OR after_text[{quoted(name)}] IS DISTINCT FROM before_text[{quoted(name)}])"
        )
    row = [f"{_shown(f'{side}.{identifier(name)}', kind)}" for side in ("before", "after") for name, kind in chosen.items()]
    place = "epoch, commit_lsn, ordinal"
    newest = "epoch DESC, commit_lsn DESC, ordinal DESC"
    return f"""
    WITH looked AS (
        SELECT {place}, op,
               coalesce({" AND ".join(is_old)}, false) AS is_old,
               coalesce({" AND ".join(is_new)}, false) AS is_new,
               op = 'u' AND before IS NOT NULL AND ({" OR ".join(moved)}) AS moved
        FROM {bronze}
    ), matched AS (
        SELECT *, lag(op IN ('d', 't') OR NOT is_new, 1, true) OVER (ORDER BY {place}) AS was_gone
        FROM looked WHERE is_old OR is_new OR op = 't'
    ), listed AS MATERIALIZED (
        SELECT {place}, moved FROM matched WHERE op <> 't' OR NOT was_gone ORDER BY {newest} LIMIT {limit}
    )
    SELECT b.op, b.before IS NOT NULL, b.after IS NOT NULL, b.unavailable, b.before_text, b.after_text, listed.moved,
           b.epoch, b.commit_lsn, b.ordinal, b.xid, epoch_us(b.commit_time), {", ".join(row)}
    FROM {bronze} AS b JOIN listed USING ({place}) ORDER BY {newest}
    """


def _matches(column: str, texts: str, name: str, value: str, text: str) -> str:
    return f"coalesce({column} = {value} OR ({column} IS NULL AND {texts}[{quoted(name)}] = {quoted(text)}), false)"


def _literal(engine: duckdb.DuckDBPyConnection, schema: TableSchema, name: str, text: str, kind: Any) -> str:
    """A key's value as an SQL expression; null if the lake's type cannot hold it. Raises ProjectError if it is no such value."""
    wrong = ProjectError(
        f"the value given for {name}, of the key of table {schema.table}, is none of type {schema.column(name).source_type}",
        remedy='Write it as PostgreSQL does, as in 42 or "2026-01-31 12:00:00+00".',
    )
    if kind.id == "blob":
        try:
            return f"unhex('{bytes.fromhex(text.removeprefix(chr(92) + 'x')).hex()}')"
        except ValueError:
            raise wrong from None
    if kind.id == "decimal" or kind.id in _WHOLE:
        # A cast would round.
        scale = dict(kind.children)["scale"] if kind.id == "decimal" else 0
        try:
            number = Decimal(text)
            if number.is_finite() and number != round(number, scale):
                raise wrong
        except InvalidOperation:
            raise wrong from None
    literal = f"TRY_CAST({quoted(text)} AS {kind})"
    if kind.id in _FITS_OR_IS_NONE and engine.execute(f"SELECT {literal} IS NULL").fetchall()[0][0]:
        raise wrong
    return literal


def _shown(value: str, kind: Any) -> str:
    """A column's value as an SQL expression of a type that JSON has."""
    if kind.id in _NATIVE:
        return value
    if kind.id == "blob":
        return f"'\\x' || lower(hex({value}))"
    if kind.id == "list":
        inner = dict(kind.children)["child"]
        return f"list_transform({value}, lambda item: {_shown('item', inner)})"
    return f"{value}::VARCHAR"


def _version(schema: TableSchema, columns: Sequence[str], shown: Sequence[str], row: tuple[Any, ...]) -> RowVersion:
    op, has_before, has_after, unavailable, before_text, after_text, moved, *place = row[:12]
    values = [_json(value) for value in row[12:]]
    known = {column.name for column in schema.columns}
    before = dict(zip(columns, values[: len(columns)], strict=True)) | (before_text or {}) if has_before else None
    after = dict(zip(columns, values[len(columns) :], strict=True)) | (after_text or {}) if has_after else None
    renamed = None
    if moved:
        assert before is not None and after is not None
        old = {name: before[name] for name in schema.key}
        renamed = (old, {name: before[name] if name in (unavailable or ()) else after[name] for name in schema.key})
    if before is not None and all(value is None for name, value in before.items() if name not in schema.key):
        before = {name: before[name] for name in schema.key}  # all that the source logs of an old row

    def chosen(side: Values | None, lacking: Sequence[str] = ()) -> Values | None:
        if side is None:
            return None
        # A column that the table has no more is of interest where it had a value.
        return {
            name: side[name]
            for name in shown
            if name in side and name not in lacking and (name in known or side[name] is not None)
        }

    epoch, commit_lsn, ordinal, xid, commit_us = place
    exact = {*(before_text or {}), *(after_text or {})}
    return RowVersion(
        operation=COPIED_AGAIN if op == "t" and ordinal < 0 else OPERATIONS[op],
        before=chosen(before),
        after=chosen(after, unavailable or ()),
        unavailable=[name for name in shown if name in (unavailable or ())],
        exact=[name for name in shown if name in exact],
        renamed=renamed,
        epoch=epoch,
        commit_lsn=commit_lsn,
        ordinal=ordinal,
        xid=xid,
        commit_time=moment_of(commit_us),
    )


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return [_json(item) for item in value] if isinstance(value, list) else value
