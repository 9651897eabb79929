"""json, jsonb → string: json with its spaces and repeated keys, jsonb as PostgreSQL writes it."""

from __future__ import annotations

import pyarrow as pa

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.text import STRING
from headrace.source.postgres.types.type_mapping import TypeMapping, same


def _storage(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


JSON = TypeMapping(
    iceberg=STRING.iceberg,
    arrow=STRING.arrow,
    exact="every document, character for character as PostgreSQL writes it",
    typed_sql=same,
    always_fits=True,
    copy_sql=same,  # the binary form of both is this text
    copied_text=_storage,
    canonical_source_sql=lambda x: f"({x})::text",
)


def json(_: TypeFacts) -> TypeMapping:
    return JSON
