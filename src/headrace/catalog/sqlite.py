"""The catalog's database in a SQLite file: write-ahead log, flushed at each commit."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

from headrace.catalog.database import Row
from headrace.catalog.refusals import CommitOutcomeUnknown
from headrace.errors import LakeBlocked, LakeUnavailable


class _Session:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(sql, parameters).rowcount


class SqliteDatabase:
    """See the port. Connections are made as threads need them and shared among threads, one thread at a time each."""

    def __init__(self, path: Path, *, timeout: float, create: bool) -> None:
        self.path, self.timeout = path, timeout
        self._idle: LifoQueue[sqlite3.Connection] = LifoQueue()
        # Threads of this process queue here instead of in SQLite, whose waiting polls with pauses of up to 100 ms.
        self._turn = threading.Lock()
        if not create and not path.is_file():
            raise LakeUnavailable(f"There is no catalog at {path}.", remedy="Check the path; `headrace run` makes a new lake.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeUnavailable(
                f"The folder of the catalog {path} cannot be made: {error.strerror}.",
                remedy="Set lake.warehouse in headrace.yaml to a folder that this user may make and write.",
            ) from error
        with self._explained():
            connection = self._connect()
            connection.execute("pragma journal_mode = wal")
        self._idle.put(connection)

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
        if not self._turn.acquire(timeout=self.timeout):
            raise self._locked()
        try:
            with self._connection() as connection:
                connection.execute("begin immediate")
                try:
                    yield _Session(connection)
                except BaseException:
                    self._undo(connection)
                    raise
                try:
                    connection.execute("commit")
                except sqlite3.Error as error:
                    self._undo(connection)
                    if _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):  # surely not committed
                        raise
                    # The log may have reached the disk although its flush failed: after a crash it could count as committed.
                    raise CommitOutcomeUnknown(
                        f"The catalog {self.path} failed while it committed ({error}); whether it did is not known.",
                        remedy="Check the disk, then run again: Headrace reads what was committed before it goes on.",
                    ) from error
        finally:
            self._turn.release()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False)
        connection.execute("pragma synchronous = full")
        return connection

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            try:
                connection = self._idle.get_nowait()
            except Empty:
                connection = self._connect()
            try:
                yield connection
            finally:
                self._undo(connection)  # an exception from a signal may have left it in a transaction
                self._idle.put(connection)

    @staticmethod
    def _undo(connection: sqlite3.Connection) -> None:
        if connection.in_transaction:  # a full disk, for one, has undone it already
            connection.execute("rollback")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _locked(self) -> LakeBlocked:
        return LakeBlocked(
            f"The catalog {self.path} stayed locked by another writer for {self.timeout:g} s. Nothing was changed.",
            remedy="See which process holds the file (fuser, lsof); a backup or an editor that keeps it open must let go.",
        )

    def _explain(self, error: sqlite3.Error) -> LakeUnavailable:
        code = _code(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return self._locked()
        found, remedy = _FINDINGS.get(code, (f"failed: {error}", "Check the file and its disk."))
        kind = LakeBlocked if code == sqlite3.SQLITE_FULL or _extended(error) in _NO_ROOM else LakeUnavailable
        return kind(f"The catalog {self.path} {found}. Nothing was changed.", remedy=remedy)


def _extended(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", None) or 0


def _code(error: sqlite3.Error) -> int:
    return _extended(error) & 0xFF


_NO_ROOM = frozenset({sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP, sqlite3.SQLITE_IOERR_NOMEM})
"""Errors of the disk that only a full one gives: the file shared by readers and writers could not grow."""


_FINDINGS = {
    sqlite3.SQLITE_CORRUPT: (
        "is damaged",
        "Restore it from a backup, or run `sqlite3 FILE .recover` into a new file; the tables' files are untouched.",
    ),
    sqlite3.SQLITE_NOTADB: (
        "is not a SQLite database",
        "Check the catalog's path in the project file; if the file was overwritten, restore it.",
    ),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk is full", "Make room on its disk and run again; nothing is lost."),
    sqlite3.SQLITE_READONLY: ("cannot be written", "Give this user write permission on the file and its folder."),
    sqlite3.SQLITE_PERM: ("cannot be accessed", "Give this user write permission on the file and its folder."),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        "Check that the path is a file this user may write, in a folder this user may write.",
    ),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written: the disk reports an error, or has no room",
        "Check the disk (dmesg, df), then run again.",
    ),
}
