"""Reading a slot as a stream: PostgreSQL's walsender sends each transaction when it has committed.

See "Streaming Replication Protocol" and "Logical Streaming Replication Parameters" in PostgreSQL's documentation. Messages are
gathered into chunks of the same shape as those that are read in bulk. A chunk is handed on when whoever takes them has room, so
that under load a chunk has what came meanwhile, and otherwise a transaction goes on at once.

The stream reads the durable slot itself. What the lake has durably is acknowledged in the status messages that go back, from a
thread of their own: they also keep the source from taking a consumer that is busy for a dead one.
"""

from __future__ import annotations

import select
import struct
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import accumulate

import numpy as np
import psycopg
import pyarrow as pa
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import TupleRow

from headrace import failpoint
from headrace.errors import AlreadyRunning, SourceUnreachable
from headrace.position import format_lsn
from headrace.source.postgres.readers import Chunk, Reached, SlotReading
from headrace.source.postgres.waiting import end_with_client

XLOG_DATA, KEEPALIVE = b"wk"
BEGIN, COMMIT = b"BC"
HEADER = 25
"""Bytes of an XLogData message before its payload: kind, LSN, the log's end, time."""
STATUS_SECONDS = 1.0
BUSY_SECONDS = 10.0
POSTGRES_EPOCH = 946_684_800
POLL_MS = 100
GATHER_SECONDS = 0.02
OBJECT_IN_USE = "55006"


