"""Copies of many tables over a few connections: all rows once, nothing half, nobody held up for longer than their own table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from headrace.schema import TableId, TableSchema
from headrace.source.postgres.copy import LockedTable
from headrace.source.postgres.source import PostgresSource
from tests.conftest import Database
from tests.integration.test_source import Collected, source_of


def copied(source: PostgresSource, kind: Callable[[TableSchema, int], Collected] = Collected) -> dict[str, list[Collected]]:
    """Copy every table; the sinks by table name, in the order in which they were asked for."""
    sinks: dict[str, list[Collected]] = {}

    def sink(schema: TableSchema, lsn: int) -> Collected:
        made = kind(schema, lsn)
        sinks.setdefault(schema.table.name, []).append(made)
        return made

    source.copy(sorted(source.tables()), sink, lambda table, rows: None)
    return sinks


def in_ranges(source: PostgresSource, *, connections: int, range_bytes: int = 1 << 20) -> PostgresSource:
    source._settings = replace(source._settings, copy_connections=connections, copy_range_bytes=range_bytes)
    return source


def ids(sink: Collected) -> list[int]:
    return sorted(sink.rows["after"].combine_chunks().field("id").to_pylist()) if sink.chunks else []


@contextmanager
def alongside(work: Callable[[], object]) -> Iterator[None]:
    """Do ``work`` in a thread while the block goes on; its error is raised after the block."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=30)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("connections", [1, 3])
def test_every_row_of_every_table_comes_once(database: Database, connections: int) -> None:
    sizes = {f"t{number}": number * number for number in range(20)} | {"large": 40_000}
    for name, rows in sizes.items():
        database.execute(
            f"CREATE TABLE {name} (id int PRIMARY KEY, pad text)",
            f"INSERT INTO {name} SELECT g, repeat('x', 200) FROM generate_series(1, {rows}) g",
        )
    source = in_ranges(source_of(database.url), connections=connections)
    with source.open(None):
        sinks = copied(source)
    assert {name: [ids(sink) for sink in made] for name, made in sinks.items()} == {
        name: [list(range(1, rows + 1))] for name, rows in sizes.items()
    }
    assert all(sink.finished and not sink.discarded for made in sinks.values() for sink in made)
    assert len(sinks["large"][0].chunks) > 5
    ordinals = sinks["large"][0].rows["ordinal"].to_pylist()
    assert sorted(ordinals) == list(range(-40_000, 0))


def test_a_sink_that_fails_ends_the_copy_and_nothing_half_stays(database: Database) -> None:
    for name in ("a", "b", "c"):
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)", f"INSERT INTO {name} SELECT generate_series(1, 5000)")
    made: list[Collected] = []

    class Full(Collected):
        def __init__(self, schema: TableSchema, lsn: int) -> None:
            super().__init__(schema, lsn)
            made.append(self)

        def append(self, rows: pa.Table) -> None:
            if self.schema.table.name == "b":
                raise OSError(28, "No space left on device")
            super().append(rows)

    source = in_ranges(source_of(database.url), connections=2)
    with pytest.raises(OSError, match="No space left"), source.open(None):
        copied(source, Full)
    assert all(sink.finished != sink.discarded for sink in made)
    assert not any(sink.finished for sink in made if sink.schema.table.name == "b")


def test_who_holds_a_table_and_waits_for_another_gets_both(database: Database) -> None:
    """While one table is read the copy waits for the next one, whose holder waits for the first."""
    for name in ("first", "second"):
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)", f"INSERT INTO {name} SELECT generate_series(1, 3000)")
    database.execute("INSERT INTO first SELECT generate_series(3001, 4000)", "ANALYZE")  # the larger one is read first
    reading, held, waiting = threading.Event(), threading.Event(), threading.Event()

    class Slow(Collected):
        def append(self, rows: pa.Table) -> None:
            reading.set()
            assert waiting.wait(20)
            super().append(rows)

    def hold_and_truncate() -> None:
        assert reading.wait(20)
        with psycopg.connect(database.url) as session:
            session.execute("LOCK TABLE second IN ACCESS EXCLUSIVE MODE")
            held.set()
            threading.Timer(0.5, waiting.set).start()
            session.execute("TRUNCATE first")

    source = in_ranges(source_of(database.url), connections=2)
    lock_table = source._lock_table

    def lock_second_late(*arguments: Any) -> LockedTable:
        if arguments[-1].name == "second":
            assert held.wait(20)
        return lock_table(*arguments)

    source._lock_table = lock_second_late  # type: ignore[method-assign]
    with source.open(None), alongside(hold_and_truncate):
        sinks = copied(source, Slow)
    assert ids(sinks["second"][-1]) == list(range(1, 3001))
    # read before the TRUNCATE, which follows in the log, or again after it
    assert ids(sinks["first"][-1]) in ([], list(range(1, 4001)))
    assert sinks["first"][-1].finished and sinks["second"][-1].finished


def test_a_table_that_was_copied_is_free_while_the_others_are_read(database: Database) -> None:
    for name, rows in (("large", 4000), ("small", 10)):
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)", f"INSERT INTO {name} SELECT generate_series(1, {rows})")
    database.execute("ANALYZE")
    truncated = threading.Event()

    class Waiting(Collected):
        def append(self, rows: pa.Table) -> None:
            if self.schema.table == TableId("public", "small"):
                assert truncated.wait(20)
            super().append(rows)

        def finish(self) -> None:
            super().finish()
            if self.schema.table.name == "large":
                threading.Thread(target=alter, daemon=True).start()

    def alter() -> None:
        with psycopg.connect(database.url, autocommit=True) as session:
            session.execute("SET lock_timeout = '10s'")
            session.execute("TRUNCATE large")
        truncated.set()

    source = in_ranges(source_of(database.url), connections=2)
    with source.open(None):
        sinks = copied(source, Waiting)
    assert ids(sinks["large"][-1]) == list(range(1, 4001))
    assert ids(sinks["small"][-1]) == list(range(1, 11))
