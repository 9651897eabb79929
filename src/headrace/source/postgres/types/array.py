"""One-dimensional arrays → lists of what their elements map to."""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.types import ListType

from headrace.source.postgres.types import array_text
from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.type_mapping import Sql, TypeMapping

UNASSIGNED = -1


def array_of(element: TypeMapping, facts: TypeFacts) -> TypeMapping:
    """The mapping for arrays of a type with mapping ``element`` and facts ``facts``."""
    return TypeMapping(
        iceberg=ListType(element_id=UNASSIGNED, element_type=element.iceberg, element_required=False),
        arrow=pa.list_(pa.field("element", element.arrow)),
        exact="every one-dimensional array with bounds from 1 whose elements are all representable; others are unrepresentable",
        prepare=array_text.parse,
        typed_sql=_typed(element),
        canonical_source_sql=_canonical_source(element, facts),
        canonical_lake_sql=_canonical_lake(element),
        source_representable_sql=_representable(element),
    )


def _typed(element: TypeMapping) -> Sql:
    if element.always_fits:
        return lambda x: x

    def typed(x: str) -> str:
        values = f"list_transform({x}, lambda e: {element.typed_sql('e')})"
        return f"CASE WHEN list_count({values}) = list_count({x}) THEN {values} END"

    return typed


def _canonical_source(element: TypeMapping, facts: TypeFacts) -> Sql:
    """Each element as its length, a colon and its text; ``n`` for null."""
    composite = facts.kind == "composite"  # a row would unfold into its fields in FROM, so it goes as text

    def canonical(x: str) -> str:
        source = f"({x})::text[]" if composite else x
        text = "e" if composite else element.canonical_source_sql("e")
        return (
            f"CASE WHEN ({x}) IS NOT NULL THEN ("
            f"SELECT coalesce(string_agg(coalesce(length(c) || ':' || c, 'n'), '' ORDER BY i), '')"
            f" FROM (SELECT i, {text} AS c FROM unnest({source}) WITH ORDINALITY AS u(e, i)) AS k) END"
        )

    return canonical


def _canonical_lake(element: TypeMapping) -> Sql:
    text = element.canonical_lake_sql("e")
    return lambda x: (
        f"CASE WHEN ({x}) IS NOT NULL THEN"
        f" coalesce(array_to_string(list_transform({x}, lambda e: coalesce(length({text}) || ':' || {text}, 'n')), ''), '') END"
    )


def _representable(element: TypeMapping) -> Sql:
    inner = element.source_representable_sql

    def representable(x: str) -> str:
        shape = f"coalesce(array_ndims({x}) = 1 AND array_lower({x}, 1) = 1, true)"  # an empty array has no dimensions
        if inner is None:
            return shape
        return f"({shape} AND NOT EXISTS (SELECT FROM unnest({x}) AS e WHERE NOT ({inner('e')})))"

    return representable
