"""What the source's system catalog says of tables: which ones a project means, their columns, key, identity; and of publications.

Only catalogs are read, so nothing here waits for a table's lock, but for a partitioned table that is being altered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row

from headrace.errors import SourceNotReady
from headrace.schema import Column, TableId, TableSchema
from headrace.source.postgres.types import Kind, TypeFacts, TypeMapping, mapping

Connection = psycopg.Connection[Any]
Identity = Literal["default", "nothing", "full", "index"]

SILVER_COLUMNS = frozenset({"_epoch", "_commit_lsn", "_ordinal", "_commit_time", "_flags"})
"""Names that silver gives to columns of its own."""
GENERATED_FORBID_FULL = 180000
"""From this version on PostgreSQL refuses updates of a published table whose replica identity has an unpublished column."""
_IDENTITIES: dict[str, Identity] = {"d": "default", "n": "nothing", "f": "full", "i": "index"}
_KINDS = {"r": "table", "p": "partitioned table", "f": "foreign table", "v": "view", "m": "materialised view"}
_TYPE_KINDS: dict[str, Kind] = {
    "b": "base",
    "c": "composite",
    "d": "domain",
    "e": "enum",
    "p": "pseudo",
    "r": "range",
    "m": "multirange",
}


@dataclass(frozen=True, kw_only=True)
class RelationColumn:
    """A column that exists. ``has_missing_default``: existing rows got its value without being rewritten when it was added.
    ``has_default``: new rows get a value, as rows that existed when it was added may have; an identity column has one too.
    """

    attnum: int
    name: str
    type: TypeFacts
    not_null: bool
    generated: bool
    has_missing_default: bool
    has_default: bool = False


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A leaf partition."""

    table: TableId
    kind: str
    persistence: str
    identity: Identity
    owner: str


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A table at the source, as its catalog describes it now."""

    table: TableId
    oid: int
    kind: str
    """``table``, ``partitioned table``, ``foreign table``, ``view`` or ``materialised view``."""
    persistence: str
    """``p`` permanent, ``u`` unlogged, ``t`` temporary."""
    owner: str
    relfilenode: int
    """Changes when the table is rewritten or truncated; 0 for a partitioned table."""
    columns: tuple[RelationColumn, ...]
    """All columns in order, generated ones too."""
    primary_key: tuple[str, ...]
    primary_key_deferrable: bool
    identity: Identity
    identity_index: tuple[str, ...]
    """The columns of the index that identity ``index`` names; empty when that index is gone."""
    row_security: bool
    force_row_security: bool
    is_partition: bool
    partitions: tuple[Partition, ...]
    estimated_rows: int | None
    """From the planner's statistics; None when there are none yet."""
    estimated_bytes: int
    refusal: str = ""
    """Why this table cannot be captured at all; empty when it can."""

    @property
    def partitioned(self) -> bool:
        return self.kind == "partitioned table"

    @property
    def published(self) -> tuple[RelationColumn, ...]:
        """The columns whose values the source sends: all but generated ones."""
        return tuple(column for column in self.columns if not column.generated)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns by which the source identifies the old row of an update or delete; empty when it cannot.

        A deferrable primary key does not count, nor does one that ``REPLICA IDENTITY NOTHING`` switches off. Under identity FULL
        every old row is sent whole, and the primary key in it identifies it.
        """
        if self.identity == "index":
            return self.identity_index
        if self.identity == "nothing" or self.primary_key_deferrable:
            return ()
        return self.primary_key


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Which tables a project means. ``left_out``: tables that a glob matches but that cannot be captured, and why."""

    relations: tuple[Relation, ...]
    left_out: Mapping[TableId, str]
    unmatched: tuple[str, ...]
    """Patterns that match nothing."""


def find_relations(connection: Connection, include: Sequence[str], exclude: Sequence[str] = ()) -> list[Relation]:
    """The tables that match ``include`` and not ``exclude``, by name. One with a ``refusal`` is named exactly, yet useless.

    Raises SourceNotReady when a table that is named exactly does not exist, or nothing matches at all.
    """
    found = survey(connection, include, exclude)
    missing = [pattern for pattern in found.unmatched if not is_glob(pattern)]
    if missing:
        raise SourceNotReady(
            f"the source has no table {', '.join(missing)}, which source.tables names",
            remedy="Correct source.tables in headrace.yaml, or check that source.url is the right database.",
        )
    if not found.relations:
        left_out = "; ".join(f"{table}: {reason}" for table, reason in found.left_out.items())
        raise SourceNotReady(
            f"no table at the source matches source.tables ({', '.join(include)}){': ' + left_out if left_out else ''}",
            remedy="Correct source.tables and source.exclude in headrace.yaml, or check that source.url is the right database.",
        )
    return list(found.relations)


