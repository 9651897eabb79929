"""Every lake type, at its edges, as key and as value: what went in is what every engine reads, and bounds never hide a row."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    StringType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

from headrace.change import ChangeBatch, change_schema
from headrace.lake.engine import open_engine
from headrace.lake.row_files import lower_bound, upper_bound
from headrace.position import Position
from headrace.schema import TableId, TableSchema
from tests.unit.lake.conftest import World
from tests.unit.lake.imagined import START, columns

UTC = dt.UTC

TYPES: dict[str, tuple[IcebergType, pa.DataType, list[Any]]] = {
    "b": (BooleanType(), pa.bool_(), [True, False]),
    "i": (IntegerType(), pa.int32(), [-(2**31), 2**31 - 1, 0]),
    "l": (LongType(), pa.int64(), [-(2**63), 2**63 - 1, 0]),
    "f": (FloatType(), pa.float32(), [float("-inf"), 1.5, float("nan")]),
    "d": (DoubleType(), pa.float64(), [float("inf"), -1.5, float("nan"), 0.1]),
    "n9": (DecimalType(9, 2), pa.decimal128(9, 2), [Decimal("-9999999.99"), Decimal("0.01")]),
    "n18": (DecimalType(18, 4), pa.decimal128(18, 4), [Decimal("99999999999999.9999"), Decimal("-0.0001")]),
    "n38": (DecimalType(38, 6), pa.decimal128(38, 6), [Decimal("-99999999999999999999999999999999.999999"), Decimal("1.000000")]),
    "day": (DateType(), pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.date(1970, 1, 1)]),
    "t": (TimeType(), pa.time64("us"), [dt.time(0), dt.time(23, 59, 59, 999999)]),
    "ts": (TimestampType(), pa.timestamp("us"), [dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)]),
    "tz": (
        TimestamptzType(),
        pa.timestamp("us", tz="UTC"),
        [dt.datetime(1, 1, 1, tzinfo=UTC), dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)],
    ),
    "s": (StringType(), pa.string(), ["", "ä" * 40, "\U0010ffff" * 20, "x\U0010ffff" + "y" * 40, "plain"]),
    "bin": (BinaryType(), pa.binary(), [b"", b"\x00\xff" * 30]),
    "u": (
        UUIDType(),
        pa.uuid(),
        [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.UUID("12345678-1234-5678-1234-567812345678")],
    ),
    "ls": (
        ListType(-1, StringType(), element_required=False),
        pa.list_(pa.field("element", pa.string())),
        [[], ["a", None], [""]],
    ),
    "lu": (ListType(-1, UUIDType(), element_required=False), pa.list_(pa.field("element", pa.uuid())), [[uuid.UUID(int=7)], []]),
    "ln": (
        ListType(-1, DecimalType(12, 2), element_required=False),
        pa.list_(pa.field("element", pa.decimal128(12, 2))),
        [[Decimal("1.25"), None]],
    ),
}
KEYS = [name for name, (kind, _, _) in TYPES.items() if not isinstance(kind, ListType) and name not in ("f", "d")]


def kinds() -> list[tuple[str, IcebergType]]:
    return [(name, kind) for name, (kind, _, _) in TYPES.items()]


def struct(key: str) -> pa.StructType:
    return pa.struct([("k", TYPES[key][1]), *((name, arrow) for name, (_, arrow, _) in TYPES.items())])


def told(key: str, rows: list[dict[str, Any]], op: str, lsn: int) -> pa.Table:
    """Changes with these after images; for ``d`` with these keys."""
    layout = change_schema(struct(key))
    blank = dict.fromkeys(layout.names)
    side = "before" if op == "d" else "after"
    changes = [
        {**blank, "op": op, "commit_lsn": lsn, "ordinal": number, "xid": 1, "commit_time": START, side: row}
        for number, row in enumerate(rows)
    ]
    columns_ = [
        pa.array([change[name] for change in changes], layout.field(name).type)
        for name in layout.names
        if name not in ("before", "after")
    ]
    sides = {name: rows_of(layout.field(name).type, [change[name] for change in changes]) for name in ("before", "after")}
    arrays = dict(zip([name for name in layout.names if name not in sides], columns_, strict=True)) | sides
    return pa.Table.from_arrays([arrays[name] for name in layout.names], schema=layout)


def rows_of(kind: pa.StructType, rows: list[dict[str, Any] | None]) -> pa.StructArray:
    """A struct array from values; UUIDs are given as such."""
    children = [column_of(field.type, [None if row is None else row.get(field.name) for row in rows]) for field in kind]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=pa.array([row is None for row in rows]))


def column_of(kind: pa.DataType, values: list[Any]) -> pa.Array:
    if kind == pa.uuid():
        raw = pa.array([None if value is None else value.bytes for value in values], pa.binary(16))
        return pa.ExtensionArray.from_storage(pa.uuid(), raw)
    if pa.types.is_list(kind) and kind.value_type == pa.uuid():
        offsets = [0]
        for value in values:
            offsets.append(offsets[-1] + len(value or []))
        inner = column_of(pa.uuid(), [item for value in values for item in value or []])
        return pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), inner, type=kind, mask=pa.array([v is None for v in values])
        )
    return pa.array(values, kind)


def sample(key: str) -> list[dict[str, Any]]:
    """A row for each of the key type's values, with the other types' values in turn, and nulls."""
    rows = []
    for number, value in enumerate(TYPES[key][2]):
        rows.append({"k": value, **{name: [*values, None][number % (len(values) + 1)] for name, (_, _, values) in TYPES.items()}})
    return rows


def normal(value: Any) -> Any:
    """Equal for equal values, whatever an engine's way to show them."""
    if isinstance(value, (bytes, bytearray)) and len(value) == 16:
        return str(uuid.UUID(bytes=bytes(value)))
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    return "NaN" if value != value else value


