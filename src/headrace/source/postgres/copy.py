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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import adbc_driver_manager
import psycopg
import pyarrow as pa
from psycopg import sql

from headrace import failpoint
from headrace.ahead import ahead
from headrace.errors import SourceNotReady
from headrace.position import parse_lsn
from headrace.schema import TableId, TableSchema
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.convert import Converter
from headrace.source.postgres.types import TypeMapping


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """An exported snapshot: it has exactly the transactions that committed before ``lsn``."""

    lsn: int
    name: str
    taken_at: datetime


class TableChanged(Exception):
    """The table was altered or truncated after the snapshot was taken: it has to be read under a new one."""


@contextmanager
def exported_snapshot(connector: Connector, *, slot: str, say: Callable[[str], None]) -> Iterator[Snapshot]:
    """A snapshot that lives as long as this context. Waits for the transactions that run now, and says which."""
    name = f"{slot[:40]}_copy_{time.time_ns() % 10**12}"
    with connector.connect_replication() as connection, connector.connect() as control:
        command = f"CREATE_REPLICATION_SLOT \"{name}\" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')"
        outcome: list[Any] = []
        waiting = threading.Thread(target=lambda: outcome.append(_simple_query(connection, command)), daemon=True)
        waiting.start()
        waiting.join(2)
        while waiting.is_alive():
            say(_blockers(control, connection.info.backend_pid))
            waiting.join(5)
        if isinstance(outcome[0], psycopg.Error):
            raise connector.failed(outcome[0]) from outcome[0]
        _, lsn, snapshot, _ = outcome[0]
        yield Snapshot(lsn=parse_lsn(lsn), name=snapshot, taken_at=datetime.now(UTC))


def _simple_query(connection: psycopg.Connection[Any], command: str) -> list[str] | psycopg.Error:
    """One row of text values: replication commands exist in the simple query protocol only."""
    result = connection.pgconn.exec_(command.encode())
    if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        return psycopg.errors.error_from_result(result)
    return [(result.get_value(0, n) or b"").decode() for n in range(result.nfields)]


def _blockers(control: psycopg.Connection[Any], own_pid: int) -> str:
    rows = control.execute(
        "SELECT pid, round(extract(epoch FROM now() - xact_start)) FROM pg_stat_activity"
        " WHERE backend_xid IS NOT NULL AND pid <> %s ORDER BY xact_start LIMIT 5",
        [own_pid],
    ).fetchall()
    running = ", ".join(f"pid {pid} ({seconds:.0f} s)" for pid, seconds in rows)
    return f"the snapshot waits for running transactions: {running or 'prepared transactions, see pg_prepared_xacts'}"


@dataclass(frozen=True, kw_only=True)
class TableToCopy:
    """``copy_sql``: per column the expression to select, in the schema's order."""

    schema: TableSchema
    oid: int
    partitioned: bool
    mappings: tuple[TypeMapping, ...]


@dataclass(frozen=True, kw_only=True)
class CopiedRows:
    """Some rows of a table as change-layout ``r`` rows."""

    table: TableId
    changes: pa.Table


