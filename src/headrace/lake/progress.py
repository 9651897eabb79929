"""The progress table: how far each pipeline has come, and the state of its tables. Rewritten in the same commit as the data.

It is also how another process sees what a run does: `read_progress` needs only the catalog and the warehouse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, Protocol

import orjson
import pyarrow as pa
from pyiceberg.types import NestedField

from headrace.catalog import LoadedTable, NoSuchNamespace, NoSuchTable
from headrace.change import TableFault
from headrace.errors import CommitConflict
from headrace.lake.layout import HEADRACE, PROGRESS_COLUMNS, completed, fixed
from headrace.lake.levels import MergeLimits
from headrace.lake.live_file import LiveFile
from headrace.lake.manifests import DataFile
from headrace.lake.storage import Storage
from headrace.lake.table import LakeTable
from headrace.position import Position
from headrace.schema import Column, TableId, TableSchema

NAME = "progress"

REMEMBERED = 10_000

State = Literal["copying", "following", "parked"]


@dataclass(frozen=True, kw_only=True)
class TableProgress:
    """One table of a pipeline.

    ``state``: ``copying`` until its (next) first copy is published; ``parked`` when it cannot be followed, for the reason in
    ``fault``.
    ``since`` is when it came into that state. ``copy_lsn`` is the snapshot of its copy. ``changes`` counts changes and copied
    rows taken into bronze, ``rows`` the rows of silver. ``position`` and ``commit_time`` are of the last commit that changed the
    table.
    """

    schema: TableSchema
    state: State
    since: datetime
    copy_lsn: int | None = None
    fault: TableFault | None = None
    changes: int = 0
    rows: int = 0
    position: Position | None = None
    commit_time: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A pipeline's progress: the source's changes up to ``position`` are in the lake, the last of them committed there at
    ``commit_time``. ``server``: which server that position is of, as the source calls it; empty if it is not known.
    """

    pipeline: str
    position: Position | None
    commit_time: datetime | None
    tables: Mapping[TableId, TableProgress]
    server: str = ""


class TableSource(Protocol):
    """What is needed of the catalog to read progress."""

    def load(self, namespace: str, name: str, version: int | None = None) -> LoadedTable: ...


def read_progress(catalog: TableSource, storage: Storage, pipeline: str, *, version: int | None = None) -> Progress | None:
    """The pipeline's progress, at a version of the catalog; None if it has none. Raises LakeUnavailable."""
    try:
        loaded = catalog.load(HEADRACE, NAME, version)
    except (NoSuchTable, NoSuchNamespace):
        return None
    return ProgressTable(LakeTable.load(storage, loaded, MergeLimits()), pipeline).read()


class ProgressTable:
    """Every pipeline has one file in the table, in a partition of its own; the others' are left as they are."""

    def __init__(self, table: LakeTable, pipeline: str) -> None:
        table.evolve(completed(table.layout, PROGRESS_COLUMNS))
        self.table = table
        self.pipeline = pipeline
        self._written: LiveFile | None = None
        self._replaced: str | None = None

    @classmethod
    def create(cls, storage: Storage, pipeline: str, limits: MergeLimits) -> ProgressTable:
        layout = fixed(PROGRESS_COLUMNS, partitioned_by="pipeline")
        return cls(LakeTable(storage, HEADRACE, NAME, layout, limits), pipeline)

    def _own(self) -> LiveFile | None:
        return next((file for file in self.table.data.values() if file.partition == self.pipeline), None)

    def read(self) -> Progress | None:
        file = self._own()
        return None if file is None else _from_rows(self.pipeline, self.table.rows_of(file).to_pylist())

    def others(self) -> list[tuple[str, TableId]]:
        """The tables of the other pipelines, with the name of theirs."""
        rows = [
            row
            for file in self.table.data.values()
            if file.partition != self.pipeline
            for row in self.table.rows_of(file, ["pipeline", "table_schema", "table_name"]).to_pylist()
        ]
        return [
            (row["pipeline"], TableId(row["table_schema"], row["table_name"])) for row in rows if row["table_name"] is not None
        ]

    def write(self, progress: Progress) -> None:
        """Stage the pipeline's progress in place of what it was."""
        old = self._own()
        if old is not None:
            self._replaced = old.location
            self.table.remove(old)
        self._written = self.table.new_file(self.pipeline)
        self.table.append(self._written, _to_rows(progress, self.table.layout.arrow))
        self.table.finish_files()

    def moved(self, table: LakeTable, described: DataFile) -> ProgressTable:
        """The same progress, staged on the table as it is now, after another pipeline's commit. Raises CommitConflict
        if this pipeline's own progress has changed too.
        """
        other = ProgressTable(table, self.pipeline)
        old = other._own()
        if (None if old is None else old.location) != self._replaced:
            raise CommitConflict(
                f"Another run of pipeline {self.pipeline} has written its progress. Nothing of this commit is visible.",
                remedy="See that only one runs, then run again: it goes on from where the lake is.",
            )
        if old is not None:
            other.table.remove(old)
        other._replaced = self._replaced
        other._written = other.table.add(described)
        return other


