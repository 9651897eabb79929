"""uuid → uuid."""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.types import UUIDType

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Fitted, TypeMapping, same

UUID = TypeMapping(
    iceberg=UUIDType(),
    arrow=pa.uuid(),
    exact="every value",
    typed_sql=lambda x: f"TRY_CAST({x} AS UUID)",
    copy_sql=same,
    copied_values=lambda column: Fitted(values=column),
    canonical_source_sql=lambda x: f"({x})::text",
    canonical_lake_sql=lambda x: f"({x})::VARCHAR",
)


def uuid(_: TypeFacts) -> TypeMapping:
    return UUID
