"""The streaming reader on a real walsender: the same messages as in bulk, acknowledged, kept alive, and left when it must be."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pyarrow as pa
import pytest

from headrace.change import ChangeBatch
from headrace.errors import AlreadyRunning, SourceUnreachable
from headrace.position import Position, parse_lsn
from headrace.schema import TableId
from headrace.source.postgres import capture as capturing
from headrace.source.postgres import readers, slots
from headrace.source.postgres.bulk import BulkReader
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.readers import Choice, Chunk, Reached, SlotReading
from headrace.source.postgres.source import PostgresSource
from headrace.source.postgres.stream import StreamReader
from headrace.testing.postgres import Postgres
from tests.conftest import Database
from tests.integration.test_source import source_of

ITEMS = TableId("public", "items")
SLOT = "headrace_test"


@pytest.fixture
def slot(database: Database) -> int:
    """A table, its publication and a slot; the slot's position."""
    database.execute("CREATE TABLE items (id int PRIMARY KEY, name text)", "CREATE PUBLICATION headrace_test FOR TABLE items")
    return parse_lsn(database.value("SELECT lsn FROM pg_create_logical_replication_slot(%s, 'pgoutput')", SLOT))


def streaming(database: Database, position: int, *, chunk_bytes: int = 1 << 20) -> StreamReader:
    return StreamReader(reading(database, position, chunk_bytes))


def reading(database: Database, position: int, chunk_bytes: int) -> SlotReading:
    return SlotReading(
        connector=Connector(database.url),
        slot=SLOT,
        publications=("headrace_test",),
        position=position,
        chunk_bytes=chunk_bytes,
        decoding_memory="64kB",
    )


def read_until(reader: StreamReader, lsn: int, *, room: Callable[[], float] = lambda: 0.0) -> list[Chunk | Reached]:
    """What the reader gives until it has reached this LSN."""
    items: list[Chunk | Reached] = []
    for item in reader.read(room, lambda reached: False):
        items.append(item)
        if isinstance(item, Reached) and item.lsn >= lsn:
            break
    return items


def messages(items: list[Chunk | Reached]) -> list[tuple[int, bytes]]:
    """LSN and bytes of each message; a relation message has no LSN of its own in a stream."""
    return [
        (0 if data[:1] == b"R" else lsn, data)
        for item in items
        if isinstance(item, Chunk)
        for lsn, data in zip(_numbers(item.messages.column(0)), item.messages.column(1).to_pylist(), strict=True)
    ]


def _numbers(lsns: pa.Array) -> list[int]:
    values = lsns.to_pylist()
    return [value if isinstance(value, int) else int.from_bytes(value, "big") for value in values]


def end_of_log(database: Database) -> int:
    return parse_lsn(database.value("SELECT pg_current_wal_flush_lsn()"))


def write(database: Database, transactions: int) -> None:
    with database.connect() as session:
        for number in range(transactions):
            session.execute(
                "INSERT INTO items SELECT g, 'ü' || g FROM generate_series(%s::int, %s::int) g", [10 * number, 10 * number + 9]
            )
            session.execute("UPDATE items SET name = NULL WHERE id %% 7 = 0 AND id >= %s", [10 * number])
        session.execute("DELETE FROM items WHERE id < 5")


def test_a_stream_gives_the_messages_that_are_read_in_bulk(database: Database, slot: int) -> None:
    with streaming(database, slot) as reader:
        write(database, 20)
        end = end_of_log(database)
        streamed = read_until(reader, end)
    with BulkReader(reading(database, slot, 1 << 20)) as bulk:
        in_bulk = list(bulk.call(end))
    assert messages(streamed) == messages(in_bulk)
    assert len(messages(streamed)) > 300


def test_a_transaction_arrives_in_pieces_and_is_reached_with_its_end(database: Database, slot: int) -> None:
    with streaming(database, slot, chunk_bytes=20_000) as reader:
        database.execute("INSERT INTO items SELECT g, repeat('x', 100) FROM generate_series(1, 5000) g")
        items = read_until(reader, end_of_log(database))
    chunks = [item for item in items if isinstance(item, Chunk)]
    assert len(chunks) > 20 and [type(item) for item in items[: len(chunks)]] == [Chunk] * len(chunks)
    assert max(chunk.messages.nbytes for chunk in chunks) < 60_000
    assert sum(data[:1] == b"I" for _, data in messages(items)) == 5000


