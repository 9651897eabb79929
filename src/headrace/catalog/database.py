"""The port to the database that holds the catalog's pointers; ``sqlite`` and ``postgresql`` implement it.

Both speak the same SQL with ``?`` for parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import LakeUnavailable

LAYOUT = "1"
"""The layout of schema.sql. A database of another layout is refused, never guessed at."""

Row = tuple[Any, ...]


class Session(Protocol):
    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]: ...

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Execute a statement that changes rows; how many it changed."""
        ...


class Database(Protocol):
    """Ordering: write sessions, of all threads and processes, run one after another, and each sees everything that earlier
    ones committed.
    Durability: when ``write`` has returned, what it did survives a crash of this machine. Atomicity: all of a write session
    or nothing.

    Every method raises LakeUnavailable when the database is locked for longer than its timeout, corrupt, unwritable,
    unreachable or full.
    """

    def read(self) -> AbstractContextManager[Session]:
        """A session whose statements each see one committed state."""
        ...

    def write(self) -> AbstractContextManager[Session]:
        """One transaction: committed when the block ends, undone when it raises.

        Raises CommitOutcomeUnknown if the database was lost while it committed.
        """
        ...

    def close(self) -> None: ...


def schema_statements() -> list[str]:
    text = resources.files("headrace.catalog").joinpath("schema.sql").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [statement.strip() for statement in "\n".join(lines).split(";") if statement.strip()]


def prepare(database: Database, now: int) -> None:
    """Create what is missing: the tables, and version 0, the empty lake. ``now`` is in microseconds. Raises LakeUnavailable
    for another layout.
    """
    layout = _layout_of(database)
    if layout is None:
        with database.write() as session:
            for statement in schema_statements():
                session.run(statement)
            layout = _layout_in(session)
            if layout is None:
                layout = LAYOUT
                session.run("insert into catalog_settings (key, value) values ('layout', ?)", (LAYOUT,))
                session.run("insert into versions (number, committed_at) values (0, ?)", (now,))
    if layout != LAYOUT:
        raise LakeUnavailable(
            f"The catalog's database has layout {layout}, this version of Headrace knows layout {LAYOUT}.",
            remedy="Use the version of Headrace that made it, or a newer one.",
        )


def _layout_of(database: Database) -> str | None:
    """The layout, read without becoming a writer: whoever only reads waits for none. None when there is none that can be read."""
    with suppress(LakeUnavailable), database.read() as session:
        return _layout_in(session)
    return None


def _layout_in(session: Session) -> str | None:
    found = session.rows("select value from catalog_settings where key = 'layout'")
    return str(found[0][0]) if found else None


def open_database(location: Path | str, *, timeout: float, create: bool) -> Database:
    """The database at a path (SQLite) or a ``postgresql://`` URL."""
    if isinstance(location, str) and location.startswith(("postgresql://", "postgres://")):
        from headrace.catalog.postgresql import PostgresDatabase

        return PostgresDatabase(location, timeout=timeout)
    from headrace.catalog.sqlite import SqliteDatabase

    return SqliteDatabase(Path(location), timeout=timeout, create=create)
