"""Values of a real PostgreSQL by both ways into the lake, for the tests of the type mappings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import adbc_driver_postgresql.dbapi
import duckdb
import numpy as np
import psycopg
import pyarrow as pa
from psycopg.rows import TupleRow

from headrace.schema import Column, TableId, TableSchema
from headrace.source.postgres.convert import Converter
from headrace.source.postgres.decoded import DecodedRows
from headrace.source.postgres.types import TypeFacts, TypeMapping, builtin_facts, mapping

COMMIT_TIME = datetime(2024, 1, 1, tzinfo=UTC)
SETTINGS = (
    "SET DateStyle = ISO; SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = hex"
)


def facts_of(connection: psycopg.Connection[TupleRow], type_name: str) -> TypeFacts:
    """Facts of a built-in type as a column has it (``numeric(10,2)[]``)."""
    connection.execute("DROP TABLE IF EXISTS facts")
    connection.execute(f"CREATE TABLE facts (x {type_name})")
    row = connection.execute(
        "SELECT atttypid, atttypmod FROM pg_attribute WHERE attrelid = 'facts'::regclass AND attnum = 1"
    ).fetchone()
    assert row is not None
    found = builtin_facts(row[0], row[1])
    assert found is not None, type_name
    return found


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the lake holds of some source values, and what both sides say of them."""

    texts: list[str | None]
    """The output function's text."""
    values: pa.Array
    """By way of the text, as from the log."""
    misfits: list[str | None]
    copied: pa.Array
    """By way of the first copy."""
    copied_misfits: list[str | None]
    source_canonical: list[str | None]
    lake_canonical: list[str | None]
    representable: list[bool | None]


def hold(url: str, type_name: str, expressions: Sequence[str], facts: TypeFacts | None = None, *, prepare: str = "") -> Held:
    """Put the values of these SQL expressions into a column of the type and bring them over."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SETTINGS)
        if prepare:
            connection.execute(prepare)
        facts = facts or facts_of(connection, type_name)
        connection.execute("DROP TABLE IF EXISTS held")
        connection.execute(f"CREATE TABLE held (i int, x {type_name})")
        rows = ", ".join(f"({n}, {expression})" for n, expression in enumerate(expressions))
        connection.execute(f"INSERT INTO held VALUES {rows}")
        return bring(connection, url, mapping(facts))


def bring(connection: psycopg.Connection[TupleRow], url: str, of: TypeMapping) -> Held:
    """Bring over what table ``held`` (i, x) has."""
    connection.execute(SETTINGS)
    representable = "true" if of.source_representable_sql is None else of.source_representable_sql("x")
    asked = connection.execute(
        "SELECT CASE WHEN x IS DISTINCT FROM NULL THEN concat(x) END,"
        f" CASE WHEN ({representable}) THEN {of.canonical_source_sql('x')} END,"
        f" CASE WHEN x IS DISTINCT FROM NULL THEN {representable} END FROM held ORDER BY i"
    ).fetchall()
    texts = [row[0] for row in asked]
    change = from_texts([texts], [of])
    copied = from_copy(url, "held", {"x": of})
    return Held(
        texts=texts,
        values=change["after"].combine_chunks().field(0),
        misfits=_misfits(change),
        copied=copied["after"].combine_chunks().field(0),
        copied_misfits=_misfits(copied),
        source_canonical=[row[1] for row in asked],
        lake_canonical=lake_canonical(change, of),
        representable=[row[2] for row in asked],
    )


def from_texts(columns: list[list[str | None]], mappings: list[TypeMapping]) -> pa.Table:
    """Rows with these texts, as inserts in the change layout; columns are called c0, c1 …"""
    n = len(columns[0])
    numbers = pa.array(np.arange(n))
    present = np.ones(n, np.bool_)
    rows = DecodedRows(
        op=pa.repeat("c", n),
        commit_lsn=numbers,
        ordinal=numbers,
        change_lsn=numbers,
        xid=numbers,
        commit_time=pa.repeat(pa.scalar(COMMIT_TIME, pa.timestamp("us", tz="UTC")), n),
        after=tuple(pa.array(column, pa.string()).cast(pa.string_view()) for column in columns),
        after_present=present,
        unavailable=None,
        before=None,
        before_present=~present,
    )
    return Converter().convert(rows, schema_of([f"c{i}" for i in range(len(columns))], mappings), mappings)


def from_copy(url: str, table: str, columns: dict[str, TypeMapping]) -> pa.Table:
    """A table's columns as a first copy, in the order of its column ``i``, in the change layout."""
    mappings = list(columns.values())
    select = ", ".join(of.copy_sql(name) for name, of in columns.items())
    with adbc_driver_postgresql.dbapi.connect(url) as connection, connection.cursor() as cursor:
        for setting in SETTINGS.split(";"):
            cursor.execute(setting)
        cursor.execute(f"SELECT {select} FROM {table} ORDER BY i")
        batch = cursor.fetch_arrow_table().combine_chunks().to_batches()[0]
    return Converter().convert_copy(
        batch, schema_of(list(columns), mappings), mappings, lsn=7, commit_time=COMMIT_TIME, first_ordinal=0
    )


def schema_of(names: list[str], mappings: Sequence[TypeMapping]) -> TableSchema:
    columns = [Column(name=name, type=of.iceberg, source_type="") for name, of in zip(names, mappings, strict=True)]
    return TableSchema(table=TableId("public", "held"), columns=tuple(columns))


def lake_canonical(change: pa.Table, of: TypeMapping) -> list[str | None]:
    with duckdb.connect() as lake:
        lake.execute("SET TimeZone = 'UTC'")
        lake.register("change", change)
        name = change.schema.field("after").type.field(0).name
        rows = lake.sql(f"SELECT {of.canonical_lake_sql('x')} FROM (SELECT after.{name} AS x FROM change)").fetchall()
    return [row[0] for row in rows]


def _misfits(change: pa.Table) -> list[str | None]:
    texts: list[Any] = change["after_text"].to_pylist()
    return [None if text is None else text[0][1] for text in texts]
