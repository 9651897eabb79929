"""Manifests and manifest lists: Iceberg's Avro files that say which data and delete files a snapshot has.

An entry's ``data_file`` record is encoded once, when its file is written or first read, and copied as bytes into every later
manifest that lists the file: a commit rewrites the entries of all small files, and encoding them anew would cost more than the
rest of it. The framing of Avro's object container file is written here, because fastavro takes only unencoded records.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import fastavro
import orjson

from headrace.lake.fresh import fresh_bytes
from headrace.lake.manifest_schemas import LIST_SCHEMA, entry_schema

DATA, POSITION_DELETES, EQUALITY_DELETES = 0, 1, 2
EXISTING, ADDED, DELETED = 0, 1, 2

PLAIN_BYTES = 32 << 10
_MAGIC = b"Obj\x01"


@dataclass(frozen=True, kw_only=True)
class PartitionField:
    """The one field of a table's partition spec. ``result`` is the type of its values: ``int`` or ``string``."""

    source_id: int
    name: str
    transform: str
    result: str
    field_id: int = 1000

    def spec(self) -> dict[str, Any]:
        return {"source-id": self.source_id, "field-id": self.field_id, "name": self.name, "transform": self.transform}

    def encode(self, value: int | str) -> bytes:
        """A value as the specification's single-value binary form."""
        return value.to_bytes(4, "little", signed=True) if isinstance(value, int) else value.encode()


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A data or position-delete file as manifests describe it. Bounds are by field id, in the specification's single-value binary
    form.
    """

    content: int
    location: str
    rows: int
    size: int
    """In bytes."""
    partition: int | str | None = None
    lower: Mapping[int, bytes]
    upper: Mapping[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a manifest. ``sequence`` is None for a file that this snapshot adds."""

    status: int
    snapshot_id: int
    sequence: int | None
    file_sequence: int | None
    content: int
    rows: int
    partition: int | str | None
    encoded: bytes
    """The ``data_file`` record in Avro."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest as the manifest list describes it; ``record`` is that line."""

    location: str
    content: int
    sequence: int
    record: Mapping[str, Any]


