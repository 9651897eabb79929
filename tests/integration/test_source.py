"""PostgreSQL behind the source port: copies and changes meet without gap or overlap."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from headrace.change import ChangeBatch, TableFault
from headrace.errors import AlreadyRunning, PositionLost, SourceNotReady
from headrace.position import Position
from headrace.schema import TableId, TableSchema
from headrace.source.postgres.capture import CaptureSettings
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.copy import LockedTable
from headrace.source.postgres.source import PostgresSettings, PostgresSource
from tests.conftest import Database

Session = psycopg.Connection[tuple[object, ...]]
ITEMS = TableId("public", "items")
LOGS = TableId("public", "logs")


def source_of(url: str, *, include: tuple[str, ...] = ("public.*",), say: list[str] | None = None) -> PostgresSource:
    return PostgresSource(
        connector=Connector(url),
        settings=PostgresSettings(
            include=include,
            exclude=(),
            slot="headrace_test",
            publication="headrace_test",
            appends_publication="headrace_test_appends",
            capture=CaptureSettings(),
        ),
        say=(say if say is not None else []).append,
        tell_reader=lambda _: None,
    )


class Collected:
    """A copy sink that keeps what came."""

    def __init__(self, schema: TableSchema, lsn: int) -> None:
        self.schema, self.lsn, self.chunks, self.finished, self.discarded = schema, lsn, [], False, False

    def append(self, rows: pa.Table) -> None:
        self.chunks.append(rows)

    def finish(self) -> None:
        self.finished = True

    def discard(self) -> None:
        self.discarded = True

    @property
    def rows(self) -> pa.Table:
        return pa.concat_tables(self.chunks) if self.chunks else None


def copy_all(source: PostgresSource) -> dict[TableId, Collected]:
    copies: dict[TableId, Collected] = {}

    def sink(schema: TableSchema, lsn: int) -> Collected:
        copies[schema.table] = Collected(schema, lsn)
        return copies[schema.table]

    source.copy(sorted(source.tables()), sink, lambda table, rows: None)
    return copies


def changes_until_now(
    source: PostgresSource, start: Position, copies: dict[TableId, Collected], parked: dict[TableId, TableFault] | None = None
) -> list[ChangeBatch]:
    return list(
        source.changes(
            start,
            tables={table: copy.schema for table, copy in copies.items()},
            from_lsn={table: copy.lsn for table, copy in copies.items()},
            parked=parked or {},
            until=source.end(),
        )
    )


def rows_of(batches: list[ChangeBatch], table: TableId) -> list[dict[str, object]]:
    return [row for batch in batches if table in batch.tables for row in batch.tables[table].to_pylist()]


@pytest.fixture
def tables(database: Database) -> Iterator[Session]:
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(8,2))")
        connection.execute("CREATE TABLE logs (line text)")
        connection.execute("INSERT INTO items SELECT n, 'item ' || n, n / 100.0 FROM generate_series(1, 1000) n")
        connection.execute("INSERT INTO logs VALUES ('first')")
        yield connection


def test_a_copy_has_every_row_once_with_ordinals_of_its_own(database: Database, tables: Session) -> None:
    source = source_of(database.url)
    with source.open(None):
        copies = copy_all(source)
    items = copies[ITEMS].rows
    assert sorted(row["id"] for row in items["after"].to_pylist()) == list(range(1, 1001))
    assert set(items["op"].to_pylist()) == {"r"}
    ordinals = items["ordinal"].to_pylist()
    assert len(set(ordinals)) == 1000 and max(ordinals) < 0
    assert set(items["commit_lsn"].to_pylist()) == {copies[ITEMS].lsn}
    assert copies[ITEMS].schema.key == ("id",)
    assert copies[LOGS].schema.key == ()
    assert copies[ITEMS].finished


def test_copy_and_changes_meet_without_gap_or_overlap_under_writes(database: Database, tables: Session) -> None:
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(database.url, autocommit=True) as connection:
            n = 1000
            while not stop.is_set():
                n += 1
                connection.execute("INSERT INTO items VALUES (%s, 'live', 1)", [n])
                connection.execute("INSERT INTO logs VALUES (%s)", [str(n)])

    source = source_of(database.url)
    with ExitStack() as running:
        start = running.enter_context(source.open(None))
        writer = threading.Thread(target=write)
        writer.start()
        try:
            copies = copy_all(source)
        finally:
            threading.Event().wait(0.3)
            stop.set()
            writer.join()
        batches = changes_until_now(source, start, copies)
    expected = tables.execute("SELECT count(*) FROM items").fetchone()
    copied = [row["id"] for row in copies[ITEMS].rows["after"].to_pylist()]
    followed = [row["after"]["id"] for row in rows_of(batches, ITEMS)]  # type: ignore[index]
    assert expected is not None and len(copied) + len(followed) == expected[0]
    assert len(set(copied) | set(followed)) == expected[0]
    logs = copies[LOGS].rows.num_rows + len(rows_of(batches, LOGS))
    assert (logs,) == tables.execute("SELECT count(*) FROM logs").fetchone()


@pytest.mark.parametrize("wanted", ["items", "parts_0"])
def test_a_copy_gives_way_to_a_session_that_waits_to_truncate_its_table(database: Database, tables: Session, wanted: str) -> None:
    tables.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY HASH (id)")
    tables.execute("CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    tables.execute("INSERT INTO parts VALUES (1)")
    table = ITEMS if wanted == "items" else TableId("public", "parts")
    truncating = threading.Thread(target=database.execute, args=(f"TRUNCATE {wanted}",), daemon=True)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
    copies: list[Collected] = []

    def sink(schema: TableSchema, lsn: int) -> Collected:
        copies.append(Collected(schema, lsn))
        if len(copies) == 1:
            truncating.start()
            while tables.execute(waiting, [wanted]).fetchone() == (0,):
                threading.Event().wait(0.01)
        return copies[-1]

    said: list[str] = []
    source = source_of(database.url, say=said)
    with source.open(None):
        source.copy([table], sink, lambda table, rows: None)
    truncating.join(10)
    assert not truncating.is_alive()
    assert [copy.discarded for copy in copies] == [True, False]
    assert copies[1].finished and copies[1].rows is None
    assert any("waits to alter or truncate" in text for text in said)


def test_updates_of_a_table_without_key_go_on_working_at_the_source(database: Database, tables: Session) -> None:
    source = source_of(database.url)
    with source.open(None) as start:
        copies = copy_all(source)
        tables.execute("UPDATE logs SET line = 'changed'")
        tables.execute("DELETE FROM logs")
        tables.execute("INSERT INTO logs VALUES ('last')")
        batches = changes_until_now(source, start, copies)
    assert [row["op"] for row in rows_of(batches, LOGS)] == ["c"]


def test_every_kind_of_change_arrives_in_order(database: Database, tables: Session) -> None:
    source = source_of(database.url)
    with source.open(None) as start:
        copies = copy_all(source)
        with tables.transaction():
            tables.execute("UPDATE items SET price = price + 1 WHERE id = 1")
            tables.execute("UPDATE items SET id = -2 WHERE id = 2")
            tables.execute("DELETE FROM items WHERE id = 3")
        tables.execute("TRUNCATE items, logs")
        tables.execute("INSERT INTO items VALUES (5, NULL, 'NaN')")
        batches = changes_until_now(source, start, copies)
    rows = rows_of(batches, ITEMS)
    assert [row["op"] for row in rows] == ["u", "u", "d", "t", "c"]
    assert [row["ordinal"] for row in rows] == [0, 1, 2, 0, 0]
    assert rows[1]["before"] == {"id": 2, "name": None, "price": None}
    assert rows[4]["after"] == {"id": 5, "name": None, "price": None}
    assert rows[4]["after_text"] == [("price", "NaN")]
    lsns = [row["commit_lsn"] for row in rows]
    assert lsns == sorted(lsns) and len(set(lsns)) == 3


def test_an_acknowledged_position_is_where_the_next_session_begins(database: Database, tables: Session) -> None:
    source = source_of(database.url)
    with source.open(None) as start:
        copies = copy_all(source)
        tables.execute("INSERT INTO items VALUES (2001, 'before', 1)")
        batches = changes_until_now(source, start, copies)
        end = batches[-1].end
        assert end is not None
        source.acknowledge(end)
    tables.execute("INSERT INTO items VALUES (2002, 'between', 1)")
    again = source_of(database.url)
    with again.open(end) as start:
        batches = changes_until_now(again, start, copies)
    assert [row["after"]["id"] for row in rows_of(batches, ITEMS)] == [2002]  # type: ignore[index]


def test_an_added_column_is_followed(database: Database, tables: Session) -> None:
    source = source_of(database.url)
    with source.open(None) as start:
        copies = copy_all(source)
        tables.execute("INSERT INTO items VALUES (2001, 'narrow', 1)")
        tables.execute("ALTER TABLE items ADD COLUMN note varchar(10)")
        tables.execute("INSERT INTO items VALUES (2002, 'wide', 1, 'noted')")
        batches = changes_until_now(source, start, copies)
    rows = rows_of(batches, ITEMS)
    assert rows[0]["after"] == {"id": 2001, "name": "narrow", "price": rows[0]["after"]["price"]}  # type: ignore[index]
    assert rows[1]["after"]["note"] == "noted"  # type: ignore[index]
    assert not any(batch.faults for batch in batches)


@pytest.mark.parametrize(
    ("ddl", "reason"),
    [
        ("ALTER TABLE items DROP COLUMN name", "name was dropped or renamed"),
        ("ALTER TABLE items ALTER COLUMN price TYPE text", "price changed its type"),
        ("ALTER TABLE items ADD COLUMN stock int DEFAULT 7", "stock was added with a default"),
    ],
)
def test_a_change_that_cannot_be_followed_parks_its_table_and_keeps_its_rows(
    database: Database, tables: Session, ddl: str, reason: str
) -> None:
    source = source_of(database.url)
    with source.open(None) as start:
        copies = copy_all(source)
        tables.execute(ddl)
        tables.execute("INSERT INTO items (id, price) VALUES (3001, '4.50')")
        tables.execute("INSERT INTO logs VALUES ('goes on')")
        batches = changes_until_now(source, start, copies)
    faults = {table: fault for batch in batches for table, fault in batch.faults.items()}
    assert set(faults) == {ITEMS} and reason in faults[ITEMS].reason and "resync" in faults[ITEMS].remedy
    kept = [row for batch in batches if ITEMS in batch.quarantined for row in batch.quarantined[ITEMS].to_pylist()]
    assert dict(kept[0]["after"])["id"] == "3001" and dict(kept[0]["after"])["price"] == "4.50"
    assert [row["after"] for row in rows_of(batches, LOGS)] == [{"line": "goes on"}]


def test_a_second_run_on_the_same_slot_is_told_so(database: Database, tables: Session) -> None:
    with (
        source_of(database.url).open(None),
        pytest.raises(AlreadyRunning, match="headrace_test"),
        source_of(database.url).open(None),
    ):
        pass


def test_a_lost_recreated_or_foreign_slot_is_never_resumed(database: Database, tables: Session) -> None:
    with source_of(database.url).open(None) as start:
        pass
    tables.execute("SELECT pg_drop_replication_slot('headrace_test')")
    with pytest.raises(PositionLost, match="does not exist"), source_of(database.url).open(start):
        pass
    tables.execute("INSERT INTO items VALUES (4001, 'lost', 1)")
    tables.execute("SELECT pg_create_logical_replication_slot('headrace_test', 'pgoutput')")
    with pytest.raises(PositionLost, match="past the lake"), source_of(database.url).open(start):
        pass
    with pytest.raises(PositionLost, match="log ends at"), source_of(database.url).open(Position(1, 2**50)):
        pass
    tables.execute("SELECT pg_drop_replication_slot('headrace_test')")
    tables.execute("SELECT pg_create_logical_replication_slot('headrace_test', 'test_decoding')")
    with pytest.raises(SourceNotReady, match="test_decoding"), source_of(database.url).open(None):
        pass


def test_a_table_altered_between_snapshot_and_read_is_read_under_a_new_snapshot(database: Database, tables: Session) -> None:
    said: list[str] = []
    source = source_of(database.url, say=said)
    with source.open(None):
        before = dict(source.tables())
        # DDL between the snapshot and the copy's lock: a truncate would look like an empty table under the old snapshot
        original = source._lock_table
        done = threading.Event()

        def alter_first(*arguments: Any) -> LockedTable:
            if not done.is_set():
                done.set()
                tables.execute("TRUNCATE items")
                tables.execute("INSERT INTO items VALUES (1, 'after', 1)")
            return original(*arguments)

        source._lock_table = alter_first  # type: ignore[method-assign]
        copies = copy_all(source)
    assert ITEMS in before
    assert any("new snapshot" in text for text in said)
    assert [row["id"] for row in copies[ITEMS].rows["after"].to_pylist()] == [1]
