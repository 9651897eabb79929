"""Many small commits on a large silver table: what one costs, whether it gets dearer with age, and what a scan costs meanwhile.

``python benchmarks/commits.py [--rows 1000000] [--commits 2000] [--changes 100] [--key int|text] [--profile FILE]``

The table is loaded by a first copy. Each commit then holds the changes of one source transaction: updates, inserts and deletes of
scattered keys, ten columns wide; it changes bronze, silver and the progress table in one catalog commit, every file flushed to
disk. Scans are DuckDB's, through the catalog, of the whole table.
"""

from __future__ import annotations

import argparse
import cProfile
import resource
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.types import DecimalType, IcebergType, IntegerType, LongType, StringType, TimestamptzType

from headrace.catalog import Catalog
from headrace.change import ChangeBatch, change_schema
from headrace.lake.engine import open_engine
from headrace.lake.writer import LakeWriter
from headrace.position import Position
from headrace.schema import Column, TableId, TableSchema

TABLE = TableId("public", "orders")
COPY_ROWS = 200_000
SCAN_EVERY = 200


def schema(key: str) -> TableSchema:
    def column(name: str, kind: IcebergType, source: str) -> Column:
        return Column(name=name, type=kind, source_type=source)

    first = column("id", LongType(), "bigint") if key == "int" else column("id", StringType(), "text")
    columns = (
        first,
        column("user_id", LongType(), "bigint"),
        column("product_id", LongType(), "bigint"),
        column("quantity", IntegerType(), "integer"),
        column("unit_price", DecimalType(10, 2), "numeric(10,2)"),
        column("total", DecimalType(12, 2), "numeric(12,2)"),
        column("status", StringType(), "character varying(20)"),
        column("note", StringType(), "text"),
        column("created_at", TimestamptzType(), "timestamp with time zone"),
        column("updated_at", TimestamptzType(), "timestamp with time zone"),
    )
    return TableSchema(table=TABLE, columns=columns, key=("id",))


def rows(ids: np.ndarray, key: str) -> pa.StructArray:
    """Orders with these ids, as the change layout's struct."""
    n = len(ids)
    cent = pa.scalar(Decimal("0.01"), pa.decimal128(3, 2))
    price = pc.multiply(pa.array(ids % 10_000).cast(pa.decimal128(19, 0)), cent).cast(pa.decimal128(10, 2))
    names = pa.array(["new", "paid", "shipped", "done"]).take(pa.array(ids % 4))
    notes = pc.binary_join_element_wise(pa.scalar("note of order "), pa.array(ids).cast(pa.string()), "")
    times = pa.array(1_760_000_000_000_000 + ids * 1000, pa.timestamp("us", tz="UTC"))
    identity = pa.array(ids)
    if key == "text":
        identity = pc.binary_join_element_wise(pa.scalar("order-"), identity.cast(pa.string()), "")
    children = [
        identity,
        pa.array(1 + ids % 100_000),
        pa.array(1 + ids % 997),
        pa.array((1 + ids % 5).astype(np.int32)),
        price,
        price.cast(pa.decimal128(12, 2)),
        names,
        pc.if_else(pa.array(ids % 3 == 0), pa.scalar(None, pa.string()), notes),
        times,
        times,
    ]
    assert all(len(child) == n for child in children)
    return pa.StructArray.from_arrays(children, names=[column.name for column in schema(key).columns])


def changes(op: np.ndarray, before: pa.Array, after: pa.Array, *, lsn: int, first_ordinal: int, at: datetime) -> pa.Table:
    n = len(op)
    ordinals = np.arange(first_ordinal, first_ordinal + n)
    columns = [
        pa.array(op, pa.string()),
        pa.array(np.full(n, lsn)),
        pa.array(ordinals),
        pa.array(lsn - n + ordinals),
        pa.array(np.full(n, lsn % 2**31)),
        pa.repeat(pa.scalar(at, pa.timestamp("us", tz="UTC")), n),
        before,
        after,
        pa.nulls(n, pa.list_(pa.string())),
        pa.nulls(n, pa.map_(pa.string(), pa.string())),
        pa.nulls(n, pa.map_(pa.string(), pa.string())),
    ]
    return pa.Table.from_arrays(columns, schema=change_schema(after.type))


