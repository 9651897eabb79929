"""One source table in the lake: its bronze and silver tables, its state, and what the next commit changes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from headrace.catalog import Committed, LoadedTable, NoSuchTable, TableChange
from headrace.change import QUARANTINE, TEXT_MAP, TableFault
from headrace.errors import LakeUnavailable
from headrace.lake.bronze import AppendedTable, bronze_rows, create_bronze
from headrace.lake.copies import FinishedCopy
from headrace.lake.effects import Inconsistent
from headrace.lake.index import KeyIndex, folder_of
from headrace.lake.keys import UnusableKey
from headrace.lake.layout import BRONZE, SILVER, Refused, TableLayout, evolved_bronze, evolved_silver, new_bronze, new_silver
from headrace.lake.levels import MergeLimits
from headrace.lake.port import TableState
from headrace.lake.progress import TableProgress
from headrace.lake.silver import SilverTable
from headrace.lake.storage import Storage
from headrace.position import Position
from headrace.schema import TableId, TableSchema

TRUNCATE_ORDINAL = -(1 << 42)
"""Of the ``t`` row before a repeated copy: before every ``r`` row, within the bounds of fold.py."""


class LakeCatalog(Protocol):
    """What the writer asks of a catalog."""

    def commit(self, changes: Sequence[TableChange]) -> Committed: ...

    def load(self, namespace: str, name: str, version: int | None = None) -> LoadedTable: ...

    def namespaces(self) -> list[str]: ...

    def create_namespace(self, namespace: str, *, exist_ok: bool = False) -> int: ...

    def note(self, key: str) -> str | None: ...

    def set_note(self, key: str, value: str | None) -> None: ...

    def latest_version(self) -> int: ...


class Shop:
    """Where tables come from: the catalog, the warehouse, the folder of local state, and how files are merged."""

    def __init__(self, catalog: LakeCatalog, storage: Storage, state: Path, limits: MergeLimits) -> None:
        self.catalog, self.storage, self.state, self.limits = catalog, storage, state, limits

    def find(self, namespace: str, name: str) -> LoadedTable | None:
        try:
            return self.catalog.load(namespace, name)
        except NoSuchTable:
            return None


class FollowedTable:
    """What is staged is forgotten by throwing the object away. Lake tables are loaded when they are first needed."""

    def __init__(self, shop: Shop, progress: TableProgress) -> None:
        self.progress = progress
        self._shop = shop
        self._bronze: AppendedTable | None = None
        self._silver: SilverTable | None = None
        self._schema_seen = progress.schema
        self.staged_rows = 0
        self.adopted: list[FinishedCopy] = []

    @property
    def id(self) -> TableId:
        return self.progress.schema.table

    @property
    def state(self) -> TableState:
        progress = self.progress
        return TableState(schema=progress.schema, waiting=progress.state == "copying", fault=progress.fault)

    # --- its lake tables ------------------------------------------------------------------------------------------------------

    @property
    def bronze(self) -> AppendedTable:
        if self._bronze is None:
            loaded = self._shop.find(BRONZE, self.id.lake_name)
            shop = self._shop
            if loaded is None:
                self._bronze = create_bronze(shop.storage, self.id.lake_name, new_bronze(self.progress.schema), shop.limits)
            else:
                self._bronze = AppendedTable.load(shop.storage, loaded, shop.limits)
        return self._bronze

    @property
    def silver(self) -> SilverTable:
        if self._silver is None:
            loaded = self._shop.find(SILVER, self.id.lake_name)
            shop, schema = self._shop, self.progress.schema
            if loaded is None:
                self._silver = SilverTable.create(
                    shop.storage, self.id.lake_name, new_silver(schema), schema.key, shop.state, shop.limits
                )
            else:
                self._silver = SilverTable.load(shop.storage, loaded, schema.key, shop.state, shop.limits)
        return self._silver

    def copy_layouts(self, schema: TableSchema) -> tuple[TableLayout, TableLayout]:
        """The layouts that bronze and silver get when a copy under this schema is adopted. Raises Refused."""
        bronze, silver = self.bronze.table, self.silver.table
        return (
            evolved_bronze(bronze.layout, schema, replace=True) if bronze.exists else new_bronze(schema),
            evolved_silver(silver.layout, schema, replace=True) if silver.exists else new_silver(schema),
        )

    # --- staging --------------------------------------------------------------------------------------------------------------

    def stage(self, changes: pa.Table, schema: TableSchema, epoch: int) -> TableFault | None:
        """Stage changes: bronze always, silver while the table is followed. Returns why silver is parked by them, None if it is
        not.

        Raises Refused when the lake's tables cannot take the schema.
        """
        if schema is not self._schema_seen:
            if schema != self.progress.schema:
                self._evolve(schema)
            self._schema_seen = schema
        self.bronze.append(bronze_rows(changes, epoch, datetime.now(UTC)))
        self._count(changes.num_rows)
        fault = None
        for batch in changes.combine_chunks().to_batches() if self.progress.state == "following" else ():
            try:
                self.silver.stage(batch, epoch)
            except (UnusableKey, Inconsistent) as error:
                fault = self._silver_fault(error, batch)
                self.park(fault)
                if self.silver.table.exists:
                    self.silver.close()
                    self._silver = None  # as it was at the last commit
                break
        return fault

    def _silver_fault(self, error: UnusableKey | Inconsistent, batch: pa.RecordBatch) -> TableFault:
        reason = str(error)
        if isinstance(error, UnusableKey):
            column = self.progress.schema.key[error.column]
            reason = f"key column {column} has a value that its lake type cannot hold"
        return TableFault(
            reason=f"{reason}; bronze goes on, silver stays as it is",
            remedy=f"Set the cause right at the source, then copy the table again: headrace resync {self.id}",
            lsn=int(batch.column("commit_lsn")[0].as_py()),
            bronze_goes_on=True,
        )

    def _evolve(self, schema: TableSchema) -> None:
        if schema.key != self.progress.schema.key:
            raise Refused(f"its key changed from ({', '.join(self.progress.schema.key)}) to ({', '.join(schema.key)})")
        silver = evolved_silver(self.silver.table.layout, schema) if self.progress.state == "following" else None
        self.bronze.evolve(evolved_bronze(self.bronze.table.layout, schema))
        if silver is not None:
            self.silver.evolve(silver)
        self.progress = replace(self.progress, schema=replace(schema, source_state=self.progress.schema.source_state))

    def note_state(self, state: str) -> None:
        """What the source says of how it holds the rows that the lake has."""
        self.progress = replace(self.progress, schema=replace(self.progress.schema, source_state=state))

    def park(self, fault: TableFault) -> None:
        """The table cannot be followed from here on."""
        self.progress = replace(self.progress, state="parked", fault=fault, since=datetime.now(UTC))

    def adopt(self, copy: FinishedCopy, epoch: int) -> None:
        """Make the copy's rows all that silver has; bronze gets them after a truncate if it had rows before."""
        had_rows = self.bronze.table.exists
        try:
            bronze, silver = self.copy_layouts(copy.schema)
        except Refused as refused:
            raise self._outdated(copy) from refused
        if (
            bronze.schema["fields"] != copy.bronze.layout.schema["fields"]
            or silver.schema["fields"] != copy.silver.layout.schema["fields"]
        ):
            raise self._outdated(copy)
        if self.bronze.table.exists:
            self.bronze.evolve(bronze)
        else:
            self._bronze = create_bronze(self._shop.storage, self.id.lake_name, bronze, self._shop.limits)
        shop = self._shop
        if self.silver.table.exists:
            table = self.silver.table
            self.silver.close()
            table.clear()
            table.evolve(silver)
            KeyIndex.delete(folder_of(shop.state, table.uuid))
            self._silver = SilverTable(table, copy.schema.key, shop.state)
        else:
            self._silver = SilverTable.create(shop.storage, self.id.lake_name, silver, copy.schema.key, shop.state, shop.limits)
        if had_rows:
            self.bronze.append(bronze_rows(_truncate(copy), epoch, datetime.now(UTC)))
        for file in copy.bronze.files:
            self.bronze.table.add(file)
        self.silver.adopt(copy.silver.files)
        self.adopted.append(copy)
        self.progress = replace(
            self.progress, schema=copy.schema, state="following", fault=None, since=datetime.now(UTC), copy_lsn=copy.lsn
        )
        self._count(copy.rows)

    def _outdated(self, copy: FinishedCopy) -> LakeUnavailable:
        return LakeUnavailable(
            f"The staged copy of {self.id} at LSN {copy.lsn} does not fit the lake's tables any more.",
            remedy="Run again: the table is copied anew.",
        )

    def replace(self, chunks: Iterable[pa.Table]) -> int:
        """Replace all rows of silver; how many there are now."""
        return self.silver.replace(chunks)

    def _count(self, rows: int) -> None:
        self.staged_rows += rows
        self.progress = replace(self.progress, changes=self.progress.changes + rows)

    # --- committing -----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Merge what is due and begin to write the rest."""
        if self._bronze is not None and self._bronze.changed:
            self._bronze.finish()
        if self._silver is not None and self._silver.changed:
            self._silver.finish()

    @property
    def lake_tables(self) -> list[AppendedTable | SilverTable]:
        """Those that the next commit changes."""
        return [table for table in (self._bronze, self._silver) if table is not None and table.changed]

    def counted(self, position: Position | None, commit_time: datetime | None) -> TableProgress:
        """Its progress as the next commit has it."""
        if not self.lake_tables:
            return self.progress
        rows = self._silver.table.live_rows if self._silver is not None else self.progress.rows
        self.progress = replace(self.progress, rows=rows, position=position, commit_time=commit_time or self.progress.commit_time)
        return self.progress

    def drop_index(self) -> None:
        """Remove the key index; it is built anew when it is needed."""
        KeyIndex.delete(folder_of(self._shop.state, self.silver.table.uuid))
        self._silver = None

    def close(self) -> None:
        """Let go of files and connections; what is staged is forgotten."""
        if self._bronze is not None:
            self._bronze.table.abort()
        if self._silver is not None:
            self._silver.close()


