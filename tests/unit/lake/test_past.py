"""Which transactions a moment means, where commit times are not in the log's order; and which tables a statement names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from headrace.errors import ProjectError
from headrace.lake.engine import connect
from headrace.lake.past import Moment, moment_named, named_tables, open_past
from headrace.position import Position
from headrace.schema import TableId
from tests.unit.lake.conftest import World
from tests.unit.lake.imagined import Imagination, ImaginedTable
from tests.unit.lake.test_lake_writer import follow, take

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def position_at(world: World, moment: Moment) -> Position:
    opened = open_past(
        world.catalog, world.folder / "lake", pipeline="shop", name="lake", moment=moment, sql="SELECT 1", asked=str(moment)
    )
    with opened as past:
        return past.position


@pytest.mark.parametrize("seed", range(3))
def test_a_time_means_all_up_to_the_last_transaction_in_the_log_that_was_committed_by_then(world: World, seed: int) -> None:
    random = Random(seed)
    source = Imagination(ImaginedTable("orders"), ImaginedTable("names"), seed=seed)
    follow(world, source)
    committed: list[tuple[int, datetime]] = []
    for number in range(24):
        source.at = NOON + timedelta(seconds=number + random.choice([0, 0, 3, -3, -10]))  # clocks that are set forth and back
        table = source.tables[number % 2]
        batch = source.only(table, [("c", 1000 + number)])
        committed.append((source.lsn, source.at))
        world.lake.stage(batch)
        if random.random() < 0.4:
            world.lake.commit(Position(1, source.lsn))
    source.at = NOON + timedelta(minutes=5)
    take(world.lake, source)
    world.catalog.thin([one.number for one in world.catalog.versions() if random.random() < 0.3])

    for _ in range(12):
        moment = NOON + timedelta(seconds=random.uniform(4, 24))
        last = max(lsn for lsn, time in committed if time <= moment)
        assert last <= position_at(world, moment).lsn <= last + 100, "the next one begins a hundred later"


def test_a_moment_is_a_time_or_a_position() -> None:
    assert moment_named("16/B374D848") == Position(1, 0x16B374D848)
    assert moment_named("2:0/A") == Position(2, 10)
    assert moment_named("2030-01-01T12:00") == moment_named("2030-01-01T13:00:00+01:00") == NOON
    for wrong in ("noon", "16", "16/", "16/B374D8480", "0/1 "):
        with pytest.raises(ProjectError):
            moment_named(wrong)


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT 1", set()),
        (
            "WITH a AS (SELECT * FROM bronze.orders) SELECT * FROM a, items",
            {("bronze", "orders"), ("silver", "a"), ("silver", "items")},
        ),
        ("FROM lake.silver.Orders WHERE EXISTS (FROM other.silver.items)", {("silver", "orders")}),
        ("DESCRIBE orders", {("silver", "orders")}),
        ("PIVOT orders ON status", {("bronze", "orders"), ("silver", "orders")}),
        ("SELEKT", set()),
    ],
)
def test_the_tables_that_a_statement_names(sql: str, tables: set[tuple[str, str]]) -> None:
    with connect() as connection:
        assert named_tables(connection, sql, [TableId("public", "orders"), TableId("public", "items")]) == tables
