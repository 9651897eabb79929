"""Which lake type holds a PostgreSQL type, and how its values get there exactly: one module for each family of types."""

from __future__ import annotations

from collections.abc import Callable

from headrace.source.postgres.types.array import array_of
from headrace.source.postgres.types.boolean import boolean
from headrace.source.postgres.types.bytea import bytea
from headrace.source.postgres.types.date import date
from headrace.source.postgres.types.enum import enum
from headrace.source.postgres.types.facts import Kind, TypeFacts, builtin_facts
from headrace.source.postgres.types.float import double_precision, real
from headrace.source.postgres.types.integer import integer, long, oid
from headrace.source.postgres.types.interval import interval
from headrace.source.postgres.types.json import json
from headrace.source.postgres.types.numeric import numeric
from headrace.source.postgres.types.other import other
from headrace.source.postgres.types.text import bpchar, single_char, text
from headrace.source.postgres.types.time import time
from headrace.source.postgres.types.timestamp import timestamp, timestamptz
from headrace.source.postgres.types.type_mapping import Fitted, TypeMapping
from headrace.source.postgres.types.uuid import uuid

__all__ = ["Fitted", "Kind", "TypeFacts", "TypeMapping", "builtin_facts", "mapping"]

_BY_OID: dict[int, Callable[[TypeFacts], TypeMapping]] = {
    16: boolean,
    17: bytea,
    18: single_char,
    19: text,
    20: long,
    21: integer,
    23: integer,
    25: text,
    26: oid,
    114: json,
    700: real,
    701: double_precision,
    1042: bpchar,
    1043: text,
    1082: date,
    1083: time,
    1114: timestamp,
    1184: timestamptz,
    1186: interval,
    1700: numeric,
    2950: uuid,
    3802: json,
}


def mapping(facts: TypeFacts) -> TypeMapping:
    """How a column of this type is held in the lake. Every type has a mapping; one without a module of its own is text."""
    if facts.kind == "domain" and facts.base is not None:
        return mapping(facts.base)
    if facts.kind == "array" and facts.element is not None:
        element = facts.element
        if element.delimiter != "," or _is_array(element):
            return other(facts)
        return array_of(mapping(element), element)
    if facts.kind == "enum":
        return enum(facts)
    return _BY_OID.get(facts.oid, other)(facts)


def _is_array(facts: TypeFacts) -> bool:
    """An array below a domain: its elements' texts are arrays again."""
    while facts.kind == "domain" and facts.base is not None:
        facts = facts.base
    return facts.kind == "array"