def survey(connection: Connection, include: Sequence[str], exclude: Sequence[str] = ()) -> Survey:
    """Match the patterns with the source's relations.

    A pattern is ``schema.table``, exact or with ``*``, ``?`` or ``[…]``; without a dot it is a table of ``public``. A partition
    belongs to its partitioned table when that matches too. Views, temporary and extensions' tables match exact names only.
    """
    wanted, unwanted = [_full(pattern) for pattern in include], [_full(pattern) for pattern in exclude]
    chosen: dict[int, dict[str, Any]] = {}
    exact, hit = set(), set()
    for row in _rows(connection, "candidates.sql"):
        name = f"{row['schema']}.{row['name']}"
        hits = [pattern for pattern in wanted if pattern == name or fnmatchcase(name, pattern)]
        named = any(pattern == name or not is_glob(pattern) for pattern in hits)
        if not hits or any(pattern == name or fnmatchcase(name, pattern) for pattern in unwanted):
            continue
        if not named and (row["extension"] is not None or row["kind"] in "vm" or row["persistence"] == "t"):
            continue
        hit.update(hits)
        chosen[row["oid"]] = row
        if named:
            exact.add(row["oid"])
    roots = [oid for oid, row in chosen.items() if not any(root in chosen for root in row["partition_of"])]
    relations = _without_clashes(read_relations(connection, roots))
    refused = {relation.table: relation.refusal for relation in relations if relation.refusal and relation.oid not in exact}
    return Survey(
        relations=tuple(relation for relation in relations if relation.table not in refused),
        left_out=refused,
        unmatched=tuple(pattern for pattern, full in zip(include, wanted, strict=True) if full not in hit),
    )


def is_glob(pattern: str) -> bool:
    return bool(re.search(r"[*?\[]", pattern))


def _full(pattern: str) -> str:
    return pattern if "." in pattern else f"public.{pattern}"


def read_relation(connection: Connection, oid: int) -> Relation | None:
    """One relation as it is now, None if it does not exist."""
    return next(iter(read_relations(connection, [oid])), None)


def read_relations(connection: Connection, oids: Sequence[int]) -> list[Relation]:
    """Those of the relations that exist, by name."""
    if not oids:
        return []
    rows = _rows(connection, "relations.sql", oids=list(oids))
    types = {(facts["oid"], facts["typmod"]): facts for facts in rows[0]["types"] or ()} if rows else {}
    return [_relation(row, types, connection.info.server_version) for row in rows]


def schema_of(relation: Relation) -> TableSchema:
    """The table as it flows to the lake: its published columns with their lake types, and its key."""
    columns = tuple(
        Column(
            name=column.name,
            type=mapped.iceberg,
            source_type=column.type.name,
            nullable=not column.not_null,
            source_id=column.attnum,
        )
        for column, mapped in zip(relation.published, mappings_of(relation), strict=True)
    )
    return TableSchema(table=relation.table, columns=columns, key=relation.key)


def mappings_of(relation: Relation) -> list[TypeMapping]:
    """The mapping of each column of `schema_of`, in its order."""
    return [mapping(column.type) for column in relation.published]


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    table: TableId
    row_filter: bool
    column_list: bool


@dataclass(frozen=True, kw_only=True)
class PublicationFacts:
    """A publication as it is. ``owned``: this session's user may alter it."""

    name: str
    owner: str
    owned: bool
    all_tables: bool
    publish: str
    """The operations, as in ``insert, update``."""
    via_root: bool
    generated_columns: bool
    tables: tuple[PublishedTable, ...]
    """Those that are named in it."""
    published: frozenset[TableId]
    """All that it publishes; without ``via_root`` the partitions of a partitioned table."""

    def has(self, table: TableId) -> bool:
        return self.all_tables or table in self.published or any(named.table == table for named in self.tables)


def read_publications(connection: Connection, names: Sequence[str]) -> dict[str, PublicationFacts]:
    """Those of the publications that exist, by name."""
    return {
        row["name"]: PublicationFacts(
            name=row["name"],
            owner=row["owner"],
            owned=row["owned"],
            all_tables=row["all_tables"],
            publish=row["publish"],
            via_root=row["via_root"],
            generated_columns=row["generated_columns"],
            tables=tuple(
                PublishedTable(
                    table=TableId(table["schema"], table["name"]),
                    row_filter=table["row_filter"],
                    column_list=table["column_list"],
                )
                for table in row["tables"]
            ),
            published=frozenset(TableId(table["schema"], table["name"]) for table in row["published"]),
        )
        for row in _rows(connection, "publications.sql", names=list(names))
    }


@cache
def statement(file: str) -> bytes:
    """The text of an SQL file of this package."""
    return files(__package__).joinpath(file).read_bytes()


