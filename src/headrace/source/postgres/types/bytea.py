"""bytea → binary."""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.types import BinaryType

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Fitted, TypeMapping, same

BINARY = TypeMapping(
    iceberg=BinaryType(),
    arrow=pa.binary(),
    exact="every value",
    typed_sql=lambda x: f"unhex(substr({x}, 3))",  # bytea_output = hex: \x and two digits a byte
    copy_sql=same,
    copied_values=lambda column: Fitted(values=column),
    canonical_source_sql=lambda x: f"encode({x}, 'hex')",
    canonical_lake_sql=lambda x: f"lower(hex({x}))",
)


def bytea(_: TypeFacts) -> TypeMapping:
    return BINARY
