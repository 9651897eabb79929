"""The catalog's database in a schema ``headrace_catalog`` of a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from typing import Any, cast

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from headrace.catalog.database import Row
from headrace.catalog.refusals import CommitOutcomeUnknown
from headrace.errors import LakeBlocked, LakeUnavailable

SCHEMA = "headrace_catalog"
# Any number will do, as long as every catalog process locks the same. The lock ends with its transaction, so poolers do no harm.
WRITERS_LOCK = 4_857_200_331_951_120_113


class _Session:
    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._execute(sql, parameters).fetchall()

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._execute(sql, parameters).rowcount

    def _execute(self, sql: str, parameters: Sequence[Any]) -> psycopg.Cursor[Row]:
        return self._connection.execute(cast(Any, sql.replace("?", "%s")), parameters)


class PostgresDatabase:
    """See the port. A connection that broke is replaced at its next use."""

    def __init__(self, url: str, *, timeout: float) -> None:
        self._url, self.timeout = url, timeout
        self._idle: LifoQueue[psycopg.Connection[Row]] = LifoQueue()
        with self._explained():
            parts = conninfo_to_dict(url)
            self.name = f"{parts.get('dbname', '')} on {parts.get('host', 'localhost')}:{parts.get('port', 5432)}"
            connection = self._connect()
            self._idle.put(connection)
            # Two processes that create a schema at once collide even with "if not exists": one at a time.
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s)", (WRITERS_LOCK,))
                connection.execute(f"create schema if not exists {SCHEMA}")

    name = "at the given URL"

    def close(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return

    @contextmanager
    def read(self) -> Iterator[_Session]:
        with self._connection() as connection:
            yield _Session(connection)

    @contextmanager
    def write(self) -> Iterator[_Session]:
        with self._connection() as connection:
            connection.execute("begin")
            try:
                connection.execute("select pg_advisory_xact_lock(%s)", (WRITERS_LOCK,))
                yield _Session(connection)
            except BaseException:
                with suppress(psycopg.Error):
                    connection.execute("rollback")
                raise
            try:
                connection.execute("commit")
            except psycopg.Error as error:
                connection.close()
                raise CommitOutcomeUnknown(
                    f"The catalog's database {self.name} was lost while it committed; whether it did is not known.",
                    remedy="Run again when it is back: Headrace reads what was committed before it goes on.",
                ) from error

    def _connect(self) -> psycopg.Connection[Row]:
        connection = psycopg.connect(
            self._url, autocommit=True, connect_timeout=max(2, int(self.timeout)), application_name="headrace catalog"
        )
        milliseconds = int(self.timeout * 1000)
        connection.execute(
            f"select set_config('search_path', '{SCHEMA}', false), set_config('lock_timeout', '{milliseconds}ms', false), "
            "set_config('default_transaction_isolation', 'read committed', false), "
            # What is acknowledged must be on disk, whatever the server's default.
            "set_config('synchronous_commit', 'on', false)"
        )
        return connection

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Row]]:
        with self._explained():
            connection = self._usable()
            try:
                yield connection
            finally:
                # An exception from a signal may have left it in a transaction.
                if connection.info.transaction_status == TransactionStatus.IDLE:
                    self._idle.put(connection)
                else:
                    connection.close()

    def _usable(self) -> psycopg.Connection[Row]:
        while True:
            try:
                connection = self._idle.get_nowait()
            except Empty:
                return self._connect()
            if not connection.closed and not _hung_up(connection):
                return connection
            connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.Error, psycopg.Warning) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> LakeUnavailable:
        if isinstance(error, errors.LockNotAvailable):
            return LakeBlocked(
                f"The catalog's database {self.name} stayed locked by another writer for {self.timeout:g} s. "
                "Nothing was changed.",
                remedy="See in pg_stat_activity which session holds the lock.",
            )
        if isinstance(error, errors.DiskFull):
            return LakeBlocked(
                f"The disk of the catalog's database {self.name} is full. Nothing was changed.", remedy="Make room and run again."
            )
        if isinstance(error, errors.ReadOnlySqlTransaction | errors.InsufficientPrivilege):
            return LakeUnavailable(
                f"The catalog's database {self.name} refuses to be written: {error.diag.message_primary}.",
                remedy=f"Give this user CREATE on the database, or ownership of its schema {SCHEMA}; a standby cannot be used.",
            )
        # Only the server's own words, first line: a connection error could repeat parts of the URL.
        reason = (
            error.diag.message_primary
            if isinstance(error, psycopg.Error) and error.diag.message_primary
            else type(error).__name__
        )
        # Away, restarting, out of connections. Without a code: there was no connection, or it broke.
        state = error.sqlstate if isinstance(error, psycopg.Error) else ""
        away = isinstance(error, psycopg.OperationalError) and (state is None or state[:2] in ("08", "40", "53", "57"))
        return (LakeBlocked if away else LakeUnavailable)(
            f"The catalog's database {self.name} cannot be used: {reason}. Nothing was changed.",
            remedy="Check that the server runs and that the catalog's URL, user and password are right.",
        )


def _hung_up(connection: psycopg.Connection[Row]) -> bool:
    """Whether the server has closed an idle connection, as after a restart; costs no round trip."""
    try:
        connection.pgconn.consume_input()
        return connection.pgconn.status != psycopg.pq.ConnStatus.OK
    except psycopg.Error:
        return True
