"""Every type without a mapping of its own → string, as PostgreSQL writes it. Never null instead of a value.

Money, time with time zone, ranges, composites, network addresses, geometry, citext and all the types of extensions.
"""

from __future__ import annotations

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.text import STRING
from headrace.source.postgres.types.type_mapping import TypeMapping, same


def as_text(exact: str) -> TypeMapping:
    """The output function's text, at the first copy too."""
    return TypeMapping(iceberg=STRING.iceberg, arrow=STRING.arrow, exact=exact, typed_sql=same, always_fits=True)


OTHER = as_text("every value, as PostgreSQL writes it")


def other(_: TypeFacts) -> TypeMapping:
    return OTHER
