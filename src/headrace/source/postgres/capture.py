"""Following a slot: log messages are fetched in bulk, decoded, and handed on as change batches.

Fetching, decoding and whatever the consumer does with a batch run side by side, each a few chunks ahead of the next. The reader
consumes a
temporary copy of the durable slot, which dies with its session, so nothing is acknowledged to the source here: `acknowledge`
advances the
durable slot, and is called with a position that is durable in the lake.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import adbc_driver_manager
import pyarrow as pa

from headrace import failpoint
from headrace.ahead import ahead
from headrace.change import ChangeBatch, TableFault
from headrace.position import Position, format_lsn
from headrace.schema import TableId, TableSchema
from headrace.source.postgres import slots
from headrace.source.postgres.connect import Connector, batches_of
from headrace.source.postgres.convert import Converter
from headrace.source.postgres.decode import Decoded, Decoder, RelationMessage
from headrace.source.postgres.evolution import table_oid
from headrace.source.postgres.quarantine import quarantine_rows
from headrace.source.postgres.types import TypeMapping
from headrace.source.postgres.waiting import end_with_client


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A table as its latest relation message describes it. ``columns`` maps positions in a tuple to the schema's columns."""

    schema: TableSchema
    mappings: tuple[TypeMapping, ...]
    fault: TableFault | None = None


RESOLVE_AGAIN = 60.0
"""Seconds for which the source's catalog is trusted on a table whose relation message stays the same."""

Resolve = Callable[[RelationMessage, TableSchema, int], Followed]
"""From a relation message, the schema followed so far and the LSN of the message: how to read rows from here on."""


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """``chunk_bytes``: size of a chunk in memory. ``call_bytes``: log read by one call of the SQL function, doubled while a
    transaction
    is longer than that. ``decoding_memory``: the source's ``logical_decoding_work_mem`` for our session; None leaves the
    server's.
    ``poll_min`` and ``poll_max``: seconds between calls when the log has nothing new."""

    chunk_bytes: int = 32 << 20
    call_bytes: int = 256 << 20
    call_bytes_max: int = 4 << 30
    decoding_memory: str | None = "256MB"
    poll_min: float = 0.05
    poll_max: float = 0.5
    heartbeat: float = 10.0


@dataclass(frozen=True)
class _Resolved:
    """``until``: by the monotonic clock."""

    relation: RelationMessage
    followed: Followed
    until: float


@dataclass(frozen=True)
class _Chunk:
    messages: pa.RecordBatch


@dataclass(frozen=True)
class _Reached:
    lsn: int


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
        self._cursor: Any = None
        self._resolved: dict[int, _Resolved] = {}
        self.source_lsn = start.lsn
        """How far the source's log was flushed when last asked."""

    def stop(self) -> None:
        """End `batches` soon, from any thread: a call that is under way is cancelled."""
        self._stop.set()
        cursor = self._cursor
        if cursor is not None:
            try:
                cursor.adbc_cancel()
            except adbc_driver_manager.Error:
                return  # nothing was under way

    def batches(self, *, until: int | None = None) -> Generator[ChangeBatch, None, None]:
        """The changes from the start position on, for ever or up to the LSN ``until``.

        After each call of the source an empty batch says how far the log has been read. Raises SourceUnreachable, PositionLost.
        """
        chunks = ahead(self._fetch(until), depth=2, name="fetch")
        with closing(chunks), closing(ahead(self._decode(chunks), depth=2, name="decode")) as batches:
            try:
                yield from batches
            finally:
                self.stop()

    # --- fetch: one thread -----------------------------------------------------------------------------------------------------

    def _fetch(self, until: int | None) -> Iterator[_Chunk | _Reached]:
        settings = self._settings
        with (
            self._connector.connect() as control,
            closing(self._connector.adbc()) as connection,
            closing(connection.cursor()) as cursor,
        ):
            slots.wait_for_slot(control, stopped=self._stop)
            self._open_copy(cursor)
            self._cursor = cursor
            position, step, pause, quiet_since = self._start.lsn, settings.call_bytes, settings.poll_min, time.monotonic()
            while not self._stop.is_set():
                self.source_lsn = slots.current_lsn(control)
                target = min(self.source_lsn, position + step, until if until is not None else self.source_lsn)
                if target <= position:
                    if until is not None and position >= until:
                        return
                    if time.monotonic() - quiet_since > settings.heartbeat:
                        control.execute("SELECT pg_logical_emit_message(false, 'headrace', %s)", [self._slot])
                        quiet_since = time.monotonic()
                    self._stop.wait(pause)
                    pause = min(pause * 1.5, settings.poll_max)
                    continue
                changes = 0
                for batch in self._call(cursor, target):
                    failpoint.hit("fetch")
                    changes += batch.num_rows
                    yield _Chunk(batch)
                if self._stop.is_set():
                    return
                # A transaction longer than the call is decoded again by the next one: ask for more at once.
                behind = target < self.source_lsn
                step = min(step * 2, settings.call_bytes_max) if behind and not changes else settings.call_bytes
                if changes:
                    pause, quiet_since = settings.poll_min, time.monotonic()
                position = target
                yield _Reached(position)
                if not behind:
                    self._stop.wait(pause)

    def _open_copy(self, cursor: Any) -> None:
        name = f"{self._slot[:40]}_read_{time.time_ns() % 10**12}"
        end_with_client(cursor.execute)
        if self._settings.decoding_memory:
            cursor.execute(f"SET logical_decoding_work_mem = '{self._settings.decoding_memory}'")
        cursor.execute(
            f"SELECT slot_name::text FROM pg_copy_logical_replication_slot({_quoted(self._slot)}, {_quoted(name)}, true)"
        )
        cursor.fetchall()
        self._copy = name
        cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(self._settings.chunk_bytes)})

    def _call(self, cursor: Any, upto: int) -> Iterator[pa.RecordBatch]:
        publications = ",".join('"' + name.replace('"', '""') + '"' for name in self._publications)
        try:
            cursor.execute(
                "SELECT lsn, data FROM pg_logical_slot_get_binary_changes("
                f"{_quoted(self._copy)}, '{format_lsn(upto)}', NULL,"
                f" 'proto_version', '1', 'publication_names', {_quoted(publications)})"
            )
            yield from batches_of(cursor)
        except (adbc_driver_manager.Error, OSError) as error:
            if self._stop.is_set():
                return
            raise self._connector.failed(error) from error

    # --- decode: another thread
    # --------------------------------------------------------------------------------------------------

    def _decode(self, chunks: Iterator[_Chunk | _Reached]) -> Iterator[ChangeBatch]:
        decoder, epoch, last = Decoder(), self._start.epoch, self._start.lsn
        with closing(Converter()) as converter:
            for chunk in chunks:
                if isinstance(chunk, _Reached):
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


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
