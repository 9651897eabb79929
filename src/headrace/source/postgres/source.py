"""PostgreSQL behind the pipeline's source port."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import adbc_driver_manager
import psycopg
from psycopg.rows import TupleRow

from headrace.change import ChangeBatch, TableFault
from headrace.errors import PositionLost, SourceNotReady
from headrace.position import Position, format_lsn
from headrace.schema import TableId, TableSchema
from headrace.source.port import CopySink, Glimpse, SourceTable, Stopped
from headrace.source.postgres import evolution, silent, slots
from headrace.source.postgres.capture import Capture, CaptureSettings, Followed
from headrace.source.postgres.checks import BEFORE_A_RUN, Names, preflight, require_ready
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.copiers import Copiers
from headrace.source.postgres.copy import SHORT_LOCK_WAITS, LockedTable, Snapshot, TableChanged, TableToCopy, exported_snapshot
from headrace.source.postgres.decode import RelationMessage
from headrace.source.postgres.readers import Choice
from headrace.source.postgres.relations import Relation, find_relations, mappings_of, read_relation, schema_of
from headrace.source.postgres.server import Server, read_server, require_same, server_from
from headrace.source.postgres.waiting import Patience, end_with_client

COPY_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class PostgresSettings:
    """``include`` and ``exclude`` are table names or globs. ``appends_publication`` carries tables without a key: inserts
    and truncates only,
    so that the application's own updates of them never fail because of us."""

    include: Sequence[str]
    exclude: Sequence[str]
    slot: str
    publication: str
    appends_publication: str
    capture: CaptureSettings
    copy_connections: int = 2
    copy_chunk_bytes: int = 16 << 20
    copy_range_bytes: int = 64 << 20


