"""Reading a slot in bulk: the log is decoded by calls of an SQL function, and its messages arrive as Arrow batches.

The calls consume a temporary copy of the durable slot, which dies with its session: nothing is acknowledged to the source here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import adbc_driver_manager
import pyarrow as pa

from headrace import failpoint
from headrace.position import format_lsn
from headrace.source.postgres.connect import batches_of, quoted
from headrace.source.postgres.readers import Chunk, Reached, SlotReading
from headrace.source.postgres.waiting import end_with_client


class BulkReader:
    """A copy of the slot, which is there while the reader is open."""

    def __init__(self, what: SlotReading) -> None:
        self._what = what
        self._connector = what.connector
        self.position = what.position
        """How far it has been read."""
        self._cursor: Any = None
        self._session = ExitStack()
        self._stopped = threading.Event()
        self._copy = f"{what.slot[:40]}_read_{time.time_ns() % 10**12}"

    def __enter__(self) -> BulkReader:
        with ExitStack() as opening:
            connection = opening.enter_context(closing(self._connector.adbc()))
            cursor = opening.enter_context(closing(connection.cursor()))
            end_with_client(cursor.execute)
            if self._what.decoding_memory:
                cursor.execute(f"SET logical_decoding_work_mem = '{self._what.decoding_memory}'")
            slot, copy = quoted(self._what.slot), quoted(self._copy)
            cursor.execute(f"SELECT slot_name::text FROM pg_copy_logical_replication_slot({slot}, {copy}, true)")
            cursor.fetchall()
            # The durable slot may stand further back: what was handed on after that must not come again.
            cursor.execute(
                f"SELECT pg_replication_slot_advance(slot_name, '{format_lsn(self.position)}')::text FROM pg_replication_slots"
                f" WHERE slot_name = {copy} AND confirmed_flush_lsn < '{format_lsn(self.position)}'"
            )
            cursor.fetchall()
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(self._what.chunk_bytes)})
            self._cursor = cursor
            self._session = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def stop(self) -> None:
        """End a call that is under way, from any thread."""
        self._stopped.set()
        if self._cursor is not None:
            with suppress(adbc_driver_manager.Error):  # nothing was under way
                self._cursor.adbc_cancel()

    def call(self, upto: int) -> Generator[Chunk | Reached, None, int]:
        """Read on to ``upto``, or to the end of the log record there; returns how many messages there were.

        Raises SourceUnreachable, PositionLost. When it was stopped the last item is missing.
        """
        messages, self.position = 0, upto
        for batch in self._batches(upto):
            failpoint.hit("fetch")
            messages += batch.num_rows
            self.position = max(upto, _end_of_commit(batch.column(1)[-1].as_py()))
            yield Chunk(batch)
        if not self._stopped.is_set():
            yield Reached(self.position)
        return messages

    def _batches(self, upto: int) -> Iterator[pa.RecordBatch]:
        try:
            self._cursor.execute(
                "SELECT lsn, data FROM pg_logical_slot_get_binary_changes("
                f"{quoted(self._copy)}, '{format_lsn(upto)}', NULL,"
                f" 'proto_version', '1', 'publication_names', {self._what.publication_names})"
            )
            for batch in batches_of(self._cursor):
                if batch.num_rows:
                    yield batch
        except (adbc_driver_manager.Error, OSError) as error:
            if self._stopped.is_set():
                return
            raise self._connector.failed(error) from error


def _end_of_commit(message: bytes) -> int:
    """The end LSN in a commit message; 0 for another. A call may end past where it was asked to, even with a whole commit, if
    that was within a page's header.
    """
    return int.from_bytes(message[10:18], "big") if message[:1] == b"C" else 0
