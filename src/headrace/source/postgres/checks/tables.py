"""Checks of the tables that the project names."""

from __future__ import annotations

from collections.abc import Iterator

from pyiceberg.types import ListType, StringType

from headrace.source.postgres.checks.finding import Examined, Finding, name, table_name
from headrace.source.postgres.relations import Relation, is_glob
from headrace.source.postgres.types import TypeFacts, mapping

TEXTS = frozenset({"text", "character varying", "character", "bpchar", "name", '"char"', "json", "jsonb", "uuid", "xml"})
"""Types that nobody expects to be anything but text."""


def tables_found(look: Examined) -> Iterator[Finding]:
    """Every table that the project names exists and can be captured."""
    for pattern in look.survey.unmatched:
        exact = not is_glob(pattern)
        yield Finding(
            check="tables-found",
            severity="blocker" if exact else "warning",
            object=f"source.tables: {pattern}",
            found="no such table" if exact else "no table matches",
            consequence="a run refuses to begin" if exact else "nothing is captured for it until one does",
            cure="Correct source.tables in headrace.yaml.",
        )
    for relation in look.survey.relations:
        if relation.refusal:
            yield Finding(
                check="tables-found",
                severity="blocker",
                object=f"table {relation.table}",
                found=relation.refusal,
                consequence="it cannot be captured, and a run refuses to begin",
                cure="Take it out of source.tables in headrace.yaml, or change the table.",
            )
    for table, reason in look.survey.left_out.items():
        yield Finding(
            check="tables-found",
            severity="warning",
            object=f"table {table}",
            found=reason,
            consequence="it is left out, though a pattern of source.tables matches it",
            cure="Name it in source.exclude to silence this, or change the table.",
        )
    if not look.survey.relations:
        yield Finding(
            check="tables-found",
            severity="blocker",
            object="source.tables",
            found="no table that can be captured matches",
            consequence="there is nothing to do",
            cure="Correct source.tables and source.exclude in headrace.yaml.",
        )


_PRIVILEGES = """
SELECT c.oid::bigint AS oid, n.nspname AS schema, has_schema_privilege(n.oid, 'USAGE') AS usage,
       has_table_privilege(c.oid, 'SELECT') AS may_select
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%(oids)s::oid[])
"""


def table_privileges(look: Examined) -> Iterator[Finding]:
    """This user may read every table."""
    tables = {relation.oid: relation for relation in look.relations}
    closed_schemas = set()
    for row in look.rows(_PRIVILEGES, oids=list(tables)):
        if not row["usage"] and row["schema"] not in closed_schemas:
            closed_schemas.add(row["schema"])
            yield Finding(
                check="table-privileges",
                severity="blocker",
                object=f"schema {row['schema']}",
                found=f"role {look.user} has no USAGE on it",
                consequence="its tables cannot be read",
                cure=f"GRANT USAGE ON SCHEMA {name(row['schema'])} TO {name(look.user)};",
            )
        if not row["may_select"]:
            table = tables[row["oid"]].table
            yield Finding(
                check="table-privileges",
                severity="blocker",
                object=f"table {table}",
                found=f"role {look.user} may not SELECT from it",
                consequence="it cannot be copied",
                cure=f"GRANT SELECT ON {table_name(table)} TO {name(look.user)};",
            )


_CANDIDATE_KEYS = """
SELECT i.indrelid::bigint AS oid, x.relname AS index
  FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
 WHERE i.indrelid = ANY(%(oids)s::oid[])
   AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
   AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) AND NOT a.attnotnull)
 ORDER BY i.indrelid, i.indnatts, x.relname
"""


def replica_identity(look: Examined) -> Iterator[Finding]:
    """Every table has a key by which the source logs which row was updated or deleted."""
    candidates = {
        row["oid"]: row["index"] for row in look.rows(_CANDIDATE_KEYS, oids=[relation.oid for relation in look.keyless])
    }
    for relation in look.keyless:
        found, cure = _why_keyless(relation, candidates.get(relation.oid))
        yield Finding(
            check="replica-identity",
            severity="warning",
            object=f"table {relation.table}",
            found=found,
            consequence="silver appends its rows: only inserts and truncates are captured, updates and deletes are not",
            cure=cure,
        )
    for relation in look.keyed:
        if relation.identity == "full":
            yield Finding(
                check="replica-identity",
                severity="note",
                object=f"table {relation.table}",
                found="its replica identity is FULL",
                consequence="every update and delete logs the whole old row: bronze has it, and the log is larger",
            )
        for part in relation.partitions:
            if part.identity not in ("full", relation.identity) and not (
                relation.identity == "full" and part.identity == "default"
            ):
                yield Finding(
                    check="replica-identity",
                    severity="blocker",
                    object=f"partition {part.table} of {relation.table}",
                    found=f"its replica identity is {part.identity.upper()}, that of the whole table {relation.identity.upper()}",
                    consequence="updates and deletes of its rows would fail at the source, or could not be matched",
                    cure=f"ALTER TABLE {table_name(part.table)} REPLICA IDENTITY FULL;",
                )


