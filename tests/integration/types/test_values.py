"""Every type's values arrive exactly, by the log's text and by the first copy, and both sides write them alike."""

from __future__ import annotations

import datetime
import decimal
import uuid
from dataclasses import dataclass, field
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

from headrace.source.postgres.types import TypeFacts, mapping
from tests.conftest import Database
from tests.integration.types.source import Held, facts_of, hold


@dataclass(frozen=True, kw_only=True)
class Case:
    type: str
    iceberg: IcebergType
    values: list[str]
    """SQL expressions of values that fit."""
    misfits: list[str] = field(default_factory=list)


def list_of(element: IcebergType) -> ListType:
    return ListType(element_id=-1, element_type=element, element_required=False)


STRING = StringType()
INTEGERS = ["0", "1", "-1", "12345"]
CASES = [
    Case(type="boolean", iceberg=BooleanType(), values=["true", "false"]),
    Case(type="smallint", iceberg=IntegerType(), values=[*INTEGERS, "32767", "-32768"]),
    Case(type="integer", iceberg=IntegerType(), values=[*INTEGERS, "2147483647", "-2147483648"]),
    Case(type="bigint", iceberg=LongType(), values=[*INTEGERS, "9223372036854775807", "-9223372036854775808"]),
    Case(type="oid", iceberg=LongType(), values=["0", "4294967295", "2147483648"]),
    Case(
        type="real",
        iceberg=FloatType(),
        values=[
            "0.1",
            "'-0'",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e-45",
            "3.4028235e38",
            "1.17549435e-38",
            "16777217",
            "1e-7",
        ],
    ),
    Case(
        type="double precision",
        iceberg=DoubleType(),
        values=[
            "0.1",
            "'-0'",
            "'NaN'",
            "-'NaN'::float8",
            "'Infinity'",
            "'-Infinity'",
            "5e-324",
            "1.7976931348623157e308",
            "0.1::float8 + 0.2",
        ],
    ),
    Case(
        type="numeric(10,2)", iceberg=DecimalType(10, 2), values=["0", "0.5", "-0.5", "99999999.99", "-0.01"], misfits=["'NaN'"]
    ),
    Case(type="numeric(38,10)", iceberg=DecimalType(38, 10), values=["9999999999999999999999999999.9999999999", "-1e-10"]),
    Case(type="numeric(5,0)", iceberg=DecimalType(5, 0), values=["99999", "-1", "0"]),
    Case(type="numeric(3,-2)", iceberg=DecimalType(5, 0), values=["99900", "-100", "0"], misfits=["'NaN'"]),
    Case(type="numeric(3,5)", iceberg=DecimalType(5, 5), values=["0.00999", "-0.00001", "0"], misfits=["'NaN'"]),
    Case(type="numeric(38,38)", iceberg=DecimalType(38, 38), values=["0.99999999999999999999999999999999999999", "-1e-38", "0"]),
    Case(type="numeric(39,2)", iceberg=STRING, values=["1.00", "'NaN'"]),
    Case(type="numeric(38,-1)", iceberg=STRING, values=["10", "'NaN'"]),
    Case(
        type="numeric",
        iceberg=STRING,
        values=[
            "1",
            "1.0",
            "1.000",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e-1000",
            "1e1000",
            "-0.00",
            "10000",
            "0.00010000",
            "123456789.0001",
        ],
    ),
    Case(type="text", iceberg=STRING, values=["''", "'NULL'", "'  a '", "'Grüße 🦆'", "repeat('x', 100000)", "E'\\n\\t\\\\'"]),
    Case(type="varchar(10)", iceberg=STRING, values=["''", "'abc '"]),
    Case(type="char(5)", iceberg=STRING, values=["'ab'", "''", "'abcde'", "'ü'"]),
    Case(type="bpchar", iceberg=STRING, values=["'ab  '", "''"]),
    Case(type="name", iceberg=STRING, values=["'pg_class'", "''"]),
    Case(type='"char"', iceberg=STRING, values=["'x'", "''", "E'\\\\377'"]),
    Case(type="bytea", iceberg=BinaryType(), values=["''", "'\\x00ff'", "'\\x5c78'", "decode(repeat('00ff', 50000), 'hex')"]),
    Case(
        type="date",
        iceberg=DateType(),
        values=["'1970-01-01'", "'0001-01-01'", "'9999-12-31'", "'0044-03-15'", "'2000-02-29'"],
        misfits=[
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 BC'",
            "'0001-12-31 BC'",
            "'10000-01-01'",
            "'5874897-12-31'",
            "'4714-11-24 BC'",
        ],
    ),
    Case(
        type="time",
        iceberg=TimeType(),
        values=["'00:00'", "'23:59:59.999999'", "'12:34:56.7'", "'00:00:00.000001'"],
        misfits=["'24:00'"],
    ),
    Case(type="time(0)", iceberg=TimeType(), values=["'23:59:59'"], misfits=["'23:59:59.9'"]),
    Case(
        type="timestamp",
        iceberg=TimestampType(),
        values=[
            "'1970-01-01'",
            "'0001-01-01'",
            "'9999-12-31 23:59:59.999999'",
            "'1969-12-31 23:59:59.999999'",
            "'2024-02-29 12:34:56.7'",
        ],
        misfits=[
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 01:02:03.04 BC'",
            "'10000-01-01'",
            "'294276-12-31 23:59:59.999999'",
            "'4714-11-24 BC'",
        ],
    ),
    Case(
        type="timestamptz",
        iceberg=TimestamptzType(),
        values=[
            "'1970-01-01+00'",
            "'0001-01-01+00'",
            "'9999-12-31 23:59:59.999999+00'",
            "'2024-02-29 12:34:56.7+02'",
            "'1900-01-01+00'",
        ],
        misfits=[
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 01:02:03.04+00 BC'",
            "'10000-01-01+00'",
            "'0001-12-31 BC'",
            "'200000-01-01'",
        ],
    ),
    Case(type="timestamptz(3)", iceberg=TimestamptzType(), values=["'2024-02-29 12:34:56.789123+00'"]),
    Case(
        type="interval", iceberg=STRING, values=["'1 year -2 months 3 days 04:05:06.7'", "'0'", "'-1 day'", "'178000000 years'"]
    ),
    Case(type="timetz", iceberg=STRING, values=["'24:00:00-08'", "'12:00:00.1+02'"]),
    Case(type="money", iceberg=STRING, values=["'12.50'", "'-1'"]),
    Case(
        type="uuid",
        iceberg=UUIDType(),
        values=[
            "'00000000-0000-0000-0000-000000000000'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
            "'12345678-9abc-def0-1234-56789abcdef0'",
        ],
    ),
    Case(type="json", iceberg=STRING, values=['\'{"a":  1, "a": 2}\'', "'null'", "'\"\"'"]),
    Case(type="jsonb", iceberg=STRING, values=['\'{"b": 1, "a": 2.50}\'', "'null'", "'[]'"]),
    Case(type="inet", iceberg=STRING, values=["'10.0.0.1'", "'10.0.0.0/8'", "'::1'"]),
    Case(type="bit(3)", iceberg=STRING, values=["B'101'"]),
    Case(type="point", iceberg=STRING, values=["'(0.1,2)'"]),
    Case(type="int4range", iceberg=STRING, values=["'[1,5)'", "'empty'"]),
    Case(type="tsvector", iceberg=STRING, values=["'fat:1A cat:2'"]),
    Case(type="box[]", iceberg=STRING, values=["'{(1,1),(0,0);(2,2),(1,1)}'"]),
    Case(
        type="integer[]",
        iceberg=list_of(IntegerType()),
        values=["'{}'", "'{1}'", "'{1,NULL,-3}'", "'{NULL}'"],
        misfits=["'[0:1]={1,2}'", "'{{1,2},{3,4}}'", "'[2:2]={1}'"],
    ),
    Case(type="boolean[]", iceberg=list_of(BooleanType()), values=["'{t,f,NULL}'"]),
    Case(type="bigint[]", iceberg=list_of(LongType()), values=["'{9223372036854775807}'"]),
    Case(type="double precision[]", iceberg=list_of(DoubleType()), values=["'{NaN,-0,1e-7}'"]),
    Case(type="numeric(10,2)[]", iceberg=list_of(DecimalType(10, 2)), values=["'{1.5,NULL}'"], misfits=["'{1,NaN}'"]),
    Case(type="numeric[]", iceberg=list_of(STRING), values=["'{1.50,NaN,Infinity}'"]),
    Case(
        type="text[]",
        iceberg=list_of(STRING),
        values=[
            "'{}'",
            "'{NULL,\"NULL\",null}'",
            "ARRAY['', ' ', 'a,b', '{', '}', '\"', '\\', '\\\\\"', 'a b', E'\\n', '(1,2)', '[3]', 'null', 'ü🦆']",
            "ARRAY['']",
            "ARRAY[NULL]::text[]",
            "ARRAY['\\']",
        ],
        misfits=["'{{a},{b}}'", "'[2:3]={a,b}'", "'[0:0]={\"=\"}'"],
    ),
    Case(type="char(3)[]", iceberg=list_of(STRING), values=["'{a,\"\"}'"]),
    Case(type="bytea[]", iceberg=list_of(BinaryType()), values=["ARRAY['\\x00ff'::bytea, '', NULL]"]),
    Case(type="date[]", iceberg=list_of(DateType()), values=["'{2024-01-01,NULL}'"], misfits=["'{2024-01-01,infinity}'"]),
    Case(type="time[]", iceberg=list_of(TimeType()), values=["'{12:00}'"], misfits=["'{24:00}'"]),
    Case(
        type="timestamp[]",
        iceberg=list_of(TimestampType()),
        values=["'{2024-01-01 12:00:00.5}'"],
        misfits=["'{\"0044-03-15 BC\"}'"],
    ),
    Case(
        type="timestamptz(3)[]",
        iceberg=list_of(TimestamptzType()),
        values=["'{2024-01-01 12:00:00.5+02}'"],
        misfits=["'{-infinity}'"],
    ),
    Case(type="interval[]", iceberg=list_of(STRING), values=["'{1 day,NULL}'"]),
    Case(type="uuid[]", iceberg=list_of(UUIDType()), values=["'{12345678-9abc-def0-1234-56789abcdef0,NULL}'"]),
    Case(type="jsonb[]", iceberg=list_of(STRING), values=['ARRAY[\'{"a": "b\\"c"}\'::jsonb, \'null\', NULL]']),
    Case(type="inet[]", iceberg=list_of(STRING), values=["'{10.0.0.1}'"]),
    Case(type="int4range[]", iceberg=list_of(STRING), values=["ARRAY['[1,5)'::int4range]"]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.type)
def test_every_value_arrives_exactly_by_both_ways(types_database: Database, case: Case) -> None:
    held = hold(types_database.url, case.type, [*case.values, *case.misfits, "NULL"])
    fitting = len(case.values)

    assert held.values.equals(held.copied) or _same_with_nan(held)
    assert held.misfits == held.copied_misfits
    assert held.misfits[:fitting] == [None] * fitting
    assert held.misfits[fitting:-1] == held.texts[fitting:-1]
    assert [value is None for value in held.values.to_pylist()] == [False] * fitting + [True] * (len(case.misfits) + 1)
    assert held.source_canonical == held.lake_canonical
    assert held.representable == [True] * fitting + [False] * len(case.misfits) + [None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.type)
def test_the_lake_type_is_the_promised_one(types_database: Database, case: Case) -> None:
    with types_database.connect() as connection:
        facts = facts_of(connection, case.type)
        named = types_database.value("SELECT format_type(%s::oid, %s)", facts.oid, facts.typmod)

    assert mapping(facts).iceberg == case.iceberg
    assert facts.name == named


@pytest.mark.parametrize("case", [case for case in CASES if case.iceberg == STRING], ids=lambda case: case.type)
def test_what_is_held_as_text_is_the_exact_text(types_database: Database, case: Case) -> None:
    held = hold(types_database.url, case.type, case.values)

    assert held.values.to_pylist() == held.texts


def test_values_that_differ_differ_in_their_canonical_form(types_database: Database) -> None:
    for case in CASES:
        held = hold(types_database.url, case.type, case.values)
        distinct = {text for text in held.texts if text is not None}
        assert len(set(held.source_canonical)) >= len(distinct), case.type


def test_numbers_dates_and_bytes_have_their_values(types_database: Database) -> None:
    def value(type_: str, expression: str) -> Any:
        return hold(types_database.url, type_, [expression]).values.to_pylist()[0]

    assert value("numeric(10,2)", "-0.5") == decimal.Decimal("-0.50")
    assert value("numeric(3,-2)", "12345") == decimal.Decimal("12300")
    assert value("date", "'0044-03-15'") == datetime.date(44, 3, 15)
    assert value("timestamptz", "'2024-02-29 12:34:56.7+02'") == datetime.datetime(2024, 2, 29, 10, 34, 56, 700000, datetime.UTC)
    assert value("time", "'12:34:56.7'") == datetime.time(12, 34, 56, 700000)
    assert value("bytea", "'\\x00ff'") == b"\x00\xff"
    assert value("uuid", "'12345678-9abc-def0-1234-56789abcdef0'") == uuid.UUID("12345678-9abc-def0-1234-56789abcdef0")
    assert value("integer[]", "'{1,NULL,3}'") == [1, None, 3]
    assert value("char(5)", "'ab'") == "ab   "


ENUM = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'very, \"happy\"')"
ENUM_FACTS = TypeFacts(oid=99_999, name="mood", kind="enum")
PRICE = "CREATE DOMAIN price AS numeric(10,2) CHECK (VALUE >= 0)"
PRICE_BASE = TypeFacts(oid=1700, name="numeric(10,2)", typmod=(10 << 16 | 2) + 4)
PRICE_FACTS = TypeFacts(oid=99_998, name="price", kind="domain", base=PRICE_BASE)
PAIR = "CREATE TYPE pair AS (a int, b text)"
PAIR_FACTS = TypeFacts(oid=99_997, name="pair", kind="composite")


