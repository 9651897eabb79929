"""Spark reads what the lake's writer wrote, compacts it, and the writer goes on from there.

Spark is installed by ``tests/spark/install.sh DIR``; ``HEADRACE_SPARK=DIR`` names it.
"""

from __future__ import annotations

import pytest

from headrace.catalog.serve import serve_in_thread
from headrace.errors import CommitConflict
from headrace.position import Position
from headrace.schema import TableId, TableSchema
from tests.integration.catalog.test_catalog_spark import pytestmark, spark
from tests.unit.lake.conftest import World, world
from tests.unit.lake.imagined import Imagination, ImaginedTable, columns
from tests.unit.lake.test_lake_types import TYPES, sample, told
from tests.unit.lake.test_lake_writer import assert_silver, follow, take

__all__ = ["pytestmark", "world"]

TOTALS = "select count(*), sum(v), sum(_commit_lsn), cast(sum(amount) as string), count(big), size(collect_set(id)) from lake.silver.orders"
BRONZE = "select count(*), sum(after.v), count(after.big), count(before.id), sum(commit_lsn) from lake.bronze.orders"


def expected_totals(table: ImaginedTable) -> list[object]:
    rows = list(table.rows.values())
    numbers = [row["amount"] for row in rows if row["amount"] not in (None, "NaN")]
    return [
        len(rows),
        sum(row["v"] for row in rows),
        sum(row["_lsn"] for row in rows),
        str(sum(numbers)) if numbers else None,
        sum(row["big"] is not None for row in rows),
        len(rows),
    ]


def test_spark_reads_and_compacts_and_the_writer_goes_on(world: World) -> None:
    imagination = Imagination(ImaginedTable("orders"), seed=9)
    (orders,) = imagination.tables
    follow(world, imagination)
    for _ in range(25):
        take(world.lake, imagination, transactions=2)
    everything = TableId("public", "everything")
    without_time = [(name, kind) for name, (kind, _, _) in TYPES.items() if name != "t"]  # Spark has no such type
    pairs = [("k", TYPES["s"][0]), *without_time]
    copy = world.lake.copy(TableSchema(table=everything, columns=columns(*pairs), key=("k",)), imagination.lsn)
    copy.append(told("s", sample("s"), "r", imagination.lsn))
    copy.finish()
    world.lake.adopt(world.lake.staged_copies())
    world.lake.commit(Position(1, imagination.lsn))
    with serve_in_thread(world.catalog) as endpoint:
        lake = {"uri": endpoint.url, "warehouse": "lake", "token": endpoint.token}
        totals, bronze, hours, types, compacted, again = spark(
            {"lake": lake},
            TOTALS,
            BRONZE,
            "select count(*) from lake.bronze.orders where commit_time >= timestamp '2026-03-01 13:00:00'",
            "select cast(n38 as string), u, s, tz < current_timestamp(), size(ls), cast(ln as string), lower(hex(bin))"
            " from lake.silver.everything order by n38, u",
            "call lake.system.rewrite_data_files(table => 'silver.orders', options => map('rewrite-all', 'true'))",
            TOTALS,
        )
    assert totals == [expected_totals(orders)]
    kept = world.rows("bronze", "orders")
    after = [row["after"] for row in kept if row["after"] is not None]
    assert bronze == [
        [
            len(kept),
            sum(row["v"] for row in after),
            sum(row["big"] is not None for row in after),
            sum(row["before"] is not None for row in kept),
            sum(row["commit_lsn"] for row in kept),
        ]
    ]
    assert hours == [[sum(row["commit_time"].isoformat() >= "2026-03-01T13" for row in kept)]]
    assert isinstance(types, list)
    assert len(types) == len(sample("s"))
    assert isinstance(compacted, list)
    assert again == totals

    batch = imagination.batch(transactions=3)
    world.lake.stage(batch)
    with pytest.raises(CommitConflict):
        world.lake.commit(Position(1, imagination.lsn))
    world.lake.stage(batch)  # the source sends it again
    world.lake.commit(Position(1, imagination.lsn))
    take(world.lake, imagination, transactions=10)
    assert_silver(world, imagination)
