"""What the lake's tables look like: their Iceberg schemas in JSON form, how those follow a source table, and their Arrow form.

Pure. Field ids are given once and never again; columns are found by id in every file, so a renamed or retired column keeps its
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyiceberg.types import IcebergType, ListType, MapType, NestedField, StructType

from headrace.lake.manifests import PartitionField
from headrace.schema import TableSchema

Json = dict[str, Any]

BRONZE, SILVER, HEADRACE = "bronze", "silver", "headrace"

POSITION_COLUMNS = {"_epoch": "int", "_commit_lsn": "long", "_ordinal": "long", "_commit_time": "timestamptz"}
"""Silver's columns after the source's own: the position and the commit time (at the source) of the row's last change."""
FLAGS = "_flags"
UNREPRESENTABLE = "unrepresentable"

TEXT_LIST = ("list", "string")
TEXT_MAP = ("map", "string", "string")
ROW = "row"

BRONZE_COLUMNS: Mapping[str, Any] = {
    "op": "string",
    "epoch": "int",
    "commit_lsn": "long",
    "ordinal": "long",
    "change_lsn": "long",
    "xid": "long",
    "commit_time": "timestamptz",
    "capture_time": "timestamptz",
    "before": ROW,
    "after": ROW,
    "unavailable": TEXT_LIST,
    "before_text": TEXT_MAP,
    "after_text": TEXT_MAP,
}

QUARANTINE_COLUMNS: Mapping[str, Any] = {
    "table_schema": "string",
    "table_name": "string",
    "op": "string",
    "epoch": "int",
    "commit_lsn": "long",
    "ordinal": "long",
    "change_lsn": "long",
    "xid": "long",
    "commit_time": "timestamptz",
    "reason": "string",
    "before": TEXT_MAP,
    "after": TEXT_MAP,
}

PROGRESS_COLUMNS: Mapping[str, Any] = {
    "pipeline": "string",
    "table_schema": "string",
    "table_name": "string",
    "state": "string",
    "epoch": "int",
    "lsn": "long",
    "commit_time": "timestamptz",
    "since": "timestamptz",
    "copy_lsn": "long",
    "reason": "string",
    "remedy": "string",
    "fault_lsn": "long",
    "changes": "long",
    "rows": "long",
    "columns": "string",
    "bronze_goes_on": "boolean",
    "server": "string",
}

_PRIMITIVES = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "string": pa.string(),
    "binary": pa.binary(),
    "uuid": pa.uuid(),
}


class Refused(Exception):
    """A lake table cannot follow its source table; the text says why."""


@dataclass(frozen=True, kw_only=True)
class TableLayout:
    """One lake table: its Iceberg schema in JSON form, the same in Arrow (with field ids), and its partition field."""

    schema: Json
    arrow: pa.Schema
    last_id: int
    partition: PartitionField | None = None

    def id_of(self, name: str) -> int:
        """The field id of a top-level column."""
        return int(next(field["id"] for field in self.schema["fields"] if field["name"] == name))

    def kind_of(self, name: str) -> Any:
        """The type of a top-level column, in JSON form."""
        return next(field["type"] for field in self.schema["fields"] if field["name"] == name)


class _Ids:
    def __init__(self, last: int) -> None:
        self.last = last

    def __call__(self) -> int:
        self.last += 1
        return self.last


def layout_of(schema: Json, last_id: int, partition: PartitionField | None = None) -> TableLayout:
    return TableLayout(schema=schema, arrow=arrow_schema(schema), last_id=last_id, partition=partition)


def fixed(columns: Mapping[str, Any], *, partitioned_by: str | None = None) -> TableLayout:
    """The layout of a table whose columns are always the same; ``partitioned_by`` names the column whose value partitions it."""
    ids = _Ids(0)
    fields = [_field(ids(), name, _shorthand(kind, ids, ())) for name, kind in columns.items()]
    layout = layout_of({"type": "struct", "schema-id": 0, "fields": fields}, ids.last)
    if partitioned_by is None:
        return layout
    source = layout.id_of(partitioned_by)
    return layout_of(
        layout.schema,
        layout.last_id,
        PartitionField(source_id=source, name=partitioned_by, transform="identity", result="string"),
    )


