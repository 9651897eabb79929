"""Enumerations → string: the label."""

from __future__ import annotations

from headrace.source.postgres.types.facts import TypeFacts
from headrace.source.postgres.types.other import as_text
from headrace.source.postgres.types.type_mapping import TypeMapping

ENUM = as_text("every label")


def enum(_: TypeFacts) -> TypeMapping:
    return ENUM