def _why_keyless(relation: Relation, candidate: str | None) -> tuple[str, str]:
    table = table_name(relation.table)
    by_index = f"ALTER TABLE {table} REPLICA IDENTITY USING INDEX {name(candidate)};" if candidate else ""
    if relation.identity == "nothing" and relation.primary_key and not relation.primary_key_deferrable:
        return "its replica identity is NOTHING", f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT;"
    if relation.identity == "index":
        return "the index of its replica identity was dropped", by_index or f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT;"
    if relation.primary_key and relation.primary_key_deferrable:
        return "its primary key is deferrable, which logical replication cannot use", by_index or (
            f"Make the primary key of {table} not deferrable, or give it another unique index over NOT NULL columns."
        )
    return "it has no primary key", by_index or f"ALTER TABLE {table} ADD PRIMARY KEY (…);"


def row_level_security(look: Examined) -> Iterator[Finding]:
    """No row-level security policy hides rows from this user: a copy would be partial, so it is refused."""
    tables = {relation.oid: relation for relation in look.relations if relation.row_security}
    for row in look.rows(
        "SELECT oid::bigint AS oid FROM unnest(%(oids)s::oid[]) oid WHERE row_security_active(oid)", oids=list(tables)
    ):
        table = tables[row["oid"]].table
        yield Finding(
            check="row-level-security",
            severity="blocker",
            object=f"table {table}",
            found=f"its row-level security applies to role {look.user}",
            consequence="a copy would lack the hidden rows while changes of them come through the log; the copy is refused",
            cure=f"ALTER ROLE {name(look.user)} BYPASSRLS; (as a superuser), or use a role that owns the table.",
        )


def generated_columns(look: Examined) -> Iterator[Finding]:
    """No column is generated: the source does not publish those."""
    for relation in look.relations:
        generated = [column.name for column in relation.columns if column.generated]
        if generated:
            yield Finding(
                check="generated-columns",
                severity="note",
                object=f"table {relation.table}",
                found=f"generated columns: {', '.join(generated)}",
                consequence="the source does not publish them, so the lake does not have them; compute them in a query",
            )


def types(look: Examined) -> Iterator[Finding]:
    """Every column has a lake type that holds all its values exactly; others become PostgreSQL's text."""
    for relation in look.relations:
        as_text = [f"{column.name} ({column.type.name})" for column in relation.published if _surprisingly_text(column.type)]
        if as_text:
            yield Finding(
                check="types",
                severity="note",
                object=f"table {relation.table}",
                found=f"types without an exact lake type: {', '.join(as_text)}",
                consequence="the lake has these columns as PostgreSQL's exact text; cast them in a query",
            )


def _surprisingly_text(facts: TypeFacts) -> bool:
    kind = mapping(facts).iceberg
    while isinstance(kind, ListType):
        kind = kind.element_type
    if not isinstance(kind, StringType):
        return False
    while (below := facts.base if facts.kind == "domain" else facts.element) is not None:
        facts = below
    return facts.kind != "enum" and facts.name.partition("(")[0] not in TEXTS


def inheritance(look: Examined) -> Iterator[Finding]:
    """No table inherits from another of the project: to the lake those are tables of their own."""
    tables = {relation.oid: relation for relation in look.relations if not relation.partitioned}
    for row in look.rows(
        "SELECT inhparent::bigint AS oid,"
        " string_agg(inhrelid::regclass::text, ', ' ORDER BY inhrelid::regclass::text) AS children"
        " FROM pg_inherits WHERE inhparent = ANY(%(oids)s::oid[]) GROUP BY inhparent",
        oids=list(tables),
    ):
        yield Finding(
            check="inheritance",
            severity="note",
            object=f"table {tables[row['oid']].table}",
            found=f"other tables inherit from it: {row['children']}",
            consequence="the lake's table has its own rows only, as SELECT … FROM ONLY shows them",
            cure="Name the inheriting tables in source.tables, too, if you want them.",
        )
