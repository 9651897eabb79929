"""boolean → boolean."""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.types import BooleanType

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Fitted, TypeMapping, same

BOOLEAN = TypeMapping(
    iceberg=BooleanType(),
    arrow=pa.bool_(),
    exact="every value",
    typed_sql=lambda x: f"CASE {x} WHEN 't' THEN true WHEN 'f' THEN false END",
    copy_sql=same,
    copied_values=lambda column: Fitted(values=column),
    canonical_source_sql=lambda x: f"({x})::int::text",
    canonical_lake_sql=lambda x: f"({x})::INTEGER::VARCHAR",
)


def boolean(_: TypeFacts) -> TypeMapping:
    return BOOLEAN