def completed(old: TableLayout, columns: Mapping[str, Any]) -> TableLayout:
    """``old`` with those of these columns that it lacks, because it was made before there were any."""
    ids = _Ids(old.last_id)
    present = {field["name"] for field in old.schema["fields"]}
    new = [_field(ids(), name, _shorthand(kind, ids, ())) for name, kind in columns.items() if name not in present]
    return _as_evolved(old, [*old.schema["fields"], *new], ids)


def new_bronze(table: TableSchema) -> TableLayout:
    ids = _Ids(0)
    columns = [(column.name, column.type) for column in table.columns]
    fields = [_field(ids(), name, _shorthand(kind, ids, columns)) for name, kind in BRONZE_COLUMNS.items()]
    source = next(field["id"] for field in fields if field["name"] == "commit_time")
    partition = PartitionField(source_id=source, name="commit_time_hour", transform="hour", result="int")
    return layout_of({"type": "struct", "schema-id": 0, "fields": fields}, ids.last, partition)


def new_silver(table: TableSchema) -> TableLayout:
    """Raises Refused when the source has a column of a name that silver uses itself."""
    ids = _Ids(0)
    own = [_field(ids(), column.name, _json_type(column.type, ids)) for column in table.columns]
    if taken := sorted({column.name for column in table.columns} & {*POSITION_COLUMNS, FLAGS}):
        raise Refused(f"its column {taken[0]} has a name that silver uses itself")
    return layout_of({"type": "struct", "schema-id": 0, "fields": [*own, *_position_fields(ids)]}, ids.last)


def evolved_bronze(old: TableLayout, table: TableSchema, *, replace: bool = False) -> TableLayout:
    """``old`` with the table's columns as they are now, inside ``before`` and ``after``.

    Raises Refused when a column changed to a type that cannot hold the old values. With ``replace`` the old column is kept under
    another name instead, and the new one begins empty.
    """
    ids = _Ids(old.last_id)
    fields = []
    for field in old.schema["fields"]:
        if field["name"] in ("before", "after"):
            columns = _evolved(field["type"]["fields"], table, ids, retire="rename" if replace else None)
            field = {**field, "type": {"type": "struct", "fields": columns}}
        fields.append(field)
    return _as_evolved(old, fields, ids)


def evolved_silver(old: TableLayout, table: TableSchema, *, replace: bool = False) -> TableLayout:
    """As `evolved_bronze`; with ``replace`` all columns are as in a new table (its old rows are about to be replaced)."""
    ids = _Ids(old.last_id)
    own = [field for field in old.schema["fields"] if field["name"] not in POSITION_COLUMNS and field["name"] != FLAGS]
    rest = [field for field in old.schema["fields"] if field["name"] in POSITION_COLUMNS or field["name"] == FLAGS]
    if taken := sorted({column.name for column in table.columns} & {*POSITION_COLUMNS, FLAGS}):
        raise Refused(f"its column {taken[0]} has a name that silver uses itself")
    columns = _evolved(own, table, ids, retire="drop" if replace else None)
    if replace:
        present = {column.name for column in table.columns}
        columns = [field for field in columns if field["name"] in present]
    return _as_evolved(old, [*columns, *rest], ids)


def _as_evolved(old: TableLayout, fields: list[Json], ids: _Ids) -> TableLayout:
    if fields == old.schema["fields"]:
        return old
    return layout_of({**old.schema, "fields": fields}, ids.last, old.partition)


def _evolved(fields: Sequence[Json], table: TableSchema, ids: _Ids, retire: str | None) -> list[Json]:
    """The struct's fields: old ones in their order, widened where the source's type was, then new ones."""
    wanted = {column.name: column.type for column in table.columns}
    result, kept = [], set()
    for field in fields:
        kind = wanted.get(field["name"])
        if kind is None:
            result.append(field)
        elif (promoted := _promoted(field["type"], kind)) is not None:
            result.append(field if promoted == field["type"] else {**field, "type": promoted})
            kept.add(field["name"])
        elif retire is None:
            raise Refused(f"column {field['name']} was {_shown(field['type'])} and is now {kind}")
        elif retire == "rename":
            result.append({**field, "name": f"{field['name']}__{field['id']}"})
    new = [_field(ids(), column.name, _json_type(column.type, ids)) for column in table.columns if column.name not in kept]
    return [*result, *new]


