"""Changes of a table's rows that the source's log does not tell: found by comparing the system catalog with what it was.

Such are an ``ALTER … TYPE … USING`` that leaves the type as it was, a default for the rows that are there, a partition that comes
with rows or goes with them, a renamed value of an enum. What the catalog says of a table is kept with the table's schema in the
lake, as a text: its state. It is read with a position of the log; when the log has been applied up to there, it is compared with
the one that was kept, and becomes the one that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg
from psycopg import sql

from headrace.schema import TableSchema
from headrace.source.postgres import evolution
from headrace.source.postgres.relations import Relation, schema_of, statement

Connection = psycopg.Connection[Any]

SAMPLED_PAGES = 64
"""Pages of a partition that are looked at for rows older than what happened to it. Rows come in that order, more or less."""


class Undecided(Exception):
    """A partition went away while it was looked at: ask again later."""


def read_states(connection: Connection, oids: Sequence[int]) -> dict[int, str]:
    """The state of those of the tables that exist, by OID."""
    rows = connection.execute(statement("states.sql"), {"oids": list(oids)}).fetchall() if oids else []
    return {int(oid): orjson.dumps(orjson.loads(state), option=orjson.OPT_SORT_KEYS).decode() for oid, state in rows}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a partition's own rows tell. Raises Undecided.

    ``truncated``: its files were exchanged, by a TRUNCATE, not by VACUUM FULL or CLUSTER, which keep the rows.
    ``came_with_rows``: it had rows when it became one. ``at_once``: one transaction altered them all last. By OID.
    """

    truncated: Callable[[int], bool]
    came_with_rows: Callable[[int], bool]
    at_once: Callable[[Sequence[int]], bool]


def reasons(known: TableSchema, state: str, relation: Relation, evidence: Evidence) -> list[str]:
    """Why the rows of a table that is followed as ``known`` may have changed without events; empty when they have not.

    ``state`` and ``relation`` are what the catalog says now. Raises Undecided.
    """
    before, now = orjson.loads(known.source_state), orjson.loads(state)
    return [
        *_by_columns(known, relation),
        *_by_rewriting(before, now, relation),
        *_by_partitions(before, now, relation, evidence),
        *_by_types(before, now),
    ]


def _by_columns(known: TableSchema, relation: Relation) -> list[str]:
    """As when the table's next change came."""
    with_default = {column.name for column in relation.published if column.has_missing_default or column.has_default}
    return evolution.refusals(known, schema_of(relation), with_default=frozenset(with_default))


def _by_rewriting(before: Mapping[str, Any], now: Mapping[str, Any], relation: Relation) -> list[str]:
    """VACUUM FULL, CLUSTER and the like exchange a table's files, too, but leave its columns' rows in the catalog alone."""
    if not _exchanged(before, now):
        return []
    names = {str(column.attnum): column.name for column in relation.published}
    old, new = before["columns"] or {}, now["columns"] or {}
    # A wider type of another column explains the rewriting; a default that an added column has now is seen without it.
    widened = any(number in old and old[number][1:] != column[1:] for number, column in new.items())
    for number, (writer, *type_now) in new.items():
        if number not in old:
            if widened:
                continue
            return [f"the table was rewritten since column {names.get(number)} was added, which may have given old rows a value"]
        writer_before, *type_before = old[number]
        if writer != writer_before and type_now == type_before:
            return [f"the table was rewritten since column {names.get(number)} was altered, which may have changed its values"]
    return []


def _exchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[int]:
    old, new = before["files"] or {}, now["files"] or {}
    return [int(oid) for oid in old if oid in new and old[oid] != new[oid]]


def _by_partitions(before: Mapping[str, Any], now: Mapping[str, Any], relation: Relation, evidence: Evidence) -> list[str]:
    if not relation.partitioned:
        return []
    old, new = before["files"] or {}, now["files"] or {}
    result = []
    if old.keys() - new.keys():
        result.append("a partition was detached or dropped, and its rows with it, without events")
    if any(evidence.came_with_rows(int(oid)) for oid in new.keys() - old.keys()):
        result.append("a partition was attached that had rows already")
    exchanged = _exchanged(before, now)
    # The log tells when the whole table is truncated: that exchanges all of its partitions' files at once.
    whole = len(exchanged) > 1 and len(exchanged) == len(old.keys() & new.keys()) and evidence.at_once(exchanged)
    if not whole and any(evidence.truncated(oid) for oid in exchanged):
        result.append("a partition was truncated by itself, which the log does not tell")
    return result


