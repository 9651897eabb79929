"""Random transactions over random tables, by several sessions at a time. PostgreSQL says what the rows are: no model is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from random import Random

import psycopg
from psycopg.rows import TupleRow

from tests.integration.property import kinds
from tests.integration.property.tables import Column, Table, identifier

Connection = psycopg.Connection[TupleRow]
Script = list[str]
"""What was done, for whoever looks into a failure."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """``statements``: weights by name of a `_Session` method. ``per_transaction``: most statements of one."""

    statements: dict[str, int]
    per_transaction: int = 6
    sessions: int = 2


EVERYTHING = Mix(
    statements={
        "insert": 10,
        "copy_in": 2,
        "upsert": 3,
        "update": 10,
        "update_all": 1,
        "update_nothing": 1,
        "change_key": 5,
        "swap_keys": 3,
        "replace_row": 2,
        "come_and_go": 2,
        "delete": 5,
        "delete_all": 1,
        "truncate": 1,
    }
)
KEYS_MOVE = Mix(
    statements={**EVERYTHING.statements, "change_key": 20, "swap_keys": 12, "come_and_go": 6, "update": 12}, per_transaction=10
)


class Workload:
    def __init__(self, random: Random, tables: list[Table], mix: Mix, script: Script, url: str) -> None:
        self._random = random
        self._tables = tables
        self._mix = mix
        self._script = script
        self._url = url

    def write(self, transactions: int) -> None:
        """Transactions that overlap in time: each session has tables of its own, so that none waits for another."""
        shares = self._shares(min(self._mix.sessions, len(self._tables)))
        with ExitStack() as stack:
            sessions = []
            for number, share in enumerate(shares):
                connection = stack.enter_context(psycopg.connect(self._url, autocommit=True))
                connection.execute("SET extra_float_digits = 1")  # a float's text that is read back is that float
                sessions.append(_Session(number, connection, share, self._random, self._mix, self._script))
            steps = [session.steps(-(-transactions // len(sessions))) for session in sessions]
            while steps:
                step = self._random.choice(steps)
                if next(step, None) is None:
                    steps.remove(step)

    def _shares(self, count: int) -> list[list[Table]]:
        order = self._random.sample(self._tables, len(self._tables))
        return [order[number::count] for number in range(count)]

    def alter(self) -> None:
        """Add a column to a table or widen one. No transaction is open meanwhile."""
        table = self._random.choice(self._tables)
        columns = list(table.columns)
        wide = [column for column in columns if column.kind.wider and not (table.partitioned and column in table.key)]
        wide = [] if table.grown else wide
        with psycopg.connect(self._url, autocommit=True) as connection:
            if wide and (self._random.random() < 0.6 or not table.later or table.rewritten):
                old = self._random.choice(wide)
                new = replace(old, kind=kinds.widened(old.kind, self._random))
                statement = f"ALTER TABLE {table.sql} ALTER {identifier(old.name)} TYPE {new.kind.sql}"
                columns[columns.index(old)] = new
                table.key = tuple(new if column is old else column for column in table.key)
                table.rewritten = True
            elif table.later and not table.rewritten:
                added = table.later.pop()
                statement = f"ALTER TABLE {table.sql} ADD {added.sql}"
                columns.append(added)
                table.grown = True
            else:
                return
            since = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
            assert since is not None
            self._script.append(f"{statement};")
            connection.execute(statement)
        table.history.append((since[0], tuple(columns)))


class _Session:
    def __init__(
        self, number: int, connection: Connection, tables: Sequence[Table], random: Random, mix: Mix, script: Script
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._random = random
        self._mix = mix
        self._script = script
        self._number = number
        self._kept = 0

    def steps(self, transactions: int) -> Iterator[bool]:
        """Does one transaction after the other; stops for a moment before each statement."""
        for _ in range(transactions):
            yield True
            try:
                yield from self._transaction()
            except psycopg.Error as error:
                assert _expected(error), f"{type(error).__name__}: {error}; {self._script[-1]}"
                self._do("ROLLBACK")

    def _transaction(self) -> Iterator[bool]:
        if self._random.random() < 0.2:  # a statement by itself
            self._statement()
            return
        self._do("BEGIN")
        for _ in range(self._random.randint(1, self._mix.per_transaction)):
            yield True
            yield from self._maybe_undone(0)
        self._do("ROLLBACK" if self._random.random() < 0.12 else "COMMIT")

    def _maybe_undone(self, depth: int) -> Iterator[bool]:
        """A statement; or some, in a subtransaction that may be rolled back."""
        if depth == 3 or self._random.random() < 0.5:
            self._statement()
            return
        self._kept += 1
        name = f"s{self._kept}"
        self._do(f"SAVEPOINT {name}")
        try:
            for _ in range(self._random.randint(1, 3)):
                yield from self._maybe_undone(depth + 1)
        except psycopg.Error as error:
            assert _expected(error), f"{type(error).__name__}: {error}; {self._script[-1]}"
            self._do(f"ROLLBACK TO {name}")
        else:
            self._do(f"ROLLBACK TO {name}" if self._random.random() < 0.2 else f"RELEASE {name}")

    # --- statements -----------------------------------------------------------------------------------------------------------

    def _statement(self) -> None:
        table = self._random.choice(self._tables)
        names, weights = zip(*self._mix.statements.items(), strict=True)
        name = self._random.choices(names, weights)[0]
        if table.insert_only and name not in ("truncate", "copy_in"):
            name = "insert"
        statement: Callable[[Table], None] = getattr(self, f"_{name}")
        statement(table)

    def _insert(self, table: Table) -> None:
        rows = ", ".join(f"({self._row(table)})" for _ in range(self._random.choice([1, 1, 2, 4])))
        self._do(f"INSERT INTO {table.sql} ({_names(table)}) VALUES {rows}")

    def _copy_in(self, table: Table) -> None:
        rows = " UNION ALL ".join(f"SELECT {self._row(table)}" for _ in range(self._random.randint(2, 5)))
        self._script.append(f"/* {self._number} */ COPY {table.sql} ({_names(table)}) FROM ({rows});")
        with self._connection.cursor() as cursor:
            with cursor.copy(f"COPY ({rows}) TO STDOUT") as out:
                data = b"".join(out)
            with cursor.copy(f"COPY {table.sql} ({_names(table)}) FROM STDIN") as into:
                into.write(data)

    def _upsert(self, table: Table) -> None:
        settable = self._others(table)
        if table.identity == "none" or not settable:
            return
        changes = ", ".join(f"{identifier(column.name)} = EXCLUDED.{identifier(column.name)}" for column in settable)
        key = ", ".join(identifier(column.name) for column in table.key)
        self._do(
            f"INSERT INTO {table.sql} ({_names(table)}) VALUES ({self._row(table)}) ON CONFLICT ({key}) DO UPDATE SET {changes}"
        )

    def _update(self, table: Table) -> None:
        where = self._some_row(table)
        if where is not None and (changes := self._changes(table, self._others(table))):
            self._do(f"UPDATE {table.sql} SET {changes} WHERE {where}")

    def _update_all(self, table: Table) -> None:
        if changes := self._changes(table, self._others(table)):
            self._do(f"UPDATE {table.sql} SET {changes}")

    def _update_nothing(self, table: Table) -> None:
        column = identifier(self._random.choice(table.columns).name)
        self._do(f"UPDATE {table.sql} SET {column} = {column}")

    def _change_key(self, table: Table) -> None:
        where = self._some_row(table)
        if where is None:
            return
        changes = [_assignments(table, table.new_key(self._random))]
        if self._random.random() < 0.4 and (more := self._changes(table, self._others(table))):
            changes.append(more)
        self._do(f"UPDATE {table.sql} SET {', '.join(changes)} WHERE {where}")

    def _swap_keys(self, table: Table) -> None:
        """Two rows, or three, change keys in a ring through a key that nobody has."""
        keys = self._keys(table)
        if len(keys) < 2 or table.identity == "none":
            return
        ring = self._random.sample(keys, min(len(keys), self._random.choice([2, 2, 3])))
        number = table.shape.keys + self._random.randrange(5)
        unused = [f"({column.kind.key(number)})::{column.kind.sql}" for column in table.key if column.kind.key is not None]
        for old, new in zip([*ring, unused], [unused, *ring], strict=True):
            changes = _assignments(table, new)
            if self._random.random() < 0.2 and (more := self._changes(table, self._others(table))):
                changes += f", {more}"
            self._do(f"UPDATE {table.sql} SET {changes} WHERE {_is(table, old)}")

    def _replace_row(self, table: Table) -> None:
        key = self._random.choice(self._keys(table) or [table.new_key(self._random)])
        self._do(f"DELETE FROM {table.sql} WHERE {_is(table, key)}")
        self._do(f"INSERT INTO {table.sql} ({_names(table)}) VALUES ({self._row(table, key)})")

    def _come_and_go(self, table: Table) -> None:
        """Insert, update, delete, and other things that happen to one key."""
        key = table.new_key(self._random)
        self._do(f"DELETE FROM {table.sql} WHERE {_is(table, key)}")
        self._do(f"INSERT INTO {table.sql} ({_names(table)}) VALUES ({self._row(table, key)})")
        for _ in range(self._random.randint(0, 3)):
            if changes := self._changes(table, self._others(table)):
                self._do(f"UPDATE {table.sql} SET {changes} WHERE {_is(table, key)}")
        if self._random.random() < 0.3 and table.identity != "none":
            other = table.new_key(self._random)
            if other != key:
                self._do(f"DELETE FROM {table.sql} WHERE {_is(table, other)}")
                self._do(f"UPDATE {table.sql} SET {_assignments(table, other)} WHERE {_is(table, key)}")
                key = other
        if self._random.random() < 0.7:
            self._do(f"DELETE FROM {table.sql} WHERE {_is(table, key)}")

    def _delete(self, table: Table) -> None:
        where = self._some_row(table)
        if where is not None:
            self._do(f"DELETE FROM {table.sql} WHERE {where}")

    def _delete_all(self, table: Table) -> None:
        self._do(f"DELETE FROM {table.sql}")

    def _truncate(self, table: Table) -> None:
        truncated = [one for one in self._tables if (one is table or self._random.random() < 0.5) and not one.grown]
        if not truncated:
            return
        for one in truncated:
            one.rewritten = True
        more = self._random.choice(["", " CASCADE", " RESTART IDENTITY"])
        self._do(f"TRUNCATE {', '.join(one.sql for one in truncated)}{more}")

    # --- parts of statements --------------------------------------------------------------------------------------------------

    def _row(self, table: Table, key: list[str] | None = None) -> str:
        """Values of all columns. A table without key may have a key twice."""
        values = dict(zip(table.key, key or table.new_key(self._random), strict=True))
        return ", ".join(values.get(column) or table.value(column, self._random) for column in table.columns)

    def _others(self, table: Table) -> list[Column]:
        return [column for column in table.columns if column not in table.key]

    def _changes(self, table: Table, columns: Sequence[Column]) -> str:
        """New values for some of the columns, seldom for those that are unavailable when they are left alone."""
        chosen = [column for column in columns if self._random.random() < (0.25 if column.external else 0.5)]
        if not chosen and columns:
            chosen = [self._random.choice(columns)]
        return ", ".join(f"{identifier(column.name)} = {table.value(column, self._random)}" for column in chosen)

    def _keys(self, table: Table) -> list[list[str]]:
        """The keys that the table has now, as this session sees them, as SQL."""
        texts = ", ".join(f"quote_nullable(concat({identifier(column.name)}))" for column in table.key)
        rows = self._connection.execute(f"SELECT DISTINCT {texts} FROM {table.sql} ORDER BY {texts}").fetchall()
        return [[f"{text}::{column.kind.sql}" for text, column in zip(row, table.key, strict=True)] for row in rows]

    def _some_row(self, table: Table) -> str | None:
        """A condition that one row meets, or a few; None when there are none."""
        keys = self._keys(table)
        if not keys:
            return None
        chosen = self._random.sample(keys, min(len(keys), self._random.choice([1, 1, 1, 3])))
        return " OR ".join(f"({_is(table, key)})" for key in chosen)

    def _do(self, statement: str) -> None:
        self._script.append(f"/* {self._number} */ {statement};")
        self._connection.execute(statement)


def _names(table: Table) -> str:
    return ", ".join(identifier(column.name) for column in table.columns)


def _is(table: Table, key: Sequence[str]) -> str:
    return " AND ".join(f"{identifier(column.name)} = {value}" for column, value in zip(table.key, key, strict=True))


def _assignments(table: Table, key: Sequence[str]) -> str:
    return ", ".join(f"{identifier(column.name)} = {value}" for column, value in zip(table.key, key, strict=True))


def _expected(error: psycopg.Error) -> bool:
    """Keys that are taken: what the statement did is undone."""
    return isinstance(error, (psycopg.errors.UniqueViolation, psycopg.errors.CardinalityViolation))
