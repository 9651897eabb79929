"""interval → string: months, days and microseconds apart have no counterpart in the lake."""

from __future__ import annotations

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.other import as_text
from headrace.source.postgres.types.type_mapping import TypeMapping

INTERVAL = as_text("every value, as PostgreSQL writes it")


def interval(_: TypeFacts) -> TypeMapping:
    return INTERVAL