def test_enums_are_their_labels(database: Database) -> None:
    held = hold(database.url, "mood", ["'sad'", "'very, \"happy\"'", "NULL"], ENUM_FACTS, prepare=ENUM)

    assert held.values.to_pylist() == ["sad", 'very, "happy"', None]
    assert held.copied.equals(held.values)
    assert held.source_canonical == held.lake_canonical


def test_arrays_of_enums_are_lists_of_labels(database: Database) -> None:
    facts = TypeFacts(oid=99_990, name="mood[]", kind="array", element=ENUM_FACTS)
    held = hold(database.url, "mood[]", ['\'{sad,"very, \\"happy\\"",NULL}\''], facts, prepare=ENUM)

    assert held.values.to_pylist() == [["sad", 'very, "happy"', None]]
    assert held.copied.equals(held.values)
    assert held.source_canonical == held.lake_canonical


def test_domains_are_what_lies_below_them(database: Database) -> None:
    held = hold(database.url, "price", ["1.5", "NULL"], PRICE_FACTS, prepare=PRICE)

    assert held.values.type == pa.decimal128(10, 2)
    assert held.copied.equals(held.values)
    assert held.source_canonical == held.lake_canonical == ["1.50", None]


def test_arrays_of_domains_are_lists_of_what_lies_below(database: Database) -> None:
    facts = TypeFacts(oid=99_991, name="price[]", kind="array", element=PRICE_FACTS)
    held = hold(database.url, "price[]", ["'{1.5,NULL}'", "'{NaN}'"], facts, prepare=PRICE)

    assert held.values.to_pylist()[1] is None
    assert held.misfits == [None, "{NaN}"]
    assert held.copied.equals(held.values)
    assert held.source_canonical == held.lake_canonical


def test_rows_are_text_even_when_all_their_fields_are_null(database: Database) -> None:
    held = hold(database.url, "pair", ["ROW(1, 'a,\"b')", "ROW(NULL, NULL)", "ROW(NULL, '')", "NULL"], PAIR_FACTS, prepare=PAIR)

    assert held.values.to_pylist() == ['(1,"a,""b")', "(,)", '(,"")', None]
    assert held.copied.equals(held.values)
    assert held.source_canonical == held.lake_canonical


def test_arrays_of_rows_are_lists_of_text(database: Database) -> None:
    facts = TypeFacts(oid=99_992, name="pair[]", kind="array", element=PAIR_FACTS)
    held = hold(database.url, "pair[]", ["ARRAY[ROW(1, 'a')::pair, NULL, ROW(NULL, NULL)::pair]", "'{}'"], facts, prepare=PAIR)

    assert held.values.to_pylist() == [["(1,a)", None, "(,)"], []]
    assert held.copied.equals(held.values)
    assert held.source_canonical == held.lake_canonical


def _same_with_nan(held: Held) -> bool:
    """Arrow holds NaN unequal to NaN; the text says more than the value here."""
    return str(held.values.to_pylist()) == str(held.copied.to_pylist())
