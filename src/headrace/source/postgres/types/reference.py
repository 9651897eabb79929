"""The reference page of types, from the mappings.

``python -m headrace.source.postgres.types.reference > docs/reference/types.md``
"""

from __future__ import annotations

import sys

from pyiceberg.types import IcebergType, ListType

from headrace.source.postgres.types import TypeFacts, builtin_facts, mapping

INTRODUCTION = """\
# Types

Which lake type holds a PostgreSQL type, and which values it cannot hold. (This page is generated: `python -m
headrace.source.postgres.types.reference`.)

**Nothing is rounded, cut or guessed.** A value that its lake type cannot hold is *unrepresentable*: bronze and silver have null
in the typed column; bronze keeps PostgreSQL's exact text in `before_text` or `after_text` under the column's name, and silver's
`_flags` has the element `<column>:unrepresentable`, which tells it from a real null. `headrace verify` compares such values as
flagged.

**A type that is not listed becomes text**, exactly as PostgreSQL writes it, never null: types of extensions, composite types,
geometry, full-text search. Text is written under the settings DateStyle ISO, IntervalStyle postgres, TimeZone UTC,
bytea_output hex, with as many digits of a float as it takes to read the same number back.

**The first copy and the log give the same values.** The copy reads in binary form what is known to be exact in it, and everything
else as text.

| PostgreSQL | lake (Iceberg) | exact |
|---|---|---|
"""
NUMERIC, BPCHAR = 1700, 1042
ROWS: tuple[tuple[str, TypeFacts | int], ...] = (
    ("`boolean`", 16),
    ("`smallint`, `integer`", 23),
    ("`bigint`", 20),
    ("`oid`", 26),
    ("`real`", 700),
    ("`double precision`", 701),
    ("`numeric(p,s)` up to 38 digits", TypeFacts(oid=NUMERIC, name="numeric(10,2)", typmod=(10 << 16 | 2) + 4)),
    ("`numeric`, `numeric(p,s)` of more digits", NUMERIC),
    ("`text`, `varchar`, `name`", 25),
    ("`char(n)`", BPCHAR),
    ('`"char"`', 18),
    ("`bytea`", 17),
    ("`date`", 1082),
    ("`time`", 1083),
    ("`timestamp`", 1114),
    ("`timestamp with time zone`", 1184),
    ("`interval`", 1186),
    ("`uuid`", 2950),
    ("`json`, `jsonb`", 114),
    ("enumerations", TypeFacts(oid=0, name="mood", kind="enum")),
    ("domains", TypeFacts(oid=0, name="label", kind="domain", base=builtin_facts(25))),
    ("arrays of all these", 1007),
    ("everything else: `money`, `time with time zone`, `inet`, ranges, composites, …", 790),
)
NOTES = """
`numeric(p,s)` becomes `decimal(p,s)`; with a negative scale `decimal(p-s,0)`, with a scale above the precision `decimal(s,s)`.
A domain is held as the type below it, whose row applies. A list's elements are held as the table says of their type; arrays of
arrays (below a domain) and of `box` are text.
"""


def page() -> str:
    return INTRODUCTION + "".join(_row(name, facts) for name, facts in ROWS) + NOTES


def _row(name: str, of: TypeFacts | int) -> str:
    facts = builtin_facts(of) if isinstance(of, int) else of
    assert facts is not None
    if facts.kind == "domain":
        return f"| {name} | what the type below it is | what the type below it holds |\n"
    held = mapping(facts)
    return f"| {name} | {_shown(facts, held.iceberg)} | {held.exact} |\n"


def _shown(facts: TypeFacts, held: IcebergType) -> str:
    if isinstance(held, ListType):
        return "`list`"
    return "`decimal(p,s)`" if facts.typmod >= 0 else f"`{held}`"


def main() -> None:
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