class ManifestCodec:
    """Encodes the manifests of one table under one schema and partition spec."""

    def __init__(self, schema: Mapping[str, Any], spec_id: int, partition: PartitionField | None) -> None:
        self.partition = partition
        self.spec_id = spec_id
        self._entry, self._data_file = _entry_schemas(partition)
        fields = [partition.spec()] if partition else []
        metadata = {
            "schema": orjson.dumps(schema),
            "schema-id": str(schema.get("schema-id", 0)).encode(),
            "partition-spec": orjson.dumps(fields),
            "partition-spec-id": str(spec_id).encode(),
            "format-version": b"2",
        }
        self._headers = [_Header.of(self._entry, {**metadata, "content": content}) for content in (b"data", b"deletes")]

    def encode_file(self, file: DataFile) -> bytes:
        """The file's ``data_file`` record in Avro."""
        return self._encode(
            {
                "content": file.content,
                "file_path": file.location,
                "file_format": "PARQUET",
                "partition": {self.partition.name: file.partition} if self.partition else {},
                "record_count": file.rows,
                "file_size_in_bytes": file.size,
                "lower_bounds": [{"key": key, "value": value} for key, value in file.lower.items()] or None,
                "upper_bounds": [{"key": key, "value": value} for key, value in file.upper.items()] or None,
            }
        )

    def _encode(self, record: Mapping[str, Any]) -> bytes:
        buffer = io.BytesIO()
        fastavro.schemaless_writer(buffer, self._data_file, record)
        return buffer.getvalue()

    def manifest(self, location: str, entries: Sequence[Entry], *, snapshot_id: int, sequence: int) -> tuple[Manifest, bytes]:
        """A manifest of these entries, all data or all deletes, and the bytes to be written at ``location``."""
        content = int(entries[0].content != DATA)
        body = b"".join(_prefix(entry) + entry.encoded for entry in entries)
        written = _container(self._headers[content], len(entries), body)
        files, rows = [0, 0, 0], [0, 0, 0]
        for entry in entries:
            files[entry.status] += 1
            rows[entry.status] += entry.rows
        live = [entry.sequence for entry in entries if entry.status != DELETED]
        record = {
            "manifest_path": location,
            "manifest_length": len(written),
            "partition_spec_id": self.spec_id,
            "content": content,
            "sequence_number": sequence,
            "min_sequence_number": min((one if one is not None else sequence for one in live), default=sequence),
            "added_snapshot_id": snapshot_id,
            "added_files_count": files[ADDED],
            "existing_files_count": files[EXISTING],
            "deleted_files_count": files[DELETED],
            "added_rows_count": rows[ADDED],
            "existing_rows_count": rows[EXISTING],
            "deleted_rows_count": rows[DELETED],
            "partitions": self._summaries(entries),
            "key_metadata": None,
        }
        return Manifest(location=location, content=content, sequence=sequence, record=record), written

    def _summaries(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        if self.partition is None:
            return []
        values: list[Any] = [entry.partition for entry in entries if entry.partition is not None]
        return [
            {
                "contains_null": len(values) < len(entries),
                "contains_nan": False,
                "lower_bound": self.partition.encode(min(values)) if values else None,
                "upper_bound": self.partition.encode(max(values)) if values else None,
            }
        ]

    def reencode(self, record: Mapping[str, Any]) -> bytes:
        """A ``data_file`` record that was read from a manifest, encoded again."""
        return self._encode(record)


def manifest_list(manifests: Iterable[Manifest], *, snapshot_id: int, parent: int | None, sequence: int) -> bytes:
    schema = _list_schema()
    buffer = io.BytesIO()
    count = 0
    for manifest in manifests:
        fastavro.schemaless_writer(buffer, schema, manifest.record)
        count += 1
    metadata = {
        "snapshot-id": str(snapshot_id).encode(),
        "parent-snapshot-id": str(parent).encode() if parent is not None else b"null",
        "sequence-number": str(sequence).encode(),
        "format-version": b"2",
    }
    return _container(_Header.of(schema, metadata), count, buffer.getvalue())


def read_manifest_list(content: bytes) -> list[Manifest]:
    """The manifests of a snapshot."""
    return [
        Manifest(location=line["manifest_path"], content=line["content"], sequence=line["sequence_number"], record=line)
        for line in _records(content)
    ]


def read_manifest(content: bytes, manifest: Manifest) -> list[dict[str, Any]]:
    """The live entries of a manifest, with snapshot id and sequence numbers inherited from it where they are null."""
    live = []
    for entry in _records(content):
        if entry["status"] == DELETED:
            continue
        if entry["snapshot_id"] is None:
            entry["snapshot_id"] = manifest.record["added_snapshot_id"]
        for name in ("sequence_number", "file_sequence_number"):
            if entry[name] is None:
                entry[name] = manifest.sequence
        live.append(entry)
    return live


def _records(content: bytes) -> list[dict[str, Any]]:
    return list(fastavro.reader(io.BytesIO(content)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Header:
    """An Avro object container file's beginning, up to the sync marker: for a block as it is, and for a compressed one."""

    plain: bytes
    deflated: bytes

    @classmethod
    def of(cls, schema: Mapping[str, Any], metadata: Mapping[str, bytes]) -> _Header:
        return cls(*(_header(schema, {**metadata, "avro.codec": codec}) for codec in (b"null", b"deflate")))


def _header(schema: Mapping[str, Any], metadata: Mapping[str, bytes]) -> bytes:
    header = {**metadata, "avro.schema": _schema_json(id(schema), schema)}
    parts = [_MAGIC, _long(len(header))]
    for key, value in header.items():
        name = key.encode()
        parts += [_long(len(name)), name, _long(len(value)), value]
    return b"".join([*parts, _long(0)])


def _container(header: _Header, count: int, body: bytes) -> bytes:
    """An Avro object container file with one block, or none."""
    sync = fresh_bytes(16)
    if not count:
        return header.plain + sync
    if len(body) <= PLAIN_BYTES:  # a commit's own manifests; they will soon be replaced
        return b"".join([header.plain, sync, _long(count), _long(len(body)), body, sync])
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = deflate.compress(body) + deflate.flush()
    return b"".join([header.deflated, sync, _long(count), _long(len(block)), block, sync])


def _prefix(entry: Entry) -> bytes:
    """What precedes ``data_file`` in a manifest entry: status, and three longs that may be null."""
    return _long(entry.status) + _optional(entry.snapshot_id) + _optional(entry.sequence) + _optional(entry.file_sequence)


def _optional(value: int | None) -> bytes:
    return b"\x00" if value is None else b"\x02" + _long(value)


def _long(value: int) -> bytes:
    """Avro's zigzag variable-length long."""
    number = (value << 1) ^ (value >> 63)
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_schema_texts: dict[int, bytes] = {}


def _schema_json(key: int, schema: Mapping[str, Any]) -> bytes:
    # The schemas live as long as the process (they are cached below), so their identity can be the key.
    text = _schema_texts.get(key)
    if text is None:
        clean = {name: value for name, value in schema.items() if not name.startswith("__")}
        text = _schema_texts[key] = orjson.dumps(clean)
    return text


@cache
def _entry_schemas(partition: PartitionField | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Avro schemas of a manifest entry and of the ``data_file`` in it."""
    entry = entry_schema((partition.field_id, partition.name, partition.result) if partition is not None else None)
    data_file = next(field["type"] for field in entry["fields"] if field["name"] == "data_file")
    return _parsed(entry), _parsed(data_file)


@cache
def _list_schema() -> dict[str, Any]:
    return _parsed(LIST_SCHEMA)


def _parsed(schema: Any) -> dict[str, Any]:
    parsed = fastavro.parse_schema(schema)
    assert isinstance(parsed, dict)
    return parsed
