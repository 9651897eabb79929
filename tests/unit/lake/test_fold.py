"""The fold of bronze agrees with a fold that goes change by change, on random histories; and at the known corners."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.types import LongType, StringType

from headrace.lake.fold import fold_sql
from headrace.schema import Column, TableId, TableSchema

TIME = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
SCHEMA = TableSchema(
    table=TableId("public", "notes"),
    columns=(
        Column(name="id", type=LongType(), source_type="bigint"),
        Column(name="part", type=StringType(), source_type="text"),
        Column(name="note", type=StringType(), source_type="text"),
        Column(name="more", type=StringType(), source_type="text"),
    ),
    key=("id", "part"),
)
KEYLESS = replace(SCHEMA, key=())
LEAST = -(1 << 63)

ROW = pa.struct([("id", pa.int64()), ("part", pa.string()), ("note", pa.string()), ("more", pa.string())])
TEXTS = pa.map_(pa.string(), pa.string())
BRONZE = pa.schema(
    [
        ("op", pa.string()),
        ("epoch", pa.int32()),
        ("commit_lsn", pa.int64()),
        ("ordinal", pa.int64()),
        ("commit_time", pa.timestamp("us", tz="UTC")),
        ("before", ROW),
        ("after", ROW),
        ("unavailable", pa.list_(pa.string())),
        ("before_text", TEXTS),
        ("after_text", TEXTS),
    ]
)
Key = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class Change:
    op: str
    lsn: int
    ordinal: int
    epoch: int = 1
    before: Key | None = None
    after: dict[str, Any] | None = None
    unavailable: tuple[str, ...] = ()
    unrepresentable: tuple[str, ...] = ()

    def bronze_row(self) -> dict[str, Any]:
        before = None if self.before is None else {"id": self.before[0], "part": self.before[1]}
        return {
            "op": self.op,
            "epoch": self.epoch,
            "commit_lsn": self.lsn,
            "ordinal": self.ordinal,
            "commit_time": TIME + datetime.timedelta(seconds=self.lsn),
            "before": before,
            "after": self.after,
            "unavailable": list(self.unavailable) or None,
            "after_text": [(name, "infinity") for name in self.unrepresentable] or None,
        }


Row = dict[str, Any]


@dataclass
class SlowFold:
    """Silver, one change after the other."""

    rows: dict[Key, Row] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        if change.op == "t":
            self.rows.clear()
            return
        if change.op == "d":
            assert change.before is not None
            self.rows.pop(change.before, None)
            return
        assert change.after is not None
        key = (change.after["id"], change.after["part"])
        if "part" in change.unavailable:
            assert change.before is not None
            key = (key[0], change.before[1])
        old = self.rows.pop(change.before or key, None)
        row = {**change.after, "_flags": {f"{name}:unrepresentable" for name in change.unrepresentable}}
        for name in change.unavailable:
            assert old is not None
            row[name] = old[name]
            row["_flags"] |= {flag for flag in old["_flags"] if flag.startswith(f"{name}:")}
        row |= {"_epoch": change.epoch, "_commit_lsn": change.lsn, "_ordinal": change.ordinal}
        row["_commit_time"] = TIME + datetime.timedelta(seconds=change.lsn)
        self.rows[key] = row


def bronze(changes: list[Change]) -> pa.Table:
    return pa.Table.from_pylist([change.bronze_row() for change in changes], schema=BRONZE)


def folded(changes: list[Change], schema: TableSchema = SCHEMA, base: pa.Table | None = None) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("bronze", bronze(changes[::-1]))  # their order in the table says nothing
        if base is not None:
            connection.register("base", base)
        return connection.sql(fold_sql("bronze", schema, base=None if base is None else "base")).to_arrow_table()


def as_rows(table: pa.Table) -> list[Row]:
    rows = table.to_pylist()
    assert all(row["_flags"] is None or row["_flags"] for row in rows), "no flags are null, not an empty list"
    return in_order([{**row, "_flags": set(row["_flags"] or ())} for row in rows])


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["_epoch"], row["_commit_lsn"], row["_ordinal"]))


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    """Changes that a source can make: keys exist where they are updated or deleted, and are unique after each change."""
    changes: list[Change] = []
    alive: set[Key] = set()
    lsn, epoch, ordinal = 1, 1, 0
    keys = st.tuples(st.integers(1, 4), st.sampled_from(["a", "b"]))
    values = st.sampled_from(["x", "y", "z", None])
    for _ in range(draw(st.integers(0, 40))):
        step = draw(
            st.sampled_from(["commit", "commit", "epoch", *["c"] * 4, *["u"] * 10, *["move"] * 5, *["d"] * 3, "t", "copy"])
        )
        if step == "commit":
            lsn, ordinal = lsn + draw(st.integers(1, 3)), 0
            continue
        if step == "epoch":
            epoch, lsn, ordinal = epoch + 1, 1, 0  # log positions restart on a new server
            continue
        key = draw(keys)
        after = {"id": key[0], "part": key[1], "note": draw(values), "more": draw(values)}
        lost = tuple(name for name in ("note", "more") if draw(st.integers(0, 5)) == 0)
        after |= dict.fromkeys(lost)
        change = Change(op=step, lsn=lsn, ordinal=ordinal, epoch=epoch, after=after, unrepresentable=lost)
        if step == "c" and key not in alive:
            changes.append(change)
            alive.add(key)
        elif step in ("u", "move") and alive:
            old = draw(st.sampled_from(sorted(alive)))
            unsent = tuple(name for name in ("note", "more") if draw(st.booleans()) and name not in lost)
            if step == "u":
                key = old
                after |= {"id": key[0], "part": key[1]}
            elif key in alive and key != old:
                continue
            before = old if step == "move" or draw(st.booleans()) else None
            if before is not None and key[1] == old[1] and draw(st.booleans()):
                unsent += ("part",)  # a key outside its row: then the source sends the old one
            after |= dict.fromkeys(unsent)
            changes.append(replace(change, op="u", before=before, unavailable=unsent))
            alive = alive - {old} | {key}
        elif step == "d" and alive:
            key = draw(st.sampled_from(sorted(alive)))
            changes.append(replace(change, op="d", before=key, after=None, unrepresentable=()))
            alive.discard(key)
        elif step == "t":
            changes.append(replace(change, after=None, unrepresentable=()))
            alive.clear()
        elif step == "copy":
            lsn, ordinal = lsn + 1, 0
            changes.append(Change(op="t", lsn=lsn, ordinal=LEAST, epoch=epoch))
            alive = draw(st.sets(keys, max_size=4))
            for n, (id_, part) in enumerate(sorted(alive)):
                row = {"id": id_, "part": part, "note": draw(values), "more": None}
                changes.append(Change(op="r", lsn=lsn, ordinal=-1 - n, epoch=epoch, after=row))
            continue
        else:
            continue
        ordinal += 1
    return changes


def slowly(changes: list[Change]) -> list[Row]:
    slow = SlowFold()
    for change in sorted(changes, key=lambda change: (change.epoch, change.lsn, change.ordinal)):
        slow.apply(change)
    return in_order(list(slow.rows.values()))


@settings(max_examples=100, deadline=None)
@given(histories())
def test_the_fold_is_what_going_change_by_change_gives(changes: list[Change]) -> None:
    assert as_rows(folded(changes)) == slowly(changes)


@settings(max_examples=50, deadline=None)
@given(histories(), st.integers(0, 40))
def test_folding_from_a_base_gives_the_same(changes: list[Change], cut: int) -> None:
    changes.sort(key=lambda change: (change.epoch, change.lsn, change.ordinal))
    while cut and changes[cut : cut + 1] and changes[cut].op == "r":
        cut -= 1  # a copy becomes visible whole
    assert as_rows(folded(changes[cut:], base=folded(changes[:cut]))) == slowly(changes)


def row(id_: int, note: str | None = None, more: str | None = None) -> Row:
    return {"id": id_, "part": "a", "note": note, "more": more}


def states(table: pa.Table) -> list[tuple[int, str | None]]:
    return sorted((one["id"], one["note"]) for one in table.to_pylist())


def test_a_copy_without_a_truncate_before_it_ends_what_was_before() -> None:
    changes = [
        Change(op="c", lsn=1, ordinal=0, after=row(1, "old")),
        Change(op="c", lsn=1, ordinal=1, after=row(2, "gone")),
        Change(op="r", lsn=5, ordinal=-1, after=row(1, "copied")),
        Change(op="u", lsn=5, ordinal=0, after=row(1, "later")),
    ]

    assert states(folded(changes)) == [(1, "later")]


def test_a_copy_of_an_empty_table_leaves_nothing() -> None:
    changes = [Change(op="c", lsn=1, ordinal=0, after=row(1)), Change(op="t", lsn=5, ordinal=LEAST)]

    assert states(folded(changes)) == []


def test_keys_that_swap_by_way_of_a_third_keep_their_rows_values() -> None:
    changes = [
        Change(op="c", lsn=1, ordinal=0, after=row(1, "one")),
        Change(op="c", lsn=1, ordinal=1, after=row(2, "two")),
        Change(op="u", lsn=2, ordinal=0, before=(1, "a"), after=row(3), unavailable=("note",)),
        Change(op="u", lsn=2, ordinal=1, before=(2, "a"), after=row(1), unavailable=("note",)),
        Change(op="u", lsn=2, ordinal=2, before=(3, "a"), after=row(2), unavailable=("note",)),
    ]

    assert states(folded(changes)) == [(1, "two"), (2, "one")]


def test_a_value_is_carried_over_many_updates_and_key_changes() -> None:
    changes = [Change(op="c", lsn=1, ordinal=0, after=row(0, "first"))]
    for n in range(1, 200):
        changes.append(Change(op="u", lsn=1, ordinal=n, before=(n - 1, "a"), after=row(n), unavailable=("note",)))

    assert states(folded(changes)) == [(199, "first")]


def test_a_key_that_was_not_sent_again_is_the_old_one() -> None:
    unsent = {**row(1, "new"), "part": None}
    changes = [
        Change(op="c", lsn=1, ordinal=0, after=row(1, "old")),
        Change(op="u", lsn=2, ordinal=0, before=(1, "a"), after=unsent, unavailable=("part",)),
        Change(op="u", lsn=3, ordinal=0, before=(1, "a"), after={**unsent, "id": 2}, unavailable=("part",)),
    ]

    assert [(one["id"], one["part"], one["note"]) for one in as_rows(folded(changes))] == [(2, "a", "new")]


def test_without_a_key_all_rows_since_the_last_truncate_are_there() -> None:
    changes = [
        Change(op="r", lsn=1, ordinal=-1, after=row(1, "copied")),
        Change(op="t", lsn=2, ordinal=0),
        Change(op="c", lsn=2, ordinal=1, after=row(1, "x")),
        Change(op="c", lsn=3, ordinal=0, after=row(1, "x")),
    ]
    base = folded(changes[:3], KEYLESS)

    assert states(folded(changes, KEYLESS)) == [(1, "x"), (1, "x")]
    assert states(folded(changes[3:], KEYLESS, base=base)) == [(1, "x"), (1, "x")]


def test_columns_may_have_the_names_that_the_query_uses_itself() -> None:
    names = ["position", "row", "op", "k0", "value", "after", "before", "barrier", "v0", "epoch", "unavailable", "e"]
    columns = tuple(Column(name=name, type=StringType(), source_type="text") for name in names)
    schema = TableSchema(table=TableId("public", "odd"), columns=columns, key=("position", "op"))
    struct = pa.struct([(name, pa.string()) for name in names])
    fields = [pa.field(one.name, struct) if one.name in ("before", "after") else one for one in BRONZE]
    whole = {name: f"{name} 1" for name in names}
    moved = {**whole, "position": "elsewhere", "value": None, "v0": "v0 2"}
    base = {"epoch": 1, "commit_lsn": 1, "commit_time": TIME}
    rows = [
        {**base, "op": "c", "ordinal": 0, "after": whole},
        {**base, "op": "u", "ordinal": 1, "before": whole, "after": moved, "unavailable": ["value"]},
    ]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("first", pa.Table.from_pylist(rows[:1], schema=pa.schema(fields)))
        connection.register("rest", pa.Table.from_pylist(rows[1:], schema=pa.schema(fields)))
        base_sql = f"({fold_sql('first', schema)})"
        found = connection.sql(fold_sql("rest", schema, base=base_sql)).to_arrow_table().select(names).to_pylist()

    assert found == [{**moved, "value": "value 1"}]


def test_nothing_folds_to_nothing() -> None:
    assert folded([]).num_rows == 0
    assert folded([], KEYLESS).num_rows == 0
