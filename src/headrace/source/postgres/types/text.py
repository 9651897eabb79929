"""text, varchar, char(n) with its padding, name, "char" → string."""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.types import StringType

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import TypeMapping, same

STRING = TypeMapping(
    iceberg=StringType(),
    arrow=pa.string(),
    exact="every value",
    typed_sql=same,
    always_fits=True,
    copy_sql=same,
    canonical_source_sql=lambda x: f"({x})::text",
)
PADDED = TypeMapping(
    iceberg=STRING.iceberg,
    arrow=STRING.arrow,
    exact="every value, with its padding",
    typed_sql=same,
    always_fits=True,
    copy_sql=same,
)
CHAR = TypeMapping(
    iceberg=STRING.iceberg,
    arrow=STRING.arrow,
    exact="every value; a byte above 127 as PostgreSQL writes it (`\\ooo`)",
    typed_sql=same,
    always_fits=True,
)


def text(_: TypeFacts) -> TypeMapping:
    return STRING


def bpchar(_: TypeFacts) -> TypeMapping:
    return PADDED


def single_char(_: TypeFacts) -> TypeMapping:
    return CHAR