class TableReader:
    """Reads one table under a snapshot, in page ranges, over several connections.

    ``describe`` reads the table from the system catalog, as it is now. The table is locked against DDL while the reader is open.
    Raises TableChanged when it was altered since the snapshot, SourceNotReady when it may not be read.
    """

    def __init__(
        self,
        *,
        connector: Connector,
        snapshot: Snapshot,
        table: TableId,
        oid: int,
        describe: Callable[[], TableToCopy],
        connections: int,
        chunk_bytes: int,
        range_bytes: int,
    ) -> None:
        self._connector = connector
        self._snapshot = snapshot
        self._table = table
        self._oid = oid
        self._connections = connections
        self._chunk_bytes = chunk_bytes
        self._range_bytes = range_bytes
        self._ordinals = _Ordinals()
        self._guard = connector.connect(autocommit=False)
        try:
            self._lock()
            self.to_copy = describe()
            self._require_unchanged()
        except BaseException:
            self._guard.close()
            raise

    def close(self) -> None:
        self._guard.close()

    def _lock(self) -> None:
        self._guard.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self._guard.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self._snapshot.name)))
        try:
            self._guard.execute(
                sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(self._table.schema, self._table.name))
            )
        except psycopg.errors.InsufficientPrivilege as error:
            raise SourceNotReady(
                f"table {self._table} may not be read by this user, so it cannot be copied",
                remedy=f"GRANT SELECT ON {self._table} TO the pipeline's user;",
            ) from error
        except psycopg.errors.UndefinedTable as error:
            raise TableChanged(f"table {self._table} does not exist any more") from error

    def _require_unchanged(self) -> None:
        """Compare the catalog under the snapshot with the catalog now, which the lock holds still."""
        with self._connector.connect() as control:
            before = self._guard.execute(_IDENTITY, {"oid": self._oid}).fetchall()
            now = control.execute(_IDENTITY, {"oid": self._oid}).fetchall()
        if before != now:
            raise TableChanged(f"table {self._table} was altered or truncated while its copy began")

    def rows(self) -> Iterator[CopiedRows]:
        """All rows of the table, in no particular order."""
        ranges = _Ranges(self._page_ranges())
        with ExitStack() as running:
            readers = [
                running.enter_context(closing(ahead(self._read(ranges), depth=1, name=f"copy-{n}")))
                for n in range(min(self._connections, len(ranges.left)))
            ]
            while readers:
                for reader in list(readers):
                    rows = next(reader, None)
                    if rows is None:
                        readers.remove(reader)
                        continue
                    failpoint.hit("copy")
                    yield rows

    def _page_ranges(self) -> list[str]:
        """SQL conditions that cut the table into ranges of pages; one that is always true where pages cannot be used."""
        if self.to_copy.partitioned:
            return ["true"]
        row = self._guard.execute("SELECT pg_relation_size(%s), current_setting('block_size')::bigint", [self._oid]).fetchone()
        assert row is not None
        size, block = row
        pages = -(-size // block)
        step = max(1, self._range_bytes // block)
        starts = list(range(0, pages, step)) or [0]
        bounds = [f"ctid >= '({start},0)'::tid" for start in starts]
        return [f"{bound} AND ctid < '({following},0)'::tid" for bound, following in zip(bounds, starts[1:], strict=False)] + [
            bounds[-1]
        ]

    def _read(self, ranges: _Ranges) -> Iterator[CopiedRows]:
        to_copy = self.to_copy
        selected = ", ".join(
            f"{mapping.copy_sql(_identifier(column.name))} AS {_identifier(column.name)}"
            for column, mapping in zip(to_copy.schema.columns, to_copy.mappings, strict=True)
        )
        target = f"{_identifier(self._table.schema)}.{_identifier(self._table.name)}"
        source = target if to_copy.partitioned else f"ONLY {target}"
        with (
            closing(Converter()) as converter,
            closing(self._connector.adbc()) as connection,
            closing(connection.cursor()) as cursor,
        ):
            try:
                cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                cursor.execute(f"SET TRANSACTION SNAPSHOT '{self._snapshot.name}'")
                cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(self._chunk_bytes)})
                while (condition := ranges.take()) is not None:
                    cursor.execute(f"SELECT {selected} FROM {source} WHERE {condition}")
                    for batch in cursor.fetch_record_batch():
                        if batch.num_rows:
                            yield CopiedRows(
                                table=self._table,
                                changes=converter.convert_copy(
                                    batch,
                                    to_copy.schema,
                                    to_copy.mappings,
                                    lsn=self._snapshot.lsn,
                                    commit_time=self._snapshot.taken_at,
                                    first_ordinal=self._ordinals.take(batch.num_rows),
                                ),
                            )
            except (adbc_driver_manager.Error, OSError, pa.ArrowException) as error:
                raise self._connector.failed(error) from error


_IDENTITY = """
SELECT c.oid::bigint, c.relfilenode::bigint, a.attnum, a.attname, a.atttypid::bigint, a.atttypmod, a.attisdropped
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.oid = %(oid)s OR c.oid IN (SELECT relid FROM pg_partition_tree(%(oid)s))
ORDER BY c.oid, a.attnum
"""


class _Ordinals:
    """Numbers for the rows of one copy: 0, 1, 2, … over all its readers."""

    def __init__(self) -> None:
        self._next, self._lock = 0, threading.Lock()

    def take(self, rows: int) -> int:
        with self._lock:
            first = self._next
            self._next += rows
        return first


class _Ranges:
    def __init__(self, conditions: Sequence[str]) -> None:
        self.left, self._lock = list(reversed(conditions)), threading.Lock()

    def take(self) -> str | None:
        with self._lock:
            return self.left.pop() if self.left else None


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
