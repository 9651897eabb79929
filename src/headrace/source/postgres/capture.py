"""Following a slot: log messages are fetched, decoded, and handed on as change batches.

Fetching, decoding and whatever the consumer does with a batch run side by side, each a few chunks ahead of the next. Two readers
fetch, in bulk or as a stream; which one is chosen again and again (`ReaderChoice`), and changed only between transactions.
Nothing is acknowledged to the source by reading: `acknowledge` is called with a position that is durable in the lake.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import psycopg
import pyarrow as pa
from psycopg.rows import TupleRow

from headrace import failpoint
from headrace.ahead import ahead
from headrace.change import ChangeBatch, TableFault
from headrace.position import Position
from headrace.schema import TableId, TableSchema
from headrace.source.postgres import slots
from headrace.source.postgres.bulk import BulkReader
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.convert import Converter
from headrace.source.postgres.decode import Decoded, Decoder, RelationMessage
from headrace.source.postgres.evolution import table_oid
from headrace.source.postgres.quarantine import quarantine_rows
from headrace.source.postgres.readers import Choice, Chunk, LogState, Reached, ReaderChoice, SlotReading
from headrace.source.postgres.stream import StreamReader
from headrace.source.postgres.types import TypeMapping

AnyReader = TypeVar("AnyReader", BulkReader, StreamReader)


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A table as its latest relation message describes it. ``columns`` maps positions in a tuple to the schema's columns."""

    schema: TableSchema
    mappings: tuple[TypeMapping, ...]
    fault: TableFault | None = None


RESOLVE_AGAIN = 60.0
"""Seconds for which the source's catalog is trusted on a table whose relation message stays the same."""
CHOOSE_SECONDS = 1.0
STREAM_CHUNK_BYTES = 8 << 20
IN_FLIGHT = 2
"""A stream hands on no more while so many pieces are on their way: what comes meanwhile is gathered into one."""
END_POLL_SECONDS, ROOM_SECONDS = 0.05, 0.003

Resolve = Callable[[RelationMessage, TableSchema, int], Followed]
"""From a relation message, the schema followed so far and the LSN of the message: how to read rows from here on."""


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """``chunk_bytes``: size of a chunk in memory. ``call_bytes``: log read by one call in bulk, doubled while a transaction is
    longer than that, up to ``call_bytes_max``. ``decoding_memory``: the source's ``logical_decoding_work_mem`` for our sessions;
    None leaves the server's. ``heartbeat``: seconds after which a log without changes for us gets a message of ours.
    ``interval``: seconds for which a stream gathers changes while more and more come.
    """

    chunk_bytes: int = 32 << 20
    call_bytes: int = 256 << 20
    call_bytes_max: int = 4 << 30
    decoding_memory: str | None = "256MB"
    heartbeat: float = 10.0
    interval: float = 0.2


@dataclass(frozen=True)
class _Resolved:
    """``until``: by the monotonic clock."""

    relation: RelationMessage
    followed: Followed
    until: float


