"""One Iceberg table as its only writer sees it: the files it has now, and what the next commit changes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.catalog import LoadedTable, TableChange
from headrace.catalog.files import path_of
from headrace.errors import LakeUnavailable
from headrace.lake.dead_rows import DeadRows
from headrace.lake.layout import TableLayout, iceberg_type, layout_of
from headrace.lake.levels import MergeLimits
from headrace.lake.live_file import ROW_BITS, LiveFile, Places, by_file
from headrace.lake.manifests import (
    ADDED,
    DATA,
    DELETED,
    EXISTING,
    POSITION_DELETES,
    DataFile,
    Entry,
    Manifest,
    ManifestCodec,
    PartitionField,
    manifest_list,
    read_manifest,
    read_manifest_list,
)
from headrace.lake.row_files import Bounded, RowFile, bounded_kind, conform, read_rows
from headrace.lake.storage import Storage
from headrace.lake.summary import summary

T = TypeVar("T")

YOUNG_FILES = 64
MANIFEST_FILES = 512
KEEP_FILES = {"gc.enabled": "false"}
"""Other engines' procedures that expire snapshots or remove orphans then refuse: versions of the lake need those files."""
CREATED_WITH = {"write.parquet.compression-codec": "zstd", **KEEP_FILES}


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A manifest of the current snapshot, and its live files."""

    manifest: Manifest
    files: tuple[LiveFile, ...]


class LakeTable:
    """The table's files as of its last commit, with the changes staged for the next one.

    Staged changes are forgotten by throwing the object away and loading the table anew. Not safe for several threads.
    """

    def __init__(self, storage: Storage, namespace: str, name: str, layout: TableLayout, limits: MergeLimits) -> None:
        """A table that the next commit creates."""
        self.held = storage.held
        self.namespace, self.name = namespace, name
        self.layout = layout
        self.limits = limits
        self.data: dict[int, LiveFile] = {}
        self.deletes: dict[int, LiveFile] = {}
        self.uuid = str(uuid.uuid4())
        self.location = storage.table_location(namespace, name)
        self.properties: Mapping[str, str] = {}
        self.bounded: tuple[str, ...] = ()
        self._storage = storage
        self._loaded: LoadedTable | None = None
        self._committed_layout = layout
        self._spec_id = 0
        self._sequence = 0
        self._snapshot: int | None = None
        self._listed: list[_Listed] = []
        self._added: list[LiveFile] = []
        self._removed: list[LiveFile] = []
        self._next_id = 1
        self._in_commit: tuple[int, list[_Listed]] | None = None
        self._codec: ManifestCodec | None = None

    # --- what the table has ---------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        return self._loaded is not None

    @property
    def snapshot_id(self) -> int | None:
        """The current snapshot; None for a table without one."""
        return self._snapshot

    @property
    def changed(self) -> bool:
        """True if the next commit would change this table."""
        return bool(self._added or self._removed) or not self.exists or self.layout is not self._committed_layout

    def missing_files(self) -> list[str]:
        """The locations of files that the next commit adds and that are not there."""
        return [file.location for file in self._added if not path_of(file.location).exists()]

    @property
    def live_rows(self) -> int:
        return sum(file.live_rows for file in self.data.values())

    @classmethod
    def load(
        cls, storage: Storage, loaded: LoadedTable, limits: MergeLimits, *, ids: Mapping[str, int] | None = None
    ) -> LakeTable:
        """The table in the catalog. ``ids`` are the file ids known for it, by location; other files get new ones.

        Raises LakeUnavailable when its manifests cannot be read, or another engine left files in it that this writer does not
        understand.
        """
        metadata = loaded.metadata
        table = cls(storage, loaded.namespace, loaded.name, layout_in(metadata), limits)
        table._loaded = loaded
        table.uuid = metadata["table-uuid"]
        table.location = metadata["location"]
        table.properties = metadata["properties"]
        table._spec_id = metadata["default-spec-id"]
        table._sequence = metadata["last-sequence-number"]
        table._snapshot = current_snapshot(metadata)
        if table._snapshot is not None:
            snapshot = next(one for one in metadata["snapshots"] if one["snapshot-id"] == table._snapshot)
            known = ids or {}
            table._next_id = max(known.values(), default=0) + 1
            table._read(snapshot["manifest-list"], known)
        return table

    def _read(self, location: str, known: Mapping[str, int]) -> None:
        for manifest in self._decoded(location, read_manifest_list):
            if manifest.record["partition_spec_id"] != self._spec_id:
                raise self._foreign("a manifest of another partition spec")
            files = []
            for entry in self._decoded(manifest.location, partial(read_manifest, manifest=manifest)):
                record = entry["data_file"]
                if record["file_format"].upper() != "PARQUET" or record["content"] not in (DATA, POSITION_DELETES):
                    raise self._foreign(f"a {record['file_format']} file of content {record['content']}")
                file = LiveFile(
                    id=known.get(record["file_path"]) or self._take_id(),
                    location=record["file_path"],
                    content=record["content"],
                    partition=record["partition"][self.layout.partition.name] if self.layout.partition else None,
                    rows=record["record_count"],
                    size=record["file_size_in_bytes"],
                    encoded=self.codec.reencode(record),
                    snapshot_id=entry["snapshot_id"],
                    sequence=entry["sequence_number"],
                    file_sequence=entry["file_sequence_number"],
                )
                files.append(file)
                (self.data if file.content == DATA else self.deletes)[file.id] = file
            self._listed.append(_Listed(manifest=manifest, files=tuple(files)))
        ids = {file.location: file.id for file in self.data.values()}
        for delete in self.deletes.values():
            self._note_dead(delete, self._read_deletes(delete, ids))
        for file in self.data.values():
            if file.dead is not None:
                file.dead.recount()

    def _decoded(self, location: str, decode: Callable[[bytes], list[T]]) -> list[T]:
        content = self._storage.read(location)
        try:
            return decode(content)
        except Exception as error:  # the Avro reader has no error of its own for a damaged file
            raise self._storage.unreadable(location, error) from error

    def _foreign(self, what: str) -> LakeUnavailable:
        return LakeUnavailable(
            f"Table {self.namespace}.{self.name} has {what}, written by another engine; Headrace cannot go on from there.",
            remedy="Rewrite the table's data files with that engine (in Parquet, without equality deletes),"
            " or drop the table and copy it again.",
        )

    def _read_deletes(self, delete: LiveFile, ids: Mapping[str, int]) -> Places:
        held = self.held.get(delete.location)
        rows = held if held is not None else read_rows(self._storage, delete.location, DELETE_ROWS)
        paths = rows.column("file_path").combine_chunks().dictionary_encode()
        own = np.array([ids.get(path, 0) for path in paths.dictionary.to_pylist()], np.uint64)
        positions = rows.column("pos").to_numpy().astype(np.uint64)
        places: Places = (own[paths.indices.to_numpy()] << np.uint64(ROW_BITS)) | positions
        known: Places = places[places >> np.uint64(ROW_BITS) != 0]
        return known

    def _note_dead(self, delete: LiveFile | None, places: Places) -> None:
        """Mark rows dead in their files' bits and count them for the delete file that names them."""
        for file_id, rows in by_file(places):
            file = self.data[file_id]
            if file.dead is None:
                file.dead = DeadRows()
            file.dead.add(rows)
            if delete is not None:
                delete.aims[file_id] = delete.aims.get(file_id, 0) + len(rows)

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    # --- staging --------------------------------------------------------------------------------------------------------------

    @property
    def codec(self) -> ManifestCodec:
        if self._codec is None:
            self._codec = ManifestCodec(self.layout.schema, self._spec_id, self.layout.partition)
        return self._codec

    def evolve(self, layout: TableLayout) -> None:
        """The next commit changes the schema to this one."""
        if layout is not self.layout:
            self.layout = layout
            self._codec = None

    def new_file(self, partition: int | str | None = None) -> LiveFile:
        """A data file that the next commit adds, to be appended to. Its id is taken now."""
        return self._begin(DATA, self.layout.arrow, self._bounded(), partition)

    def _bounded(self) -> Bounded:
        fields = {item["name"]: item for item in self.layout.schema["fields"]}
        kinds = {name: iceberg_type(fields[name]["type"]) for name in self.bounded if name in fields}
        return {name: (fields[name]["id"], kind) for name, kind in kinds.items() if bounded_kind(kind)}  # type: ignore[misc]

    def _begin(self, content: int, schema: pa.Schema, bounded: Bounded, partition: int | str | None) -> LiveFile:
        location = self._storage.new_location(self.location, "data", ".parquet" if content == DATA else "-deletes.parquet")
        writing = RowFile(self._storage, location, schema, bounded=bounded, partition=partition, content=content)
        file = LiveFile(id=self._take_id(), location=location, content=content, partition=partition, writing=writing)
        self._adopt(file)
        return file

    def _adopt(self, file: LiveFile) -> None:
        (self.data if file.content == DATA else self.deletes)[file.id] = file
        self._added.append(file)

    def append(self, file: LiveFile, rows: pa.Table) -> int:
        """Append to a file that is being written; the position of the first row."""
        assert file.writing is not None
        first = file.writing.append(rows)
        file.rows = file.writing.rows
        return first

    def add(self, described: DataFile) -> LiveFile:
        """The next commit adds this data file, which was written before."""
        file = LiveFile(
            id=self._take_id(),
            location=described.location,
            content=described.content,
            partition=described.partition,
            rows=described.rows,
            size=described.size,
            encoded=self.codec.encode_file(described),
        )
        self._adopt(file)
        return file

    def remove(self, file: LiveFile) -> None:
        """The next commit no longer has this file."""
        (self.data if file.content == DATA else self.deletes).pop(file.id)
        if file.committed:
            self._removed.append(file)
        else:
            self._added.remove(file)
            if file.writing is not None:
                file.writing.finish()  # closed and left behind: an orphan

    def clear(self) -> None:
        """The next commit has none of the files there are now."""
        for file in [*self.data.values(), *self.deletes.values()]:
            self.remove(file)

    def kill(self, places: Places) -> None:
        """The rows at these places, all alive, are dead from the next commit on. Another call of `write_deletes` writes them
        down.
        """
        self._note_dead(None, places)

    def rows_of(
        self, file: LiveFile, columns: Sequence[str] | None = None, *, at: npt.NDArray[np.uint64] | None = None
    ) -> pa.Table:
        """The file's rows, dead ones included (or those at these ascending positions), in the table's layout: all columns, or
        these.
        """
        schema = self.layout.arrow if columns is None else pa.schema([self.layout.arrow.field(name) for name in columns])
        held = self.held.get(file.location) if file.writing is None else file.writing.held
        if held is not None:
            rows = conform(held, schema)
            return rows if at is None else rows.take(pa.array(at))
        if file.writing is not None:
            file.writing.wait()
        return read_rows(self._storage, file.location, schema, at=at)

    def abort(self) -> None:
        """Give up the files that are still being written. The object is of no use after that."""
        for file in self._added:
            if file.writing is not None:
                file.writing.abort()

    # --- tidying --------------------------------------------------------------------------------------------------------------

    def drop_dead_files(self) -> None:
        """Data files without live rows, and delete files that name no row of a file the table still has, are removed."""
        for file in [file for file in self.data.values() if file.dead is not None and file.live_rows == 0 and file.rows]:
            self.remove(file)
        for delete in [file for file in self.deletes.values() if file.writing is None and not self.aimed(file)]:
            self.remove(delete)

    def aimed(self, delete: LiveFile) -> int:
        """How many rows the delete file names in data files that the table still has."""
        for gone in [file_id for file_id in delete.aims if file_id not in self.data]:
            del delete.aims[gone]
        return sum(delete.aims.values())

    def live_table(self, file: LiveFile) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """The file's live rows in the table's layout, and their positions in the file."""
        rows = self.rows_of(file)
        if file.dead is None or not file.dead.count:
            return rows, np.arange(rows.num_rows)
        alive = file.dead.alive(rows.num_rows)
        return rows.filter(pa.array(alive)), np.flatnonzero(alive)

    def write_deletes(self, places: Places) -> None:
        """Write a delete file that names these rows (dead already, see `kill`), as far as their files are still in the table."""
        groups = [(self.data[file_id], rows) for file_id, rows in by_file(places) if file_id in self.data]
        if not groups:
            return
        groups.sort(key=lambda group: group[0].location)
        paths = pa.DictionaryArray.from_arrays(
            np.repeat(np.arange(len(groups), dtype=np.int32), [len(rows) for _, rows in groups]),
            pa.array([file.location for file, _ in groups]),
        )
        positions = np.concatenate([rows for _, rows in groups]).astype(np.int64)
        delete = self._begin(POSITION_DELETES, DELETE_ROWS, DELETE_BOUNDS, None)
        delete.aims = {file.id: len(rows) for file, rows in groups}
        rows = pa.Table.from_arrays([paths.cast(pa.string()), pa.array(positions)], schema=DELETE_ROWS)
        self.append(delete, rows)

    def places_named(self, delete: LiveFile) -> Places:
        """The rows that a delete file names, in data files that the table still has."""
        return self._read_deletes(delete, {file.location: file.id for file in self.data.values()})

    # --- committing -----------------------------------------------------------------------------------------------------------

    def finish_files(self) -> None:
        """Begin to write out the files that are being appended to."""
        for file in self._added:
            if file.writing is not None:
                file.writing.finish()

    def change(self, snapshot_id: int, *, extra_summary: Mapping[str, str], keep_snapshots: int) -> TableChange:
        """Write manifests and manifest list; the change that makes everything staged visible. Call `committed` or throw the
        object away.
        """
        sequence = self._sequence + 1
        for file in self._added:
            if file.writing is not None:
                described = file.described = file.writing.described()
                file.rows, file.size = described.rows, described.size
                file.encoded = self.codec.encode_file(described)
                if file.writing.held is not None:
                    self.held.keep(file.location, file.writing.held)
                file.writing = None
        listed = [*self._relisted(DATA, snapshot_id, sequence), *self._relisted(POSITION_DELETES, snapshot_id, sequence)]
        location = self._storage.new_location(self.location, "metadata", ".avro")
        location = location.replace("/metadata/", f"/metadata/snap-{snapshot_id}-")
        content = manifest_list(
            (one.manifest for one in listed), snapshot_id=snapshot_id, parent=self._snapshot, sequence=sequence
        )
        self._storage.write(location, content)
        self._in_commit = (snapshot_id, listed)
        snapshot: dict[str, Any] = {
            "snapshot-id": snapshot_id,
            "sequence-number": sequence,
            "timestamp-ms": self._timestamp_ms(),
            "manifest-list": location,
            "summary": {**summary(self._added, self._removed, [*self.data.values(), *self.deletes.values()]), **extra_summary},
            "schema-id": self._schema_id(),
        }
        if self._snapshot is not None:
            snapshot["parent-snapshot-id"] = self._snapshot
        updates = [
            *self._definition(),
            {"action": "add-snapshot", "snapshot": snapshot},
            {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": snapshot_id},
        ]
        if old := self._old_snapshots(keep_snapshots):
            updates.append({"action": "remove-snapshots", "snapshot-ids": old})
        return TableChange(namespace=self.namespace, name=self.name, requirements=self._requirements(), updates=updates)

    def is_at(self, loaded: LoadedTable | None) -> bool:
        """Whether ``loaded`` is the table as this object took it up."""
        if loaded is None or self._loaded is None:
            return loaded is None and self._loaded is None
        return loaded.metadata_location == self._loaded.metadata_location

    def described_additions(self) -> list[DataFile]:
        """The data files that the staged change adds, other than merged ones; they are written."""
        return [file.described for file in self._added if file.content == DATA and file.described is not None and not file.merged]

    def committed(self, loaded: LoadedTable) -> None:
        """The change took effect; ``loaded`` is the table as it is now."""
        assert self._in_commit is not None
        snapshot_id, self._listed = self._in_commit
        self._in_commit = None
        self._sequence += 1
        for file in self._removed:
            self.held.drop(file.location)
        for file in self._added:
            file.snapshot_id, file.sequence, file.file_sequence = snapshot_id, self._sequence, self._sequence
        self._added, self._removed = [], []
        self._snapshot = snapshot_id
        self._loaded = loaded
        self._committed_layout = self.layout

    def _relisted(self, content: int, snapshot_id: int, sequence: int) -> list[_Listed]:
        """The next snapshot's manifests of data or of deletes.

        A manifest is written anew when it is young or lost a file; the files added and those of such manifests go into one new
        manifest, base files apart if they are many, so that it stays small and old ones stay untouched.
        """
        mine = [one for one in self._listed if one.manifest.content == content]
        added = [file for file in self._added if file.content == content]
        gone = [file for file in self._removed if file.content == content]
        if not added and not gone:
            return mine
        lost = {file.id for file in gone}
        kept = [one for one in mine if len(one.files) >= YOUNG_FILES and not any(file.id in lost for file in one.files)]
        again = [file for one in mine if one not in kept for file in one.files if file.id not in lost]
        large = [file for file in again if self.limits.is_base(file.live_rows, file.size)]
        groups: list[list[tuple[int, LiveFile]]] = []
        if len(large) >= YOUNG_FILES:
            apart = {file.id for file in large}
            groups += [
                [(EXISTING, file) for file in large[begin : begin + MANIFEST_FILES]]
                for begin in range(0, len(large), MANIFEST_FILES)
            ]
            again = [file for file in again if file.id not in apart]
        rest = [(ADDED, file) for file in added] + [(DELETED, file) for file in gone] + [(EXISTING, file) for file in again]
        groups += [rest[begin : begin + MANIFEST_FILES] for begin in range(0, len(rest), MANIFEST_FILES)]
        return [*(self._written(group, snapshot_id, sequence) for group in groups), *kept]

    def _written(self, group: Sequence[tuple[int, LiveFile]], snapshot_id: int, sequence: int) -> _Listed:
        entries = [
            Entry(
                status=status,
                snapshot_id=file.snapshot_id if status == EXISTING and file.snapshot_id is not None else snapshot_id,
                sequence=None if status == ADDED else file.sequence,
                file_sequence=None if status == ADDED else file.file_sequence,
                content=file.content,
                rows=file.rows,
                partition=file.partition,
                encoded=file.encoded,
            )
            for status, file in group
        ]
        location = self._storage.new_location(self.location, "metadata", "-m.avro")
        manifest, content = self.codec.manifest(location, entries, snapshot_id=snapshot_id, sequence=sequence)
        self._storage.write(location, content)
        return _Listed(manifest=manifest, files=tuple(file for status, file in group if status != DELETED))

    def _timestamp_ms(self) -> int:
        return max(int(time.time() * 1000), self._loaded.metadata["last-updated-ms"] if self._loaded else 0)

    def _schema_id(self) -> int:
        """The id the schema has after the commit: the catalog gives an added one the highest id plus one, or that of an equal
        one.
        """
        if self._loaded is None:
            return 0
        schemas = self._loaded.metadata["schemas"]
        for known in schemas:
            if known["fields"] == self.layout.schema["fields"]:
                return int(known["schema-id"])
        return max(int(known["schema-id"]) for known in schemas) + 1

    def _definition(self) -> list[dict[str, Any]]:
        """The updates that create the table or change its schema."""
        schema = [
            {"action": "add-schema", "schema": self.layout.schema, "last-column-id": self.layout.last_id},
            {"action": "set-current-schema", "schema-id": -1},
        ]
        if self._loaded is not None:
            kept = [] if KEEP_FILES.keys() <= self.properties.keys() else [{"action": "set-properties", "updates": KEEP_FILES}]
            return kept if self.layout is self._committed_layout else [*schema, *kept]
        fields = [self.layout.partition.spec()] if self.layout.partition else []
        return [
            {"action": "assign-uuid", "uuid": self.uuid},
            {"action": "upgrade-format-version", "format-version": 2},
            {"action": "set-location", "location": self.location},
            *schema,
            {"action": "add-spec", "spec": {"spec-id": 0, "fields": fields}},
            {"action": "set-default-spec", "spec-id": -1},
            {"action": "add-sort-order", "sort-order": {"order-id": 0, "fields": []}},
            {"action": "set-default-sort-order", "sort-order-id": -1},
            {"action": "set-properties", "updates": {**CREATED_WITH, **self.properties}},
        ]

    def _requirements(self) -> list[dict[str, Any]]:
        if self._loaded is None:
            return [{"type": "assert-create"}]
        metadata = self._loaded.metadata
        return [
            {"type": "assert-table-uuid", "uuid": self.uuid},
            {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": self._snapshot},
            {"type": "assert-current-schema-id", "current-schema-id": metadata["current-schema-id"]},
            {"type": "assert-default-spec-id", "default-spec-id": metadata["default-spec-id"]},
        ]

    def _old_snapshots(self, keep: int) -> list[int]:
        """Snapshots that the metadata need not list any more. Kept catalog versions have metadata files of their own."""
        if self._loaded is None:
            return []
        metadata = self._loaded.metadata
        named = {ref["snapshot-id"] for name, ref in metadata["refs"].items() if name != "main"}
        ids = [snapshot["snapshot-id"] for snapshot in metadata["snapshots"]]
        return [one for one in ids[: max(0, len(ids) + 1 - keep)] if one not in named]


def current_snapshot(metadata: Mapping[str, Any]) -> int | None:
    """The snapshot that the table's main branch is at."""
    main = metadata["refs"].get("main")
    return None if main is None else int(main["snapshot-id"])


def layout_in(metadata: Mapping[str, Any]) -> TableLayout:
    """The current layout of a table in the catalog."""
    schema = next(one for one in metadata["schemas"] if one["schema-id"] == metadata["current-schema-id"])
    spec = next(one for one in metadata["partition-specs"] if one["spec-id"] == metadata["default-spec-id"])
    partition = None
    if spec["fields"]:
        (item,) = spec["fields"]
        result = "int" if item["transform"] == "hour" else "string"
        partition = PartitionField(
            source_id=item["source-id"], name=item["name"], transform=item["transform"], result=result, field_id=item["field-id"]
        )
    return layout_of(schema, metadata["last-column-id"], partition)


def _delete_field(field_id: int, name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"PARQUET:field_id": str(field_id)})


DELETE_ROWS = pa.schema([_delete_field(2147483546, "file_path", pa.string()), _delete_field(2147483545, "pos", pa.int64())])
DELETE_BOUNDS: Bounded = {}
