"""First copy and re-copy of tables, at an exported snapshot.

`CREATE_REPLICATION_SLOT … TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')` gives an LSN X and a snapshot of exactly the
transactions that
commit before X, as PostgreSQL's own table synchronisation uses it. A table read under that snapshot takes log changes from X on.

A rewriting ALTER or a TRUNCATE between X and the read would show an empty table without any event, and a column change another
row than
the log has. So each table is locked against DDL first, and what the system catalog said at X is compared with what it says now;
where they differ the
table needs a new snapshot (`TableChanged`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from headrace.errors import SourceNotReady
from headrace.position import parse_lsn
from headrace.schema import TableId, TableSchema
from headrace.source.postgres import slots
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.types import TypeMapping
from headrace.source.postgres.waiting import Patience, end_with_client

SHORT_LOCK_WAITS = "SET lock_timeout = '1s'"
"""For a session that looks at a table which another session of ours has locked: whoever waits to alter or truncate the table, or
one of its partitions, waits for that lock, and our session would wait behind them for ever."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An exported snapshot: it has exactly the transactions that committed before ``lsn``."""

    lsn: int
    name: str
    taken_at: datetime


class TableChanged(Exception):
    """The table was altered or truncated after the snapshot was taken: it has to be read under a new one."""


@contextmanager
def exported_snapshot(
    connector: Connector, *, slot: str, say: Callable[[str], None], stopped: threading.Event | None = None
) -> Iterator[Snapshot]:
    """A snapshot that lives as long as this context. Waits for the transactions that run now, and says which.

    Raises Stopped when ``stopped`` is set meanwhile.
    """
    name = f"{slot[:40]}_copy_{time.time_ns() % 10**12}"
    patience = Patience(connector=connector, stopped=stopped or threading.Event(), say=say)
    with connector.connect() as control:
        slots.wait_for_slot(control, stopped=patience.stopped)
    with connector.connect_replication() as connection:
        end_with_client(lambda statement: connection.pgconn.exec_(statement.encode()))
        command = f"CREATE_REPLICATION_SLOT \"{name}\" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')"
        try:
            _, lsn, snapshot, _ = patience.wait(
                connection, lambda: _simple_query(connection, command), what="the copy's snapshot"
            )
        except psycopg.Error as error:
            raise connector.failed(error) from error
        # Any command on the slot's own connection would end the snapshot.
        with connector.connect() as control:
            taken_at = slots.source_time(control)
        yield Snapshot(lsn=parse_lsn(lsn), name=snapshot, taken_at=taken_at)


def _simple_query(connection: psycopg.Connection[Any], command: str) -> list[str]:
    """One row of text values: replication commands exist in the simple query protocol only."""
    result = connection.pgconn.exec_(command.encode())
    if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(result)
    return [(result.get_value(0, n) or b"").decode() for n in range(result.nfields)]


@dataclass(frozen=True, kw_only=True)
class TableToCopy:
    """``mappings``: of the columns, in the schema's order."""

    schema: TableSchema
    oid: int
    partitioned: bool
    mappings: tuple[TypeMapping, ...]


class LockedTable:
    """One table under a snapshot, locked against DDL until it is closed.

    ``describe`` reads the table from the system catalog, as it is now, and ``control`` is a session to look there, with
    `SHORT_LOCK_WAITS`. ``patience`` is for the lock. Raises TableChanged when the table was altered since the snapshot,
    SourceNotReady when it may not be read, Stopped.
    """

    def __init__(
        self,
        *,
        connector: Connector,
        control: psycopg.Connection[TupleRow],
        snapshot: Snapshot,
        table: TableId,
        oid: int,
        describe: Callable[[], TableToCopy],
        patience: Patience,
    ) -> None:
        self._snapshot = snapshot
        self._table = table
        self._oid = oid
        self._control = control
        self._patience = patience
        self._guard = connector.connect(autocommit=False)
        try:
            self._lock()
            self.to_copy = describe()
            self._require_unchanged()
        except psycopg.errors.LockNotAvailable as error:
            self._guard.close()
            raise wanted_by_others(table) from error
        except BaseException:
            self._guard.close()
            raise

    def close(self) -> None:
        self._guard.close()

    def _lock(self) -> None:
        self._guard.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self._guard.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self._snapshot.name)))
        try:
            statement = sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(self._table.schema, self._table.name))
            self._patience.wait(self._guard, lambda: self._guard.execute(statement), what=f"the copy of {self._table}")
        except psycopg.errors.InsufficientPrivilege as error:
            raise SourceNotReady(
                f"table {self._table} may not be read by this user, so it cannot be copied",
                remedy=f"GRANT SELECT ON {self._table} TO the pipeline's user;",
            ) from error
        except psycopg.errors.UndefinedTable as error:
            raise TableChanged(f"table {self._table} does not exist any more") from error

    def _require_unchanged(self) -> None:
        """Compare the catalog under the snapshot with the catalog now, which the lock holds still."""
        before = self._guard.execute(_IDENTITY, {"oid": self._oid}).fetchall()
        now = self._control.execute(_IDENTITY, {"oid": self._oid}).fetchall()
        if before != now:
            raise TableChanged(f"table {self._table} was altered or truncated while its copy began")

    def page_ranges(self, size: int) -> list[str]:
        """SQL conditions that cut the table into ranges of pages of ``size`` bytes; one that is always true where pages cannot be
        used.
        """
        if self.to_copy.partitioned:
            return ["true"]
        row = self._guard.execute("SELECT pg_relation_size(%s), current_setting('block_size')::bigint", [self._oid]).fetchone()
        assert row is not None
        in_all, block = row
        starts = list(range(0, -(-in_all // block), max(1, size // block))) or [0]
        bounds = [f"ctid >= '({start},0)'::tid" for start in starts]
        return [f"{bound} AND ctid < '({following},0)'::tid" for bound, following in zip(bounds, starts[1:], strict=False)] + [
            bounds[-1]
        ]


def wanted_by_others(table: TableId) -> TableChanged:
    return TableChanged(f"another session waits to alter or truncate table {table}")


_IDENTITY = """
SELECT c.oid::bigint, c.relfilenode::bigint, a.attnum, a.attname, a.atttypid::bigint, a.atttypmod, a.attisdropped
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.oid = %(oid)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s))
ORDER BY c.oid, a.attnum
"""
