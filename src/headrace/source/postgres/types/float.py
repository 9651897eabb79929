"""real → float, double precision → double. NaN, the infinities, minus zero and subnormal numbers are values like others."""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.types import DoubleType, FloatType

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Fitted, Sql, TypeMapping, same


def _source_bits(send: str, bits: int, integer: str) -> Sql:
    """The number's bits read as an integer; NaN apart, since its bits say nothing and may differ."""
    return lambda x: f"CASE {x} WHEN 'NaN' THEN 'NaN' ELSE ('x' || encode({send}({x}), 'hex'))::bit({bits})::{integer}::text END"


def _lake_bits(type_: str, integer: str) -> Sql:
    return lambda x: f"CASE WHEN isnan({x}) THEN 'NaN' ELSE ({x})::{type_}::BIT::{integer}::VARCHAR END"


EXACT = "every value: PostgreSQL writes as many digits as tell a number from its neighbours (`extra_float_digits`)"
FLOAT = TypeMapping(
    iceberg=FloatType(),
    arrow=pa.float32(),
    exact=EXACT,
    typed_sql=lambda x: f"TRY_CAST({x} AS FLOAT)",
    copy_sql=same,
    copied_values=lambda column: Fitted(values=column),
    canonical_source_sql=_source_bits("float4send", 32, "int"),
    canonical_lake_sql=_lake_bits("FLOAT", "INTEGER"),
)
DOUBLE = TypeMapping(
    iceberg=DoubleType(),
    arrow=pa.float64(),
    exact=EXACT,
    typed_sql=lambda x: f"TRY_CAST({x} AS DOUBLE)",
    copy_sql=same,
    copied_values=lambda column: Fitted(values=column),
    canonical_source_sql=_source_bits("float8send", 64, "bigint"),
    canonical_lake_sql=_lake_bits("DOUBLE", "BIGINT"),
)


def real(_: TypeFacts) -> TypeMapping:
    return FLOAT


def double_precision(_: TypeFacts) -> TypeMapping:
    return DOUBLE