def test_changes_that_come_while_there_is_no_room_are_gathered(database: Database, slot: int) -> None:
    waits = [0.0]
    with streaming(database, slot) as reader:
        items = reader.read(lambda: waits[0], lambda reached: False)
        database.execute("INSERT INTO items VALUES (1, 'a')")
        assert len(next(items).messages) == 4  # type: ignore[union-attr]
        assert isinstance(next(items), Reached)
        waits[0] = 0.01
        for number in range(2, 30):
            database.execute(f"INSERT INTO items VALUES ({number}, 'b')")
        threading.Timer(0.3, lambda: waits.__setitem__(0, 0.0)).start()
        chunk = next(items)
        assert isinstance(chunk, Chunk)
        assert [data[:1] for data in chunk.messages.column(1).to_pylist()].count(b"I") == 28
        items.close()


def test_what_is_durable_is_acknowledged_while_the_stream_goes_on(database: Database, slot: int) -> None:
    with streaming(database, slot) as reader:
        database.execute("INSERT INTO items VALUES (1, 'a')")
        end = end_of_log(database)
        read_until(reader, end)
        time.sleep(1.5)
        confirmed = "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s"
        assert database.value(confirmed, SLOT) < end
        reader.flushed(end)
        deadline = time.monotonic() + 10
        while database.value(confirmed, SLOT) < end:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_another_database_writes_does_not_hold_the_slot_back(database: Database, slot: int) -> None:
    with streaming(database, slot) as reader:
        with psycopg.connect(database.server.url, autocommit=True) as other:
            other.execute("SELECT pg_logical_emit_message(false, 'other', repeat('x', 100000))")
        end = end_of_log(database)
        items = read_until(reader, end)
    assert [type(item) for item in items] == [Reached]


@contextmanager
def impatient_server() -> Iterator[Database]:
    """A server that takes a client for dead that says nothing for two seconds."""
    with Postgres(settings={"wal_sender_timeout": "2s"}) as server:
        yield Database(server=server, name="postgres")


@pytest.mark.slow
def test_a_consumer_that_is_busy_for_long_is_not_taken_for_dead() -> None:
    with impatient_server() as database:
        database.execute("CREATE TABLE items (id int PRIMARY KEY, name text)", "CREATE PUBLICATION headrace_test FOR TABLE items")
        at = parse_lsn(database.value("SELECT lsn FROM pg_create_logical_replication_slot(%s, 'pgoutput')", SLOT))
        with streaming(database, at, chunk_bytes=100_000) as reader:
            database.execute("INSERT INTO items SELECT g, repeat('x', 500) FROM generate_series(1, 50000) g")
            items = reader.read(lambda: 0.0, lambda reached: False)
            first = next(items)
            time.sleep(6)  # a commit that takes long
            database.execute("INSERT INTO items VALUES (0, 'last')")
            rest = [first]
            for item in items:
                rest.append(item)
                if isinstance(item, Reached) and item.lsn >= end_of_log(database):
                    break
    assert sum(data[:1] == b"I" for _, data in messages(rest)) == 50_001


def test_a_stream_that_the_source_ends_says_so(database: Database, slot: int) -> None:
    with streaming(database, slot) as reader:
        items = reader.read(lambda: 0.0, lambda reached: False)
        database.execute("INSERT INTO items VALUES (1, 'a')")
        next(items)
        next(items)
        database.execute(f"SELECT pg_terminate_backend({reader.pid})")
        with pytest.raises(SourceUnreachable, match="connection was lost"):
            for _ in items:
                pass


