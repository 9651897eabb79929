"""Every version of the lake is a state that the source was in between two transactions, while pgbench writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from headrace.catalog import Catalog
from headrace.catalog.serve import serve_in_thread
from headrace.lake.engine import attach, connect
from tests.acceptance.running import RunningProject, stop, wait_until
from tests.conftest import Database

SECONDS = int(os.environ.get("HEADRACE_PGBENCH_SECONDS", "10"))
SCALE = os.environ.get("HEADRACE_PGBENCH_SCALE", "2")

SUMS = """
SELECT (SELECT sum(abalance)::BIGINT FROM lake.silver.pgbench_accounts),
       (SELECT sum(tbalance)::BIGINT FROM lake.silver.pgbench_tellers),
       (SELECT sum(bbalance)::BIGINT FROM lake.silver.pgbench_branches),
       (SELECT coalesce(sum(delta), 0)::BIGINT FROM lake.silver.pgbench_history)
"""


def every_version(catalog: Catalog, numbers: list[int]) -> Iterator[tuple[int, duckdb.DuckDBPyConnection]]:
    """Each of these versions in turn, attached to DuckDB as ``lake``."""
    with serve_in_thread(catalog) as endpoint, closing(connect()) as engine:
        for number in numbers:
            attach(engine, endpoint, f"lake@{number}")
            yield number, engine
            engine.execute("DETACH lake")


@pytest.mark.slow
def test_the_four_balances_agree_in_every_version_of_the_lake(database: Database, tmp_path: Path) -> None:
    arguments = ("-h", "127.0.0.1", "-p", str(database.server.port), database.name)
    database.server.run_tool("pgbench", "-i", "-s", SCALE, *arguments)
    running = RunningProject(tmp_path / "bank", database.url)
    writing = threading.Thread(target=database.server.run_tool, args=("pgbench", "-n", "-c", "4", "-T", str(SECONDS), *arguments))
    writing.start()
    process = running.start("run")
    writing.join()
    with database.connect() as connection:
        (source_sum,) = connection.execute("SELECT sum(abalance) FROM pgbench_accounts").fetchone() or (None,)

    def caught_up() -> bool:
        return (
            running.run("query", f"SELECT 1 FROM silver.pgbench_accounts HAVING sum(abalance) = {source_sum}").out.count("1") > 0
        )

    wait_until(caught_up, seconds=60, what="the lake to catch up")
    assert stop(process) == 0, running.log()

    with running.catalog() as catalog:
        versions = [
            version.number for version in catalog.versions() if ("silver", "pgbench_history") in catalog.state(version.number)
        ]
        assert len(versions) > SECONDS, "commits should come more often than once a second"
        seen = set()
        for number, engine in every_version(catalog, versions):
            sums = engine.execute(SUMS).fetchall()[0]
            assert len(set(sums)) == 1, f"version {number} shows half a transaction: {sums}"
            seen.add(sums[0])
        assert source_sum in seen and len(seen) > 3
    running.must("verify")
