"""First copies: a table's rows arrive in chunks from several threads, become files, and wait on disk until a commit adopts them.

``<state>/copies/<id>.begun`` names the folders of a copy under way, ``<id>.json`` describes a finished one. A crash leaves a
``.begun`` without ``.json``: its files are removed when the next copy begins.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace import failpoint
from headrace.catalog.files import path_of
from headrace.lake.bronze import BOUNDED, bronze_rows, by_hour
from headrace.lake.layout import TableLayout, iceberg_type, layout_of
from headrace.lake.manifests import DataFile, PartitionField
from headrace.lake.port import StagedCopy
from headrace.lake.progress import schema_from, schema_text
from headrace.lake.row_files import RowFile, bounded_kind, conform
from headrace.lake.silver import silver_rows
from headrace.lake.storage import Storage, flush_folder
from headrace.schema import TableSchema


@dataclass(frozen=True, kw_only=True)
class CopiedTable:
    """One lake table's share of a finished copy."""

    layout: TableLayout
    files: tuple[DataFile, ...]


@dataclass(frozen=True, kw_only=True)
class FinishedCopy:
    """A finished copy as its record describes it."""

    id: str
    schema: TableSchema
    lsn: int
    rows: int
    finished_at: datetime
    bronze: CopiedTable
    silver: CopiedTable

    @property
    def staged(self) -> StagedCopy:
        return StagedCopy(table=self.schema.table, lsn=self.lsn, rows=self.rows, source_id=self.schema.source_id)

    @property
    def whole(self) -> bool:
        """Every file of it is there, of its size."""
        try:
            return all(path_of(file.location).stat().st_size == file.size for file in (*self.bronze.files, *self.silver.files))
        except OSError:
            return False


class TableCopy:
    """Takes one table's copy (see `headrace.source.port.CopySink`)."""

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        *,
        schema: TableSchema,
        lsn: int,
        epoch: int,
        bronze: tuple[str, TableLayout],
        silver: tuple[str, TableLayout],
        finished: Callable[[FinishedCopy], None],
        discarded: Callable[[str], None],
    ) -> None:
        """``bronze`` and ``silver``: the tables' locations and layouts."""
        self.id = uuid.uuid4().hex
        self._storage = storage
        self._folder = folder
        self._schema, self._lsn, self._epoch = schema, lsn, epoch
        self._bronze_location, self._bronze = bronze
        self._silver_location, self._silver = silver
        self._finished_callback, self._discarded_callback = finished, discarded
        self._lock = threading.Lock()
        self._idle: list[_Pair] = []
        self._done: list[RowFile] = []
        self._rows = 0
        self._folders = [
            path_of(location) / "data" / f"copy-{self.id}" for location in (self._bronze_location, self._silver_location)
        ]
        _write_durably(folder / f"{self.id}.begun", orjson.dumps([str(path) for path in self._folders]))

    def append(self, rows: pa.Table) -> None:
        """Take ``r`` rows in the change layout. From any thread. Raises LakeUnavailable."""
        if not rows.num_rows:
            return
        with self._lock:
            pair = self._idle.pop() if self._idle else _Pair(self)
            self._rows += rows.num_rows
        try:
            pair.append(rows)
        except OSError as error:
            raise self._storage.failed(error, "written") from error
        with self._lock:
            self._idle.append(pair)

    def finish(self) -> None:
        """All rows came: make the files durable, then record the copy. Raises LakeUnavailable."""
        try:
            for pair in self._idle:
                pair.end()
            bronze = tuple(file.described() for file in self._done if file.location.startswith(self._bronze_location + "/"))
            silver = tuple(file.described() for file in self._done if file.location.startswith(self._silver_location + "/"))
            self._storage.settle()
            failpoint.hit("copy-staged")
            copy = FinishedCopy(
                id=self.id,
                schema=self._schema,
                lsn=self._lsn,
                rows=self._rows,
                finished_at=datetime.now(UTC),
                bronze=CopiedTable(layout=self._bronze, files=bronze),
                silver=CopiedTable(layout=self._silver, files=silver),
            )
            _write_durably(self._folder / f"{self.id}.json", _encode(copy))
        except OSError as error:
            raise self._storage.failed(error, "written") from error
        self._finished_callback(copy)

    def discard(self) -> None:
        """Forget what came: its files are removed. Never fails; what cannot be removed now is when the next copy begins."""
        for pair in self._idle:
            pair.abort()
        self._storage.forget()
        with suppress(OSError):
            remove_copy(self._folder, self.id)
        self._discarded_callback(self.id)

    def new_file(self, which: str, partition: int | None) -> RowFile:
        location, layout = (self._bronze_location, self._bronze) if which == "bronze" else (self._silver_location, self._silver)
        names = BOUNDED if which == "bronze" else (*self._schema.key, "_commit_lsn", "_commit_time")
        kinds = {name: (layout.id_of(name), iceberg_type(layout.kind_of(name))) for name in names}
        bounded = {name: kind for name, kind in kinds.items() if bounded_kind(kind[1])}
        with self._lock:
            target = self._storage.new_location(location, f"data/copy-{self.id}", ".parquet")
        return RowFile(self._storage, target, layout.arrow, bounded=bounded, partition=partition)  # type: ignore[arg-type]

    def bronze_part(self, rows: pa.Table) -> pa.Table:
        return conform(bronze_rows(rows, self._epoch, datetime.now(UTC)), self._bronze.arrow)

    def silver_part(self, rows: pa.RecordBatch) -> pa.Table:
        return silver_rows(rows, np.arange(rows.num_rows), self._epoch, self._silver.arrow)

    def done(self, file: RowFile) -> None:
        file.finish()
        with self._lock:
            self._done.append(file)


