"""What tests share: one real PostgreSQL server, and a fresh database on it for each test that asks."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from headrace.testing.postgres import Postgres

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Database:
    """A database of its own for one test, on the shared server; dropped afterwards, with its replication slots."""

    server: Postgres
    name: str

    @property
    def url(self) -> str:
        """A superuser's connection URL."""
        return self.url_as("postgres")

    def url_as(self, user: str, password: str = "") -> str:
        """The connection URL of another role. The shared server trusts loopback, so a password is accepted unread."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.server.port}/{self.name}"

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[TupleRow]:
        return psycopg.connect(self.url, autocommit=autocommit)

    def execute(self, *statements: str) -> None:
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str, *values: Any) -> list[TupleRow]:
        with self.connect() as connection:
            return connection.execute(query, values or None).fetchall()

    def value(self, query: str, *values: Any) -> Any:
        """The first column of the first row."""
        return self.rows(query, *values)[0][0]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for the whole session, of version 18 unless HEADRACE_POSTGRES names another. A test that stops or
    reconfigures a server starts its own `Postgres`.
    """
    with Postgres() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    """A fresh, empty database of the shared server."""
    with fresh_database(postgres) as made:
        yield made


def only_since(server: Postgres, version: int) -> None:
    """Skip the rest of the test on a server older than that: what it is about came with this version."""
    if float(server.version) < version:
        pytest.skip(f"came with PostgreSQL {version}; this is {server.version}")


@contextmanager
def fresh_database(postgres: Postgres) -> Iterator[Database]:
    """A fresh, empty database of this server, for fixtures that outlive one test; dropped at the end of the block."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    postgres.execute(f"CREATE DATABASE {name}")
    try:
        yield Database(server=postgres, name=name)
    finally:
        _drop(postgres, name)


def _drop(postgres: Postgres, name: str) -> None:
    """Remove a database. Slots live in it and keep it from being dropped, and a slot in use keeps itself from being dropped."""
    with postgres.connect() as connection:
        deadline = time.monotonic() + 10
        while True:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            for (gid,) in connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", (name,)).fetchall():
                with psycopg.connect(postgres.url.rsplit("/", 1)[0] + f"/{name}", autocommit=True) as inside:
                    inside.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
            try:
                slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s"
                connection.execute(slots, (name,))
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
                return
            except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):  # freed a moment after its session ends
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
