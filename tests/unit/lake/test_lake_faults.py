"""What the writer does when something goes wrong: crashes, a full disk, lost answers, foreign commits, tables that cannot be
followed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.types import StringType

from headrace.catalog import CommitOutcomeUnknown, Committed, TableChange
from headrace.change import QUARANTINE, TableFault
from headrace.errors import CommitConflict, LakeUnavailable
from headrace.lake.engine import open_engine
from headrace.lake.fold import fold_sql
from headrace.lake.progress import read_progress
from headrace.lake.storage import Storage
from headrace.position import Position
from tests.unit.lake.conftest import World
from tests.unit.lake.imagined import Imagination, ImaginedTable, columns, silver_tuples
from tests.unit.lake.test_lake_writer import assert_silver, follow, take


class Power(BaseException):
    """The machine stops here: nothing after it runs, not even clean-up."""


@pytest.fixture
def followed(world: World) -> Imagination:
    imagination = Imagination(ImaginedTable("orders"), ImaginedTable("names", text_key=True), seed=11)
    follow(world, imagination)
    return imagination


def dying(commit: Callable[[Sequence[TableChange]], Committed], *, after: bool, error: BaseException) -> Any:
    def die(changes: Sequence[TableChange]) -> Committed:
        if after:
            commit(changes)
        raise error

    return die


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_around_the_catalog_commit_loses_and_repeats_nothing(
    world: World, followed: Imagination, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    for _ in range(12):
        batch = followed.batch(transactions=3)
        world.lake.stage(batch)
        with monkeypatch.context() as patch:
            patch.setattr(world.catalog, "commit", dying(world.catalog.commit, after=after, error=Power()))
            patch.setattr(world.lake, "abandon", lambda: None)
            with pytest.raises(Power):
                world.lake.commit(Position(1, followed.lsn))
        world.restart()
        at = world.lake.position
        assert (at == batch.end) is after
        if not after:  # the source sends it again
            world.lake.stage(batch)
            world.lake.commit(Position(1, followed.lsn))
        assert_silver(world, followed)


def test_the_index_of_a_commit_that_took_effect_is_used_after_the_crash(
    world: World, followed: Imagination, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lake.stage(followed.batch(transactions=3))
    with monkeypatch.context() as patch:
        patch.setattr(world.catalog, "commit", dying(world.catalog.commit, after=True, error=Power()))
        patch.setattr(world.lake, "abandon", lambda: None)
        with pytest.raises(Power):
            world.lake.commit(Position(1, followed.lsn))
    world.restart()
    monkeypatch.setattr("headrace.lake.index.KeyIndex.load", lambda self, runs: pytest.fail("built anew"))
    take(world.lake, followed, transactions=3)
    assert_silver(world, followed)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_unclear_answer_is_settled_by_reading_again(
    world: World, followed: Imagination, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    batch = followed.batch(transactions=3)
    world.lake.stage(batch)
    lost = CommitOutcomeUnknown("the answer was lost")
    monkeypatch.setattr(world.catalog, "commit", dying(world.catalog.commit, after=after, error=lost))
    if after:
        world.lake.commit(Position(1, followed.lsn))
        monkeypatch.undo()
    else:
        with pytest.raises(CommitOutcomeUnknown):
            world.lake.commit(Position(1, followed.lsn))
        monkeypatch.undo()
        assert not world.lake.staged
        world.lake.stage(batch)
        world.lake.commit(Position(1, followed.lsn))
    assert_silver(world, followed)
    take(world.lake, followed, transactions=3)
    assert_silver(world, followed)


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_a_full_disk_is_named_and_nothing_is_lost(
    world: World, followed: Imagination, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    batch = followed.batch(transactions=3)
    version = world.catalog.latest_version()

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"headrace.lake.storage.os.{call}", full)
        with pytest.raises(LakeUnavailable, match=str(world.folder / "lake")) as failed:
            world.lake.stage(batch)
            world.lake.commit(Position(1, followed.lsn))
    assert "room" in failed.value.remedy
    assert world.catalog.latest_version() == version
    world.lake.stage(batch)
    world.lake.commit(Position(1, followed.lsn))
    assert_silver(world, followed)


def test_a_catalog_that_is_away_for_a_while_costs_only_what_was_staged(
    world: World, followed: Imagination, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = followed.batch(transactions=3)
    world.lake.stage(batch)

    def away(*_: object, **__: object) -> None:
        raise LakeUnavailable("the catalog is away")

    with monkeypatch.context() as patch:
        patch.setattr(world.catalog, "commit", away)
        patch.setattr(world.catalog, "load", away)
        with pytest.raises(LakeUnavailable, match="away"):
            world.lake.commit(Position(1, followed.lsn))
        world.lake.abandon()
        with pytest.raises(LakeUnavailable, match="away"):
            world.lake.stage(batch)
    assert not world.lake.staged
    world.lake.stage(batch)
    world.lake.commit(Position(1, followed.lsn))
    assert_silver(world, followed)


def test_the_state_folder_full_after_the_commit_does_not_take_it_back(
    world: World, followed: Imagination, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = followed.batch()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    world.lake.stage(batch)
    with monkeypatch.context() as patch:
        patch.setattr("headrace.lake.index.KeyIndex.confirm", full)
        world.lake.commit(Position(1, followed.lsn))
    assert world.lake.position == batch.end
    take(world.lake, followed)
    assert_silver(world, followed)


def test_a_commit_of_another_engine_is_noticed_and_taken_up(world: World, followed: Imagination) -> None:
    take(world.lake, followed)
    orders, _ = followed.tables
    gone = next(iter(orders.rows))
    # What DuckDB does to a table: it deletes a row, and writes another behind our back.
    with open_engine(world.catalog, "lake") as engine:
        engine.execute(f"delete from lake.silver.orders where id = {gone[0]}")
    del orders.rows[gone]
    kept = {table.id: {key: dict(row) for key, row in table.rows.items()} for table in followed.tables}
    batch = followed.batch(transactions=10)
    world.lake.stage(batch)
    with pytest.raises(CommitConflict):
        world.lake.commit(Position(1, followed.lsn))
    for table in followed.tables:
        table.rows = kept[table.id]
    assert_silver(world, followed)
    take(world.lake, followed, transactions=10)
    assert_silver(world, followed)


def test_silver_is_the_fold_of_bronze(world: World, followed: Imagination) -> None:
    for _ in range(20):
        take(world.lake, followed, transactions=2)
    with open_engine(world.catalog) as engine:
        for table in followed.tables:
            folded = engine.execute(fold_sql(f"lake.bronze.{table.id.lake_name}", table.schema)).to_arrow_table().to_pylist()
            assert silver_tuples(table, folded) == table.expected()


def test_rebuilding_replaces_silver_by_what_it_is_given(world: World, followed: Imagination) -> None:
    take(world.lake, followed, transactions=10)
    orders, _ = followed.tables
    with open_engine(world.catalog) as engine:
        folded = engine.execute(fold_sql("lake.bronze.orders", orders.schema)).to_arrow_table()
    assert world.lake.rebuild(orders.id, [folded.slice(begin, 7) for begin in range(0, folded.num_rows, 7)]) == len(orders.rows)
    world.lake.commit(Position(1, followed.lsn))
    assert_silver(world, followed)
    take(world.lake, followed, transactions=10)
    assert_silver(world, followed)


def test_the_index_can_be_deleted_between_commits(world: World, followed: Imagination) -> None:
    for _ in range(3):
        world.lake.drop_index(followed.tables[0].id)
        take(world.lake, followed, transactions=3)
    assert_silver(world, followed)


def test_a_parked_table_stands_still_while_the_others_go_on(world: World, followed: Imagination) -> None:
    orders, names = followed.tables
    fault = TableFault(reason="column v was dropped", remedy="headrace resync public.orders", lsn=followed.lsn)
    texts = {"op": "c", "commit_lsn": 5, "ordinal": 0, "after": [("id", "7"), ("note", None)]}
    quarantined = pa.Table.from_pylist([{**dict.fromkeys(QUARANTINE.names), **texts}], schema=QUARANTINE)
    before = orders.expected()
    batch = followed.batch(transactions=3)
    world.lake.stage(
        replace(
            batch,
            tables={names.id: batch.tables[names.id]},
            faults={orders.id: fault},
            quarantined={orders.id: quarantined},
        )
    )
    world.lake.commit(Position(1, followed.lsn))
    assert silver_tuples(orders, world.rows("silver", "orders")) == before
    assert silver_tuples(names, world.rows("silver", "names")) == names.expected()
    (row,) = world.rows("headrace", "quarantine")
    assert (row["table_name"], row["reason"], row["after"]) == ("orders", fault.reason, [("id", "7"), ("note", None)])
    world.restart()
    assert world.lake.tables[orders.id].fault == fault
    assert not world.lake.tables[orders.id].following
    assert world.lake.tables[names.id].following


def test_a_table_whose_silver_cannot_follow_is_parked_while_its_bronze_goes_on(world: World, followed: Imagination) -> None:
    orders, _ = followed.tables
    before = orders.expected()
    bronze = len(world.rows("bronze", "orders"))
    batch = followed.only(orders, [("c", 900)])
    broken = batch.tables[orders.id].to_pylist()
    broken[0]["after"]["id"] = None
    changes = pa.Table.from_pylist(broken, schema=batch.tables[orders.id].schema)
    world.lake.stage(replace(batch, tables={orders.id: changes}))
    world.lake.commit(Position(1, followed.lsn))
    assert len(world.rows("bronze", "orders")) == bronze + 1
    assert silver_tuples(orders, world.rows("silver", "orders")) == before
    fault = world.lake.tables[orders.id].fault
    assert fault is not None
    assert "key column id" in fault.reason


def widened(table: ImaginedTable, **kinds: Any) -> ImaginedTable:
    """The same table with other types for some columns, and new columns at the end."""
    own = [(column.name, kinds.pop(column.name, column.type)) for column in table.schema.columns]
    table.schema = replace(table.schema, columns=columns(*own, *kinds.items()))
    return table


def test_an_added_column_is_followed(world: World, followed: Imagination) -> None:
    orders, _ = followed.tables
    take(world.lake, followed)
    widened(orders, added=StringType())
    batch = followed.batch(transactions=5)
    changes = batch.tables[orders.id]
    after = changes.column("after").combine_chunks()
    fields = [*after.type, pa.field("added", pa.string())]
    arrays = [*after.flatten(), pa.array([f"n{number}" for number in range(len(after))])]
    extended = pa.StructArray.from_arrays(arrays, fields=fields, mask=after.is_null())
    told = changes.set_column(changes.schema.get_field_index("after"), "after", extended)
    world.lake.stage(replace(batch, tables={**batch.tables, orders.id: told}))
    world.lake.commit(Position(1, followed.lsn))
    assert_silver(world, followed)
    found = {row["id"]: row["added"] for row in world.rows("silver", "orders")}
    assert {value is None for value in found.values()} == {True, False}
    assert world.arrow("bronze", "orders").schema.field("after").type.get_field_index("added") >= 0
    world.restart()
    take(world.lake, followed, transactions=20)  # merges files with and without the column
    assert_silver(world, followed)
    with open_engine(world.catalog) as engine:
        assert engine.execute("select count(after.added) from bronze.orders").fetchone()


def test_a_change_that_would_lose_values_parks_the_table_and_keeps_the_rows(world: World, followed: Imagination) -> None:
    orders, _ = followed.tables
    before = orders.expected()
    batch = followed.only(orders, [("c", 900)])
    widened(orders, v=StringType())
    world.lake.stage(replace(batch, schemas={table.id: table.schema for table in followed.tables}))
    world.lake.commit(Position(1, followed.lsn))
    fault = world.lake.tables[orders.id].fault
    assert fault is not None
    assert "column v was long and is now string" in fault.reason
    assert silver_tuples(orders, world.rows("silver", "orders")) == before
    (row,) = world.rows("headrace", "quarantine")
    assert dict(row["after"])["id"] == "900"


def test_progress_says_where_each_table_stands(world: World, followed: Imagination) -> None:
    take(world.lake, followed, transactions=5)
    storage = Storage(world.folder / "lake")
    progress = read_progress(world.catalog, storage, "shop")
    storage.close()
    assert progress is not None
    assert progress.position == Position(1, followed.lsn)
    orders = progress.tables[followed.tables[0].id]
    assert orders.schema == followed.tables[0].schema
    assert (orders.state, orders.copy_lsn, orders.rows) == ("following", 1_000, len(followed.tables[0].rows))
    assert orders.changes == len(world.rows("bronze", "orders"))
    assert read_progress(world.catalog, storage, "nobody") is None


def test_the_idle_position_is_kept_without_a_commit(world: World, followed: Imagination) -> None:
    version = world.catalog.latest_version()
    world.lake.note_idle(Position(1, followed.lsn + 5_000))
    world.lake.note_idle(Position(1, followed.lsn + 4_000))
    assert world.catalog.latest_version() == version
    assert world.restart().position == Position(1, followed.lsn + 5_000)


def test_a_batch_in_the_middle_of_a_transaction_is_not_visible(world: World, followed: Imagination) -> None:
    before = {table.id: table.expected() for table in followed.tables}
    world.lake.stage(followed.batch(transactions=3, cut=True))
    for table in followed.tables:
        assert silver_tuples(table, world.rows("silver", table.id.lake_name)) == before[table.id]
    take(world.lake, followed)
    assert_silver(world, followed)
