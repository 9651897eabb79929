"""Sweeping: what any kept version needs stays and can be read, what none needs goes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pyiceberg.table import StaticTable

from headrace.catalog.files import path_of
from headrace.errors import LakeUnavailable
from headrace.lake.storage import Storage
from headrace.lake.sweep import Unreached, remove, staging_since, unreached
from headrace.position import Position
from tests.unit.lake.conftest import World
from tests.unit.lake.imagined import Imagination, ImaginedTable
from tests.unit.lake.test_lake_copies import begun
from tests.unit.lake.test_lake_writer import assert_silver, follow, take

LATER = timedelta(hours=2)


def files(world: World) -> set[Path]:
    return {path for path in (world.folder / "lake").rglob("*") if path.is_file()}


def found(world: World, *, before: timedelta = LATER) -> list[Unreached]:
    """What no kept version reaches and was last changed before then, counted from now."""
    storage = Storage(world.folder / "lake")
    try:
        versions = [version.number for version in world.catalog.versions()]
        return unreached(storage, world.catalog, versions, before=datetime.now(UTC) + before)
    finally:
        storage.close()


def content(world: World, version: int) -> dict[Any, list[str]]:
    """The rows of every table at that version, as PyIceberg reads them."""
    return {
        name: sorted(map(repr, StaticTable.from_metadata(location).scan().to_arrow().to_pylist()))
        for name, location in world.catalog.state(version).items()
    }


@pytest.fixture
def imagination(world: World) -> Iterator[Imagination]:
    imagined = Imagination(ImaginedTable("orders"), seed=7)
    follow(world, imagined)
    yield imagined


def test_versions_that_are_kept_can_be_read_and_the_lake_goes_on(world: World, imagination: Imagination) -> None:
    draw = Random(1)
    for _ in range(30):
        take(world.lake, imagination, transactions=3)
    before = files(world)
    numbers = [version.number for version in world.catalog.versions()]
    kept = sorted(draw.sample(numbers, 6))
    held = {number: content(world, number) for number in [*kept, numbers[-1]]}
    assert found(world) == [], "everything is needed by some version"
    world.catalog.thin([number for number in numbers if number not in kept])
    swept = found(world)
    assert len(swept) > len(before) / 3
    remove(swept)
    assert files(world) == before - {file.path for file in swept}
    assert {number: content(world, number) for number in held} == held
    assert found(world) == []
    for restart in (False, True):
        if restart:
            world.restart()
        for _ in range(10):
            take(world.lake, imagination, transactions=3)
        assert_silver(world, imagination)


def test_every_snapshot_that_the_present_metadata_lists_can_be_read(world: World, imagination: Imagination) -> None:
    for _ in range(12):
        take(world.lake, imagination, transactions=3)
    world.catalog.thin([version.number for version in world.catalog.versions()])
    remove(found(world))
    table = world.table("silver", "orders")
    listed = [snapshot.snapshot_id for snapshot in table.metadata.snapshots]
    assert len(listed) > 2
    for snapshot in listed:
        table.scan(snapshot_id=snapshot).to_arrow()


def test_what_a_crash_left_goes_when_it_is_old_enough(world: World, imagination: Imagination) -> None:
    world.lake.stage(imagination.batch(transactions=3))
    world.lake.abandon()
    folder = world.folder / "lake" / "silver" / "orders" / "data"
    orphan = folder / "left.parquet"
    orphan.write_bytes(b"123")
    assert found(world, before=-LATER) == []
    assert Unreached(path=orphan, size=3) in found(world)
    old = time.time() - 3 * LATER.total_seconds()
    os.utime(orphan, (old, old))
    swept = found(world, before=-LATER)
    assert swept == [Unreached(path=orphan, size=3)]
    assert remove([*swept, Unreached(path=folder / "gone already", size=9)]) == 3


def test_files_of_a_commit_that_is_being_staged_for_long_are_left_alone(
    world: World, imagination: Imagination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.lake.writer.LONG_STAGING", timedelta(0))
    began = datetime.now(UTC)
    world.lake.stage(imagination.batch(transactions=2))
    world.lake.stage(imagination.batch(transactions=2))
    (since,) = staging_since(world.catalog)
    assert began <= since <= datetime.now(UTC)
    staged = {file.path for file in found(world, before=LATER)}
    assert not {path for path in staged if path.stat().st_mtime > since.timestamp()}
    world.lake.commit(Position(1, imagination.lsn))
    assert staging_since(world.catalog) == []
    assert_silver(world, imagination)


def test_a_killed_run_s_staging_is_forgotten_by_the_next(
    world: World, imagination: Imagination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.lake.writer.LONG_STAGING", timedelta(0))
    world.lake.stage(imagination.batch(transactions=1))
    world.lake.stage(imagination.batch(transactions=1))
    assert len(staging_since(world.catalog)) == 1
    with world.another():  # as after a kill
        assert staging_since(world.catalog) == []


def test_a_commit_whose_files_were_taken_for_left_behind_does_not_take_place(
    world: World, imagination: Imagination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine slept while a commit was staged, and was swept when it woke."""
    before = files(world)
    batch = imagination.batch(transactions=3)
    world.lake.stage(batch)
    world.lake._staging_since = datetime.now(UTC) - timedelta(hours=9)
    settle = world.lake._storage.settle

    def settle_and_lose() -> None:
        settle()
        for path in files(world) - before:
            path.unlink()

    monkeypatch.setattr(world.lake._storage, "settle", settle_and_lose)
    with pytest.raises(LakeUnavailable, match=r"staged for bronze\.orders are gone"):
        world.lake.commit(Position(1, imagination.lsn))
    monkeypatch.undo()
    world.lake.stage(batch)
    world.lake.commit(Position(1, imagination.lsn))
    assert_silver(world, imagination)


def test_a_copy_that_waits_for_its_commit_is_left_alone(world: World, imagination: Imagination) -> None:
    before = files(world)
    begun(world, imagination).finish()
    day = time.time() - 86_400
    copied = [path for path in files(world) - before if "copy-" in str(path)]
    assert copied
    for path in copied:
        os.utime(path, (day, day))
    assert not [file for file in found(world) if "copy-" in str(file.path)]
    for path in copied:
        os.utime(path, (day - 8 * 86_400, day - 8 * 86_400))
    swept = [file for file in found(world) if "copy-" in str(file.path)]
    assert {file.path for file in swept} == set(copied)
    remove(swept)
    assert not any(path.parent.exists() for path in copied)


def test_nothing_is_removed_when_a_kept_version_cannot_be_read(world: World, imagination: Imagination) -> None:
    take(world.lake, imagination, transactions=3)
    metadata = world.table("silver", "orders").metadata
    manifest_list = path_of(metadata.snapshots[-1].manifest_list)
    manifest_list.unlink()
    with pytest.raises(LakeUnavailable, match="cannot be read"):
        found(world)


def test_files_of_others_in_the_warehouse_are_not_looked_at(world: World, imagination: Imagination) -> None:
    lake = world.folder / "lake"
    for name in ("notes.txt", "silver/readme.md", "silver/orders/notes.txt", "exports/data/file.parquet"):
        (lake / name).parent.mkdir(parents=True, exist_ok=True)
        (lake / name).write_text("mine")
    swept = {file.path for file in found(world)}
    assert not [path for path in swept if path.read_bytes() == b"mine"]
