"""One table of source and lake compared at one position, and what differs by key."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.schema import TableId, TableSchema
from headrace.source.postgres.relations import Relation, mappings_of
from headrace.verify.fingerprint import ComparedColumn, Fingerprint, LakeSide, Side, SourceSide, identifier
from headrace.verify.lake_state import LakeState
from headrace.verify.source_state import NotComparable, SourceState

Kind = Literal["missing", "extra", "different", "repeated"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A key whose rows are not the same on both sides.

    ``missing``: the lake lacks it; ``extra``: the source lacks it; ``different``: values differ, in ``columns``; ``repeated``:
    the lake has its row more often than the source.
    """

    kind: Kind
    key: Mapping[str, str | None]
    """The key's columns (all columns of a table without one) and their texts: row content, for its owner's eyes, not for logs."""
    columns: tuple[str, ...] = ()
    source_rows: int
    lake_rows: int


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """``problem``: why the table could not be compared; then there are no fingerprints."""

    table: TableId
    source: Fingerprint | None = None
    lake: Fingerprint | None = None
    differences: tuple[Difference, ...] = ()
    more: bool = False
    """There are further differences than those named."""
    problem: str = ""
    note: str = ""

    @property
    def equal(self) -> bool:
        return self.source is not None and self.source == self.lake


@dataclass(frozen=True, kw_only=True)
class ComparedTable:
    """A table whose source side is fixed; ``relation`` is what the source has."""

    table: TableId
    relation: Relation
    utf8: bool


def compare(
    source: SourceState, lake: LakeState, compared: ComparedTable, fingerprint: Fingerprint, *, limit: int
) -> TableResult:
    """Compare the lake's table with the source's ``fingerprint``; where they differ, name up to ``limit`` keys.

    Raises NotComparable.
    """
    schema = lake.schema(compared.table)
    relation = lake.relation(compared.table)
    ours = LakeSide(relation=relation, columns=compared_columns(compared.relation, schema), key=_key(compared.relation))
    theirs = source_side(compared)
    found = fingerprint_of(lake.rows(ours.fingerprint_sql()))
    differences, more = ((), False) if found == fingerprint else _differences(source, lake, theirs, ours, limit)
    return TableResult(
        table=compared.table,
        source=fingerprint,
        lake=found,
        differences=tuple(differences),
        more=more,
        note="" if compared.relation.key else "it has no key: the lake only has its inserts, whatever became of the rows later",
    )


def source_side(compared: ComparedTable) -> SourceSide:
    relation = compared.relation
    name = f"{identifier(relation.table.schema)}.{identifier(relation.table.name)}"
    columns = [
        ComparedColumn(name=column.name, mapping=mapping)
        for column, mapping in zip(relation.published, mappings_of(relation), strict=True)
    ]
    source = name if relation.partitioned else f"ONLY {name}"
    return SourceSide(relation=source, columns=columns, key=_key(relation), utf8=compared.utf8)


def compared_columns(relation: Relation, schema: TableSchema) -> list[ComparedColumn]:
    """The source's columns in its order. Raises NotComparable when the lake has one that the source has not."""
    held = {column.name for column in schema.columns}
    names = {column.name for column in relation.published}
    if gone := sorted(held - names):
        raise NotComparable(f"column {gone[0]} is not at the source any more, which the lake has yet to learn")
    return [
        ComparedColumn(name=column.name, mapping=mapping, in_lake=column.name in held)
        for column, mapping in zip(relation.published, mappings_of(relation), strict=True)
    ]


def fingerprint_of(rows: Sequence[tuple[int, ...]]) -> Fingerprint:
    (count, first, second) = rows[0]
    return Fingerprint(rows=int(count), sums=(int(first), int(second)))


def _key(relation: Relation) -> tuple[str, ...]:
    return relation.key or tuple(column.name for column in relation.published)


@dataclass(frozen=True)
class _Row:
    shown: tuple[str | None, ...]
    hash: str
    cells: tuple[str, ...]


def _differences(source: SourceState, lake: LakeState, theirs: Side, ours: Side, limit: int) -> tuple[Sequence[Difference], bool]:
    """First the buckets of keys whose fingerprints differ, then the rows of as many buckets as are needed."""
    there = {int(row[0]): tuple(map(int, row[1:])) for row in source.rows(theirs.buckets_sql())}
    here = {int(row[0]): tuple(map(int, row[1:])) for row in lake.rows(ours.buckets_sql())}
    differing = sorted(bucket for bucket in there.keys() | here.keys() if there.get(bucket) != here.get(bucket))
    wanted = differing[:limit]  # each has at least one key that differs
    if not wanted:
        return (), True
    rows_there, rows_here = _by_key(source.rows(theirs.rows_sql(wanted))), _by_key(lake.rows(ours.rows_sql(wanted)))
    names = [column.name for column in theirs.columns if column.name in theirs.key]
    found = []
    for key in sorted(rows_there.keys() | rows_here.keys()):
        difference = _difference(names, [column.name for column in theirs.columns], rows_there[key], rows_here[key])
        if difference is not None:
            found.append(difference)
    return found[:limit], len(differing) > len(wanted) or len(found) > limit


def _by_key(rows: Sequence[tuple[str, Sequence[str | None], str, Sequence[str]]]) -> defaultdict[str, list[_Row]]:
    result: defaultdict[str, list[_Row]] = defaultdict(list)
    for key, shown, hashed, cells in rows:
        result[key].append(_Row(tuple(shown), hashed, tuple(cells)))
    return result


def _difference(key: Sequence[str], columns: Sequence[str], there: Sequence[_Row], here: Sequence[_Row]) -> Difference | None:
    """What differs in the rows of one key."""
    if Counter(row.hash for row in there) == Counter(row.hash for row in here):
        return None
    differing: tuple[str, ...] = ()
    kind: Kind
    if not here:
        kind = "missing"
    elif not there:
        kind = "extra"
    elif {row.hash for row in there} == {row.hash for row in here}:
        kind = "repeated" if len(here) > len(there) else "missing"
    else:
        kind = "repeated" if len(here) > len(there) else "different"
        cells = [{row.cells[n] for row in there} ^ {row.cells[n] for row in here} for n in range(len(columns))]
        differing = tuple(name for name, other in zip(columns, cells, strict=True) if other)
    shown = (there or here)[0].shown
    return Difference(
        kind=kind,
        key=dict(zip(key, shown, strict=True)),
        columns=differing,
        source_rows=len(there),
        lake_rows=len(here),
    )
