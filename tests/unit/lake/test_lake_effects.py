"""What chunks of changes make of silver, against a dictionary changed row by row."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.change import change_schema
from headrace.lake.effects import Inconsistent, derive, op_codes
from headrace.lake.keys import KeyCodec, UnusableKey
from headrace.lake.layout import new_silver
from headrace.lake.levels import MergeLimits
from headrace.lake.silver import SilverTable
from headrace.lake.storage import Storage
from tests.unit.lake.imagined import Imagination, ImaginedTable, silver_tuples

ORDERS = ImaginedTable("orders").arrow()


def silver_of(table: ImaginedTable, folder: Path) -> SilverTable:
    layout = new_silver(table.schema)
    return SilverTable.create(Storage(folder / "lake"), "t", layout, table.key, folder / "state", MergeLimits())


def live_rows(silver: SilverTable) -> list[dict[str, object]]:
    return [row for file in silver.table.data.values() for row in silver.table.live_table(file)[0].to_pylist()]


shapes = st.sampled_from(
    [
        {"key": ("id",)},
        {"key": ("id",), "text_key": True},
        {"key": ("a", "b")},
        {"key": ("a", "b", "c"), "text_key": True},
        {"key": ()},
    ]
)


@settings(max_examples=120, deadline=None)
@given(
    shape=shapes, seed=st.integers(0, 10**6), keys=st.integers(2, 30), chunks=st.lists(st.integers(1, 12), min_size=1, max_size=8)
)
def test_silver_is_the_table_whatever_happened_and_however_it_was_cut(
    shape: dict[str, object], seed: int, keys: int, chunks: list[int]
) -> None:
    table = ImaginedTable("t", **shape)  # type: ignore[arg-type]
    imagination = Imagination(table, seed=seed, keys=keys)
    with tempfile.TemporaryDirectory() as folder:
        silver = silver_of(table, Path(folder))
        for transactions in chunks:
            changes = imagination.batch(transactions=transactions, changes=6).tables[table.id]
            for batch in changes.combine_chunks().to_batches():
                silver.stage(batch, 1)
        assert silver_tuples(table, live_rows(silver)) == table.expected()


def test_two_keys_change_places_by_way_of_a_third(tmp_path: Path) -> None:
    table = ImaginedTable("t")
    imagination = Imagination(table, seed=5)
    silver = silver_of(table, tmp_path)
    operations = [[("c", 1), ("c", 2)], [("move", 1, 9), ("move", 2, 1), ("move", 9, 2)], [("move", 2, 3), ("c", 2), ("d", 3)]]
    for chunk in operations:
        (batch,) = imagination.only(table, chunk).tables[table.id].combine_chunks().to_batches()
        silver.stage(batch, 1)
        assert silver_tuples(table, live_rows(silver)) == table.expected()


def one_change(**values: object) -> pa.RecordBatch:
    blank = dict.fromkeys(change_schema(ORDERS).names)
    change = {**blank, "commit_lsn": 1, "ordinal": 0, "change_lsn": 1, "xid": 1, **values}
    return pa.RecordBatch.from_pylist([change], schema=change_schema(ORDERS))


def test_a_key_that_is_null_in_the_lake_is_refused() -> None:
    codec = KeyCodec(["long"], salt="")
    with pytest.raises(UnusableKey):
        derive(one_change(op="c", after={"id": None, "v": 1}), ["id"], codec)


def test_a_delete_of_nobody_knows_which_row_is_refused() -> None:
    codec = KeyCodec(["long"], salt="")
    with pytest.raises(Inconsistent, match="delete"):
        derive(one_change(op="d"), ["id"], codec)


def test_an_unchanged_column_of_a_row_that_silver_lacks_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    silver = silver_of(ImaginedTable("t"), tmp_path)
    silver.stage(one_change(op="c", after={"id": 1, "v": 1}), 1)
    with pytest.raises(Inconsistent, match="silver does not have"):
        silver.stage(one_change(op="u", after={"id": 2, "v": 1}, unavailable=["big"]), 1)
    assert [row["id"] for row in live_rows(silver)] == [1]


def test_an_unchanged_key_outside_its_row_is_taken_from_the_old_key(tmp_path: Path) -> None:
    table = ImaginedTable("t", text_key=True)
    layout = change_schema(table.arrow())
    silver = silver_of(table, tmp_path)
    blank = {**dict.fromkeys(layout.names), "commit_lsn": 1, "ordinal": 0}
    first = {**blank, "op": "c", "after": {"id": "long", "v": 1}}
    second = {**blank, "op": "u", "before": {"id": "long"}, "after": {"id": None, "v": 2}, "unavailable": ["id"]}
    for change in (first, second):
        silver.stage(pa.RecordBatch.from_pylist([change], schema=layout), 1)
    assert [(row["id"], row["v"]) for row in live_rows(silver)] == [("long", 2)]


def test_operations_are_read_from_any_kind_of_string_column() -> None:
    ops = pa.array(["c", "u", "d", "t", "r"])
    expected = [ord(letter) for letter in "cudtr"]
    for array in (ops, ops.dictionary_encode(), ops.cast(pa.large_string()), ops.cast(pa.string_view())):
        assert op_codes(array).tolist() == expected
    assert op_codes(ops.slice(2)).tolist() == expected[2:]
    assert op_codes(ops.slice(0, 0)).tolist() == []


def test_lanes_are_equal_exactly_when_keys_are() -> None:
    pairs = [("ab", "c"), ("a", "bc"), ("ab", "c"), ("", "abc"), ("2:ab", "c")]
    codec = KeyCodec(["string", "string"], salt="s")
    lanes = codec.lanes([pa.array([pair[0] for pair in pairs]), pa.array([pair[1] for pair in pairs])])
    distinct = len(set(zip(lanes.hi.tolist(), (lanes.lo.tolist() if lanes.lo is not None else []), strict=True)))
    assert distinct == 4
    codec.close()


def test_lists_may_be_keys() -> None:
    texts = [["a", "b"], ["a, b"], [None], ["NULL"], [""], [], ["a", "b"]]
    kind = {"type": "list", "element-id": 2, "element": "string", "element-required": False}
    codec = KeyCodec([kind], salt="s")
    lanes = codec.lanes([pa.array([["before"], *texts], pa.list_(pa.string())).slice(1)])
    assert lanes.lo is not None
    numbers = list(zip(lanes.hi.tolist(), lanes.lo.tolist(), strict=True))
    assert len(set(numbers)) == len(texts) - 1
    assert numbers[0] == numbers[-1]
    codec.close()


def test_a_widened_key_has_the_lanes_it_had() -> None:
    codec = KeyCodec(["int"], salt="")
    narrow, wide = codec.lanes([pa.array([1, -5], pa.int32())]), codec.lanes([pa.array([1, -5], pa.int64())])
    assert narrow.hi.tolist() == wide.hi.tolist()
    numbers = pa.array(["1.50", "-2.25"]).cast(pa.decimal128(5, 2))
    codec = KeyCodec(["decimal(5,2)"], salt="")
    narrow, wide = codec.lanes([numbers]), codec.lanes([numbers.cast(pa.decimal128(20, 2))])
    assert narrow.equal(wide).all()