class _Pair:
    """A bronze and a silver file that one thread at a time appends to."""

    def __init__(self, copy: TableCopy) -> None:
        self._copy = copy
        self._bronze: dict[int, RowFile] = {}
        self._silver: RowFile | None = None

    def append(self, rows: pa.Table) -> None:
        copy = self._copy
        for hour, part in by_hour(copy.bronze_part(rows)):
            file = self._bronze.pop(hour, None) or copy.new_file("bronze", hour)
            file.append(part)
            if file.full:
                copy.done(file)
            else:
                self._bronze[hour] = file
        for batch in rows.combine_chunks().to_batches():
            if self._silver is None:
                self._silver = copy.new_file("silver", None)
            self._silver.append(copy.silver_part(batch))
        if self._silver is not None and self._silver.full:
            copy.done(self._silver)
            self._silver = None

    def end(self) -> None:
        for file in [*self._bronze.values(), *([self._silver] if self._silver is not None else [])]:
            self._copy.done(file)
        self._bronze, self._silver = {}, None

    def abort(self) -> None:
        """Close the files; those that were finished are left alone."""
        for file in [*self._bronze.values(), *([self._silver] if self._silver is not None else [])]:
            with suppress(OSError):
                file.abort()
        self._bronze, self._silver = {}, None


def finished_copies(folder: Path) -> list[FinishedCopy]:
    """Every finished copy that has a record, the oldest first. One whose record cannot be read is removed."""
    if not folder.is_dir():
        return []
    copies = []
    for path in folder.glob("*.json"):
        try:
            copies.append(_decode(path.stem, path.read_bytes()))
        except (ValueError, KeyError, TypeError, AttributeError):
            remove_copy(folder, path.stem)
    return sorted(copies, key=lambda copy: copy.finished_at)


def remove_unfinished(folder: Path, running: Iterable[str]) -> None:
    """Remove the files of copies that a crash ended. ``running`` are the ids of those under way."""
    if not folder.is_dir():
        return
    for begun in folder.glob("*.begun"):
        if begun.stem not in set(running) and not begun.with_suffix(".json").exists():
            remove_copy(folder, begun.stem)


def remove_copy(folder: Path, copy_id: str) -> None:
    """Remove a copy that nothing will ever adopt: record and files."""
    begun = folder / f"{copy_id}.begun"
    with suppress(OSError, ValueError):
        for path in orjson.loads(begun.read_bytes()):
            shutil.rmtree(path, ignore_errors=True)
    forget_copy(folder, copy_id)


def forget_copy(folder: Path, copy_id: str) -> None:
    """Remove the record of a copy whose files belong to the lake now."""
    for ending in ("json", "begun"):
        (folder / f"{copy_id}.{ending}").unlink(missing_ok=True)


def _write_durably(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    flush_folder(path.parent)


def _encode(copy: FinishedCopy) -> bytes:
    return orjson.dumps(
        {
            "schema": schema_text(copy.schema),
            "lsn": copy.lsn,
            "rows": copy.rows,
            "finished_at": copy.finished_at.isoformat(),
            "bronze": _table_document(copy.bronze),
            "silver": _table_document(copy.silver),
        }
    )


def _table_document(table: CopiedTable) -> dict[str, Any]:
    partition = table.layout.partition
    return {
        "schema": table.layout.schema,
        "last_id": table.layout.last_id,
        "partition": None if partition is None else {**partition.spec(), "result": partition.result},
        "files": [
            {
                "location": file.location,
                "rows": file.rows,
                "size": file.size,
                "partition": file.partition,
                "lower": [[number, bound.hex()] for number, bound in file.lower.items()],
                "upper": [[number, bound.hex()] for number, bound in file.upper.items()],
            }
            for file in table.files
        ],
    }


def _decode(copy_id: str, content: bytes) -> FinishedCopy:
    document = orjson.loads(content)
    return FinishedCopy(
        id=copy_id,
        schema=schema_from(document["schema"]),
        lsn=document["lsn"],
        rows=document["rows"],
        finished_at=datetime.fromisoformat(document["finished_at"]),
        bronze=_table_from(document["bronze"]),
        silver=_table_from(document["silver"]),
    )


def _table_from(document: dict[str, Any]) -> CopiedTable:
    partition = document["partition"]
    field = None
    if partition is not None:
        field = PartitionField(
            source_id=partition["source-id"],
            name=partition["name"],
            transform=partition["transform"],
            result=partition["result"],
            field_id=partition["field-id"],
        )
    files = tuple(
        DataFile(
            content=0,
            location=file["location"],
            rows=file["rows"],
            size=file["size"],
            partition=file["partition"],
            lower={number: bytes.fromhex(bound) for number, bound in file["lower"]},
            upper={number: bytes.fromhex(bound) for number, bound in file["upper"]},
        )
        for file in document["files"]
    )
    return CopiedTable(layout=layout_of(document["schema"], document["last_id"], field), files=files)
