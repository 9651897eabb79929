"""How far a live pipeline lags: from a commit at the source to its version in the lake, at half the highest rate that it follows.

``python benchmarks/live.py [--rows 1000000] [--step 12] [--seconds 60] [--json FILE]``

First the rate is raised step by step, until the lag at a step's end is over a second or pgbench cannot write faster; then half of
the highest rate that was followed is written for ``--seconds``. A transaction's lag is the moment at which the run told of the
version that has it, less its commit time: both clocks are this machine's. PostgreSQL, pgbench and the run share the machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import workload
from headrace.testing.postgres import Postgres
from main_job import Bench
from processes import family, pss, server_seconds

SETTINGS = {"max_wal_size": "16GB", "autovacuum": "on"}
FIRST_RATE, FACTOR = 200, 1.6
FOLLOWED_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """Transactions of four changes a second: wanted and written. Lags in seconds, CPU in cores, memory in bytes."""

    wanted: int
    written: float
    lag_p50: float
    lag_p99: float
    lag_at_end: float
    our_cpu: float
    server_cpu: float
    peak_pss: int

    @property
    def followed(self) -> bool:
        return self.lag_at_end < FOLLOWED_SECONDS and self.written > 0.9 * self.wanted


class Live:
    """`headrace run --json`, and the moments at which it told of its versions."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.versions: list[tuple[float, float]] = []
        """When it was told of, and the commit time of its last transaction: seconds since 1970."""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "committed" and event["commit_time"]:
                self.versions.append((time.time(), datetime.fromisoformat(event["commit_time"]).timestamp()))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / 100


@contextmanager
def running(bench: Bench) -> Iterator[Live]:
    process = subprocess.Popen(bench.headrace("run", "--json"), stdout=subprocess.PIPE, text=True)
    live = Live(process)
    try:
        yield live
    finally:
        process.terminate()
        process.wait()


def step(server: Postgres, live: Live, rate: int, seconds: int, rows: int) -> Step:
    first, cpu, server_cpu, peak = len(live.versions), live.cpu_seconds(), server_seconds(server.pid), 0
    over = threading.Event()

    def watch_memory() -> None:
        nonlocal peak
        while not over.wait(0.5):
            peak = max(peak, sum(map(pss, family(live.process.pid)[:1])))

    watching = threading.Thread(target=watch_memory)
    watching.start()
    began = time.time()
    written = workload.live(server, rate=rate, seconds=seconds, rows=rows)
    end = time.time()
    cpu, server_cpu = live.cpu_seconds() - cpu, server_seconds(server.pid) - server_cpu
    time.sleep(FOLLOWED_SECONDS)
    behind = [told - committed for told, committed in live.versions[first:] if told > end]
    deadline = time.time() + 60
    while time.time() < deadline and (not live.versions or live.versions[-1][1] < end - 2):
        time.sleep(0.5)
    time.sleep(2)
    over.set()
    watching.join()
    lags = transaction_lags(server, live, began, end)
    return Step(
        wanted=rate,
        written=written,
        lag_p50=float(np.percentile(lags, 50)),
        lag_p99=float(np.percentile(lags, 99)),
        lag_at_end=max(behind, default=0.0),
        our_cpu=cpu / (end - began),
        server_cpu=server_cpu / (end - began),
        peak_pss=peak,
    )


def transaction_lags(server: Postgres, live: Live, began: float, end: float) -> npt.NDArray[np.float64]:
    """Seconds for each transaction that committed in that time, from the table in which the workload notes them."""
    with server.connect() as connection:
        noted = connection.execute(
            "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM beats"
            " WHERE pg_xact_commit_timestamp(xmin) BETWEEN to_timestamp(%s) AND to_timestamp(%s) ORDER BY 1",
            [began, end],
        ).fetchall()
    commits = np.array([at for (at,) in noted])
    told, last = np.array(live.versions).T
    last = np.maximum.accumulate(last)  # commit times are in the order of the log but for microseconds
    return told[np.minimum(np.searchsorted(last, commits - 1e-6), len(told) - 1)] - commits


def show(steps: list[Step], console: Console) -> None:
    table = Table(title="transactions of four changes")
    for heading in (
        "wanted/s",
        "written/s",
        "lag p50 s",
        "lag p99 s",
        "lag at end s",
        "our cores",
        "PostgreSQL's cores",
        "PSS MB",
    ):
        table.add_column(heading, justify="right")
    for one in steps:
        table.add_row(
            *(f"{one.wanted:,}", f"{one.written:,.0f}", f"{one.lag_p50:.2f}", f"{one.lag_p99:.2f}", f"{one.lag_at_end:.2f}"),
            *(f"{one.our_cpu:.2f}", f"{one.server_cpu:.2f}", f"{one.peak_pss / 1e6:.0f}"),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--step", type=int, default=12, help="seconds of a step")
    parser.add_argument("--seconds", type=int, default=60, help="seconds at half the rate")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console, folder = Console(width=140), Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    steps: list[Step] = []
    try:
        with Postgres(settings={**SETTINGS, "track_commit_timestamp": "on"}) as server:
            bench = Bench(server, folder, runs=1)
            workload.create(server)
            workload.insert_only(server, options.rows)
            workload.create_beats(server)
            subprocess.run(bench.headrace("run", "--until-caught-up", "--quiet"), check=True)
            with running(bench) as live:
                time.sleep(3)
                rate, best = FIRST_RATE, 0
                while True:
                    steps.append(step(server, live, rate, options.step, options.rows))
                    console.print(f"{rate:,}/s: written {steps[-1].written:,.0f}/s, lag at the end {steps[-1].lag_at_end:.2f} s")
                    if not steps[-1].followed:
                        break
                    best, rate = rate, int(rate * FACTOR)
                half = step(server, live, max(best // 2, 1), options.seconds, options.rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show([*steps, half], console)
    console.print(
        f"highest rate followed: {best:,}/s; at half of it for {options.seconds} s the lag is {half.lag_p50:.2f} s (median),"
    )
    console.print(f"{half.lag_p99:.2f} s (99th percentile); goals: 0.5 s and 1.5 s")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in [*steps, half]], indent=1))


if __name__ == "__main__":
    main()