def _by_types(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    result = []
    old, new = before["labels"] or {}, now["labels"] or {}
    renamed = [number for number in old if number in new and old[number] != new[number]]
    if renamed:
        result.append(f"value {old[renamed[0]]} of an enum was renamed to {new[renamed[0]]}, which changed the rows that have it")
    old, new = before["composites"] or {}, now["composites"] or {}
    if any(number in new and old[number] != new[number] for number in old):
        result.append("a composite type got or lost an attribute, which changed the rows that have it")
    return result


def evidence_of(connection: Connection) -> Evidence:
    """Looks at the partitions with ``connection``, which is autocommitting. Waits for a lock as long as that does."""

    def ask(oid: int, condition: str) -> bool | None:
        """Whether one of the partition's first rows is so; None where this user may not see them."""
        query = sql.SQL(
            "SELECT EXISTS (SELECT FROM ONLY {table} t, {facts} WHERE t.ctid < '({pages},0)'::tid AND {condition})"
        ).format(
            table=sql.SQL(_name(connection, oid)),
            facts=sql.SQL(_FACTS),
            pages=sql.Literal(SAMPLED_PAGES),
            condition=sql.SQL(condition),
        )
        try:
            row = connection.execute(query, {"oid": oid}).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            return None
        except psycopg.errors.UndefinedTable as error:
            raise Undecided from error
        assert row is not None
        return bool(row[0])

    def truncated(oid: int) -> bool:
        if ask(oid, "age(t.xmin) > age(f.altered)"):
            return False
        facts = connection.execute(_FILES, {"oid": oid}).fetchone()
        if facts is None:
            raise Undecided
        return bool(facts[0] < 0 or facts[1])

    def came_with_rows(oid: int) -> bool:
        found = ask(
            oid,
            "(t.xmin = f.joined AND t.cmin::text::bigint < f.joined_command"
            " OR f.joined <> f.created AND age(t.xmin) > age(f.joined))",
        )
        if found is None:
            row = connection.execute(f"SELECT f.joined <> f.created FROM {_FACTS}", {"oid": oid}).fetchone()
            return bool(row and row[0])
        return found

    def at_once(oids: Sequence[int]) -> bool:
        query = "SELECT count(DISTINCT xmin::text) FROM pg_catalog.pg_class WHERE oid = ANY(%s)"
        row = connection.execute(query, [list(oids)]).fetchone()
        return row is not None and row[0] == 1

    return Evidence(truncated=truncated, came_with_rows=came_with_rows, at_once=at_once)


def _name(connection: Connection, oid: int) -> str:
    row = connection.execute(
        "SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = %(oid)s",
        {"oid": oid},
    ).fetchone()
    if row is None:
        raise Undecided
    return str(row[0])


_FACTS = """(
    SELECT c.xmin AS altered, a.xmin AS created, i.xmin AS joined, i.cmin::text::bigint AS joined_command
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tableoid'
      CROSS JOIN LATERAL (
          WITH RECURSIVE up AS (
              SELECT i.inhparent, i.xmin, i.cmin FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid
              UNION ALL
              SELECT i.inhparent, i.xmin, i.cmin FROM up JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.inhparent
          ) SELECT up.xmin, up.cmin FROM up ORDER BY age(up.xmin) LIMIT 1
      ) i
     WHERE c.oid = %(oid)s
) f"""
"""Of a partition: the transactions that last altered it, created it, and last joined it (or what it is in) to its table."""

_FILES = """
SELECT c.reltuples, pg_catalog.pg_relation_size(c.oid) > 0 FROM pg_catalog.pg_class c WHERE c.oid = %(oid)s
"""
"""TRUNCATE leaves the number of rows unknown, below 0; VACUUM FULL counts them."""
