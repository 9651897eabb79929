"""numeric(p,s) → decimal where 38 digits hold it; every other numeric → string. Never rounded."""

from __future__ import annotations

import pyarrow as pa
from pyiceberg.types import DecimalType

from headrace.source.postgres.types.facts import TypeFacts, numeric_modifier
from headrace.source.postgres.types.text import STRING
from headrace.source.postgres.types.type_mapping import TypeMapping, same

MOST_DIGITS = 38


def as_text(x: str) -> str:
    """PostgreSQL writes a numeric's text five times faster than ADBC makes it from the binary form."""
    return f"({x})::text"


def numeric(facts: TypeFacts) -> TypeMapping:
    modifier = numeric_modifier(facts.typmod)
    if modifier is None:
        return UNBOUNDED
    precision, scale = modifier
    # numeric(3,-2) holds up to five digits before the point, numeric(3,5) has five after it and none before.
    digits, scale = (precision - scale, 0) if scale < 0 else (max(precision, scale), scale)
    return _decimal(digits, scale) if digits <= MOST_DIGITS else UNBOUNDED


def _decimal(digits: int, scale: int) -> TypeMapping:
    def lake_text(x: str) -> str:
        text = f"({x})::VARCHAR"
        if digits > scale:
            return text
        # Where no digit can stand before the point, DuckDB writes .5, PostgreSQL 0.5.
        return f"replace(replace('#' || {text}, '#-.', '-0.'), '#.', '0.')"

    return TypeMapping(
        iceberg=DecimalType(digits, scale),
        arrow=pa.decimal128(digits, scale),
        exact="every number, never rounded; NaN is unrepresentable",
        typed_sql=lambda x: f"TRY_CAST({x} AS DECIMAL({digits},{scale}))",
        copy_sql=as_text,
        canonical_source_sql=as_text,
        canonical_lake_sql=lake_text,
        source_representable_sql=lambda x: f"({x}) <> 'NaN'",
    )


UNBOUNDED = TypeMapping(
    iceberg=STRING.iceberg,
    arrow=STRING.arrow,
    exact="every value, as PostgreSQL writes it (with its scale)",
    typed_sql=same,
    always_fits=True,
    copy_sql=as_text,
    canonical_source_sql=as_text,
)