def _truncate(copy: FinishedCopy) -> pa.Table:
    """A ``t`` row at the copy's snapshot, in the change layout as far as it matters."""
    now = copy.finished_at
    columns = {
        "op": pa.array(["t"]),
        "commit_lsn": pa.array([copy.lsn], pa.int64()),
        "ordinal": pa.array([TRUNCATE_ORDINAL], pa.int64()),
        "change_lsn": pa.array([copy.lsn], pa.int64()),
        "xid": pa.array([0], pa.int64()),
        "commit_time": pa.array([now], pa.timestamp("us", tz="UTC")),
    }
    return pa.table(columns)


def as_quarantined(changes: pa.Table) -> pa.Table:
    """Typed changes in the quarantine layout: every value as text, where the lake refuses a schema that the source let pass."""
    columns = {name: changes.column(name) for name in QUARANTINE.names if name not in ("before", "after")}
    whole = changes.combine_chunks()
    for name in ("before", "after"):
        columns[name] = pa.chunked_array([_text_map(chunk) for chunk in whole.column(name).chunks], TEXT_MAP)
    return pa.table(columns).select(QUARANTINE.names).cast(QUARANTINE)


def _text_map(rows: pa.StructArray) -> pa.Array:
    names = [field.name for field in rows.type]
    texts = [_text(rows.field(index)) for index in range(len(names))]
    width, count = len(names), len(rows)
    order = pa.array([column * count + row for row in range(count) for column in range(width)], pa.int64())
    values = pa.concat_arrays(texts).take(order) if texts else pa.array([], pa.string())
    keys = pa.array(names * count, pa.string())
    offsets = pa.array(range(0, width * count + 1, width) if width else [0] * (count + 1), pa.int32())
    return pa.MapArray.from_arrays(offsets, keys, values, mask=rows.is_null())


def _text(values: pa.Array) -> pa.Array:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_list(values.type):
        inner = _text(values.flatten())
        lists = pa.ListArray.from_arrays(values.offsets, inner) if values.offset == 0 else None
        return pc.binary_join(lists, ",") if lists is not None else pa.nulls(len(values), pa.string())
    if pa.types.is_fixed_size_binary(values.type) or pa.types.is_binary(values.type):
        return pa.array([None if value is None else value.hex() for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())