class PostgresSource:
    """One pipeline's view of its PostgreSQL database. See `headrace.source.port.Source`."""

    def __init__(
        self,
        *,
        connector: Connector,
        settings: PostgresSettings,
        say: Callable[[str], None],
        tell_reader: Callable[[Choice], None],
    ) -> None:
        """``say`` is told what a person should know, ``tell_reader`` which reader follows the log from now on."""
        self._connector = connector
        self._settings = settings
        self._say = say
        self._tell_reader = tell_reader
        self._control: psycopg.Connection[tuple[object, ...]] | None = None
        self._relations: dict[TableId, Relation] = {}
        self._published: dict[str, tuple[str, dict[int, int]]] = {}
        self._server: Server | None = None
        self._capture: Capture | None = None
        self._copiers: Copiers | None = None
        self._stopped = threading.Event()
        self._patience = Patience(connector=connector, stopped=self._stopped, say=say)
        self._end_seen = 0

    @contextmanager
    def open(self, position: Position | None, server: str = "", *, epoch: int = 1) -> Iterator[Position]:
        settings = self._settings
        with self._speaking(), self._connector.connect() as control:
            self._control = control
            end_with_client(lambda statement: control.execute(statement.encode()))
            slots.lock_pipeline(control, settings.slot)
            found = self._patience.wait(
                control, lambda: find_relations(control, settings.include, settings.exclude), what="reading the system catalog"
            )
            self._relations = {relation.table: relation for relation in found}
            refused = [f"{relation.table}: {relation.refusal}" for relation in self._relations.values() if relation.refusal]
            if refused:
                raise SourceNotReady(
                    "tables that the project names cannot be captured: " + "; ".join(refused),
                    remedy="Take them out of source.tables in headrace.yaml (or name them in source.exclude).",
                )
            self._require_ready()
            self._server = read_server(control)
            if server and position is not None:
                require_same(server_from(server), self._server, position=position.lsn, connector=self._connector)
            self._end_seen = slots.current_lsn(control)
            self._publish_tables(control)
            self._published = slots.published_ids(control, (settings.publication, settings.appends_publication))
            slot = slots.idle_slot(control, settings.slot)
            if position is None:
                start = self._first_position(control, slot)
            else:
                usable = slots.usable_slot(slot, settings.slot, position=position.lsn, database=control.info.dbname)
                end = self._end_seen
                if position.lsn > end:
                    raise PositionLost(
                        f"the lake stands at {format_lsn(position.lsn)}, but the source's log ends at {format_lsn(end)}:"
                        " it was restored or replaced",
                        remedy="Check that source.url is the right server. If it is: `headrace drop --slot --lake`,"
                        " then copy again with `headrace run`.",
                    )
                if usable.confirmed_lsn is not None and usable.confirmed_lsn < position.lsn:
                    slots.advance_slot(control, settings.slot, position.lsn)
                start = position.lsn
            try:
                yield Position(epoch if position is None else position.epoch, start)
            finally:
                self._control = None

    def _first_position(self, control: psycopg.Connection[tuple[object, ...]], slot: slots.Slot | None) -> int:
        if slot is None:
            self._say(f"making slot {self._settings.slot}")
            return slots.create_slot(control, self._settings.slot, self._patience)
        usable = slots.usable_slot(slot, self._settings.slot, position=None, database=control.info.dbname)
        assert usable.confirmed_lsn is not None
        return usable.confirmed_lsn

    def _require_ready(self) -> None:
        """Raises SourceNotReady for what a run would not notice by itself, such as a publication that leaves something out."""
        settings = self._settings
        names = Names(slot=settings.slot, publication=settings.publication, appends_publication=settings.appends_publication)
        require_ready(
            preflight(self._connector, include=settings.include, exclude=settings.exclude, names=names, checks=BEFORE_A_RUN)
        )

    def _publish_tables(self, control: psycopg.Connection[tuple[object, ...]]) -> None:
        """Publications first, then the slot: a slot older than its publication cannot be decoded."""
        keyed = [relation.table for relation in self._relations.values() if relation.key]
        keyless = [relation.table for relation in self._relations.values() if not relation.key]
        partitioned = frozenset(relation.table for relation in self._relations.values() if relation.partitioned)
        slots.ensure_publication(
            control,
            slots.Publication(
                name=self._settings.publication,
                publish="insert, update, delete, truncate",
                tables=tuple(sorted(keyed)),
                partitioned=partitioned,
            ),
            self._patience,
        )
        slots.ensure_publication(
            control,
            slots.Publication(
                name=self._settings.appends_publication,
                publish="insert, truncate",
                tables=tuple(sorted(keyless)),
                partitioned=partitioned,
            ),
            self._patience,
        )

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Errors of the driver, as a lost connection gives them anywhere, leave as what they mean."""
        try:
            yield
        except (psycopg.Error, adbc_driver_manager.Error) as error:
            raise self._connector.failed(error) from error

    def server(self) -> str:
        assert self._server is not None, "the source is not open"
        return str(self._server)

    def tables(self) -> Mapping[TableId, SourceTable]:
        return {
            table: SourceTable(
                schema=self._schema(relation),
                estimated_rows=relation.estimated_rows,
                note="" if relation.key else "no key: silver appends",
            )
            for table, relation in self._relations.items()
        }

    def _schema(self, relation: Relation) -> TableSchema:
        publication, entries = self._published[self._publication_of(relation)]
        return replace(schema_of(relation), source_id=f"{relation.oid}/{publication}/{entries.get(relation.oid, 0)}")

    def _publication_of(self, relation: Relation) -> str:
        return self._settings.publication if relation.key else self._settings.appends_publication

    def gaps(self, known: Mapping[TableId, TableSchema]) -> Mapping[TableId, TableFault]:
        faults = {}
        for table, schema in known.items():
            relation = self._relations.get(table)
            resync = f"`headrace resync {table}` copies the table again"
            if relation is None:
                reason = "the project names it no more, or the source has it no more"
                remedy = f"If it is to be followed again: name it in source.tables, then {resync}."
            elif schema.source_id in ("", self._schema(relation).source_id):
                continue
            elif evolution.table_oid(schema) != relation.oid:
                reason, remedy = evolution.RECREATED, f"{resync}."
            else:
                name = self._publication_of(relation)
                reason = f"publication {name} was altered, or had not the whole table for a time: changes may be missing"
                remedy = f"{resync}."
            faults[table] = TableFault(reason=reason, remedy=remedy, lsn=self._end_seen)
        return faults

    def glimpse(self, known: Mapping[TableId, TableSchema]) -> Glimpse:
        assert self._control is not None, "the source is not open"
        oids = {table: oid for table, schema in known.items() if (oid := evolution.table_oid(schema)) is not None}
        with self._speaking():
            states = silent.read_states(self._control, list(oids.values()))
            at = slots.source_time(self._control)
            lsn = slots.current_lsn(self._control)
        return Glimpse(lsn=lsn, at=at, states={table: states[oid] for table, oid in oids.items() if oid in states})

    def unlogged(self, glimpse: Glimpse, known: Mapping[TableId, TableSchema]) -> Mapping[TableId, TableFault | None]:
        changed = {
            table: schema
            for table, schema in known.items()
            if table in glimpse.states and schema.source_state != glimpse.states[table]
        }
        if not changed:
            return {}
        result: dict[TableId, TableFault | None] = {}
        with self._speaking(), self._connector.connect() as connection:
            connection.execute(SHORT_LOCK_WAITS)
            evidence = silent.evidence_of(connection)
            for table, schema in changed.items():
                try:
                    relation = read_relation(connection, evolution.table_oid(schema) or 0)
                    if relation is None:
                        continue  # dropped meanwhile, which is noticed when a run begins
                    reasons = silent.reasons(schema, glimpse.states[table], relation, evidence) if schema.source_state else []
                except (silent.Undecided, psycopg.errors.LockNotAvailable):
                    continue  # its state is still the one that was kept, so it is judged the next time
                result[table] = evolution.fault(table, reasons, glimpse.lsn) if reasons else None
        return result

    # --- copy ------------------------------------------------------------------------------------------------------------------

    def copy(
        self,
        tables: Sequence[TableId],
        sink: Callable[[TableSchema, int], CopySink],
        progress: Callable[[TableId, int], None],
    ) -> None:
        left = list(tables)
        for _ in range(COPY_TRIES):
            try:
                left = self._copy_under_one_snapshot(left, sink, progress)
            except Stopped:
                return
            if not left:
                return
        raise SourceNotReady(
            f"tables were altered or truncated each time their copy began: {', '.join(map(str, left))}",
            remedy="Run again when no DDL runs on them. The other tables' copies are kept.",
        )

    def _copy_under_one_snapshot(
        self,
        tables: Sequence[TableId],
        sink: Callable[[TableSchema, int], CopySink],
        progress: Callable[[TableId, int], None],
    ) -> list[TableId]:
        """Returns the tables that were changed since the snapshot, and need another one. Raises Stopped."""
        settings, connector, stopped = self._settings, self._connector, self._stopped
        with (
            self._speaking(),
            exported_snapshot(connector, slot=settings.slot, say=self._say, stopped=stopped) as snapshot,
            connector.connect() as control,
        ):
            control.execute(SHORT_LOCK_WAITS)
            self._copiers = copiers = Copiers(
                connector=connector,
                snapshot=snapshot,
                tables=sorted(tables, key=self._size, reverse=True),
                lock=lambda table: self._lock_table(control, snapshot, table),
                sink=sink,
                progress=progress,
                say=self._say,
                stopped=stopped,
                connections=settings.copy_connections,
                chunk_bytes=settings.copy_chunk_bytes,
                range_bytes=settings.copy_range_bytes,
            )
            try:
                return copiers.run()
            finally:
                self._copiers = None

    def _size(self, table: TableId) -> float:
        """Large tables first, so that at the end all connections are busy. One that was never analysed may be large."""
        rows = self._relations[table].estimated_rows
        return math.inf if rows is None else rows

    def _lock_table(self, control: psycopg.Connection[TupleRow], snapshot: Snapshot, table: TableId) -> LockedTable:
        return LockedTable(
            connector=self._connector,
            control=control,
            snapshot=snapshot,
            table=table,
            oid=self._relations[table].oid,
            describe=lambda: self._describe(control, table),
            patience=self._patience,
        )

    def _describe(self, control: psycopg.Connection[TupleRow], table: TableId) -> TableToCopy:
        relation = read_relation(control, self._relations[table].oid)
        if relation is None or relation.table != table:
            raise TableChanged(f"table {table} was dropped or renamed")
        self._relations[table] = relation
        return TableToCopy(
            schema=replace(self._schema(relation), source_state=silent.read_states(control, [relation.oid])[relation.oid]),
            oid=relation.oid,
            partitioned=relation.partitioned,
            mappings=tuple(mappings_of(relation)),
        )

    # --- changes --------------------------------------------------------------------------------------------------------------

    def changes(
        self,
        start: Position,
        *,
        tables: Mapping[TableId, TableSchema],
        from_lsn: Mapping[TableId, int],
        parked: Mapping[TableId, TableFault],
        until: int | None = None,
    ) -> Generator[ChangeBatch, None, None]:
        settings = self._settings
        capture = Capture(
            connector=self._connector,
            slot=settings.slot,
            publications=(settings.publication, settings.appends_publication),
            start=start,
            tables=tables,
            from_lsn=from_lsn,
            parked=parked,
            resolve=self._resolve,
            settings=settings.capture,
            tell_reader=self._tell_reader,
        )
        self._capture = capture
        if self._stopped.is_set():
            return
        try:
            with self._speaking():
                for batch in capture.batches(until=until):
                    self._end_seen = capture.source_lsn
                    yield batch
        finally:
            self._capture = None

    def _resolve(self, message: RelationMessage, known: TableSchema, lsn: int) -> Followed:
        """What a relation message means for a table followed as ``known``: its rows' columns, or a fault.

        Relation messages carry no attribute numbers, so the system catalog is asked, as it is now: that tells a dropped
        and added column from the
        old one, and a column added with a default. A column that has gone again meanwhile has no attribute number, and
        is judged by name and type.
        """
        with self._connector.connect() as connection:
            relation = read_relation(connection, message.oid)
        try:
            schema, mappings, with_default = evolution.as_sent(message, relation, known)
        except evolution.UnknownType as unknown:
            reasons = [str(unknown)]
        else:
            if evolution.table_oid(known) not in (None, message.oid):
                reasons = [evolution.RECREATED]
            else:
                reasons = evolution.refusals(known, schema, with_default=with_default)
        if not reasons:
            return Followed(schema=schema, mappings=tuple(mappings))
        return Followed(
            schema=known,
            mappings=(),
            fault=evolution.fault(known.table, reasons, lsn),
        )

    # --- the slot --------------------------------------------------------------------------------------------------------------

    def end(self) -> int:
        assert self._control is not None, "the source is not open"
        with self._speaking():
            self._end_seen = slots.current_lsn(self._control)
        return self._end_seen

    def end_seen(self) -> int:
        return self._end_seen

    def acknowledge(self, position: Position) -> None:
        control, capture = self._control, self._capture

        def advance() -> None:
            with self._connector.connect() as connection:
                slots.advance_slot(connection, self._settings.slot, position.lsn)

        with self._speaking():
            if control is not None:
                control.execute("SELECT")  # with its session the pipeline's lock would be lost
            if capture is not None:
                capture.acknowledge(position.lsn, advance)
            else:
                advance()

    def stop(self) -> None:
        self._stopped.set()
        capture, copiers = self._capture, self._copiers
        if capture is not None:
            capture.stop()
        if copiers is not None:
            copiers.stop()