class Workload:
    """Transactions of ``size`` changes on scattered keys: 8 of 10 updates, one insert, one delete."""

    def __init__(self, count: int, size: int, key: str) -> None:
        self._random = np.random.default_rng(1)
        self._live = np.arange(count)
        self._next = count
        self._key = key
        self._size = size

    @property
    def live(self) -> int:
        return len(self._live)

    def transaction(self, lsn: int, at: datetime) -> pa.Table:
        size = self._size
        inserted, deleted = size // 10, size // 10
        picked = self._random.choice(len(self._live), size - inserted, replace=False)
        updates, deletes = self._live[picked[deleted:]], self._live[picked[:deleted]]
        inserts = np.arange(self._next, self._next + inserted)
        self._next += inserted
        self._live[picked[:deleted]] = inserts
        op = np.array(["u"] * len(updates) + ["c"] * inserted + ["d"] * deleted)
        ids = np.concatenate([updates, inserts, deletes])
        whole = rows(ids, self._key)
        gone, kept = op == "d", op != "d"
        after = whole.take(pa.array(np.where(kept, np.arange(size), -1), mask=gone))
        before = whole.take(pa.array(np.where(gone, np.arange(size), -1), mask=kept))
        return changes(op, before, after, lsn=lsn, first_ordinal=0, at=at)


def load(lake: LakeWriter, count: int, key: str, at: datetime) -> None:
    copy = lake.copy(schema(key), 1_000)
    for begin in range(0, count, COPY_ROWS):
        ids = np.arange(begin, min(count, begin + COPY_ROWS))
        after = rows(ids, key)
        op = np.full(len(ids), "r")
        copy.append(changes(op, pa.nulls(len(ids), after.type), after, lsn=1_000, first_ordinal=-count + begin, at=at))
    copy.finish()
    lake.adopt(lake.staged_copies())
    lake.commit(Position(1, 1_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--commits", type=int, default=2_000)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--key", choices=["int", "text"], default="int")
    parser.add_argument("--profile", help="write cProfile's data of the commits there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-commits-") as name:
        measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    catalog = Catalog.open(folder / "catalog.db", folder / "lake")
    lake = LakeWriter.open(catalog=catalog, warehouse=folder / "lake", state=folder / "state", pipeline="bench")
    at = datetime(2026, 1, 1, tzinfo=UTC)
    began = time.perf_counter()
    load(lake, arguments.rows, arguments.key, at)
    print(f"loaded {arguments.rows:,} rows in {time.perf_counter() - began:.2f} s")
    workload = Workload(arguments.rows, arguments.changes, arguments.key)
    lsn, walls, cpus = 1_000, [], []
    profile = cProfile.Profile() if arguments.profile else None
    for number in range(arguments.commits):
        lsn += 1_000
        at += timedelta(seconds=1)
        table = workload.transaction(lsn, at)
        batch = ChangeBatch(tables={TABLE: table}, schemas={TABLE: schema(arguments.key)}, end=Position(1, lsn), commit_time=at)
        if profile:
            profile.enable()
        began, cpu = time.perf_counter(), cpu_seconds()
        lake.stage(batch)
        lake.commit(Position(1, lsn))
        walls.append(time.perf_counter() - began)
        cpus.append(cpu_seconds() - cpu)
        if profile:
            profile.disable()
        if (number + 1) % SCAN_EVERY == 0 or number + 1 == arguments.commits:
            report(number + 1, walls, cpus, catalog, workload.live)
    first, last = statistics.mean(walls[:100]), statistics.mean(walls[-100:])
    p99 = statistics.quantiles(walls, n=100)[98]
    print(
        f"all commits: median {1000 * statistics.median(walls):.1f} ms, p99 {1000 * p99:.1f} ms, most {1000 * max(walls):.1f} ms;"
        f" first hundred's mean {1000 * first:.1f} ms, last hundred's {1000 * last:.1f} ms, ratio {last / first:.2f}"
    )
    if profile:
        profile.dump_stats(arguments.profile)
    lake.close()
    catalog.close()


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def report(number: int, walls: list[float], cpus: list[float], catalog: Catalog, live: int) -> None:
    """One line on the last commits, and a scan of silver, which must have the rows that it should."""
    metadata = catalog.load("silver", TABLE.lake_name).metadata
    summary = metadata["snapshots"][-1]["summary"]
    with open_engine(catalog) as engine:
        counted = engine.execute("SELECT count(*), count(DISTINCT id), sum(total) FROM lake.silver.orders").fetchone()
        began = time.perf_counter()
        engine.execute("SELECT count(*), count(DISTINCT id), sum(total) FROM lake.silver.orders").fetchone()
        scan = time.perf_counter() - began
    assert counted is not None and counted[0] == counted[1] == live, (counted, live)
    recent = walls[-100:]
    print(
        f"{number:6,} commits: mean {1000 * statistics.mean(recent):5.1f} ms  median {1000 * statistics.median(recent):5.1f}"
        f"  most {1000 * max(recent):6.1f}  CPU {1000 * statistics.mean(cpus[-100:]):5.1f} | scan {scan:.2f} s | silver"
        f" {summary['total-data-files']} data files, {summary['total-delete-files']} delete files,"
        f" {len(metadata['snapshots'])} snapshots",
        flush=True,
    )


if __name__ == "__main__":
    main()
