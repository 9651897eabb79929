"""What a preflight check looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from headrace.schema import TableId
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.relations import PublicationFacts, Relation, Survey

Severity = Literal["blocker", "warning", "note"]
"""``blocker``: `run` would fail, or break the source's application. ``warning``: `run` works, but something may surprise its
user or fail later. ``note``: worth knowing."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about the source that its owner should know or change. Not an error: the check itself worked."""

    check: str
    severity: Severity
    object: str
    """What it is about: ``table public.orders``, ``setting wal_level``."""
    found: str
    consequence: str
    cure: str = ""
    """SQL or a setting that cures it; empty where nothing has to be done."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a pipeline calls its things at the source."""

    slot: str
    publication: str
    appends_publication: str


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What the checks look at. ``include`` are the project's patterns, ``survey`` the tables they mean."""

    connector: Connector
    connection: psycopg.Connection[Any]
    include: Sequence[str]
    survey: Survey
    names: Names
    publications: dict[str, PublicationFacts]
    running: bool
    """A run of this pipeline holds its lock now."""
    copy_connections: int = 2
    user: str = field(default="")

    @property
    def relations(self) -> list[Relation]:
        """The tables that can be captured."""
        return [relation for relation in self.survey.relations if not relation.refusal]

    @property
    def keyed(self) -> list[Relation]:
        return [relation for relation in self.relations if relation.key]

    @property
    def keyless(self) -> list[Relation]:
        return [relation for relation in self.relations if not relation.key]

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.encode(), values or None).fetchall()

    def row(self, query: str, **values: Any) -> dict[str, Any]:
        return self.rows(query, **values)[0]


def table_name(table: TableId) -> str:
    """A table as SQL needs it."""
    return sql.Identifier(table.schema, table.name).as_string()


def name(identifier: str) -> str:
    """A name as SQL needs it."""
    return sql.Identifier(identifier).as_string()