class Capture:
    """One reading session on the slot ``slot``, starting at ``start``.

    ``tables``: what is followed, by table: the schema known so far. ``from_lsn``: per table the LSN from which its
    transactions count
    (those that committed before are in its copy, or in the lake). ``parked``: tables whose rows go to quarantine.
    """

    def __init__(
        self,
        *,
        connector: Connector,
        slot: str,
        publications: Sequence[str],
        start: Position,
        tables: Mapping[TableId, TableSchema],
        from_lsn: Mapping[TableId, int],
        parked: Mapping[TableId, TableFault],
        resolve: Resolve,
        settings: CaptureSettings,
        tell_reader: Callable[[Choice], None],
    ) -> None:
        self._connector = connector
        self._slot = slot
        self._publications = tuple(publications)
        self._start = start
        self._schemas = dict(tables)
        self._by_oid = {table_oid(schema): table for table, schema in tables.items()}
        self._from_lsn = dict(from_lsn)
        self._faults = dict(parked)
        self._resolve = resolve
        self._settings = settings
        self._stop = threading.Event()
        self._tell_reader = tell_reader
        self._choice = ReaderChoice()
        self._reader: BulkReader | StreamReader | None = None
        # While a stream reads the slot it cannot be advanced otherwise, and while it is being advanced no stream can begin.
        self._slot_use = threading.Lock()
        self._streaming: StreamReader | None = None
        self._handed = self._taken = 0
        """How often the end of what was read was handed on, and taken."""
        self._handed_at = 0.0
        self._resolved: dict[int, _Resolved] = {}
        self.source_lsn = start.lsn
        """How far the source's log was flushed when last asked."""

    def stop(self) -> None:
        """End `batches` soon, from any thread: a call that is under way is cancelled."""
        self._stop.set()
        reader = self._reader
        if reader is not None:
            reader.stop()

    def batches(self, *, until: int | None = None) -> Generator[ChangeBatch, None, None]:
        """The changes from the start position on, for ever or up to the LSN ``until``.

        An empty batch says how far the log has been read, now and then. Raises SourceUnreachable, PositionLost.
        """
        chunks = ahead(self._fetch(until), depth=2, name="fetch")
        with closing(chunks), closing(ahead(self._decode(chunks), depth=2, name="decode")) as batches:
            try:
                for batch in batches:
                    yield batch
                    self._taken += batch.reached
            finally:
                self.stop()

    # --- fetch: one thread -----------------------------------------------------------------------------------------------------

    def _fetch(self, until: int | None) -> Iterator[Chunk | Reached]:
        position = self._start.lsn
        if until is not None:
            self._tell_reader(Choice(reader="bulk", reason="up to where the log ended"))
        with self._connector.connect() as control:
            while not self._stop.is_set():
                reader = "bulk" if until is not None else self._choose(control, position).reader
                if until is not None and position >= until:
                    return
                items = self._stream(control, position) if reader == "stream" else self._bulk(control, position, until)
                with closing(items):
                    for item in items:
                        if isinstance(item, Reached):
                            position = item.lsn
                            self._handed, self._handed_at = self._handed + 1, time.monotonic()
                        yield item

    def _choose(self, control: psycopg.Connection[TupleRow], position: int) -> Choice:
        """Which reader should read now; whoever watches is told when that changes."""
        slot = slots.find_slot(control, self._slot)
        self.source_lsn = slots.current_lsn(control)
        restart = slot.restart_lsn if slot is not None and slot.restart_lsn is not None else position
        before = self._choice.now
        choice = self._choice.choose(LogState(position=position, end=self.source_lsn, restart=restart), time.monotonic())
        if choice is not before:
            self._tell_reader(choice)
        return choice

    def _bulk(
        self, control: psycopg.Connection[TupleRow], position: int, until: int | None
    ) -> Generator[Chunk | Reached, None, None]:
        """Up to ``until``; without it, for as long as this is the right reader."""
        settings = self._settings
        slots.wait_for_slot(control, stopped=self._stop)
        step = settings.call_bytes
        with self._reading(BulkReader(self._from(position, settings.chunk_bytes))) as reader:
            while not self._stop.is_set():
                self.source_lsn = slots.current_lsn(control)
                target = min(self.source_lsn, position + step, until if until is not None else self.source_lsn)
                if target > position:
                    messages = yield from reader.call(target)
                    # A transaction longer than the call is decoded again by the next one: ask for more at once.
                    longer = target < self.source_lsn and not messages
                    step = min(step * 2, settings.call_bytes_max) if longer else settings.call_bytes
                    position = reader.position
                elif until is not None and position < until:
                    self._stop.wait(END_POLL_SECONDS)  # the source's log ends before it
                if (until is not None and position >= until) or (
                    until is None and self._choose(control, position).reader != "bulk"
                ):
                    return

    def _stream(self, control: psycopg.Connection[TupleRow], position: int) -> Generator[Chunk | Reached, None, None]:
        """For as long as this is the right reader."""
        asked = moved = time.monotonic()
        at = position

        def leave(reached: int) -> bool:
            nonlocal asked, moved, at
            now = time.monotonic()
            if now - asked < CHOOSE_SECONDS:
                return False
            asked = now
            if reached != at:
                moved, at = now, reached
            elif now - moved > self._settings.heartbeat:
                control.execute("SELECT pg_logical_emit_message(false, 'headrace', %s)", [self._slot])
                moved = now
            return self._choose(control, reached).reader != "stream"

        reader = StreamReader(self._from(position, min(self._settings.chunk_bytes, STREAM_CHUNK_BYTES)))
        with self._slot_use, ExitStack() as opening:
            opening.enter_context(self._reading(reader))
            self._streaming = reader
            session = opening.pop_all()
        try:
            yield from reader.read(self._wait_for_room, leave)
        finally:
            with self._slot_use:
                self._streaming = None
                session.close()
                slots.release_slot(control, self._slot, reader.pid)

    def _from(self, position: int, chunk_bytes: int) -> SlotReading:
        return SlotReading(
            connector=self._connector,
            slot=self._slot,
            publications=self._publications,
            position=position,
            chunk_bytes=chunk_bytes,
            decoding_memory=self._settings.decoding_memory,
        )

    def _wait_for_room(self) -> float:
        """Seconds until a stream should hand on what it has; 0 when it should now."""
        if self._handed - self._taken >= IN_FLIGHT:
            return ROOM_SECONDS
        return max(0.0, self._handed_at + self._settings.interval - time.monotonic())

    @contextmanager
    def _reading(self, reader: AnyReader) -> Iterator[AnyReader]:
        """The reader, open, and known to `stop`."""
        self._reader = reader
        try:
            if self._stop.is_set():
                reader.stop()
            with reader:
                yield reader
        finally:
            self._reader = None

    def acknowledge(self, lsn: int, advance: Callable[[], None]) -> None:
        """Everything before ``lsn`` is durable: told to the stream, where the slot is read by one, else by ``advance``."""
        with self._slot_use:
            if self._streaming is not None:
                self._streaming.flushed(lsn)
            else:
                advance()

    # --- decode: another thread -----------------------------------------------------------------------------------------------

    def _decode(self, chunks: Iterator[Chunk | Reached]) -> Iterator[ChangeBatch]:
        decoder, epoch, last = Decoder(), self._start.epoch, self._start.lsn
        with closing(Converter()) as converter:
            for chunk in chunks:
                if isinstance(chunk, Reached):
                    # The log record that a call ends with may lie past where it was asked to end, a whole commit if that was
                    # within a page's header: what was handed on must not come again.
                    last = max(last, chunk.lsn)
                    yield ChangeBatch(tables={}, schemas={}, end=Position(epoch, last), reached=True)
                    continue
                for decoded in decoder.decode(chunk.messages.column(0), chunk.messages.column(1)):
                    batch = self._batch(decoded, converter, epoch)
                    last = max(last, decoded.end_lsn or 0)
                    failpoint.hit("decode")
                    yield batch

    def _batch(self, decoded: Decoded, converter: Converter, epoch: int) -> ChangeBatch:
        tables, schemas, faults = {}, {}, {}
        quarantined: dict[TableId, pa.Table] = {}
        for oid, rows in decoded.tables.items():
            relation = decoded.relations[oid]
            # By its oid, whatever it was called then: a table that was renamed for a while is still the same.
            table = self._by_oid.get(oid, TableId(relation.schema, relation.name))
            if table not in self._schemas:
                continue
            skip = _rows_before(rows.commit_lsn, self._from_lsn.get(table, self._start.lsn))
            if skip == rows.rows:
                continue
            followed = self._follow(table, relation, rows.change_lsn[0].as_py())
            if followed.fault is not None and table not in self._faults:
                self._faults[table] = faults[table] = followed.fault
            if table in self._faults:
                names = [column.name for column in relation.columns]
                aside = quarantine_rows(rows, names).slice(skip)
                quarantined[table] = pa.concat_tables([quarantined[table], aside]) if table in quarantined else aside
                continue
            schemas[table] = self._schemas[table] = followed.schema
            tables[table] = converter.convert(rows, followed.schema, followed.mappings).slice(skip)
        return ChangeBatch(
            tables=tables,
            schemas=schemas,
            end=Position(epoch, decoded.end_lsn) if decoded.end_lsn is not None else None,
            commit_time=decoded.commit_time,
            source_bytes=decoded.bytes,
            faults=faults,
            quarantined=quarantined,
        )

    def _follow(self, table: TableId, relation: RelationMessage, lsn: int) -> Followed:
        known = self._resolved.get(relation.oid)
        if known is not None and known.relation == relation and time.monotonic() < known.until:
            return known.followed
        followed = self._resolve(relation, self._schemas[table], lsn)
        # A column dropped and added again, of the same name and type, is not told by the message; so the catalog is asked again.
        self._resolved[relation.oid] = _Resolved(relation, followed, time.monotonic() + RESOLVE_AGAIN)
        return followed


def _rows_before(commit_lsns: pa.Array, lsn: int) -> int:
    """How many of the rows, which are in commit order, are of transactions that committed before ``lsn``."""
    values = commit_lsns.to_numpy()
    return int(values.searchsorted(lsn, side="left")) if len(values) and values[0] < lsn else 0