def _promoted(old: Any, new: IcebergType) -> Any:
    """The JSON type of a column that held ``old`` and is to hold ``new``; None if values could be lost."""
    if isinstance(new, ListType):
        if not isinstance(old, Mapping) or old.get("type") != "list":
            return None
        element = _promoted(old["element"], new.element_type)
        return None if element is None else {**old, "element": element}
    if isinstance(new, (StructType, MapType)) or isinstance(old, Mapping):
        return None
    text = _normal(str(new))
    if old == text or (old, text) in (("int", "long"), ("float", "double")):
        return text
    before, after = _decimal(old), _decimal(text)
    if before and after and before[1] == after[1] and before[0] <= after[0]:
        return text
    return None


def _decimal(text: str) -> tuple[int, int] | None:
    if not text.startswith("decimal("):
        return None
    precision, scale = text[len("decimal(") : -1].split(",")
    return int(precision), int(scale)


def _shown(kind: Any) -> str:
    return kind if isinstance(kind, str) else str(kind["type"])


def _position_fields(ids: _Ids) -> list[Json]:
    fields = [_field(ids(), name, kind) for name, kind in POSITION_COLUMNS.items()]
    return [*fields, _field(ids(), FLAGS, _shorthand(TEXT_LIST, ids, ()))]


def _field(field_id: int, name: str, kind: Any) -> Json:
    return {"id": field_id, "name": name, "required": False, "type": kind}


def _shorthand(kind: Any, ids: _Ids, columns: Sequence[tuple[str, IcebergType]]) -> Any:
    if kind == ROW:
        fields = [_field(ids(), name, _json_type(one, ids)) for name, one in columns]
        return {"type": "struct", "fields": fields}
    if kind == TEXT_LIST:
        return {"type": "list", "element-id": ids(), "element": "string", "element-required": False}
    if kind == TEXT_MAP:
        return {"type": "map", "key-id": ids(), "key": "string", "value-id": ids(), "value": "string", "value-required": False}
    return kind


def _json_type(kind: IcebergType, ids: _Ids) -> Any:
    """The type in JSON form, nested ids given anew."""
    if isinstance(kind, ListType):
        own = ids()
        return {"type": "list", "element-id": own, "element": _json_type(kind.element_type, ids), "element-required": False}
    if isinstance(kind, (StructType, MapType)):
        raise Refused(f"it has a column of type {kind}, which the lake does not keep")
    return _normal(str(kind))


def _normal(text: str) -> str:
    return text.replace(" ", "")


def iceberg_type(kind: Any) -> IcebergType:
    """A column's type from its JSON form."""
    return NestedField.model_validate({"id": 1, "name": "column", "required": False, "type": kind}).field_type


def arrow_schema(schema: Mapping[str, Any]) -> pa.Schema:
    """The Arrow schema of an Iceberg schema in JSON form, with field ids, with 32-bit offsets as the change layout has them."""
    return pa.schema([_arrow_field(field["id"], field["name"], field["type"]) for field in schema["fields"]])


def _arrow_field(field_id: int, name: str, kind: Any, nullable: bool = True) -> pa.Field:
    return pa.field(name, _arrow_type(kind), nullable, metadata={"PARQUET:field_id": str(field_id)})


def _arrow_type(kind: Any) -> pa.DataType:
    if isinstance(kind, str):
        if numbers := _decimal(kind):
            return pa.decimal128(*numbers)
        if kind.startswith("fixed["):
            return pa.binary(int(kind[len("fixed[") : -1]))
        return _PRIMITIVES[kind]
    if kind["type"] == "struct":
        return pa.struct([_arrow_field(field["id"], field["name"], field["type"]) for field in kind["fields"]])
    if kind["type"] == "list":
        return pa.list_(_arrow_field(kind["element-id"], "element", kind["element"]))
    return pa.map_(
        _arrow_field(kind["key-id"], "key", kind["key"], nullable=False), _arrow_field(kind["value-id"], "value", kind["value"])
    )


def all_ids(kind: Any) -> Iterator[int]:
    """Every field id in a schema or type in JSON form."""
    if isinstance(kind, Mapping):
        for field in kind.get("fields", ()):
            yield field["id"]
            yield from all_ids(field["type"])
        for name in ("element", "key", "value"):
            if name in kind:
                yield kind[f"{name}-id"]
                yield from all_ids(kind[name])
