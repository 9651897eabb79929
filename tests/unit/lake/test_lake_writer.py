"""Random transactions over several tables, committed, restarted and read back by PyIceberg and DuckDB."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace.errors import CommitConflict
from headrace.lake.engine import open_engine
from headrace.lake.storage import Storage
from headrace.lake.writer import LakeWriter
from headrace.position import Position
from headrace.schema import TableId
from tests.unit.lake.conftest import World
from tests.unit.lake.imagined import Imagination, ImaginedTable, silver_tuples


def follow(world: World, imagination: Imagination, *, rows: int = 30) -> None:
    """First copies of all tables, adopted together."""
    for table in imagination.tables:
        copy = world.lake.copy(table.schema, imagination.lsn)
        copied = imagination.copied(table, rows if table.key else 0)
        for begin in range(0, copied.num_rows, 10):
            copy.append(copied.slice(begin, 10))
        copy.finish()
    world.lake.adopt(world.lake.staged_copies())
    world.lake.commit(Position(1, imagination.lsn))


def take(lake: LakeWriter, imagination: Imagination, **settings: int) -> None:
    batch = imagination.batch(**settings)
    lake.stage(batch)
    assert batch.end is not None
    lake.commit(batch.end)


def assert_silver(world: World, imagination: Imagination) -> None:
    for table in imagination.tables:
        assert silver_tuples(table, world.rows("silver", table.id.lake_name)) == table.expected()


def tables() -> tuple[ImaginedTable, ...]:
    return (
        ImaginedTable("orders"),
        ImaginedTable("names", text_key=True),
        ImaginedTable("pairs", key=("a", "b")),
        ImaginedTable("triples", key=("a", "b", "c"), text_key=True),
        ImaginedTable("events", key=()),
    )


def test_the_first_copies_appear_together(world: World) -> None:
    imagination = Imagination(*tables())
    follow(world, imagination)
    assert_silver(world, imagination)
    assert world.lake.position == Position(1, 1_000)
    assert world.lake.staged_copies() == []


@pytest.mark.parametrize("seed", range(2))
def test_silver_is_the_source_after_hundreds_of_random_commits_and_restarts(world: World, seed: int) -> None:
    imagination = Imagination(*tables(), seed=seed)
    follow(world, imagination)
    for number in range(60):
        if number % 13 == 5:
            world.restart()
        if number % 29 == 7:
            shutil.rmtree(world.folder / "state" / "index")
            world.restart()
        if number % 7 == 3:  # a transaction in several chunks
            for _ in range(imagination.random.randint(1, 3)):
                world.lake.stage(imagination.batch(changes=5, cut=True))
        take(world.lake, imagination, transactions=imagination.random.choice([1, 1, 1, 20]), changes=8)
        if number % 20 == 19:
            assert_silver(world, imagination)
    assert_silver(world, imagination)
    with open_engine(world.catalog) as engine:
        for table in imagination.tables:
            found = engine.execute(f"select * from silver.{table.id.lake_name}").to_arrow_table().to_pylist()
            assert silver_tuples(table, found) == table.expected()


def test_what_is_abandoned_leaves_no_trace(world: World) -> None:
    imagination = Imagination(ImaginedTable("orders"), seed=3)
    follow(world, imagination)
    before = world.catalog.latest_version()
    kept = {key: dict(row) for key, row in imagination.tables[0].rows.items()}
    world.lake.stage(imagination.batch(transactions=5))
    world.lake.abandon()
    assert world.catalog.latest_version() == before
    imagination.tables[0].rows = kept
    take(world.lake, imagination)
    assert_silver(world, imagination)


def test_of_two_writers_of_one_pipeline_the_slower_one_is_told(world: World) -> None:
    imagination = Imagination(ImaginedTable("orders"), seed=3)
    follow(world, imagination)
    with world.another(state="elsewhere") as second:
        batch = imagination.batch()
        second.stage(batch)
        world.lake.stage(batch)
        second.commit(Position(1, imagination.lsn))
        with pytest.raises(CommitConflict):
            world.lake.commit(Position(1, imagination.lsn))
    assert_silver(world, imagination)
    assert world.lake.position == Position(1, imagination.lsn)
    take(world.lake, imagination)  # the index was found to be of another snapshot, and built anew
    assert_silver(world, imagination)


def test_two_pipelines_share_a_lake(world: World) -> None:
    ours, theirs = Imagination(ImaginedTable("orders"), seed=1), Imagination(ImaginedTable("people"), seed=2)
    follow(world, ours)
    with world.another(pipeline="other", state="other") as second:
        copy = second.copy(theirs.tables[0].schema, theirs.lsn)
        copy.append(theirs.copied(theirs.tables[0], 20))
        copy.finish()
        second.adopt(second.staged_copies())
        second.commit(Position(1, theirs.lsn))
        for _ in range(5):
            take(world.lake, ours)  # each moves the progress table under the other's feet
            take(second, theirs)
        assert_silver(world, ours)
        assert_silver(world, theirs)
        assert world.restart().position == Position(1, ours.lsn)
        assert second.progress.tables.keys() == {TableId("public", "people")}


def test_other_engines_are_told_to_keep_the_files_of_every_table(world: World) -> None:
    follow(world, Imagination(ImaginedTable("orders"), seed=1))
    for namespace, name in (("bronze", "orders"), ("silver", "orders"), ("headrace", "progress")):
        assert world.catalog.load(namespace, name).metadata["properties"]["gc.enabled"] == "false"


def test_a_table_made_without_that_is_told_with_its_next_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    imagination = Imagination(ImaginedTable("orders"), seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("headrace.lake.table.CREATED_WITH", {})
        patch.setattr("headrace.lake.table.KEEP_FILES", {})
        follow(world, imagination)
    assert "gc.enabled" not in world.catalog.load("silver", "orders").metadata["properties"]
    world.restart()
    take(world.lake, imagination, transactions=3)
    take(world.lake, imagination, transactions=3)

    assert world.catalog.load("silver", "orders").metadata["properties"]["gc.enabled"] == "false"
    assert_silver(world, imagination)


def test_a_folder_is_durable_whatever_becomes_of_what_was_first_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("headrace.lake.storage.flush_folder", flushed.append)
    storage = Storage(tmp_path / "lake")
    place = storage.table_location("silver", "orders")
    storage.new_location(place, "data", ".parquet")
    storage.forget()
    storage.close()

    assert set(flushed) >= {tmp_path, tmp_path / "lake", tmp_path / "lake" / "silver", tmp_path / "lake" / "silver" / "orders"}
