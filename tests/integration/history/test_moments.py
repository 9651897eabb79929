"""`headrace query --at`: all tables as they were at the source at a moment, held against a recorder of the source's whole state."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from headrace.cli.app import main
from headrace.errors import ProjectError
from headrace.pipeline import mark_for_resync, open_catalog, open_past, open_run
from headrace.position import format_lsn
from headrace.project import Project
from tests.conftest import Database

Said = Callable[..., tuple[int, str, str]]

TABLES = {"items": "id, name, price, story", "pairs": "a, b, n", "logs": "line, n"}
SCHEMA = (
    "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(9,2), story text)",
    "ALTER TABLE items ALTER COLUMN story SET STORAGE EXTERNAL",
    "CREATE TABLE pairs (a text, b int, n bigint, PRIMARY KEY (a, b))",
    "CREATE TABLE logs (line text, n int)",
    "INSERT INTO items SELECT n, 'first', n, repeat(md5(n::text), 100) FROM generate_series(1, 30) n",
    "INSERT INTO pairs SELECT 'a', n, 0 FROM generate_series(1, 10) n",
    "INSERT INTO logs VALUES ('begin', 0)",
)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The source's state from the time ``since`` (after a commit) to ``until`` (before the next); ``lsn`` lies between the two."""

    since: datetime
    until: datetime
    lsn: int
    rows: Mapping[str, list[tuple[Any, ...]]]


class Recorder:
    """Writes random transactions, one after the other, and notes the state of all tables after each."""

    def __init__(self, database: Database, seed: int) -> None:
        self._database, self._random = database, Random(seed)
        self.states: list[Recorded] = []
        self._after: tuple[datetime, int, dict[str, list[tuple[Any, ...]]]] | None = None

    def note(self, *statements: str) -> None:
        """One transaction; the state that it left, once it is known until when that lasted."""
        with self._database.connect(autocommit=False) as connection:
            for statement in statements:
                connection.execute(statement)
            (until,) = connection.execute("SELECT clock_timestamp()").fetchone() or (None,)
        if self._after is not None:
            self._end(until)
        rows = {table: sorted(self._database.rows(f"SELECT {what} FROM {table}")) for table, what in TABLES.items()}
        lsn, since = self._database.rows("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, clock_timestamp()")[0]
        self._after = (since.astimezone(UTC), lsn, rows)

    def _end(self, until: datetime) -> None:
        assert self._after is not None
        since, lsn, rows = self._after
        self.states.append(Recorded(since=since, until=until.astimezone(UTC), lsn=lsn, rows=rows))

    def write(self, transactions: int) -> None:
        for _ in range(transactions):
            self.note(*[self._statement() for _ in range(self._random.randint(1, 4))])

    def _statement(self) -> str:
        draw = self._random
        one, other, n = draw.randint(1, 40), draw.randint(41, 80), draw.randint(0, 10**6)
        return draw.choice(
            [
                f"INSERT INTO items VALUES ({one}, 'new', {n}.25, repeat(md5('{n}'), 100)) ON CONFLICT (id) DO NOTHING",
                f"UPDATE items SET name = 'n{n}' WHERE id % 7 = {n % 7}",
                f"UPDATE items SET price = {n}.5, story = repeat(md5('{n}'), 90) WHERE id = {one}",
                f"DELETE FROM items WHERE id = {one}",
                f"UPDATE items SET id = {other} WHERE id = {one} AND NOT EXISTS (SELECT 1 FROM items WHERE id = {other})",
                f"UPDATE items SET id = {one}, name = 'back' WHERE id = {other} AND NOT EXISTS (SELECT 1 FROM items WHERE id = {one})",
                f"INSERT INTO pairs VALUES ('b', {one}, {n}) ON CONFLICT (a, b) DO UPDATE SET n = excluded.n, a = 'c'"
                f" WHERE NOT EXISTS (SELECT 1 FROM pairs WHERE (a, b) = ('c', {one}))",
                f"DELETE FROM pairs WHERE b % 5 = {n % 5}",
                f"INSERT INTO logs SELECT 'line', {n} FROM generate_series(1, 3)",
                draw.choice(
                    ["TRUNCATE items", "TRUNCATE pairs, logs", "TRUNCATE logs", "DELETE FROM pairs", "SELECT 1", "SELECT 1"]
                ),
            ]
        )


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "headrace.yaml").write_text(
        f"pipeline: shop\nsource:\n  url: {database.url}\n  tables: ['public.*']\nlake: {{commit: {{rows: 20}}}}\n"
    )
    return Project.load(folder)