class StreamReader:
    """A walsender on the slot, while the reader is open.

    Raises AlreadyRunning when another session keeps the slot, SourceUnreachable, PositionLost, SourceNotReady.
    """

    def __init__(self, what: SlotReading) -> None:
        self._what = what
        self._connector = what.connector
        self._received = self._flushed = what.position
        self.pid = 0
        """The walsender's process at the source."""
        self._connection: psycopg.Connection[TupleRow] | None = None
        # libpq's connection is for one thread at a time.
        self._line = threading.Lock()
        self._answer = threading.Event()
        self._closing = threading.Event()
        self._stopped = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, name="headrace-keepalive", daemon=True)
        self._gathered = _Gathered()
        self._log_end = what.position

    def __enter__(self) -> StreamReader:
        connection = self._connector.connect_replication()
        try:
            end_with_client(lambda statement: connection.pgconn.exec_(statement.encode()))
            if self._what.decoding_memory:
                connection.pgconn.exec_(f"SET logical_decoding_work_mem = '{self._what.decoding_memory}'".encode())
            self._start(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self.pid = connection.info.backend_pid
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._answer.set()
        self._keeper.join()
        assert self._connection is not None
        with suppress(psycopg.Error):
            self._status(self._connection)
        self._connection.close()

    def stop(self) -> None:
        """End `read` soon, from any thread."""
        self._stopped.set()

    def flushed(self, lsn: int) -> None:
        """Everything before ``lsn`` is durable in the lake: the source is told with the next status message."""
        self._flushed = max(self._flushed, lsn)

    def _start(self, connection: psycopg.Connection[TupleRow]) -> None:
        command = (
            f'START_REPLICATION SLOT "{self._what.slot}" LOGICAL {format_lsn(self._received)}'
            f" (proto_version '1', publication_names {self._what.publication_names})"
        )
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            result = connection.pgconn.exec_(command.encode())
            if result.status == ExecStatus.COPY_BOTH:
                return
            error = psycopg.errors.error_from_result(result)
            if error.sqlstate != OBJECT_IN_USE:
                raise self._connector.failed(error) from error
            if time.monotonic() > deadline or self._stopped.is_set():
                raise AlreadyRunning(
                    f"slot {self._what.slot!r} is in use by another session of the source: a slot has one consumer at a time",
                    remedy="Stop that consumer; pg_replication_slots and pg_stat_activity show whose it is.",
                ) from error
            time.sleep(0.1)  # its last user is gone, and the source will notice

    # --- reading ----------------------------------------------------------------------------------------------------------------

    def read(self, room: Callable[[], float], leave: Callable[[int], bool]) -> Generator[Chunk | Reached, None, None]:
        """What is committed, for ever, or until it is stopped, or ``leave`` says so.

        ``room``: seconds until whoever takes the chunks is ready for one. ``leave`` is asked now and then, between transactions,
        with the LSN that has been reached. Raises SourceUnreachable, and what the source says.
        """
        assert self._connection is not None
        arrived = select.poll()
        arrived.register(self._connection.fileno(), select.POLLIN)
        gathered, told, full = self._gathered, time.monotonic(), False
        while not self._stopped.is_set():
            if gathered.complete:
                time.sleep(min(room(), GATHER_SECONDS))  # rather than to be woken by every message
            elif not full:
                arrived.poll(POLL_MS)
            self._take_in(self._connection, arrived)
            full = gathered.bytes >= self._what.chunk_bytes
            if full or (gathered.complete and not room()):
                failpoint.hit("fetch")
                if not gathered.complete:  # a part of a large transaction
                    yield Chunk(gathered.cut(len(gathered.messages)))
                    continue
                end = gathered.end
                yield Chunk(gathered.cut(gathered.complete))
                yield Reached(end)
                told = time.monotonic()
                if leave(end):  # what has come of later transactions is read again
                    return
            elif not gathered.messages and not gathered.inside and time.monotonic() - told > STATUS_SECONDS:
                told = time.monotonic()
                if self._log_end > self._received:
                    self._received = self._log_end
                    yield Reached(self._log_end)
                if leave(self._received):
                    return

    def _take_in(self, connection: psycopg.Connection[TupleRow], arrived: select.poll) -> None:
        """Gather what has arrived, up to a chunk."""
        gathered = self._gathered
        try:
            while gathered.bytes < self._what.chunk_bytes:
                with self._line:
                    connection.pgconn.consume_input()  # a few kB
                    self._take_messages(connection.pgconn)
                if not arrived.poll(0):
                    break
        except psycopg.Error as error:
            raise self._connector.failed(error) from error
        self._received = max(self._received, gathered.end)

    def _take_messages(self, pgconn: PGconn) -> None:
        """Gather the messages that libpq has."""
        gathered = self._gathered
        while True:
            size, message = pgconn.get_copy_data(1)
            if size == 0:
                return
            if size < 0:
                result = pgconn.get_result()
                if result is not None and result.status == ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(result)
                raise SourceUnreachable(
                    f"the source ({self._connector.target}) ended the stream of slot {self._what.slot!r}",
                    remedy="Check that the server runs: it ends streams when it shuts down.",
                )
            if message[0] == XLOG_DATA:
                gathered.add(message)
            elif message[0] == KEEPALIVE:
                self._log_end = max(self._log_end, int.from_bytes(message[1:9], "big"))
                if message[17]:
                    self._answer.set()

    # --- status messages: a thread of their own --------------------------------------------------------------------------------

    def _keep_alive(self) -> None:
        assert self._connection is not None
        while not self._closing.is_set():
            self._answer.wait(STATUS_SECONDS)
            self._answer.clear()
            try:
                self._status(self._connection)
            except psycopg.Error:
                return  # the reading thread meets the same, and tells

    def _status(self, connection: psycopg.Connection[TupleRow]) -> None:
        now = int((time.time() - POSTGRES_EPOCH) * 1e6)
        message = struct.pack(">cQQQQ?", b"r", self._received, self._flushed, self._flushed, now, False)
        with self._line:
            connection.pgconn.put_copy_data(message)
            connection.pgconn.flush()


class _Gathered:
    """Messages that have arrived and are not handed on yet."""

    def __init__(self) -> None:
        self.messages: list[memoryview] = []
        self.bytes = 0
        self.complete = 0
        """How many of them end with a commit."""
        self.end = 0
        """The end LSN of the last commit."""
        self.inside = False
        """Between a transaction's begin and commit."""

    def add(self, message: memoryview) -> None:
        """An XLogData message."""
        self.messages.append(message)
        self.bytes += len(message)
        kind = message[HEADER]
        if kind == COMMIT:
            self.complete, self.inside = len(self.messages), False
            self.end = int.from_bytes(message[HEADER + 10 : HEADER + 18], "big")
        elif kind == BEGIN:
            self.inside = True

    def cut(self, count: int) -> pa.RecordBatch:
        """The first so many, as columns ``lsn`` and ``data``; they are no longer here then."""
        taken, self.messages = self.messages[:count], self.messages[count:]
        payloads = [message[HEADER:] for message in taken]
        data = b"".join(payloads)
        self.bytes -= len(data) + HEADER * count
        self.complete = max(0, self.complete - count)
        offsets = np.fromiter(accumulate(map(len, payloads), initial=0), np.int32, count + 1)
        lsns = np.frombuffer(b"".join([message[1:9] for message in taken]), ">i8").astype(np.int64)
        return pa.record_batch(
            {
                "lsn": pa.array(lsns),
                "data": pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)]),
            }
        )
