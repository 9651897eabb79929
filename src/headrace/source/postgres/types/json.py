"""json, jsonb → string: json with its spaces and repeated keys, jsonb as PostgreSQL writes it."""

from __future__ import annotations

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.text import STRING
from headrace.source.postgres.types.type_mapping import TypeMapping, same

JSON = TypeMapping(
    iceberg=STRING.iceberg,
    arrow=STRING.arrow,
    exact="every document, character for character as PostgreSQL writes it",
    typed_sql=same,
    always_fits=True,
    copy_sql=lambda x: f"({x})::text",
    canonical_source_sql=lambda x: f"({x})::text",
)


def json(_: TypeFacts) -> TypeMapping:
    return JSON
