"""The Avro schemas of manifests and manifest lists, as the Iceberg table specification gives them for format version 2 (its
sections "Manifests" and "Manifest Lists").

They are constants of the format. PyIceberg derives the same ones (a test compares them), but only by importing a large part of
itself, for which every command would wait.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
Field = dict[str, Any]


def _required(field_id: int, name: str, kind: str | Schema) -> Field:
    return {"field-id": field_id, "name": name, "type": kind}


def _optional(field_id: int, name: str, kind: str | Schema) -> Field:
    return {"field-id": field_id, "default": None, "name": name, "type": ["null", kind]}


def _record(name: str, *fields: Field) -> Schema:
    return {"type": "record", "name": name, "fields": list(fields)}


def _list(element_id: int, items: str | Schema) -> Schema:
    return {"element-id": element_id, "type": "array", "items": items}


def _map(key_id: int, value_id: int, value: str) -> Schema:
    """A map whose keys are ints: Avro's own maps have only strings."""
    pair = _record(f"k{key_id}_v{value_id}", _required(key_id, "key", "int"), _required(value_id, "value", value))
    return {"logicalType": "map", "type": "array", "items": pair}


def entry_schema(partition: tuple[int, str, str] | None) -> Schema:
    """One line of a manifest. ``partition``: field id, name and Avro type of the partition's one field."""
    fields = [_optional(*partition)] if partition is not None else []
    data_file = _record(
        "r2",
        _required(134, "content", "int"),
        _required(100, "file_path", "string"),
        _required(101, "file_format", "string"),
        _required(102, "partition", _record("r102", *fields)),
        _required(103, "record_count", "long"),
        _required(104, "file_size_in_bytes", "long"),
        _optional(108, "column_sizes", _map(117, 118, "long")),
        _optional(109, "value_counts", _map(119, 120, "long")),
        _optional(110, "null_value_counts", _map(121, 122, "long")),
        _optional(137, "nan_value_counts", _map(138, 139, "long")),
        _optional(125, "lower_bounds", _map(126, 127, "bytes")),
        _optional(128, "upper_bounds", _map(129, 130, "bytes")),
        _optional(131, "key_metadata", "bytes"),
        _optional(132, "split_offsets", _list(133, "long")),
        _optional(135, "equality_ids", _list(136, "long")),
        _optional(140, "sort_order_id", "int"),
    )
    return _record(
        "manifest_entry",
        _required(0, "status", "int"),
        _optional(1, "snapshot_id", "long"),
        _optional(3, "sequence_number", "long"),
        _optional(4, "file_sequence_number", "long"),
        _required(2, "data_file", data_file),
    )


LIST_SCHEMA = _record(
    "manifest_file",
    _required(500, "manifest_path", "string"),
    _required(501, "manifest_length", "long"),
    _required(502, "partition_spec_id", "int"),
    _required(517, "content", "int"),
    _required(515, "sequence_number", "long"),
    _required(516, "min_sequence_number", "long"),
    _required(503, "added_snapshot_id", "long"),
    _required(504, "added_files_count", "int"),
    _required(505, "existing_files_count", "int"),
    _required(506, "deleted_files_count", "int"),
    _required(512, "added_rows_count", "long"),
    _required(513, "existing_rows_count", "long"),
    _required(514, "deleted_rows_count", "long"),
    _optional(
        507,
        "partitions",
        _list(
            508,
            _record(
                "r508",
                _required(509, "contains_null", "boolean"),
                _optional(518, "contains_nan", "boolean"),
                _optional(510, "lower_bound", "bytes"),
                _optional(511, "upper_bound", "bytes"),
            ),
        ),
    ),
    _optional(519, "key_metadata", "bytes"),
)
"""One line of a manifest list."""