def _to_rows(progress: Progress, schema: pa.Schema) -> pa.Table:
    blank: dict[str, Any] = dict.fromkeys(schema.names)
    own = {
        **blank,
        "pipeline": progress.pipeline,
        "epoch": progress.position.epoch if progress.position else None,
        "lsn": progress.position.lsn if progress.position else None,
        "server": progress.server or None,
        "commit_time": progress.commit_time,
    }
    rows = [own, *({**blank, **_table_row(progress.pipeline, table)} for table in progress.tables.values())]
    return pa.Table.from_pylist(rows, schema=schema)


def _table_row(pipeline: str, table: TableProgress) -> dict[str, Any]:
    fault = table.fault
    return {
        "pipeline": pipeline,
        "table_schema": table.schema.table.schema,
        "table_name": table.schema.table.name,
        "state": table.state,
        "epoch": table.position.epoch if table.position else None,
        "lsn": table.position.lsn if table.position else None,
        "commit_time": table.commit_time,
        "since": table.since,
        "copy_lsn": table.copy_lsn,
        "reason": fault.reason if fault else None,
        "remedy": fault.remedy if fault else None,
        "fault_lsn": fault.lsn if fault else None,
        "changes": table.changes,
        "rows": table.rows,
        "columns": _text_of(table.schema),
        "bronze_goes_on": fault.bronze_goes_on if fault else None,
    }


def _from_rows(pipeline: str, rows: Sequence[dict[str, Any]]) -> Progress:
    own = next(row for row in rows if row["table_name"] is None)
    tables = [_table_from(row) for row in rows if row["table_name"] is not None]
    return Progress(
        pipeline=pipeline,
        position=_position(own),
        commit_time=own["commit_time"],
        tables={table.schema.table: table for table in tables},
        server=own["server"] or "",
    )


def _position(row: Mapping[str, Any]) -> Position | None:
    return None if row["lsn"] is None else Position(row["epoch"], row["lsn"])


def _table_from(row: Mapping[str, Any]) -> TableProgress:
    fault = None
    if row["reason"] is not None:
        fault = TableFault(
            reason=row["reason"],
            remedy=row["remedy"] or "",
            lsn=row["fault_lsn"] or 0,
            bronze_goes_on=bool(row["bronze_goes_on"]),
        )
    schema = schema_from(row["columns"])
    return TableProgress(
        schema=replace(schema, table=TableId(row["table_schema"], row["table_name"])),
        state=row["state"],
        since=row["since"],
        copy_lsn=row["copy_lsn"],
        fault=fault,
        changes=row["changes"],
        rows=row["rows"],
        position=_position(row),
        commit_time=row["commit_time"],
    )


_texts: dict[int, tuple[TableSchema, str]] = {}


def _text_of(schema: TableSchema) -> str:
    """`schema_text`, remembered by the object's identity: comparing schemas takes longer than all else that is written here."""
    known = _texts.get(id(schema))
    if known is None or known[0] is not schema:
        if len(_texts) > REMEMBERED:
            _texts.clear()
        known = _texts[id(schema)] = (schema, schema_text(schema))
    return known[1]


def schema_text(schema: TableSchema) -> str:
    """A source table's schema as JSON."""
    columns = [
        {
            "name": column.name,
            "type": orjson.loads(column.type.model_dump_json()),
            "source_type": column.source_type,
            "nullable": column.nullable,
            "source_id": column.source_id,
        }
        for column in schema.columns
    ]
    document = {
        "table": [schema.table.schema, schema.table.name],
        "columns": columns,
        "key": list(schema.key),
        "source_id": schema.source_id,
        "source_state": schema.source_state,
    }
    return orjson.dumps(document).decode()


@lru_cache(maxsize=4096)
def schema_from(text: str) -> TableSchema:
    document = orjson.loads(text)
    columns = tuple(
        Column(
            name=column["name"],
            type=NestedField.model_validate({"id": 1, "name": "column", "required": False, "type": column["type"]}).field_type,
            source_type=column["source_type"],
            nullable=column["nullable"],
            source_id=column["source_id"],
        )
        for column in document["columns"]
    )
    return TableSchema(
        table=TableId(*document["table"]),
        columns=columns,
        key=tuple(document["key"]),
        source_id=document.get("source_id", ""),
        source_state=document.get("source_state", ""),
    )
