"""Killed at any moment, and with the source shut down under it, a run loses nothing and repeats nothing.

`HEADRACE_KILLS` sets how many kills (30 for the full measure), `HEADRACE_CRASH_SEED` the seed, which is printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from headrace.failpoint import NAMES
from headrace.testing.postgres import Postgres
from tests.acceptance.running import RunningProject, stop, wait_until
from tests.acceptance.witness import create_witness, witnessed

KILLS = int(os.environ.get("HEADRACE_KILLS", "12"))
SEED = int(os.environ.get("HEADRACE_CRASH_SEED", str(random.SystemRandom().randrange(10**6))))
EACH = min(3, max(1, KILLS // 10))
"""How often each phase must be met."""
TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history")


@pytest.fixture
def server() -> Iterator[Postgres]:
    """A server of its own: this test shuts it down."""
    with Postgres() as started:
        yield started


class Load:
    """pgbench in a loop, until stopped; it survives the server's shutdowns."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._server.run_tool("pgbench", "-n", "-c", "2", "-T", "2", "--rate", "400", check=False)
            time.sleep(0.05)


def killed(process: subprocess.Popen[str], *, within: float) -> bool:
    """Wait for a failpoint to kill the run; kill it ourselves when its moment does not come."""
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_by_kills_and_source_crashes(server: Postgres, tmp_path: Path) -> None:
    print(f"HEADRACE_CRASH_SEED={SEED} HEADRACE_KILLS={KILLS}")
    draw = random.Random(SEED)
    server.run_tool("pgbench", "-i", "-s", "1")
    running = RunningProject(tmp_path / "bank", server.url, tables="[public.pgbench_*]", extra="")
    publications = (running.project.publication, running.project.appends_publication)
    server.execute(
        f"CREATE PUBLICATION {publications[0]} FOR TABLE pgbench_accounts, pgbench_branches, pgbench_tellers",
        f"CREATE PUBLICATION {publications[1]} FOR TABLE pgbench_history WITH (publish = 'insert, truncate')",
    )
    create_witness(server.url, publications)
    hit: Counter[str] = Counter()
    with Load(server):
        # the copy's phases can only be met while there is no copy yet
        plan = ["copy"] * EACH + ["copy-staged"] * EACH
        following = NAMES[2:]
        plan += [following[n % len(following)] for n in range(KILLS - len(plan))]
        for number, point in enumerate(plan):
            passing = draw.randint(1, {"copy": 2, "copy-staged": 1}.get(point, 6))
            process = running.start("run", failpoints=f"{point}=kill:{passing}")
            if killed(process, within=20):
                hit[point] += 1
            if number >= 2 * EACH and number % ((KILLS - 2 * EACH) // 5) == 0:
                process = running.start("run")
                time.sleep(draw.uniform(0.3, 1.5))
                server.restart(immediate=True)
                time.sleep(draw.uniform(0.2, 1.0))
                if process.poll() is None:  # it went on by itself, or stops when asked
                    assert stop(process) == 0, running.log()[-3000:]
                hit["source-shutdown"] += 1
        process = running.start("run")
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    print("hit:", dict(hit))
    rare = [name for name in NAMES if hit[name] < EACH]
    assert not rare, f"met less than {EACH} times: {rare}; log: {running.log()[-2000:]}"
    assert hit["source-shutdown"] >= 5

    server.run_tool("pgbench", "-n", "-t", "10")
    running.must("run", "--until-caught-up")
    rows = witnessed(server.url, publications)
    for table in TABLES:
        copied = running.query(
            f"SELECT min(commit_lsn) AS lsn, count(DISTINCT commit_lsn) AS copies FROM bronze.{table} WHERE op = 'r'"
        )[0]
        first = copied["lsn"] or 0
        changes = running.query(f"SELECT commit_lsn, ordinal FROM bronze.{table} WHERE op <> 'r'")
        found = Counter((row["commit_lsn"], row["ordinal"]) for row in changes)
        expected = Counter(
            (row.commit_lsn, row.ordinal) for row in rows if row.relation == f"public.{table}" and row.commit_lsn >= first
        )
        assert not expected - found, f"{table}: {len(expected - found)} changes are missing in bronze"
        assert not found - expected, f"{table}: {len(found - expected)} changes in bronze are doubled or invented"
    running.must("verify")
    before = {table: running.query(f"SELECT * FROM silver.{table} ORDER BY ALL") for table in TABLES[:3]}
    for table in TABLES[:3]:
        running.must("rebuild", f"public.{table}")
    after = {table: running.query(f"SELECT * FROM silver.{table} ORDER BY ALL") for table in TABLES[:3]}
    assert before == after, "silver is not the fold of bronze"


@pytest.mark.slow
def test_a_run_goes_on_by_itself_when_the_source_comes_back(server: Postgres, tmp_path: Path) -> None:
    server.execute("CREATE TABLE items (id int PRIMARY KEY)", "INSERT INTO items VALUES (1)")
    running = RunningProject(tmp_path / "shop", server.url)
    process = running.start("run")
    wait_until(lambda: running.run("query", "SELECT 1 FROM silver.items").code == 0, seconds=30, what="the first copy")
    server.restart(immediate=True)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("INSERT INTO items VALUES (2)")
    wait_until(
        lambda: running.run("query", "SELECT id FROM silver.items WHERE id = 2", "--format", "csv").out.count("2") > 0,
        seconds=30,
        what="the change after the restart",
    )
    assert stop(process) == 0, running.log()