def test_a_slot_in_use_by_somebody_else_is_refused_by_name(
    database: Database, slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.source.postgres.stream.BUSY_SECONDS", 0.3)
    with (
        streaming(database, slot),
        pytest.raises(AlreadyRunning, match="'headrace_test' is in use by another session"),
        streaming(database, slot),
    ):
        pass


def test_a_stream_that_a_killed_run_left_is_ended_by_the_next_run(database: Database, slot: int) -> None:
    with streaming(database, slot) as left, database.connect() as control:
        control.execute("SET application_name = 'headrace'")
        before = time.monotonic()
        found = slots.idle_slot(control, SLOT)
        assert found is not None and found.active_pid is None
        assert time.monotonic() - before < 4
        assert database.rows("SELECT 1 FROM pg_stat_activity WHERE pid = %s", left.pid) == []


def test_a_stream_of_others_is_not_ended(database: Database, slot: int) -> None:
    with streaming(database, slot) as theirs, database.connect() as control:
        control.execute("SET application_name = 'headrace/another'")
        with pytest.raises(AlreadyRunning, match="not a run of this pipeline"):
            slots.idle_slot(control, SLOT, patience=0.3)
        assert database.rows("SELECT 1 FROM pg_stat_activity WHERE pid = %s", theirs.pid) == [(1,)]


# --- both readers, one after the other ------------------------------------------------------------------------------------------


def _following(source: PostgresSource, start: Position, take: Callable[[ChangeBatch], bool]) -> None:
    """Take batches until ``take`` says that it was the last."""
    table = source.tables()[ITEMS].schema
    changes = source.changes(start, tables={ITEMS: table}, from_lsn={ITEMS: start.lsn}, parked={})
    for batch in changes:
        if batch.end is not None:
            source.acknowledge(batch.end)
        if take(batch):
            break
    changes.close()


def test_no_change_is_lost_or_doubled_where_readers_take_turns(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BULK_ABOVE": 200_000, "STREAM_BELOW": 50_000, "PATIENCE_SECONDS": 0.0, "CATCH_UP_SECONDS": 0.0}.items():
        monkeypatch.setattr(readers, name, value)
    monkeypatch.setattr(readers, "REPEATED", 1_000)
    monkeypatch.setattr(capturing, "CHOOSE_SECONDS", 0.05)
    monkeypatch.setattr(capturing, "STREAM_CHUNK_BYTES", 20_000)
    database.execute("CREATE TABLE items (id int PRIMARY KEY, name text)")
    told: list[str] = []
    source = source_of(database.url)
    source._tell_reader = lambda choice: told.append(choice.reader)
    seen: list[tuple[int, int]] = []
    written: dict[str, int] = {}

    def take(batch: ChangeBatch) -> bool:
        rows = batch.tables.get(ITEMS)
        if rows is not None:
            seen.extend(zip(rows["commit_lsn"].to_pylist(), rows["ordinal"].to_pylist(), strict=True))
            if told[-1] == "stream" and "end" not in written:
                time.sleep(0.1)  # too slow for what is written meanwhile
        return batch.end is not None and batch.end.lsn >= written.get("end", 1 << 62)

    def keep_writing() -> None:
        with database.connect() as session:
            number = 0
            while len(told) < 5:
                number += 100
                session.execute(
                    "INSERT INTO items SELECT g, repeat('x', 50) FROM generate_series(%s::int, %s::int) g", [number, number + 99]
                )
                session.execute("INSERT INTO items VALUES (%s, 'single')", [-number])
                while told[-1:] == ["bulk"]:  # let it catch up
                    time.sleep(0.01)
        written["end"] = end_of_log(database)

    with source.open(None) as start:
        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            threading.Timer(60, source.stop).start()
            _following(source, start, take)
        finally:
            while len(told) < 5:
                told.append("gave up")
            writer.join()
    assert {"bulk", "stream"} <= set(told) and "gave up" not in told, told
    assert all(one != other for one, other in itertools.pairwise(told))
    assert len(seen) == len(set(seen)) == database.value("SELECT count(*) FROM items")
    assert seen == sorted(seen)


def test_the_choice_is_told_with_its_reason(database: Database) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY, name text)", "INSERT INTO items VALUES (1, 'a')")
    told: list[Choice] = []
    source = source_of(database.url)
    source._tell_reader = told.append
    with source.open(None) as start:
        database.execute("INSERT INTO items VALUES (2, 'b')")
        _following(source, start, lambda batch: ITEMS in batch.tables)
    (choice,) = told
    assert choice.reader == "stream" and "close to the end of the log" in choice.reason
