"""The main job against its limits: a backlog and a first copy to bronze and silver, beside pg_recvlogical and a bare binary COPY.

``python benchmarks/main_job.py [--runs 5] [--rows 1000000] [--transactions 120000] [--copy-rows 5000000] [--json FILE]``

Each pair alternates, on copies of one slot (the backlog) or on the same tables (the copy), so that both see the same machine.
The lake is restored to the same state before each run. Rates are changes per second of the whole process, start-up included. The
first copy is timed at two sizes, because start-up is a third of the smaller one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import workload
from headrace.testing.postgres import Postgres
from processes import Cost, measure

SETTINGS = {"fsync": "off", "max_wal_size": "16GB", "checkpoint_timeout": "1h", "autovacuum": "off"}
PUBLICATIONS = ("headrace_bench", "headrace_bench_appends")


@dataclass(frozen=True, kw_only=True)
class Result:
    name: str
    goal: float
    changes: int
    ours: list[Cost]
    limit: list[Cost]

    @property
    def ratios(self) -> list[float]:
        """Ours ÷ the limit's rate, pair by pair."""
        return [limit.wall / ours.wall for ours, limit in zip(self.ours, self.limit, strict=True)]


class Bench:
    def __init__(self, server: Postgres, folder: Path, runs: int) -> None:
        self.server = server
        self.project = folder / "bench"
        self.saved = folder / "saved"
        self.runs = runs
        self.project.mkdir()
        (self.project / "headrace.yaml").write_text(f"pipeline: bench\nsource:\n  url: {server.url}\n  tables: [public.*]\n")

    def headrace(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "headrace", "-C", str(self.project), *arguments]

    def sql(self, statement: str) -> None:
        self.server.execute(statement)

    def save(self) -> None:
        shutil.copytree(self.project, self.saved)

    def restore(self) -> None:
        shutil.rmtree(self.project)
        shutil.copytree(self.saved, self.project)

    def drain_ours(self) -> Cost:
        self.restore()
        self.sql("SELECT pg_copy_logical_replication_slot('base', 'headrace_bench')")
        cost = measure(self.headrace("run", "--until-caught-up", "--quiet"), self.server.pid)
        self.sql("SELECT pg_drop_replication_slot('headrace_bench')")
        return cost

    def drain_recvlogical(self, end: str) -> Cost:
        self.sql("SELECT pg_copy_logical_replication_slot('base', 'recvlogical')")
        cost = measure(
            [
                str(self.server.bin / "pg_recvlogical"),
                *("-d", self.server.url, "--slot", "recvlogical", "--start", "--no-loop", "--endpos", end),
                *("-o", "proto_version=1", "-o", f"publication_names={','.join(PUBLICATIONS)}", "-f", "-"),
            ],
            self.server.pid,
        )
        self.sql("SELECT pg_drop_replication_slot('recvlogical')")
        return cost

    def backlog(self, name: str, goal: float) -> Result:
        with self.server.connect() as connection:
            (end,) = connection.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
            (changes,) = connection.execute(
                "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('base', NULL, NULL, 'proto_version', '1',"
                " 'publication_names', %s) WHERE get_byte(data, 0) IN (73, 85, 68, 84)",
                [",".join(PUBLICATIONS)],
            ).fetchone() or (0,)
        return self.pairs(name, goal, changes, self.drain_ours, lambda: self.drain_recvlogical(str(end)))

    def copy_ours(self) -> Cost:
        shutil.rmtree(self.project / "lake", ignore_errors=True)
        shutil.rmtree(self.project / ".headrace", ignore_errors=True)
        cost = measure(self.headrace("run", "--until-caught-up", "--quiet"), self.server.pid)
        self.sql("SELECT pg_drop_replication_slot('headrace_bench')")
        return cost

    def copy_bare(self) -> Cost:
        psql = [str(self.server.bin / "psql"), self.server.url, "-qc", "COPY orders TO STDOUT (FORMAT binary)"]
        return measure([*psql, "-c", "COPY users TO STDOUT (FORMAT binary)"], self.server.pid)

    def first_copy(self, goal: float) -> Result:
        with self.server.connect() as connection:
            (rows,) = connection.execute("SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM users)").fetchone() or (0,)
        return self.pairs(f"first copy, {rows / 1e6:.1f} M rows", goal, int(rows), self.copy_ours, self.copy_bare)

    def pairs(self, name: str, goal: float, changes: int, ours: Callable[[], Cost], limit: Callable[[], Cost]) -> Result:
        mine, theirs = [], []
        for _ in track(range(self.runs), description=name, console=Console(stderr=True)):
            mine.append(ours())
            theirs.append(limit())
        return Result(name=name, goal=goal, changes=changes, ours=mine, limit=theirs)


def spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def show(results: list[Result]) -> None:
    table = Table(title="median (lowest–highest)")
    for heading in ("work", "changes", "ours s", "limit s", "ratio", "goal", "our CPU s/M", "PostgreSQL CPU s/M", "peak PSS MB"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for result in results:
        millions = result.changes / 1e6
        table.add_row(
            result.name,
            f"{result.changes:,}",
            spread([cost.wall for cost in result.ours]),
            spread([cost.wall for cost in result.limit]),
            spread(result.ratios, 2),
            f"≥ {result.goal}",
            spread([cost.cpu / millions for cost in result.ours]),
            spread([cost.server_cpu / millions for cost in result.ours]),
            f"{max(cost.peak_pss for cost in result.ours) / 1e6:.0f}",
        )
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--transactions", type=int, default=120_000)
    parser.add_argument("--copy-rows", type=int, default=5_000_000, help="rows of the larger first copy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    results = []
    try:
        with Postgres(settings=SETTINGS) as server:
            bench = Bench(server, folder, options.runs)
            workload.create(server)
            # the lake follows the tables before the workload: the backlog is changes only
            subprocess.run(bench.headrace("run", "--until-caught-up", "--quiet"), check=True)
            bench.sql("SELECT pg_copy_logical_replication_slot('headrace_bench', 'base')")
            bench.sql("SELECT pg_drop_replication_slot('headrace_bench')")
            bench.save()
            workload.insert_only(server, options.rows)
            results.append(bench.backlog("backlog, insert-only", 1.7))
            workload.mix(server, options.transactions, rows=options.rows)
            results.append(bench.backlog("backlog, the mix", 1.3))
            results.append(bench.first_copy(0.4))
            workload.insert_only(server, options.copy_rows - options.rows, first=options.rows + 1)
            results.append(bench.first_copy(0.4))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(results)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
