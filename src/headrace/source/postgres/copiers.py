"""Reading the tables of a copy: a few connections at a time, each with the next range of pages of whichever table is at hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any

import adbc_driver_manager
import pyarrow as pa

from headrace import failpoint
from headrace.schema import TableId, TableSchema
from headrace.source.port import CopySink, Stopped
from headrace.source.postgres.connect import Connector, batches_of
from headrace.source.postgres.convert import Converter
from headrace.source.postgres.copy import LockedTable, Snapshot, TableChanged, wanted_by_others

LOCK_NOT_AVAILABLE = "55P03"


class Copiers:
    """Copies tables under one snapshot, in their order, into sinks.

    ``lock`` opens a table (see `LockedTable`, also for what it raises), ``sink`` gives where its rows go, ``progress`` is told
    how many have come, ``say`` what a person should know. They are called from several threads, each by one at a time.
    """

    def __init__(
        self,
        *,
        connector: Connector,
        snapshot: Snapshot,
        tables: Sequence[TableId],
        lock: Callable[[TableId], LockedTable],
        sink: Callable[[TableSchema, int], CopySink],
        progress: Callable[[TableId, int], None],
        say: Callable[[str], None],
        stopped: threading.Event,
        connections: int,
        chunk_bytes: int,
        range_bytes: int,
    ) -> None:
        self._connector = connector
        self._snapshot = snapshot
        self._waiting = list(reversed(tables))
        self._lock_table = lock
        self._sink = sink
        self._progress = progress
        self._say = say
        self._stopped = stopped
        self._connections = connections
        self._chunk_bytes = chunk_bytes
        self._range_bytes = range_bytes
        self._changed: list[TableId] = []
        self._open: dict[TableId, _Copy] = {}
        self._at_hand: _Copy | None = None
        self._reading: set[Any] = set()
        self._failed = threading.Event()
        # To begin a table may take long, when others hold it. Meanwhile the tables that are open must be able to end: who holds
        # the one may wait for the other.
        self._beginning = threading.Lock()
        self._counting = threading.Lock()

    def run(self) -> list[TableId]:
        """Copy them all. Returns those that were altered since the snapshot, and need another one.

        Raises Stopped, and what went wrong first; the tables whose rows had not all come are discarded then.
        """
        try:
            with ThreadPoolExecutor(self._connections, thread_name_prefix="headrace-copy") as threads:
                work = [threads.submit(self._work) for _ in range(self._connections)]
            if self._stopped.is_set():
                raise Stopped
            for done in work:
                done.result()
        finally:
            for copy in self._open.values():
                copy.abandon()
        return self._changed

    def stop(self) -> None:
        """End `run` soon, from any thread: what is being read is cancelled."""
        for cursor in list(self._reading):
            with suppress(adbc_driver_manager.Error):  # nothing was under way
                cursor.adbc_cancel()

    def _work(self) -> None:
        try:
            with ExitStack() as session:
                cursor: Any = None
                converter = session.enter_context(closing(Converter()))
                while (piece := self._next()) is not None:
                    if cursor is None:
                        cursor = self._session(session)
                    copy, pages = piece
                    self._read(cursor, converter, copy, pages)
                    self._end(copy)
        except BaseException:
            if not self._failed.is_set():
                self._failed.set()
                self.stop()
                if not self._stopped.is_set():
                    raise

    def _session(self, until: ExitStack) -> Any:
        cursor = until.enter_context(closing(until.enter_context(closing(self._connector.adbc())).cursor()))
        cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(self._chunk_bytes)})
        self._reading.add(cursor)
        until.callback(self._reading.discard, cursor)
        return cursor

    def _next(self) -> tuple[_Copy, str] | None:
        """The next pages to read, and of which table; None when there are no more."""
        with self._beginning:
            while not self._stopped.is_set() and not self._failed.is_set():
                if self._at_hand is not None and (pages := self._at_hand.take()) is not None:
                    return self._at_hand, pages
                if not self._waiting:
                    break
                self._at_hand = self._begin(self._waiting.pop())
            return None

    def _begin(self, table: TableId) -> _Copy | None:
        try:
            locked = self._lock_table(table)
        except TableChanged as change:
            self._note_change(table, change)
            return None
        try:
            ranges = locked.page_ranges(self._range_bytes)
            copy = _Copy(table, locked, self._sink(locked.to_copy.schema, self._snapshot.lsn), ranges)
        except BaseException:
            locked.close()
            raise
        with self._counting:
            self._open[table] = copy
        return copy

    def _note_change(self, table: TableId, change: TableChanged) -> None:
        with self._counting:
            self._changed.append(table)
            self._say(f"{change}; it is read again under a new snapshot")

    def _read(self, cursor: Any, converter: Converter, copy: _Copy, pages: str) -> None:
        to_copy = copy.locked.to_copy
        with closing(self._batches(cursor, copy, pages)) as batches:
            for batch in batches:
                if self._stopped.is_set() or self._failed.is_set():
                    raise Stopped
                rows = converter.convert_copy(
                    batch,
                    to_copy.schema,
                    to_copy.mappings,
                    lsn=self._snapshot.lsn,
                    commit_time=self._snapshot.taken_at,
                    first_ordinal=self._count(copy, batch.num_rows),
                )
                failpoint.hit("copy")
                copy.target.append(rows)

    def _batches(self, cursor: Any, copy: _Copy, pages: str) -> Generator[pa.RecordBatch, None, None]:
        """The rows of these pages; fewer when the table is given up."""
        try:
            # A transaction for each range: whoever wants to alter a table that is copied must not wait for the others.
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute(f"SET TRANSACTION SNAPSHOT '{self._snapshot.name}'")
            # Who waits to alter or truncate the table waits for its lock; to wait behind them would be for ever.
            cursor.execute(f"LOCK TABLE {copy.source} IN ACCESS SHARE MODE NOWAIT")
            cursor.execute(f"SELECT {copy.selected} FROM {copy.source} WHERE {pages}")
            for batch in batches_of(cursor):
                if batch.num_rows:
                    yield batch
            cursor.execute("COMMIT")
        except (adbc_driver_manager.Error, OSError) as error:
            if self._stopped.is_set() or self._failed.is_set():
                raise Stopped from error
            if getattr(error, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise self._connector.failed(error) from error
            cursor.execute("ROLLBACK")
            if copy.give_up():
                self._note_change(copy.table, wanted_by_others(copy.table))

    def _count(self, copy: _Copy, rows: int) -> int:
        """Note that so many more rows have come; how many there were before."""
        with self._counting:
            before = copy.rows
            copy.rows += rows
            self._progress(copy.table, copy.rows)
            return before

    def _end(self, copy: _Copy) -> None:
        """One piece of the copy is read. The last one finishes it."""
        if copy.ended():
            copy.finish()
            with self._counting:
                del self._open[copy.table]


class _Copy:
    """A table being copied: what is left to read, and how many threads read it."""

    def __init__(self, table: TableId, locked: LockedTable, target: CopySink, ranges: Sequence[str]) -> None:
        self.table = table
        self.locked = locked
        self.target = target
        self.rows = 0
        to_copy = locked.to_copy
        self.selected = ", ".join(
            f"{mapping.copy_sql(_identifier(column.name))} AS {_identifier(column.name)}"
            for column, mapping in zip(to_copy.schema.columns, to_copy.mappings, strict=True)
        )
        name = f"{_identifier(table.schema)}.{_identifier(table.name)}"
        self.source = name if to_copy.partitioned else f"ONLY {name}"
        self._left = list(reversed(ranges))
        self._read_by = 0
        self._given_up = False
        self._lock = threading.Lock()

    def take(self) -> str | None:
        with self._lock:
            if not self._left:
                return None
            self._read_by += 1
            return self._left.pop()

    def give_up(self) -> bool:
        """Read no more of it. False if that was said already."""
        with self._lock:
            first, self._given_up, self._left = not self._given_up, True, []
            return first

    def ended(self) -> bool:
        """What was taken is read; True if that was the last."""
        with self._lock:
            self._read_by -= 1
            return not self._left and not self._read_by

    def finish(self) -> None:
        try:
            if self._given_up:
                self.target.discard()
            else:
                self.target.finish()
        finally:
            self.locked.close()

    def abandon(self) -> None:
        self.target.discard()
        self.locked.close()


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