def catch_up(project: Project) -> None:
    with open_run(project, lambda _: None) as run:
        run.run(until_caught_up=True)


@pytest.fixture
def said(project: Project, capsys: pytest.CaptureFixture[str]) -> Said:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main(["-C", str(project.folder), "query", "--format", "csv", *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, " ".join(shown.err.split())

    return run


def shown_at(project: Project, at: str, tables: Mapping[str, str] = TABLES) -> tuple[dict[str, list[tuple[Any, ...]]], list[str]]:
    """The rows of these tables at a moment, and which tables were computed from bronze."""
    naming = "SELECT 1 FROM " + ", ".join(f"silver.{table}" for table in tables)
    with open_past(project, at, naming) as past:
        rows = {
            table: sorted(past.connection.execute(f"SELECT {what} FROM silver.{table}").fetchall())
            for table, what in tables.items()
        }
        return rows, [table.table.name for table in past.tables if table.computed]


def moment_within(state: Recorded, random: Random) -> str:
    """A time or a position at which the source was in this state."""
    if random.random() < 0.3:
        return format_lsn(state.lsn)
    time = state.since + (state.until - state.since) * random.random()
    return time.isoformat()


def thin(project: Project, random: Random, share: float) -> None:
    with open_catalog(project, create=False) as catalog:
        catalog.thin([one.number for one in catalog.versions() if random.random() < share])


def nearest(error: str) -> list[str]:
    """The moments that a refusal names."""
    return re.findall(r"[-\d]+T[\d:.]+Z|\b[0-9A-F]+/[0-9A-F]+\b", error.partition("The nearest moment")[2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_hundred_random_moments_are_as_the_source_was(database: Database, project: Project, seed: int) -> None:
    random = Random(seed)
    database.execute(*SCHEMA)
    recorder = Recorder(database, seed)
    catch_up(project)
    recorder.note("SELECT 1")
    for _ in range(8):
        recorder.write(random.randint(1, 20))
        catch_up(project)
    recorder.note("INSERT INTO logs VALUES ('end', 0)")
    recorder.note("INSERT INTO logs VALUES ('end', 1)")
    catch_up(project)
    thin(project, random, 0.6)

    computed = 0
    for state in [random.choice(recorder.states) for _ in range(50)]:
        at = moment_within(state, random)
        rows, from_bronze = shown_at(project, at)
        assert rows == state.rows, at
        computed += bool(from_bronze)

    assert 0 < computed < 50


def test_a_moment_of_a_kept_version_is_answered_from_it(database: Database, project: Project, said: Said) -> None:
    database.execute(*SCHEMA)
    catch_up(project)
    recorder = Recorder(database, 1)
    recorder.note("SELECT 1")
    for name in ("one", "two", "three"):
        recorder.note(f"UPDATE items SET name = '{name}' WHERE id = 1", "INSERT INTO logs VALUES ('x', 1)")
        recorder.note("SELECT 1")
        if name != "one":
            catch_up(project)
    question = "SELECT name FROM silver.items WHERE id = 1"

    def answer(state: int) -> tuple[int, str, str]:
        return said(question, "--at", recorder.states[state].since.isoformat())

    assert answer(3) == (0, "name\ntwo\n", "")
    code, out, error = answer(1)
    assert (code, out) == (0, "name\none\n")
    assert error == "Computed from bronze, since no version is kept of exactly that moment: silver.items"


def test_bronze_ends_at_the_moment(database: Database, project: Project, said: Said) -> None:
    database.execute(*SCHEMA)
    catch_up(project)
    recorder = Recorder(database, 1)
    for n in (1, 2, 3):
        recorder.note(f"UPDATE items SET name = 'n{n}' WHERE id = 1", f"UPDATE items SET name = 'm{n}' WHERE id = 1")
    catch_up(project)

    at = recorder.states[1].until.isoformat()

    assert said("SELECT count(*) AS n FROM bronze.items WHERE op = 'u'", "--at", at) == (0, "n\n4\n", "")
    _, out, _ = said(
        "SELECT s.name FROM items s JOIN bronze.items b ON b.after.id = s.id WHERE op = 'r' AND s.id = 1", "--at", at
    )
    assert out == "name\nm2\n"


def test_only_the_tables_that_are_named_have_to_be_answerable(database: Database, project: Project, said: Said) -> None:
    database.execute(*SCHEMA)
    catch_up(project)
    recorder = Recorder(database, 1)
    recorder.note("UPDATE items SET name = 'old' WHERE id = 1")
    recorder.note("UPDATE items SET name = 'new' WHERE id = 1")
    database.execute("CREATE TABLE late (id int PRIMARY KEY)", "INSERT INTO late VALUES (1), (2)")
    catch_up(project)
    recorder.note("DELETE FROM logs")
    database.execute("INSERT INTO late VALUES (3)", "DELETE FROM late WHERE id = 1")
    catch_up(project)
    at = recorder.states[0].since.isoformat()

    assert said("SELECT name FROM items WHERE id = 1", "--at", at)[:2] == (0, "name\nold\n")
    code, _, error = said("SELECT * FROM late", "--at", at)
    assert code == 2 and "table public.late was copied later" in error
    (copied,) = nearest(error)
    assert said("SELECT id FROM late ORDER BY id", "--at", copied)[:2] == (0, "id\n1\n2\n")
    code, _, error = said("SELECT * FROM bronze.late", "--at", format_lsn(recorder.states[0].lsn))
    assert code == 2 and "table public.late was copied later" in error
    (copied,) = nearest(error)
    assert said("SELECT id FROM late ORDER BY id", "--at", copied)[:2] == (0, "id\n1\n2\n")
    code, _, error = said("PIVOT late ON id USING count(*)", "--at", at)
    assert code == 2, "also of a statement that cannot be taken apart"


def test_a_moment_that_the_lake_has_not_come_to_is_refused(database: Database, project: Project, said: Said) -> None:
    database.execute(*SCHEMA)
    catch_up(project)
    database.execute("INSERT INTO logs VALUES ('last', 7)")
    catch_up(project)
    later = datetime.now(UTC) + timedelta(hours=1)

    code, _, error = said("SELECT max(n) AS n FROM logs", "--at", later.isoformat())

    assert code == 2 and "later transactions may be missing" in error
    assert said("SELECT max(n) AS n FROM logs", "--at", nearest(error)[0])[:2] == (0, "n\n7\n")
    code, _, error = said("SELECT 1 FROM logs", "--at", "FFFF/0")
    assert code == 2 and "the lake has the source's log up to" in error
    assert said("SELECT max(n) AS n FROM logs", "--at", nearest(error)[0])[:2] == (0, "n\n7\n")


def test_a_quiet_source_is_known_until_a_run_last_looked(database: Database, project: Project, said: Said) -> None:
    database.execute(*SCHEMA, "INSERT INTO logs VALUES ('last', 7)")
    catch_up(project)
    quiet = database.value("SELECT clock_timestamp()").isoformat()

    assert said("SELECT max(n) AS n FROM logs", "--at", quiet)[0] == 2, "something may have been committed by then"
    catch_up(project)
    database.execute("INSERT INTO logs VALUES ('later', 8)")
    assert said("SELECT max(n) AS n FROM logs", "--at", quiet) == (0, "n\n7\n", "")


def test_a_moment_before_the_first_copy_is_refused(database: Database, project: Project, said: Said) -> None:
    early = datetime.now(UTC)
    database.execute(*SCHEMA)
    catch_up(project)
    database.execute("DELETE FROM items")
    catch_up(project)

    code, _, error = said("SELECT count(*) AS n FROM items", "--at", early.isoformat())

    assert code == 2 and "the lake begins later" in error
    assert said("SELECT count(*) AS n FROM items", "--at", nearest(error)[0])[:2] == (0, "n\n30\n")
    code, _, error = said("SELECT count(*) AS n FROM items", "--at", "0/1")
    assert code == 2 and "was copied later" in error


def test_a_table_that_was_copied_again_is_refused_between_and_answered_before_and_after(
    database: Database, project: Project, said: Said
) -> None:
    database.execute(*SCHEMA)
    catch_up(project)
    recorder = Recorder(database, 1)
    recorder.note("UPDATE items SET name = 'before' WHERE id = 1")
    recorder.note("INSERT INTO logs VALUES ('x', 1)")
    catch_up(project)
    mark_for_resync(project, "items")
    recorder.note("UPDATE items SET name = 'missed' WHERE id = 1")
    recorder.note("UPDATE items SET name = 'copied' WHERE id = 1")
    catch_up(project)
    recorder.note("UPDATE items SET name = 'after' WHERE id = 1")
    recorder.note("INSERT INTO logs VALUES ('x', 2)")
    recorder.note("INSERT INTO logs VALUES ('x', 3)")
    catch_up(project)
    question = "SELECT name FROM items WHERE id = 1"

    def answer(at: str) -> str:
        code, out, error = said(question, "--at", at)
        return out.split()[1] if code == 0 else error

    assert answer(recorder.states[0].since.isoformat()) == "before"
    assert answer(recorder.states[4].since.isoformat()) == "after"
    for at in (recorder.states[2].since.isoformat(), format_lsn(recorder.states[2].lsn)):
        refusal = answer(at)
        assert "bronze lacks changes of table public.items from before that" in refusal
        assert [answer(one) for one in nearest(refusal)] == ["before", "copied"], refusal
    assert said("SELECT max(n) AS n FROM logs", "--at", recorder.states[2].since.isoformat())[:2] == (0, "n\n1\n")


def test_a_parked_table_is_answered_up_to_where_it_was_parked(database: Database, project: Project, said: Said) -> None:
    database.execute(*SCHEMA)
    catch_up(project)
    recorder = Recorder(database, 1)
    recorder.note("UPDATE items SET name = 'before' WHERE id = 1")
    recorder.note("INSERT INTO logs VALUES ('x', 1)")
    database.execute("ALTER TABLE items ADD COLUMN more int DEFAULT 7")
    recorder.note("UPDATE items SET name = 'missed' WHERE id = 1")
    recorder.note("INSERT INTO logs VALUES ('x', 2)")
    recorder.note("INSERT INTO logs VALUES ('x', 3)")
    catch_up(project)

    assert said("SELECT name FROM items WHERE id = 1", "--at", recorder.states[0].since.isoformat())[:2] == (0, "name\nbefore\n")
    code, _, error = said("SELECT name FROM items WHERE id = 1", "--at", recorder.states[2].since.isoformat())
    assert code == 2 and "bronze lacks changes of table public.items" in error
    assert said("SELECT name FROM items WHERE id = 1", "--at", nearest(error)[0])[:2] == (0, "name\nbefore\n")
    assert said("SELECT max(n) AS n FROM logs", "--at", recorder.states[3].since.isoformat())[:2] == (0, "n\n2\n")


def test_columns_added_later_are_null_before(database: Database, project: Project, said: Said) -> None:
    database.execute(*SCHEMA)
    catch_up(project)
    recorder = Recorder(database, 1)
    recorder.note("UPDATE items SET name = 'before' WHERE id = 1")
    recorder.note("SELECT 1")
    database.execute("ALTER TABLE items ADD COLUMN more int", "ALTER TABLE items ALTER COLUMN price TYPE numeric(12,2)")
    recorder.note("UPDATE items SET more = 1 WHERE id = 1")
    recorder.note("UPDATE items SET more = 2 WHERE id = 1")
    catch_up(project)

    at = recorder.states[0].since.isoformat()
    assert said("SELECT name, more FROM items WHERE id = 1", "--at", at)[:2] == (0, "name,more\nbefore,\n")
    at = recorder.states[2].since.isoformat()
    assert said("SELECT name, more FROM items WHERE id = 1", "--at", at)[:2] == (0, "name,more\nbefore,1\n")


def test_what_is_asked_for_wrongly_is_said(database: Database, project: Project, said: Said) -> None:
    assert said("SELECT 1", "--at", "2026-01-01")[0] == 7, "there is no lake yet"
    database.execute(*SCHEMA)
    catch_up(project)

    assert "neither a time nor a position" in said("SELECT 1", "--at", "yesterday")[2]
    assert "Give one of them" in said("SELECT 1", "--at", "2026-01-01", "--version", "1")[2]
    with open_catalog(project, create=False) as catalog:
        assert catalog.live_leases() == []


def test_a_query_that_fails_says_why(database: Database, project: Project, said: Said) -> None:
    database.execute(*SCHEMA)
    catch_up(project)
    database.execute("INSERT INTO logs VALUES ('x', 1)")
    catch_up(project)
    with pytest.raises(ProjectError) as refusal, open_past(project, "9999-01-01", "SELECT 1"):
        pass
    (at,) = nearest(str(refusal.value))
    for statement in ("SELEKT 1", "SELECT * FROM nothing", "SELECT nothing FROM items", "DELETE FROM items"):
        code, _, error = said(statement, "--at", at)
        assert code == 10 and "the query failed" in error
