"""The lake's writer: takes change batches in order and makes them visible by one atomic commit over all tables.

The order that keeps the promises is in `LakeWriter.commit`: files are written and durable, then each index notes the snapshot to
come, then one catalog commit changes bronze, silver and progress together. Whatever happens before leaves only files that nothing
names.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from headrace import failpoint
from headrace.catalog import CommitOutcomeUnknown, Committed, LoadedTable, TableChange
from headrace.change import ChangeBatch, TableFault
from headrace.errors import CommitConflict, LakeUnavailable, ProjectError
from headrace.lake.bronze import AppendedTable
from headrace.lake.copies import FinishedCopy, TableCopy, finished_copies, forget_copy, remove_copy, remove_unfinished
from headrace.lake.followed import FollowedTable, LakeCatalog, Shop, as_quarantined
from headrace.lake.fresh import fresh_snapshot_id
from headrace.lake.layout import BRONZE, HEADRACE, QUARANTINE_COLUMNS, SILVER, Refused, fixed
from headrace.lake.levels import MergeLimits
from headrace.lake.port import Receipt, StagedCopy, TableState
from headrace.lake.progress import NAME as PROGRESS
from headrace.lake.progress import Progress, ProgressTable, TableProgress
from headrace.lake.silver import SilverTable
from headrace.lake.storage import Storage
from headrace.lake.sweep import staging_key
from headrace.lake.table import LakeTable
from headrace.position import Position
from headrace.schema import TableId, TableSchema

QUARANTINE = "quarantine"
KEPT_SNAPSHOTS = 20
SHARED_TRIES = 5
FIRST_EPOCH = 1
LONG_STAGING = timedelta(minutes=1)
"""What is staged for longer is made known, so that nobody takes its files for left behind."""

LakeTableOwner = AppendedTable | SilverTable | ProgressTable


@dataclass(kw_only=True)
class _View:
    """The lake as of the last commit, and what is staged on it. Thrown away as a whole when a commit fails."""

    progress: ProgressTable
    tables: dict[TableId, FollowedTable]
    position: Position | None
    commit_time: datetime | None
    idle: Position | None
    server: str
    quarantine: AppendedTable | None = None
    staged_commit_time: datetime | None = None
    dirty: bool = False


class LakeWriter:
    """One pipeline's view of its lake (see `headrace.lake.port.Lake`). One writer thread; `copy` may be used by several."""

    def __init__(
        self, *, catalog: LakeCatalog, warehouse: Path, state: Path, pipeline: str, limits: MergeLimits, kept_snapshots: int
    ) -> None:
        self.pipeline = pipeline
        self._catalog = catalog
        self._storage = Storage(warehouse)
        self._state = state
        self._copies = state / "copies"
        self._shop = Shop(catalog, self._storage, state, limits)
        self._kept_snapshots = kept_snapshots
        self._running_copies: set[str] = set()
        self._copying = threading.Lock()
        self._staging_since: datetime | None = None
        self._staging_noted = catalog.note(staging_key(pipeline)) is not None  # by a run that was killed
        self._end_staging()
        self._view: _View | None = self._load()

    @classmethod
    def open(
        cls,
        *,
        catalog: LakeCatalog,
        warehouse: Path,
        state: Path,
        pipeline: str,
        limits: MergeLimits | None = None,
        kept_snapshots: int = KEPT_SNAPSHOTS,
    ) -> LakeWriter:
        """``state`` is a folder on this machine for key indexes and staged copies; losing it loses nothing of the lake.

        ``kept_snapshots``: how many snapshots a table's metadata lists. Raises LakeUnavailable.
        """
        present = set(catalog.namespaces())
        for namespace in (BRONZE, SILVER, HEADRACE):
            if namespace not in present:
                catalog.create_namespace(namespace, exist_ok=True)
        return cls(
            catalog=catalog,
            warehouse=warehouse,
            state=state,
            pipeline=pipeline,
            limits=limits or MergeLimits(),
            kept_snapshots=kept_snapshots,
        )

    def close(self) -> None:
        """Forget what is staged and let go of files and threads."""
        self.abandon()
        self._storage.close()

    def __enter__(self) -> LakeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _now(self) -> _View:
        """What is known of the lake, with what is staged; read from the catalog if nothing is known."""
        if self._view is None:
            self._view = self._load()
        return self._view

    def _load(self) -> _View:
        shop, loaded = self._shop, self._shop.find(HEADRACE, PROGRESS)
        progress = None
        if loaded is None:
            table = ProgressTable.create(self._storage, self.pipeline, shop.limits)
        else:
            table = ProgressTable(LakeTable.load(self._storage, loaded, shop.limits), self.pipeline)
            progress = table.read()
        known = progress.tables.values() if progress else ()
        return _View(
            progress=table,
            tables={one.schema.table: FollowedTable(shop, one) for one in known},
            position=progress.position if progress else None,
            commit_time=progress.commit_time if progress else None,
            idle=idle_position(self._catalog, self.pipeline),
            server=progress.server if progress else "",
        )

    # --- what the lake has ----------------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position | None:
        """Up to where the lake has the source's changes; None before the first commit."""
        known = [one for one in (self._now.position, self._now.idle) if one is not None]
        return max(known) if known else None

    @property
    def server(self) -> str:
        """Which server the changes came from; empty if that was never noted."""
        return self._now.server

    @property
    def tables(self) -> Mapping[TableId, TableState]:
        """Every table of the pipeline, as the next commit leaves it."""
        return {name: table.state for name, table in self._now.tables.items()}

    def claim(self, tables: Iterable[TableId]) -> None:
        """Raises ProjectError when another table, of any pipeline, has the place of one of these in the lake."""
        taken = {table.lake_name.lower(): (self.pipeline, table) for table in self._now.tables}
        taken |= {table.lake_name.lower(): (pipeline, table) for pipeline, table in self._now.progress.others()}
        for table in tables:
            pipeline, other = taken.get(table.lake_name.lower(), (self.pipeline, table))
            if (pipeline, other) != (self.pipeline, table):
                raise ProjectError(
                    f"table {table} of pipeline {self.pipeline} and table {other} of pipeline {pipeline} would be the same table"
                    f" {table.lake_name} of the lake {self._storage.warehouse}",
                    remedy="Give one of the pipelines a folder of its own (lake.warehouse), or leave the table out of one"
                    " (source.exclude).",
                )

    @property
    def progress(self) -> Progress:
        """The pipeline's progress, as the next commit leaves it."""
        tables = {name: table.progress for name, table in self._now.tables.items()}
        return Progress(
            pipeline=self.pipeline,
            position=self.position,
            commit_time=self._now.commit_time,
            tables=tables,
            server=self._now.server,
        )

    @property
    def staged(self) -> bool:
        """True if a commit would change a table."""
        return self._now.dirty

    @property
    def _epoch(self) -> int:
        return self._now.position.epoch if self._now.position is not None else FIRST_EPOCH

    # --- staging --------------------------------------------------------------------------------------------------------------

    def stage(self, batch: ChangeBatch) -> Mapping[TableId, TableFault]:
        """Write the batch's files. Evolves a table whose schema in the batch is newer; parks the tables in ``batch.faults``.

        Returns the tables that were followed until now and are parked by this. Nothing becomes visible. May be called many
        times before one commit: memory is bounded by the batch. Raises LakeUnavailable; then nothing is staged any more.
        """
        try:
            return self._stage_batch(batch)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):
                raise self._storage.failed(error, "written") from error
            raise

    def _stage_batch(self, batch: ChangeBatch) -> dict[TableId, TableFault]:
        self._note_staging()
        epoch = batch.end.epoch if batch.end is not None else self._epoch
        faults = dict(batch.faults)
        for name, changes in batch.tables.items():
            if changes.num_rows:
                found = self._stage(self._now.tables[name], changes, batch.schemas[name], epoch)
                if found is not None:
                    faults[name] = found
        for name, fault in batch.faults.items():
            if name in self._now.tables:
                self._now.tables[name].park(fault)
                self._now.dirty = True
        for name, rows in batch.quarantined.items():
            if rows.num_rows:
                known = batch.faults.get(name) or (self._now.tables[name].progress.fault if name in self._now.tables else None)
                self._keep_aside(name, rows, epoch, known.reason if known else "")
        if batch.commit_time is not None:
            self._now.staged_commit_time = batch.commit_time
        return faults

    def _stage(self, table: FollowedTable, changes: pa.Table, schema: TableSchema, epoch: int) -> TableFault | None:
        """Returns why the table is parked by these changes, None if it is not, or was before."""
        self._now.dirty = True
        known = table.progress.fault
        if known is not None and not known.bronze_goes_on:
            self._keep_aside(table.id, as_quarantined(changes), epoch, known.reason)
            return None
        try:
            return table.stage(changes, schema, epoch)
        except Refused as refused:
            fault = TableFault(
                reason=str(refused),
                remedy=f"Copy it again with its present columns: headrace resync {table.id}",
                lsn=int(changes.column("commit_lsn")[0].as_py()),
            )
            table.park(fault)
            self._keep_aside(table.id, as_quarantined(changes), epoch, fault.reason)
            return fault

    def _keep_aside(self, name: TableId, rows: pa.Table, epoch: int, reason: str) -> None:
        """Stage rows for the quarantine."""
        count = rows.num_rows
        for column, value in (("table_schema", name.schema), ("table_name", name.name), ("reason", reason)):
            rows = rows.append_column(column, pa.repeat(pa.scalar(value), count))
        rows = rows.append_column("epoch", pa.repeat(pa.scalar(epoch, pa.int32()), count))
        if self._now.quarantine is None:
            loaded = self._shop.find(HEADRACE, QUARANTINE)
            if loaded is None:
                layout = fixed(QUARANTINE_COLUMNS)
                self._now.quarantine = AppendedTable.create(self._storage, HEADRACE, QUARANTINE, layout, self._shop.limits)
            else:
                self._now.quarantine = AppendedTable.load(self._storage, loaded, self._shop.limits)
        self._now.quarantine.append(rows)
        self._now.dirty = True

    def park(self, name: TableId, fault: TableFault) -> None:
        """Park a table with the next commit."""
        self._now.tables[name].park(fault)
        self._now.dirty = True

    def note_server(self, server: str) -> None:
        """Keep which server the changes come from with the next commit."""
        if server != self._now.server:
            self._now.server = server
            self._now.dirty = self._now.dirty or self._now.position is not None

    def note_state(self, name: TableId, state: str) -> None:
        """Keep the source's text on how it holds a table's rows with the next commit."""
        self._now.tables[name].note_state(state)
        self._now.dirty = True

    def copy_again(self, names: Iterable[TableId]) -> None:
        """With the next commit these tables wait for a new copy; until it is published silver stays as it is."""
        for name in names:
            table = self._now.tables[name]
            table.progress = replace(table.progress, state="copying", fault=None, since=datetime.now(UTC))
            self._now.dirty = True

    def rebuild(self, name: TableId, chunks: Iterable[pa.Table]) -> int:
        """Stage the replacement of all rows of a silver table by these, in silver's columns, in chunks; how many they are."""
        with self._storing():
            count = self._now.tables[name].replace(chunks)
        self._now.dirty = True
        return count

    def drop_index(self, name: TableId) -> None:
        """Remove a table's key index; it is built anew when it is needed. Not while something is staged."""
        self._now.tables[name].drop_index()

    def abandon(self) -> None:
        """Forget what is staged. Finished files of it are left behind; nothing names them. Never fails."""
        self._storage.forget()
        with suppress(LakeUnavailable):
            self._end_staging()
        view, self._view = self._view, None
        if view is not None:
            for table in view.tables.values():
                table.close()
            if view.quarantine is not None:
                view.quarantine.table.abort()

    def note_idle(self, end: Position) -> None:
        """The source's log was read up to here, and nothing in it concerned the lake."""
        if self.position is None or end > self.position:
            self._catalog.set_note(_idle_key(self.pipeline), f"{end.epoch} {end.lsn}")
            self._now.idle = end

    def note_known(self, moment: datetime) -> None:
        """Everything that was committed at the source by then is in the lake."""
        self._catalog.set_note(_known_key(self.pipeline), moment.isoformat())

    # --- first copies ---------------------------------------------------------------------------------------------------------

    def copy(self, schema: TableSchema, lsn: int) -> TableCopy:
        """Take a table's rows as they were at ``lsn``. Raises ProjectError for a table that the lake cannot hold,
        LakeUnavailable.
        """
        with self._copying:
            remove_unfinished(self._copies, self._running_copies)
            return self._copy(schema, lsn)

    def _copy(self, schema: TableSchema, lsn: int) -> TableCopy:
        table = self._now.tables.get(schema.table) or FollowedTable(self._shop, _unpublished(schema))
        try:
            bronze, silver = table.copy_layouts(schema)
        except Refused as refused:
            raise ProjectError(
                f"Table {schema.table} cannot be kept in the lake: {refused}.",
                remedy="Leave it out in the project file, or rename the column at the source.",
            ) from refused
        with self._storing():
            copy = TableCopy(
                self._storage.apart(),
                self._copies,
                schema=schema,
                lsn=lsn,
                epoch=self._epoch,
                bronze=(table.bronze.table.location, bronze),
                silver=(table.silver.table.location, silver),
                finished=self._finished,
                discarded=self._running_copies.discard,
            )
        self._running_copies.add(copy.id)
        return copy

    def _finished(self, copy: FinishedCopy) -> None:
        self._running_copies.discard(copy.id)
        for older in finished_copies(self._copies):
            if older.schema.table == copy.schema.table and older.id != copy.id:
                remove_copy(self._copies, older.id)

    def staged_copies(self) -> Sequence[StagedCopy]:
        """The finished copies that no commit has adopted yet. Raises LakeUnavailable."""
        with self._storing():
            return [copy.staged for copy in self._unadopted()]

    def _unadopted(self) -> list[FinishedCopy]:
        result = {}
        for copy in finished_copies(self._copies):
            if self._is_adopted(copy):  # a crash came between the commit and the removal of the record
                forget_copy(self._copies, copy.id)
            elif not copy.whole:
                remove_copy(self._copies, copy.id)
            else:
                result[copy.schema.table] = copy
        return list(result.values())

    def _is_adopted(self, copy: FinishedCopy) -> bool:
        table = self._now.tables.get(copy.schema.table)
        if table is None or table.progress.copy_lsn != copy.lsn or copy in table.adopted:
            return False
        present = {file.location for file in [*table.bronze.table.data.values(), *table.silver.table.data.values()]}
        return not copy.bronze.files or any(file.location in present for file in [*copy.bronze.files, *copy.silver.files])

    def adopt(self, copies: Iterable[StagedCopy]) -> None:
        """Make these copies part of the next commit. Raises LakeUnavailable for one that does not fit the lake any more; it is
        discarded.
        """
        wanted = {(copy.table, copy.lsn) for copy in copies}
        for copy in self._unadopted():
            name = copy.schema.table
            if (name, copy.lsn) not in wanted:
                continue
            table = self._now.tables.setdefault(name, FollowedTable(self._shop, _unpublished(copy.schema)))
            try:
                with self._storing():
                    table.adopt(copy, self._epoch)
            except LakeUnavailable:
                remove_copy(self._copies, copy.id)
                self.abandon()
                raise
            self._now.dirty = True

    # --- committing -----------------------------------------------------------------------------------------------------------

    def commit(self, end: Position) -> Receipt:
        """Make everything staged visible, in one catalog commit with the pipeline's position ``end``.

        When this returns, data and position are durable and visible. When it raises, nothing is, and nothing is staged any more.
        Raises CommitConflict when another writer changed one of the tables, LakeUnavailable.
        """
        try:
            return self._commit(end)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):
                raise self._storage.failed(error, "written") from error
            raise

    def _commit(self, end: Position) -> Receipt:
        commit_time = self._now.staged_commit_time or self._now.commit_time
        for table in self._now.tables.values():
            table.finish()
        if self._now.quarantine is not None:
            self._now.quarantine.finish()
        tables = {name: table.counted(end, self._now.staged_commit_time) for name, table in self._now.tables.items()}
        self._now.progress.write(
            Progress(pipeline=self.pipeline, position=end, commit_time=commit_time, tables=tables, server=self._now.server)
        )

        owners: list[LakeTableOwner] = [lake_table for table in self._now.tables.values() for lake_table in table.lake_tables]
        if self._now.quarantine is not None:
            owners.append(self._now.quarantine)
        owners.append(self._now.progress)
        summary = {"headrace.pipeline": self.pipeline, "headrace.position": str(end)}
        staged = [(owner, fresh_snapshot_id()) for owner in owners]
        changes = [self._change(owner, snapshot, summary) for owner, snapshot in staged]
        self._storage.settle()
        self._require_files(owners)
        failpoint.hit("files-written")
        for owner, snapshot in staged:
            if isinstance(owner, SilverTable):
                owner.record(snapshot)
        version, loaded = self._commit_changes(staged, changes, summary)

        rows = {name: table.staged_rows for name, table in self._now.tables.items() if table.staged_rows}
        self._end_staging()
        receipt = Receipt(version=version, rows=rows, commit_time=self._now.staged_commit_time)
        try:
            self._settle_in(loaded)
            self._now.position, self._now.commit_time = end, commit_time
            self._now.staged_commit_time, self._now.quarantine, self._now.dirty = None, None, False
        except OSError:
            # Only our own records beside the lake could not be written; what the lake has now is read anew.
            self.abandon()
        return receipt

    def _note_staging(self) -> None:
        """Make known that a commit is being staged, once that takes long."""
        if self._staging_since is None:
            self._staging_since = datetime.now(UTC)
        elif not self._staging_noted and self._staged_for_long():
            self._catalog.set_note(staging_key(self.pipeline), self._staging_since.isoformat())
            self._staging_noted = True

    def _end_staging(self) -> None:
        self._staging_since = None
        if self._staging_noted:
            self._catalog.set_note(staging_key(self.pipeline), None)
            self._staging_noted = False

    def _staged_for_long(self) -> bool:
        return self._staging_since is not None and datetime.now(UTC) - self._staging_since > LONG_STAGING

    def _require_files(self, owners: Sequence[LakeTableOwner]) -> None:
        """A machine that slept may have been long about it: then see whether the staged files are still there."""
        if not self._staged_for_long():
            return
        self._note_staging()
        for owner in owners:
            if missing := owner.table.missing_files():
                raise LakeUnavailable(
                    f"files that were staged for {owner.table.namespace}.{owner.table.name} are gone: {missing[0]} …",
                    remedy="Nothing has to be done: the changes are staged again.",
                )

    def _settle_in(self, loaded: Sequence[tuple[LakeTableOwner, LoadedTable]]) -> None:
        """Take over what the commit made. Raises OSError."""
        for owner, now in loaded:
            if isinstance(owner, SilverTable):
                owner.committed(now)
            else:
                owner.table.committed(now)
        for table in self._now.tables.values():
            for copy in table.adopted:
                forget_copy(self._copies, copy.id)
            table.staged_rows, table.adopted = 0, []

    def _change(self, owner: LakeTableOwner, snapshot: int, summary: Mapping[str, str]) -> TableChange:
        return owner.table.change(snapshot, extra_summary=summary, keep_snapshots=self._kept_snapshots)

    def _commit_changes(
        self, staged: list[tuple[LakeTableOwner, int]], changes: list[TableChange], summary: Mapping[str, str]
    ) -> tuple[int, list[tuple[LakeTableOwner, LoadedTable]]]:
        """The version that was made, and each table as it is now.

        Progress and quarantine are shared with other pipelines: where only those moved, their part is staged anew on what they
        are now.
        """
        for tries in range(SHARED_TRIES):
            try:
                committed = self._catalog.commit(changes)
                break
            except CommitOutcomeUnknown:
                found = self._look_whether_it_took_effect(staged)
                if found is None:
                    raise
                return found
            except CommitConflict:
                if tries == SHARED_TRIES - 1 or not self._rebase_shared(staged):
                    raise
                changes = changes[: -len(self._shared(staged))]
                changes += [self._change(owner, snapshot, summary) for owner, snapshot in self._shared(staged)]
                self._storage.settle()
        return committed.version, [(owner, _loaded(committed, owner)) for owner, _ in staged]

    def _shared(self, staged: list[tuple[LakeTableOwner, int]]) -> list[tuple[LakeTableOwner, int]]:
        return [pair for pair in staged if pair[0].table.namespace == HEADRACE]

    def _rebase_shared(self, staged: list[tuple[LakeTableOwner, int]]) -> bool:
        """Stage the shared tables' part anew on what they are now; False if a table of this pipeline's own has moved."""
        for owner, _ in staged:
            table = owner.table
            now = self._shop.find(table.namespace, table.name)
            if table.namespace != HEADRACE and not table.is_at(now):
                return False
        for number, (owner, _) in enumerate(staged):
            if owner.table.namespace != HEADRACE:
                continue
            loaded = self._shop.find(HEADRACE, owner.table.name)
            fresh = LakeTable.load(self._storage, loaded, self._shop.limits) if loaded is not None else owner.table
            added = owner.table.described_additions()
            if isinstance(owner, ProgressTable):
                self._now.progress = owner.moved(fresh, added[0])
                staged[number] = (self._now.progress, fresh_snapshot_id())
            elif isinstance(owner, AppendedTable):
                self._now.quarantine = AppendedTable(fresh)
                for file in added:
                    fresh.add(file)
                staged[number] = (self._now.quarantine, fresh_snapshot_id())
        return True

    def _look_whether_it_took_effect(
        self, staged: list[tuple[LakeTableOwner, int]]
    ) -> tuple[int, list[tuple[LakeTableOwner, LoadedTable]]] | None:
        """After an unclear answer: what the commit made if the progress table has its snapshot, else None."""
        with suppress(LakeUnavailable):
            now = [(owner, self._catalog.load(owner.table.namespace, owner.table.name)) for owner, _ in staged]
            if all(
                any(one["snapshot-id"] == snapshot for one in loaded.metadata["snapshots"])
                for (_, loaded), (_, snapshot) in zip(now, staged, strict=True)
            ):
                return self._catalog.latest_version(), now
        return None

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Turns the system's errors into LakeUnavailable."""
        try:
            yield
        except OSError as error:
            raise self._storage.failed(error, "written") from error


class Notes(Protocol):
    """What is needed of a catalog to know how far an idle source was read."""

    def note(self, key: str) -> str | None: ...


def idle_position(catalog: Notes, pipeline: str) -> Position | None:
    """Up to where the source's log was last read without finding a change; None if that never was noted."""
    note = catalog.note(_idle_key(pipeline))
    if note is None:
        return None
    epoch, lsn = note.split()
    return Position(int(epoch), int(lsn))


def known_time(catalog: Notes, pipeline: str) -> datetime | None:
    """A moment, by the source's clock, by which everything that was committed is in the lake; the last one that was noted."""
    note = catalog.note(_known_key(pipeline))
    return None if note is None else datetime.fromisoformat(note)


def _idle_key(pipeline: str) -> str:
    return f"headrace.idle.{pipeline}"


def _known_key(pipeline: str) -> str:
    return f"headrace.known.{pipeline}"


def _loaded(committed: Committed, owner: LakeTableOwner) -> LoadedTable:
    return committed.tables[owner.table.namespace, owner.table.name]


def _unpublished(schema: TableSchema) -> TableProgress:
    return TableProgress(schema=schema, state="copying", since=datetime.now(UTC))
