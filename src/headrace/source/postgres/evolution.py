"""What a changed relation means for a table that is being followed: followed by itself, or parked with a reason.

Followed: columns added without a default, and widenings that change no value. Everything else would lose information or change
values
without events, so the table is parked: its changes go to quarantine and the other tables go on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from headrace.change import TableFault
from headrace.schema import Column, TableId, TableSchema
from headrace.source.postgres.decode import RelationMessage
from headrace.source.postgres.relations import Relation
from headrace.source.postgres.types import TypeFacts, TypeMapping, builtin_facts, mapping
from headrace.source.postgres.types.numeric import MOST_DIGITS

_PARAMETERS = re.compile(r"^(?P<name>[^(]*?)\s*(?:\((?P<numbers>[\d, -]+)\))?(?P<rest>[^(]*)$")
_ORDER = {"smallint": 0, "integer": 1, "bigint": 2}


class UnknownType(Exception):
    """A relation message names a type that neither every server has nor the source's catalog, as it is now, uses for that
    column.
    """


def as_sent(
    message: RelationMessage, relation: Relation | None, known: TableSchema
) -> tuple[TableSchema, list[TypeMapping], frozenset[str]]:
    """The table as a relation message sends it, its columns' mappings, and those of its columns that were added with a default.

    ``relation`` is the table in the source's catalog as it is now, maybe later than the message: what the two agree on is
    taken from it
    (attribute numbers, the facts of types that are not built in, the key). Raises UnknownType.
    """
    now = {column.name: column for column in relation.published} if relation is not None else {}
    columns, mappings, with_default = [], [], set()
    for sent in message.columns:
        present = now.get(sent.name)
        facts: TypeFacts | None = None
        if present is not None and (present.type.oid, present.type.typmod) == (sent.type_oid, sent.typmod):
            facts = present.type
        else:
            facts = builtin_facts(sent.type_oid, sent.typmod)
        if facts is None:
            raise UnknownType(
                f"column {sent.name} came with type {sent.type_oid}, which the source's catalog no longer has for it"
            )
        mapped = mapping(facts)
        mappings.append(mapped)
        columns.append(
            Column(
                name=sent.name,
                type=mapped.iceberg,
                source_type=facts.name,
                nullable=present is None or not present.not_null,
                source_id=present.attnum if present is not None else None,
            )
        )
        # A default that is computed anew for each row rewrote the table, and left no trace but itself.
        if present is not None and (present.has_missing_default or present.has_default):
            with_default.add(sent.name)
    key = relation.key if relation is not None else known.key
    schema = replace(known, columns=tuple(columns), key=key)
    return schema, mappings, frozenset(with_default)


RECREATED = "it was dropped and created again at the source"


def table_oid(schema: TableSchema) -> int | None:
    """The OID of the table that is followed under this schema, where that is known."""
    oid = schema.source_id.partition("/")[0]
    return int(oid) if oid else None


def refusals(old: TableSchema, new: TableSchema, *, with_default: frozenset[str] = frozenset()) -> list[str]:
    """Why ``new`` cannot simply follow ``old``; empty when it can.

    ``with_default`` names columns of ``new`` that gave, or may have given, the existing rows a value when they were added.
    """
    reasons = []
    if old.key != new.key:
        reasons.append(f"its key changed from ({', '.join(old.key)}) to ({', '.join(new.key)})")
    present = {column.name: column for column in new.columns}
    added = [column for column in new.columns if all(column.name != known.name for known in old.columns)]
    for column in old.columns:
        now = present.get(column.name)
        if now is None:
            reasons.append(f"column {column.name} was dropped or renamed" + (f" (new: {added[0].name})" if added else ""))
        elif None not in (column.source_id, now.source_id) and column.source_id != now.source_id:
            reasons.append(f"column {column.name} was dropped and added again")
        elif not widens(column, now):
            reasons.append(f"column {column.name} changed its type from {column.source_type} to {now.source_type}")
    for column in added:
        if column.name in with_default:
            reasons.append(f"column {column.name} was added with a default, which gave the existing rows a value without events")
    return reasons


def fault(table: TableId, reasons: Sequence[str], lsn: int) -> TableFault:
    return TableFault(
        reason="; ".join(reasons),
        remedy=f"`headrace resync {table}` copies the table again with its present columns."
        " Its changes until then are in headrace.quarantine.",
        lsn=lsn,
    )


def widens(old: Column, new: Column) -> bool:
    """True if every value of ``old`` is the same value of ``new``'s type, by the types alone."""
    if old.source_type == new.source_type:
        return True
    name, numbers = _parts(old.source_type)
    new_name, new_numbers = _parts(new.source_type)
    if name in _ORDER and new_name in _ORDER:
        return _ORDER[name] <= _ORDER[new_name]
    if name == "real" and new_name == "double precision":
        return True
    text = {"character varying", "text"}
    if name in text and new_name in text:
        return not new_numbers or (bool(numbers) and numbers[0] <= new_numbers[0])
    if name == new_name == "numeric" and len(numbers) == len(new_numbers) == 2:
        return numbers[1] == new_numbers[1] and numbers[0] <= new_numbers[0] and _is_decimal(numbers) == _is_decimal(new_numbers)
    if name == new_name and name.startswith(("timestamp", "time")):
        return (numbers or [6])[0] <= (new_numbers or [6])[0]
    return False


def _is_decimal(numbers: Sequence[int]) -> bool:
    """A numeric of this precision and scale is a number in the lake; else a text."""
    precision, scale = numbers
    return (precision - scale if scale < 0 else max(precision, scale)) <= MOST_DIGITS


def _parts(source_type: str) -> tuple[str, list[int]]:
    """``numeric(10,2)`` → ``("numeric", [10, 2])``; ``timestamp(3) with time zone`` → ``("timestamp with time zone", [3])``."""
    match = _PARAMETERS.match(source_type)
    if match is None:
        return source_type, []
    numbers = [int(number) for number in (match["numbers"] or "").split(",") if number.strip()]
    return " ".join(f"{match['name']} {match['rest'].strip()}".split()), numbers
