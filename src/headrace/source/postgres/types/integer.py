"""smallint, integer → int; bigint, oid → long."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.types import IntegerType, LongType

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Fitted, TypeMapping, same

INT = TypeMapping(
    iceberg=IntegerType(),
    arrow=pa.int32(),
    exact="every value",
    typed_sql=lambda x: f"TRY_CAST({x} AS INTEGER)",
    copy_sql=same,
    copied_values=lambda column: Fitted(values=pc.cast(column, pa.int32())),
    canonical_source_sql=lambda x: f"({x})::text",
    canonical_lake_sql=lambda x: f"({x})::VARCHAR",
)
LONG = TypeMapping(
    iceberg=LongType(),
    arrow=pa.int64(),
    exact="every value",
    typed_sql=lambda x: f"TRY_CAST({x} AS BIGINT)",
    copy_sql=same,
    copied_values=lambda column: Fitted(values=column),
    canonical_source_sql=lambda x: f"({x})::text",
    canonical_lake_sql=lambda x: f"({x})::VARCHAR",
)
OID = TypeMapping(
    iceberg=LongType(),
    arrow=pa.int64(),
    exact="every value",
    typed_sql=LONG.typed_sql,
    copy_sql=lambda x: f"({x})::bigint",  # ADBC would read an oid as a signed integer
    copied_values=LONG.copied_values,
    canonical_source_sql=LONG.canonical_source_sql,
    canonical_lake_sql=LONG.canonical_lake_sql,
)


def integer(_: TypeFacts) -> TypeMapping:
    return INT


def long(_: TypeFacts) -> TypeMapping:
    return LONG


def oid(_: TypeFacts) -> TypeMapping:
    return OID
