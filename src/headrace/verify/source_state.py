"""The source as it is at one position: an exported snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from headrace.schema import TableId
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.copy import exported_snapshot
from headrace.source.postgres.relations import Relation, read_relation


class NotComparable(Exception):
    """A table has no content that could be compared at this position; the text says why."""


class SourceState:
    """The transactions that committed before ``lsn``, and none else. Used from one thread."""

    def __init__(
        self, *, lsn: int, connector: Connector, inside: psycopg.Connection[Any], outside: psycopg.Connection[Any]
    ) -> None:
        self.lsn = lsn
        self._connector = connector
        self._inside, self._outside = inside, outside
        self.utf8 = inside.info.parameter_status("server_encoding") == "UTF8"

    def relation(self, table: TableId) -> Relation:
        """The table as the system catalog has it; from now on it cannot be altered until the state is closed.

        Raises NotComparable when there is none, it may not be read, or was altered or truncated since the snapshot.
        """
        name = sql.Identifier(table.schema, table.name)
        try:
            with self._inside.transaction():
                self._inside.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(name))
                found = self._inside.execute("SELECT to_regclass(%s)::oid::bigint", [name.as_string(self._inside)]).fetchone()
                assert found is not None
                before = self._inside.execute(_IDENTITY, {"oid": found[0]}).fetchall()
            now = self._outside.execute(_IDENTITY, {"oid": found[0]}).fetchall()
            relation = read_relation(self._outside, found[0])
        except psycopg.errors.UndefinedTable:
            raise NotComparable("the source has no such table") from None
        except psycopg.errors.InsufficientPrivilege:
            raise NotComparable("the source's user may not read it") from None
        except psycopg.Error as error:
            raise self._connector.failed(error) from error
        if relation is None or before != now:
            raise NotComparable("it was altered or truncated at the source at this moment; verify it again")
        return relation

    def rows(self, query: str) -> Sequence[tuple[Any, ...]]:
        """All rows of a query, under the snapshot."""
        try:
            return self._inside.execute(query.encode()).fetchall()
        except psycopg.Error as error:
            raise self._connector.failed(error) from error

    def running(self, slot: str) -> bool:
        """True if a run follows that slot now."""
        from headrace.source.postgres.slots import is_running

        return is_running(self._outside, slot)


# A rewriting ALTER or a TRUNCATE shows an older snapshot an empty table: what the catalog said then has to be what it says now.
_IDENTITY = """
SELECT c.oid::bigint, c.relfilenode::bigint, a.attnum, a.attname, a.atttypid::bigint, a.atttypmod, a.attisdropped
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.oid = %(oid)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s))
ORDER BY c.oid, a.attnum
"""


@contextmanager
def source_state(connector: Connector, *, slot: str, say: Callable[[str], None]) -> Iterator[SourceState]:
    """The source at its present position, held still. Waits for the transactions that run now, and says which.

    ``slot`` is the pipeline's; the snapshot's own temporary slot is named after it. Raises SourceUnreachable, SourceNotReady.
    """
    with (
        exported_snapshot(connector, slot=slot, say=say) as snapshot,
        connector.connect() as outside,
        connector.connect(autocommit=False) as inside,
    ):
        inside.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        inside.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot.name)))
        yield SourceState(lsn=snapshot.lsn, connector=connector, inside=inside, outside=outside)
        inside.rollback()
