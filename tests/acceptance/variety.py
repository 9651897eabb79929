"""A lake with every type, made from a real database by a first copy and many small commits; and its rows as plain values."""

from __future__ import annotations

import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from headrace.events import Committed, Event
from headrace.pipeline import open_run
from headrace.project import Project
from tests.conftest import Database


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A column: its type at the source, values there, and what the lake holds of it, as SQL at the source (``{}``: the column)."""

    type: str
    values: tuple[str, ...]
    held: str = "{}"


# Not `::text`: of some types (inet) that is not the text that the server sends.
TEXT = "CASE WHEN {0} IS NOT NULL THEN format('%s', {0}) END"
UP_TO_9999 = "CASE WHEN {0} BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999' THEN {0} END"
COLUMNS: Mapping[str, Kind] = {
    "yes": Kind(type="boolean", values=("true", "false")),
    "small": Kind(type="smallint", values=("-32768", "32767")),
    "whole": Kind(type="integer", values=("-2147483648", "2147483647")),
    "big": Kind(type="bigint", values=("-9223372036854775808", "9223372036854775807")),
    "number_of": Kind(type="oid", values=("4294967295", "0"), held="{}::bigint"),
    "ratio": Kind(type="real", values=("0.1", "'NaN'", "'-Infinity'")),
    "measure": Kind(type="double precision", values=("0.1", "'NaN'", "1e-300")),
    "price": Kind(type="numeric(9,2)", values=("9999999.99", "-0.01", "'NaN'"), held="nullif({}, 'NaN')"),
    "large": Kind(type="numeric(18,4)", values=("99999999999999.9999", "-0.0001")),
    "widest": Kind(type="numeric(38,10)", values=("9999999999999999999999999999.9999999999", "-1e-10")),
    "any_number": Kind(type="numeric", values=("1.000", "1e-40", "'NaN'"), held=TEXT),
    "note": Kind(type="text", values=("''", "'Grüße 🦆'", "E'a\\n\\tb'")),
    "short": Kind(type="varchar(10)", values=("'abc '", "''")),
    "padded": Kind(type="char(5)", values=("'ab'", "''")),
    "raw": Kind(type="bytea", values=("''", "'\\x00ff5c'")),
    "day": Kind(type="date", values=("'0001-01-01'", "'9999-12-31'", "'1969-12-31'", "'infinity'"), held=UP_TO_9999),
    "moment": Kind(type="timestamp", values=("'1969-12-31 23:59:59.999999'", "'10000-01-01'"), held=UP_TO_9999),
    "moment_utc": Kind(
        type="timestamptz", values=("'1900-01-01 00:00+00'", "'2024-02-29 12:34:56.789123+02'", "'-infinity'"), held=UP_TO_9999
    ),
    "lasts": Kind(type="interval", values=("'1 year -2 months 3 days 04:05:06.7'", "'0'"), held=TEXT),
    "who": Kind(type="uuid", values=("'ffffffff-ffff-ffff-ffff-ffffffffffff'", "'00000000-0000-0000-0000-000000000000'")),
    "document": Kind(type="json", values=('\'{"a":  1, "a": 2}\'', "'null'"), held=TEXT),
    "indexed": Kind(type="jsonb", values=('\'{"b": [1, {"c": null}]}\'', "'[]'"), held=TEXT),
    "mood": Kind(type="mood", values=("'sad'", "'très heureux'"), held=TEXT),
    "percent": Kind(type="percent", values=("100.0", "0.1")),
    "address": Kind(type="inet", values=("'10.0.0.0/8'", "'::1'"), held=TEXT),
    "period": Kind(type="int4range", values=("'[1,5)'", "'empty'"), held=TEXT),
    "cost": Kind(type="money", values=("12.50::money", "'-1'"), held=TEXT),
    "wholes": Kind(
        type="integer[]",
        values=("'{}'", "'{1,NULL,-3}'", "'[0:1]={1,2}'"),
        held="CASE WHEN array_lower({0}, 1) = 0 THEN NULL ELSE {0} END",
    ),
    "prices": Kind(type="numeric(12,2)[]", values=("'{1.25,NULL}'", "'{}'")),
    "words": Kind(type="text[]", values=('\'{"","NULL",NULL,"a,b"}\'', "'{}'")),
    "raws": Kind(type="bytea[]", values=("ARRAY['\\x00ff'::bytea, NULL]", "'{}'")),
    "whos": Kind(type="uuid[]", values=("'{12345678-9abc-def0-1234-56789abcdef0,NULL}'", "'{}'")),
    "moments": Kind(type="timestamptz[]", values=("'{2024-01-01 12:00:00.5+02,NULL}'", "'{}'")),
    "documents": Kind(type="jsonb[]", values=("ARRAY['{\"a\": 1}'::jsonb, NULL]", "'{}'"), held="{}::text[]"),
    "body": Kind(type="text", values=("(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 300) n)", "'short'")),
}
"""Every mapped type but time, which Spark does not have."""
FLAGGED = {
    "price": "{} = 'NaN'",
    "day": "NOT isfinite({})",
    "moment": "{} > '9999-12-31 23:59:59.999999'",
    "moment_utc": "NOT isfinite({})",
    "wholes": "array_lower({}, 1) = 0",
}
"""Columns with values that their lake type cannot hold, and which those are."""

SCHEMA = (
    "CREATE TYPE mood AS ENUM ('sad', 'très heureux')",
    "CREATE DOMAIN percent AS numeric(4,1) CHECK (VALUE BETWEEN 0 AND 100)",
    f"CREATE TABLE everything (id int PRIMARY KEY, {', '.join(f'{name} {kind.type}' for name, kind in COLUMNS.items())})",
    "ALTER TABLE everything ALTER COLUMN body SET STORAGE EXTERNAL",
    "CREATE TABLE shifts (who uuid, day date, begins time, ends time[], PRIMARY KEY (who, day))",
    "CREATE TABLE journal (at timestamptz, event jsonb, amounts numeric(6,2)[])",
    "CREATE SCHEMA sales",
    "CREATE TABLE sales.tiny (name text PRIMARY KEY, count int)",
)
SILVER: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "everything": (
        "public.everything",
        {"id": "{}::bigint", **{name: kind.held for name, kind in COLUMNS.items()}, "added": "{}"},
    ),
    "shifts": ("public.shifts", {"who": "{}", "day": "{}", "begins": "nullif({}, '24:00')", "ends": "{}"}),
    "journal": ("public.journal", {"at": "{}", "event": TEXT, "amounts": "{}"}),
    "sales__tiny": ("sales.tiny", {"name": "{}", "count": "{}"}),
}
"""By silver table: its source, and the columns as the lake holds them, as SQL at the source."""


def rows_of(ids: Iterable[int]) -> str:
    """An INSERT of such rows into ``everything``; their values are in every combination that comes with the id, nulls too."""
    rows = [f"({', '.join([str(number), *(_value(kind, number) for kind in COLUMNS.values())])})" for number in ids]
    return f"INSERT INTO everything (id, {', '.join(COLUMNS)}) VALUES {', '.join(rows)}"


def _value(kind: Kind, number: int) -> str:
    choices = (*kind.values, "NULL")
    return choices[number % len(choices)]


def fill(database: Database) -> None:
    """What is there before the first copy."""
    database.execute(
        *SCHEMA,
        rows_of(range(200)),
        "INSERT INTO shifts SELECT md5((n % 7)::text)::uuid, date '2024-01-01' + n, '08:30', '{12:00,NULL}'"
        " FROM generate_series(1, 50) n",
        "INSERT INTO journal SELECT '2024-01-01'::timestamptz + n * interval '1 hour', jsonb_build_object('n', n), ARRAY[n, NULL]"
        " FROM generate_series(1, 50) n",
        "INSERT INTO sales.tiny VALUES ('one', 1), ('two', 2)",
    )


def change(followed: Followed, *, seed: int, transactions: int) -> None:
    """That many transactions of inserts, updates, deletes and changes of key; in the middle columns are added and widened, and
    the journal is emptied.
    """
    draw = random.Random(seed)
    ids = list(range(200))
    for number in range(transactions):
        if number == transactions // 3:
            followed.change(
                "ALTER TABLE everything ADD COLUMN added text[]", "UPDATE everything SET added = '{new}' WHERE id = 1"
            )
        if number == transactions // 2:
            followed.change(
                "ALTER TABLE everything ALTER COLUMN id TYPE bigint, ALTER COLUMN whole TYPE bigint,"
                " ALTER COLUMN price TYPE numeric(18,2), ALTER COLUMN ratio TYPE double precision",
                "UPDATE everything SET whole = 9223372036854775807 WHERE id = 2",
                "TRUNCATE journal",
            )
        new = max(ids) + 1
        deleted, updated, moved = draw.sample(ids, 3)
        ids = [one for one in ids if one not in (deleted, moved)] + [new, new + 1, new + 2]
        column = draw.choice([name for name in COLUMNS if name != "body"])
        choices = (*COLUMNS[column].values, "NULL")
        followed.change(
            rows_of([new, new + 1]),
            f"DELETE FROM everything WHERE id = {deleted}",
            f"UPDATE everything SET {column} = {draw.choice(choices)} WHERE id IN ({updated}, {updated + 1}, {updated + 2})",
            f"UPDATE everything SET id = {new + 2} WHERE id = {moved}",
            f"UPDATE shifts SET begins = '{'24:00' if number % 5 == 0 else '09:15:00.000001'}' WHERE day = '2024-01-0{1 + number % 9}'",
            f"INSERT INTO journal VALUES (now(), '{{\"n\": {number}}}', '{{{number}.5,NULL}}'), (NULL, NULL, '{{}}')",
            f"INSERT INTO sales.tiny VALUES ('two', {number}) ON CONFLICT (name) DO UPDATE SET count = excluded.count",
        )


class Followed:
    """A run in this process, on a thread of its own; `change` returns when what it did at the source is in the lake."""

    def __init__(self, project: Project, database: Database) -> None:
        self._project = project
        self._database = database
        self._failed: list[BaseException] = []
        self.commits = 0

    @contextmanager
    def running(self) -> Iterator[Followed]:
        with open_run(self._project, self._watch) as run:

            def follow() -> None:
                try:
                    run.run()
                except BaseException as error:
                    self._failed.append(error)

            thread = threading.Thread(target=follow)
            thread.start()
            try:
                self._wait(lambda: self.commits > 0)
                yield self
            finally:
                run.stop()
                thread.join()
            if self._failed:
                raise self._failed[0]

    def change(self, *statements: str) -> None:
        """One source transaction, and one commit of the lake."""
        before = self.commits
        with self._database.connect(autocommit=False) as connection:
            for statement in statements:
                connection.execute(statement)
        self._wait(lambda: self.commits > before)

    def _watch(self, event: Event) -> None:
        if isinstance(event, Committed):
            self.commits += 1

    def _wait(self, done: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if self._failed:
                raise self._failed[0]
            assert time.monotonic() < deadline, f"nothing came into the lake for {seconds} s"
            time.sleep(0.005)


def at_source(database: Database, silver: str) -> list[Any]:
    """What silver must hold of its source, with ``_flags`` (sorted) as the last column, as `plain` rows."""
    table, columns = SILVER[silver]
    held = [expression.format(name) for name, expression in columns.items()]
    flagged = {"everything": FLAGGED, "shifts": {"begins": "{} = '24:00'"}}.get(silver, {})
    flags = [
        f"CASE WHEN {condition.format(name)} THEN '{name}:unrepresentable' END" for name, condition in sorted(flagged.items())
    ]
    held.append(f"nullif(array_remove(ARRAY[{', '.join(flags)}]::text[], NULL), '{{}}')")
    return ordered([[plain(value) for value in row] for row in database.rows(f"SELECT {', '.join(held)} FROM {table}")])


def rows(table: pa.Table) -> list[Any]:
    """The rows of an engine's answer as `plain` values, in the order of their text. ``_flags`` are sorted: they are a set."""
    columns = [column.to_pylist() for column in table.columns]
    if "_flags" in table.column_names:
        flags = table.column_names.index("_flags")
        columns[flags] = [None if of_row is None else sorted(of_row) for of_row in columns[flags]]
    return ordered([[plain(value) for value in row] for row in zip(*columns, strict=True)])


def ordered(found: list[list[Any]]) -> list[list[Any]]:
    return sorted(found, key=repr)


def plain(value: Any) -> Any:
    """A value as every engine can say it: a struct is its values in order, a map its pairs, a UUID its text, NaN a text."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Mapping):
        return {"fields": [plain(one) for one in value.values()]}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value
