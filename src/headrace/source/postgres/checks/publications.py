"""Checks of the publications and the slot, whether they exist already or have to be made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace.source.postgres.checks.finding import Examined, Finding, Severity, name, table_name
from headrace.source.postgres.relations import PublicationFacts, Relation

EVERYTHING = "insert, update, delete, truncate"
APPENDS = "insert, truncate"


def publication_privileges(look: Examined) -> Iterator[Finding]:
    """This user may make the publications that are missing: CREATE on the database, and ownership of the tables."""
    row = look.row(
        "SELECT has_database_privilege(current_database(), 'CREATE') AS may_create, current_database() AS database,"
        " rolsuper AS super FROM pg_roles WHERE rolname = current_user"
    )
    owned = {
        entry["oid"]
        for entry in look.rows(
            "SELECT oid::bigint AS oid FROM pg_class WHERE oid = ANY(%(oids)s::oid[]) AND pg_has_role(relowner, 'USAGE')",
            oids=[relation.oid for relation in look.relations],
        )
    }
    for publication, publish, tables in _wanted(look):
        existing = look.publications.get(publication)
        missing = [relation for relation in tables if existing is None or not existing.has(relation.table)]
        foreign = [relation for relation in missing if relation.oid not in owned and not row["super"]]
        if foreign:
            names = ", ".join(str(relation.table) for relation in foreign)
            statement = (
                create_statement(publication, publish, tables) if existing is None else _add_statement(publication, foreign)
            )
            yield Finding(
                check="publication-privileges",
                severity="blocker",
                object=f"publication {publication}",
                found=f"it {'does not exist' if existing is None else 'lacks tables'}, and role {look.user} does not own {names}",
                consequence="only a table's owner may add it to a publication, so a run cannot",
                cure=f"As the owner or a superuser: {statement}",
            )
        elif existing is None and not row["may_create"]:
            statement = create_statement(publication, publish, tables)
            yield Finding(
                check="publication-privileges",
                severity="blocker",
                object=f"publication {publication}",
                found=f"it does not exist, and role {look.user} may not create publications in database {row['database']}",
                consequence="a run cannot make it",
                cure=f"GRANT CREATE ON DATABASE {name(row['database'])} TO {name(look.user)}; or, as a superuser: {statement}",
            )
        elif missing and existing is not None and not existing.owned:
            yield Finding(
                check="publication-privileges",
                severity="blocker",
                object=f"publication {publication}",
                found=f"it lacks {', '.join(str(relation.table) for relation in missing)}, and role {look.user} does not own it",
                consequence="changes of these tables would not arrive",
                cure=f"As {existing.owner} or a superuser: {_add_statement(publication, missing)}",
            )


def publication_contents(look: Examined) -> Iterator[Finding]:
    """Publications that exist publish what is needed, whole tables of it, and nothing that harms."""
    for publication, publish, tables in _wanted(look):
        existing = look.publications.get(publication)
        if existing is not None:
            yield from _flags(existing, publish, tables)
            yield from _partial_tables(existing, tables)
            yield from _extra_tables(existing, look)


def _flags(existing: PublicationFacts, publish: str, tables: Sequence[Relation]) -> Iterator[Finding]:
    about, alter = f"publication {existing.name}", f"ALTER PUBLICATION {name(existing.name)} SET"
    lacking = set(publish.split(", ")) - set(existing.publish.split(", "))
    if lacking:
        yield Finding(
            check="publication-contents",
            severity="blocker",
            object=about,
            found=f"it publishes {existing.publish or 'nothing'}",
            consequence=f"{', '.join(sorted(lacking))} would be missing in the lake",
            cure=f"{alter} (publish = '{publish}');",
        )
    if publish == APPENDS and {"update", "delete"} & set(existing.publish.split(", ")):
        yield Finding(
            check="publication-contents",
            severity="blocker",
            object=about,
            found=f"it publishes {existing.publish}",
            consequence="updates and deletes of tables without key fail at the source while they are in such a publication",
            cure=f"{alter} (publish = '{APPENDS}');",
        )
    if not existing.via_root and any(relation.partitioned for relation in tables):
        yield Finding(
            check="publication-contents",
            severity="blocker",
            object=about,
            found="publish_via_partition_root is off",
            consequence="changes of partitioned tables would arrive as changes of their partitions",
            cure=f"{alter} (publish_via_partition_root = true);",
        )
    if existing.generated_columns:
        yield Finding(
            check="publication-contents",
            severity="blocker",
            object=about,
            found="publish_generated_columns is on",
            consequence="the log has columns that the copy has not",
            cure=f"{alter} (publish_generated_columns = none);",
        )


def _partial_tables(existing: PublicationFacts, tables: Sequence[Relation]) -> Iterator[Finding]:
    wanted = {relation.table for relation in tables}
    for published in existing.tables:
        partial = [
            what for what, there in (("a row filter", published.row_filter), ("a column list", published.column_list)) if there
        ]
        if partial and published.table in wanted:
            yield Finding(
                check="publication-contents",
                severity="blocker",
                object=f"table {published.table} in publication {existing.name}",
                found=f"it has {' and '.join(partial)}",
                consequence="the lake would have a part of the table and not say so",
                cure=f"ALTER PUBLICATION {name(existing.name)} DROP TABLE {table_name(published.table)}; "
                + _add_statement(existing.name, [relation for relation in tables if relation.table == published.table]),
            )


def _extra_tables(existing: PublicationFacts, look: Examined) -> Iterator[Finding]:
    keyless = {relation.table for relation in look.keyless}
    harmed = sorted(keyless & existing.published) if "update" in existing.publish or "delete" in existing.publish else []
    if harmed:
        yield Finding(
            check="publication-contents",
            severity="warning",
            object=f"publication {existing.name}",
            found=f"it has tables without key: {', '.join(map(str, harmed))}",
            consequence="their updates and deletes fail at the source",
            cure="; ".join(f"ALTER PUBLICATION {name(existing.name)} DROP TABLE {table_name(table)}" for table in harmed) + ";"
            if not existing.all_tables
            else "Give the tables a primary key, or REPLICA IDENTITY FULL.",
        )
    extra = existing.published - {relation.table for relation in look.relations}
    if extra:
        some = ", ".join(map(str, sorted(extra)[:5])) + (" …" if len(extra) > 5 else "")
        yield Finding(
            check="publication-contents",
            severity="note",
            object=f"publication {existing.name}",
            found=f"it also has {some}",
            consequence="their changes are decoded and read for nothing",
        )


def slot_state(look: Examined) -> Iterator[Finding]:
    """The slot, if it exists, can be used by this pipeline."""
    slot = look.names.slot
    rows = look.rows("SELECT *, current_database() AS here FROM pg_replication_slots WHERE slot_name = %(slot)s", slot=slot)
    if not rows:
        return
    row = rows[0]

    def finding(severity: Severity, found: str, consequence: str, cure: str) -> Finding:
        return Finding(
            check="slot-state",
            severity=severity,
            object=f"slot {slot}",
            found=found,
            consequence=consequence,
            cure=cure,
        )

    another = "Give the pipeline another slot name (source.slot in headrace.yaml), or drop that slot if nobody uses it."
    if row["slot_type"] != "logical" or row["plugin"] != "pgoutput":
        yield finding(
            "blocker",
            f"it is a {row['slot_type']} slot" + (f" with plugin {row['plugin']}" if row["plugin"] else ""),
            "Headrace needs a logical slot with plugin pgoutput",
            another,
        )
        return
    if row["database"] != row["here"]:
        yield finding("blocker", f"it belongs to database {row['database']}", "a slot reads one database only", another)
    if row["two_phase"]:
        yield finding("blocker", "it has two_phase", "it cannot be copied, so that nobody could read from it", another)
    if row["temporary"]:
        yield finding("blocker", "it is temporary", "it goes away with the session that made it", another)
    if row["wal_status"] == "lost" or row["restart_lsn"] is None:
        yield finding(
            "blocker",
            "the server has invalidated it: log that it needed is gone",
            "changes since then are lost to this pipeline",
            "`headrace drop --slot --lake`, then `headrace run` copies the tables again.",
        )
    elif row["wal_status"] == "unreserved":
        yield finding(
            "warning",
            "it is further behind than max_slot_wal_keep_size",
            "the server invalidates it at its next checkpoint",
            "Start `headrace run` now, or raise max_slot_wal_keep_size.",
        )
    if look.running:
        yield finding("note", "a run of this pipeline follows it now", "a second run would refuse to begin", "")
    elif row["active_pid"] is not None:
        yield finding(
            "blocker",
            f"process {row['active_pid']} of the source uses it",
            "a slot has one consumer at a time",
            f"Stop that consumer (SELECT pg_terminate_backend({row['active_pid']});), or use another slot name.",
        )


def create_statement(publication: str, publish: str, tables: Sequence[Relation]) -> str:
    """The SQL that makes a publication as a run would."""
    listed = f" FOR TABLE {_listed(tables)}" if tables else ""
    return f"CREATE PUBLICATION {name(publication)}{listed} WITH (publish = '{publish}', publish_via_partition_root = true);"


def _add_statement(publication: str, tables: Sequence[Relation]) -> str:
    return f"ALTER PUBLICATION {name(publication)} ADD TABLE {_listed(tables)};"


def _listed(tables: Sequence[Relation]) -> str:
    """ONLY, since a table that inherits from one of these is a table of its own and may have no key."""
    return ", ".join(f"{'' if relation.partitioned else 'ONLY '}{table_name(relation.table)}" for relation in tables)


def _wanted(look: Examined) -> list[tuple[str, str, list[Relation]]]:
    return [(look.names.publication, EVERYTHING, look.keyed), (look.names.appends_publication, APPENDS, look.keyless)]
