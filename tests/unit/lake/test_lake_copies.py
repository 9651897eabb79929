"""First copies and repeated ones: staged, surviving crashes, published together."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.types import IntegerType, LongType, StringType

from headrace.errors import LakeBlocked, ProjectError
from headrace.lake.copies import TableCopy
from headrace.lake.engine import open_engine
from headrace.lake.fold import fold_sql
from headrace.position import Position
from headrace.schema import TableSchema
from tests.unit.lake.conftest import World
from tests.unit.lake.imagined import Imagination, ImaginedTable, columns, silver_tuples
from tests.unit.lake.test_lake_writer import assert_silver, follow, take


def data_files(world: World, table: str = "orders") -> list[Path]:
    return [path for name in ("bronze", "silver") for path in (world.folder / "lake" / name / table).rglob("*.parquet")]


def begun(world: World, imagination: Imagination, rows: int = 30) -> TableCopy:
    """A copy that has all its rows, still unfinished."""
    table = imagination.tables[0]
    copy = world.lake.copy(table.schema, imagination.lsn)
    copy.append(imagination.copied(table, rows))
    return copy


def publish(world: World, imagination: Imagination) -> None:
    world.lake.adopt(world.lake.staged_copies())
    world.lake.commit(Position(1, imagination.lsn))


@pytest.fixture
def imagination() -> Imagination:
    return Imagination(ImaginedTable("orders"), seed=4)


@pytest.mark.parametrize("place", ["copies._write_durably", "storage.os.fsync", "row_files.RowFile._finish"])
def test_a_copy_that_cannot_be_finished_leaves_nothing_behind(
    world: World, imagination: Imagination, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if place.startswith("row_files"):
        monkeypatch.setattr("headrace.lake.row_files.PLAIN_ROWS", 0)
    copy = begun(world, imagination)
    with monkeypatch.context() as patch:
        patch.setattr(f"headrace.lake.{place}", full)
        with pytest.raises(LakeBlocked):
            copy.finish()
    copy.discard()

    assert data_files(world) == []
    assert list((world.folder / "state" / "copies").iterdir()) == []
    assert list(world.lake.staged_copies()) == []
    begun(world, imagination).finish()
    publish(world, imagination)
    assert_silver(world, imagination)


def test_chunks_may_come_from_several_threads(world: World, imagination: Imagination) -> None:
    table = imagination.tables[0]
    rows = imagination.copied(table, 40)
    copy = world.lake.copy(table.schema, imagination.lsn)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(copy.append, [rows.slice(begin, 3) for begin in range(0, 40, 3)]))
    copy.finish()
    (staged,) = world.lake.staged_copies()
    assert (staged.table, staged.lsn, staged.rows) == (table.id, imagination.lsn, 40)
    publish(world, imagination)
    assert_silver(world, imagination)
    assert len(world.rows("bronze", "orders")) == 40
    take(world.lake, imagination, transactions=10)
    assert_silver(world, imagination)


def test_a_copy_in_many_files_is_indexed_whole(world: World, imagination: Imagination, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.lake.row_files.FILE_ROWS", 7)
    table = imagination.tables[0]
    rows = imagination.copied(table, 40)
    copy = world.lake.copy(table.schema, imagination.lsn)
    for begin in range(0, 40, 5):
        copy.append(rows.slice(begin, 5))
    copy.finish()
    publish(world, imagination)
    take(world.lake, imagination, transactions=20)
    assert_silver(world, imagination)


def test_a_finished_copy_survives_a_crash(world: World, imagination: Imagination) -> None:
    begun(world, imagination).finish()
    world.restart()
    assert [copy.rows for copy in world.lake.staged_copies()] == [30]
    publish(world, imagination)
    assert_silver(world, imagination)
    assert world.restart().staged_copies() == []


def test_an_unfinished_copy_is_forgotten_and_its_files_are_removed(world: World, imagination: Imagination) -> None:
    begun(world, imagination)
    world.restart()
    assert world.lake.staged_copies() == []
    begun(world, imagination, rows=20).finish()
    assert len(data_files(world)) == 2
    publish(world, imagination)
    assert_silver(world, imagination)


def test_a_discarded_copy_leaves_nothing(world: World, imagination: Imagination) -> None:
    begun(world, imagination).discard()
    assert data_files(world) == []
    assert world.lake.staged_copies() == []


def test_a_crash_right_after_publishing_does_not_publish_again(
    world: World, imagination: Imagination, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(world, imagination).finish()
    world.lake.adopt(world.lake.staged_copies())
    with monkeypatch.context() as patch:
        patch.setattr("headrace.lake.writer.forget_copy", lambda *_: None)  # the crash came first
        world.lake.commit(Position(1, imagination.lsn))
    world.restart()
    assert world.lake.staged_copies() == []
    assert len(data_files(world)) == 2
    take(world.lake, imagination, transactions=5)
    assert_silver(world, imagination)


def test_a_later_copy_of_a_table_replaces_an_earlier_staged_one(world: World, imagination: Imagination) -> None:
    begun(world, imagination, rows=30).finish()
    imagination.lsn += 50
    begun(world, imagination, rows=12).finish()
    assert [copy.rows for copy in world.lake.staged_copies()] == [12]
    assert len(data_files(world)) == 2
    publish(world, imagination)
    assert_silver(world, imagination)


def test_changes_after_the_copy_may_be_part_of_the_same_commit(world: World, imagination: Imagination) -> None:
    begun(world, imagination).finish()
    world.lake.adopt(world.lake.staged_copies())
    assert world.lake.tables[imagination.tables[0].id].following
    for _ in range(5):
        world.lake.stage(imagination.batch(transactions=3))
    world.lake.commit(Position(1, imagination.lsn))
    assert_silver(world, imagination)
    assert len(world.catalog.load("silver", "orders").metadata["snapshots"]) == 1


def test_a_repeated_copy_replaces_silver_and_is_marked_in_bronze(world: World, imagination: Imagination) -> None:
    follow(world, imagination)
    take(world.lake, imagination, transactions=10)
    orders = imagination.tables[0]
    world.lake.copy_again([orders.id])
    assert world.lake.tables[orders.id].waiting
    world.lake.commit(Position(1, imagination.lsn))
    assert world.restart().tables[orders.id].waiting
    imagination.lsn += 50
    follow(world, imagination, rows=25)
    assert world.lake.tables[orders.id].following
    assert_silver(world, imagination)
    take(world.lake, imagination, transactions=10)
    assert_silver(world, imagination)
    at_copy = [row for row in world.rows("bronze", "orders") if row["commit_lsn"] == 0 + imagination.lsn - 1_000]
    ops = [row["op"] for row in sorted(at_copy, key=lambda row: row["ordinal"])]
    assert ops == ["t"] + ["r"] * 25
    with open_engine(world.catalog) as engine:
        folded = engine.execute(fold_sql("lake.bronze.orders", orders.schema)).to_arrow_table().to_pylist()
    assert silver_tuples(orders, folded) == orders.expected()


def retyped(table: ImaginedTable, *, key: tuple[str, ...] | None = None, **kinds: Any) -> TableSchema:
    own = [(column.name, kinds.get(column.name, column.type)) for column in table.schema.columns]
    return replace(table.schema, columns=columns(*own), key=key or table.schema.key)


def test_a_repeated_copy_takes_up_other_types_and_bronze_keeps_the_old_values(world: World, imagination: Imagination) -> None:
    follow(world, imagination)
    orders = imagination.tables[0]
    old = {row["after"]["id"]: row["after"]["v"] for row in world.rows("bronze", "orders")}
    world.lake.copy_again([orders.id])
    imagination.lsn += 50
    rows = imagination.copied(orders, 10)
    after = rows.column("after").combine_chunks()
    fields = [field.with_type(pa.string()) if field.name == "v" else field for field in after.type]
    texts = pa.StructArray.from_arrays([after.field(field.name).cast(field.type) for field in fields], fields=fields)
    nothing = pa.nulls(len(texts), texts.type)
    rows = rows.set_column(6, "before", nothing).set_column(7, "after", texts)
    copy = world.lake.copy(retyped(orders, v=StringType()), imagination.lsn)
    copy.append(rows)
    copy.finish()
    publish(world, imagination)
    silver = world.rows("silver", "orders")
    assert {row["v"] for row in silver} == {str(row["v"]) for row in orders.rows.values()}
    bronze = world.rows("bronze", "orders")
    fields = world.arrow("bronze", "orders").schema.field("after").type
    retired = next(field.name for field in fields if field.name.startswith("v__"))
    kept = {row["after"]["id"]: row["after"][retired] for row in bronze if row["op"] == "r" and row["after"][retired] is not None}
    assert kept == old


def test_a_repeated_copy_takes_up_another_key(world: World, imagination: Imagination) -> None:
    follow(world, imagination)
    orders = imagination.tables[0]
    imagination.lsn += 50
    rows = imagination.copied(orders, 10)
    copy = world.lake.copy(retyped(orders, key=("id", "v")), imagination.lsn)
    copy.append(rows)
    copy.finish()
    publish(world, imagination)
    assert_silver(world, imagination)
    assert world.restart().tables[orders.id].schema.key == ("id", "v")
    world.lake.drop_index(orders.id)


def test_an_empty_table_can_be_read_by_every_engine(world: World, imagination: Imagination) -> None:
    world.lake.copy(imagination.tables[0].schema, 1_000).finish()
    publish(world, imagination)
    assert world.rows("silver", "orders") == []
    with open_engine(world.catalog) as engine:
        assert engine.execute("select count(*) from silver.orders").fetchone() == (0,)
        assert engine.execute("select count(*) from bronze.orders").fetchone() == (0,)
    take(world.lake, imagination, transactions=5)
    assert_silver(world, imagination)


def test_a_column_of_a_name_that_silver_uses_is_refused(world: World, imagination: Imagination) -> None:
    schema = replace(imagination.tables[0].schema, columns=columns(("id", LongType()), ("_epoch", IntegerType())))
    with pytest.raises(ProjectError, match="_epoch"):
        world.lake.copy(schema, 1)