def seen(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    return sorted(repr([normal(row[name]) for name in names]) for row in rows)


@pytest.mark.parametrize("key", KEYS)
def test_values_of_every_type_are_kept_under_keys_of_every_type(world: World, key: str) -> None:
    table = TableId("public", "everything")
    schema = TableSchema(table=table, columns=columns(("k", TYPES[key][0]), *kinds()), key=("k",))
    rows = sample(key)
    copy = world.lake.copy(schema, 10)
    copy.append(told(key, rows, "r", 10))
    copy.finish()
    world.lake.adopt(world.lake.staged_copies())
    world.lake.commit(Position(1, 10))
    expected = {normal(row["k"]): dict(row) for row in rows}
    world.restart()
    for lsn, turned in ((20, rows[1:]), (30, rows[:1])):
        changed = [{**row, "i": lsn} for row in turned]
        expected |= {normal(row["k"]): row for row in changed}
        commit(world, schema, told(key, changed, "u", lsn), lsn)
    gone = rows[-1]
    del expected[normal(gone["k"])]
    commit(world, schema, told(key, [{"k": gone["k"]}], "d", 40), 40)

    names = ["k", *TYPES]
    want = seen(list(expected.values()), names)
    assert seen(world.rows("silver", "everything"), names) == want
    with open_engine(world.catalog) as engine:
        assert seen(engine.execute("select * from silver.everything").to_arrow_table().to_pylist(), names) == want
        for row in rows:  # by the manifests' bounds a file may be skipped
            (count,) = engine.execute("select count(*) from silver.everything where k = ?", [row["k"]]).fetchone() or (0,)
            assert count == (normal(row["k"]) in expected), row["k"]
        bronze = engine.execute("select after from bronze.everything where op = 'r' order by ordinal").to_arrow_table()
        assert seen([line["after"] for line in bronze.to_pylist()], names) == seen(rows, names)


@pytest.mark.parametrize("name", TYPES)
def test_a_value_of_any_type_that_was_sent_earlier_in_the_batch_is_carried_on(world: World, name: str) -> None:
    """To carry nothing from silver needs an empty column of the type."""
    schema = TableSchema(table=TableId("public", "everything"), columns=columns(("k", TYPES["i"][0]), *kinds()), key=("k",))
    world.lake.copy(schema, 10).finish()
    world.lake.adopt(world.lake.staged_copies())
    world.lake.commit(Position(1, 10))
    value = TYPES[name][2][0]
    inserted = told("i", [{"k": 1, name: value}], "c", 20)
    updated = told("i", [{"k": 1, "i": 5} if name != "i" else {"k": 1}], "u", 30)
    place = updated.schema.get_field_index("unavailable")
    updated = updated.set_column(place, updated.schema.field(place), pa.array([[name]], updated.schema.field(place).type))
    commit(world, schema, pa.concat_tables([inserted, updated]), 30)
    (row,) = world.rows("silver", "everything")
    assert normal(row[name]) == normal(value)


def commit(world: World, schema: TableSchema, changes: pa.Table, lsn: int) -> None:
    end = Position(1, lsn)
    world.lake.stage(ChangeBatch(tables={schema.table: changes}, schemas={schema.table: schema}, end=end, commit_time=START))
    world.lake.commit(end)


def test_bounds_of_long_texts_enclose_them() -> None:
    for text in ("", "a", "a" * 16, "a" * 17, "ä" * 40, "x" * 15 + "\U0010ffff" * 5, "\ud7ff" * 20):
        low, high = lower_bound(StringType(), text), upper_bound(StringType(), text)
        assert low is not None
        assert low <= text.encode()
        assert high is None or high >= text.encode()
    assert upper_bound(StringType(), "\U0010ffff" * 20) is None


def test_bounds_of_decimals_are_the_shortest_big_endian_numbers() -> None:
    for text, expected in (("0.00", "00"), ("1.27", "7f"), ("1.28", "0080"), ("-1.28", "80"), ("-1.29", "ff7f")):
        bound = lower_bound(DecimalType(9, 2), Decimal(text))
        assert bound is not None
        assert bound.hex() == expected