def _rows(connection: Connection, file: str, **values: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement(file), values or None).fetchall()


def _relation(row: Mapping[str, Any], types: Mapping[tuple[int, int], Mapping[str, Any]], server_version: int) -> Relation:
    columns = tuple(
        RelationColumn(
            attnum=column["attnum"],
            name=column["name"],
            type=_type_facts(types, column["oid"], column["typmod"]),
            not_null=column["not_null"],
            generated=column["generated"] != "",
            has_missing_default=column["missing"],
            has_default=column["default"],
        )
        for column in row["columns"]
    )
    partitions = tuple(
        Partition(
            table=TableId(leaf["schema"], leaf["name"]),
            kind=_KINDS[leaf["kind"]],
            persistence=leaf["persistence"],
            identity=_IDENTITIES[leaf["identity"]],
            owner=leaf["owner"],
        )
        for leaf in row["partitions"]
    )
    counted = row["partitions"] if row["kind"] == "p" else [row]
    rows = [part["rows"] for part in counted]
    relation = Relation(
        table=TableId(row["schema"], row["name"]),
        oid=row["oid"],
        kind=_KINDS[row["kind"]],
        persistence=row["persistence"],
        owner=row["owner"],
        relfilenode=row["relfilenode"],
        columns=columns,
        primary_key=tuple(row["primary_key"] or ()),
        primary_key_deferrable=bool(row["primary_key_deferrable"]),
        identity=_IDENTITIES[row["identity"]],
        identity_index=tuple(row["identity_index"] or ()),
        row_security=row["row_security"],
        force_row_security=row["force_row_security"],
        is_partition=row["is_partition"],
        partitions=partitions,
        estimated_rows=None if any(count < 0 for count in rows) else int(sum(rows)),
        estimated_bytes=sum(int(part["pages"]) for part in counted) * row["block_size"],
    )
    return replace(relation, refusal=_refusal(relation, server_version))


def _type_facts(types: Mapping[tuple[int, int], Mapping[str, Any]], oid: int, typmod: int) -> TypeFacts:
    facts = types[oid, typmod]
    element, base = facts["element"], facts["base"]
    return TypeFacts(
        oid=oid,
        name=facts["name"],
        typmod=typmod,
        kind="array" if element is not None else _TYPE_KINDS[facts["type"]],
        element=_type_facts(types, element, typmod) if element is not None else None,
        base=_type_facts(types, base, facts["base_typmod"]) if base is not None else None,
        delimiter=facts["delimiter"],
    )


def _refusal(relation: Relation, server_version: int) -> str:
    if relation.kind not in ("table", "partitioned table"):
        return f"it is a {relation.kind}, whose changes are not in the source's log"
    if relation.persistence != "p":
        return f"it is {_PERSISTENCES[relation.persistence]}, so its changes are not in the source's log"
    for part in relation.partitions:
        if part.kind != "table" or part.persistence != "p":
            what = f"a {part.kind}" if part.kind != "table" else _PERSISTENCES[part.persistence]
            return f"its partition {part.table} is {what}, so changes of it are not in the source's log"
    names = [column.name for column in relation.published]
    if not names:
        return "it has no columns that the source publishes"
    unpublished = [name for name in relation.key if name not in names]
    if unpublished:
        return f"its key has the generated column {unpublished[0]}, which the source does not publish"
    if (
        server_version >= GENERATED_FORBID_FULL
        and relation.identity == "full"
        and relation.key
        and len(names) < len(relation.columns)
    ):
        generated = next(column.name for column in relation.columns if column.generated)
        return (
            f"its replica identity is FULL and its column {generated} is generated:"
            " if it were published, the source would refuse every update and delete of it"
        )
    reserved = [name for name in names if name.lower() in SILVER_COLUMNS]
    if reserved:
        return f"its column {reserved[0]} has a name that silver gives to a column of its own"
    twice = _differ_in_case_only(names)
    if twice:
        return f"its columns {' and '.join(twice)} differ only in case, which engines that read the lake do not tell apart"
    return ""


_PERSISTENCES = {"u": "unlogged", "t": "temporary"}


def _without_clashes(relations: Iterable[Relation]) -> list[Relation]:
    """Refuse tables whose names in the lake would be the same."""
    relations = list(relations)
    counts = Counter(relation.table.lake_name.lower() for relation in relations)
    return [
        relation
        if relation.refusal or counts[relation.table.lake_name.lower()] == 1
        else replace(
            relation, refusal=f"another table of the project would have the same name in the lake, {relation.table.lake_name}"
        )
        for relation in relations
    ]


def _differ_in_case_only(names: Sequence[str]) -> list[str]:
    counts = Counter(name.lower() for name in names)
    return [name for name in names if counts[name.lower()] > 1]
