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
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
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
from headrace.source.postgres import slots
from headrace.source.postgres.connect import Connector, batches_of
from headrace.source.postgres.convert import Converter
from headrace.source.postgres.types import TypeMapping
from headrace.source.postgres.waiting import Patience, end_with_client

SHORT_LOCK_WAITS = "SET lock_timeout = '1s'"
"""For a session that looks at a table which another session of ours has locked: whoever waits to alter or truncate the table, or
one of its partitions, waits for that lock, and our session would wait behind them for ever."""
LOCK_NOT_AVAILABLE = "55P03"


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
        yield Snapshot(lsn=parse_lsn(lsn), name=snapshot, taken_at=datetime.now(UTC))


def _simple_query(connection: psycopg.Connection[Any], command: str) -> list[str]:
    """One row of text values: replication commands exist in the simple query protocol only."""
    result = connection.pgconn.exec_(command.encode())
    if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(result)
    return [(result.get_value(0, n) or b"").decode() for n in range(result.nfields)]


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

    ``describe`` reads the table from the system catalog, as it is now. The table is locked against DDL while the reader is open;
    ``patience`` is for that lock. Raises TableChanged when it was altered since the snapshot, SourceNotReady when it may not be
    read, Stopped.
    """

    def __init__(
        self,
        *,
        connector: Connector,
        snapshot: Snapshot,
        table: TableId,
        oid: int,
        describe: Callable[[], TableToCopy],
        patience: Patience,
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
        self._patience = patience
        self._reading: set[Any] = set()
        self._ordinals = _Ordinals()
        self._guard = connector.connect(autocommit=False)
        try:
            self._lock()
            self.to_copy = describe()
            self._require_unchanged()
        except psycopg.errors.LockNotAvailable as error:
            self._guard.close()
            raise self._wanted_by_others() from error
        except BaseException:
            self._guard.close()
            raise

    def close(self) -> None:
        self._guard.close()

    def stop(self) -> None:
        """End `rows` soon, from any thread: what is being read is cancelled. Those rows are not all."""
        for cursor in list(self._reading):
            with suppress(adbc_driver_manager.Error):  # nothing was under way
                cursor.adbc_cancel()

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
        with self._connector.connect() as control:
            control.execute(SHORT_LOCK_WAITS)
            before = self._guard.execute(_IDENTITY, {"oid": self._oid}).fetchall()
            now = control.execute(_IDENTITY, {"oid": self._oid}).fetchall()
        if before != now:
            raise TableChanged(f"table {self._table} was altered or truncated while its copy began")

    def _wanted_by_others(self) -> TableChanged:
        return TableChanged(f"another session waits to alter or truncate table {self._table}")

    def rows(self) -> Generator[CopiedRows, None, None]:
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
            self._reading.add(cursor)
            try:
                cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                cursor.execute(f"SET TRANSACTION SNAPSHOT '{self._snapshot.name}'")
                # Who waits to alter or truncate the table waits for the guard; to wait behind them would be for ever.
                cursor.execute(f"LOCK TABLE {source} IN ACCESS SHARE MODE NOWAIT")
                cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(self._chunk_bytes)})
                while not self._patience.stopped.is_set() and (condition := ranges.take()) is not None:
                    cursor.execute(f"SELECT {selected} FROM {source} WHERE {condition}")
                    for batch in batches_of(cursor):
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
            except (adbc_driver_manager.Error, OSError) as error:
                if self._patience.stopped.is_set():
                    return
                if getattr(error, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                    raise self._wanted_by_others() from error
                raise self._connector.failed(error) from error
            finally:
                self._reading.discard(cursor)


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
