"""Source and lake are compared at one position, whatever goes on at the source, and every difference is named exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.errors import ProjectError
from headrace.lake.engine import open_engine
from headrace.pipeline import open_catalog, open_run, verify_lake
from headrace.project import Project
from headrace.schema import TableId
from headrace.testing.postgres import Postgres
from headrace.verify import Difference, Report, TableResult, proof
from tests.conftest import Database

MAKE = """
CREATE TABLE orders (
    id bigint PRIMARY KEY, amount numeric(10,2), note text, at timestamptz, tags text[], weight float8, due date, who uuid,
    raw bytea
);
INSERT INTO orders
SELECT i, i * 1.1, CASE i % 3 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'note ' || i END, now() - i * interval '1.2345678 s',
       ARRAY['a', NULL, '"' || i], i / 3.0, CASE WHEN i % 50 = 0 THEN 'infinity' ELSE date '2020-01-01' + i END,
       gen_random_uuid(), decode(lpad(to_hex(i), 6, '0'), 'hex')
FROM generate_series(1, 500) i
"""


@contextmanager
def following(project: Project) -> Iterator[None]:
    """A run that goes on meanwhile."""
    failed: list[BaseException] = []
    with open_run(project, lambda event: None) as run:

        def work() -> None:
            try:
                run.run()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            run.stop()
            thread.join(60)
    assert not failed


def catch_up(project: Project) -> None:
    with open_run(project, lambda event: None) as run:
        run.run(until_caught_up=True)


def report(project: Project, *tables: str, limit: int = 20) -> Report:
    return verify_lake(project, tables, limit=limit)


def result(project: Project, table: str = "orders", *, limit: int = 20) -> TableResult:
    found = report(project, table, limit=limit).tables
    assert [one.table for one in found] == [TableId("public", table)]
    return found[0]


def spoil(project: Project, *statements: str) -> None:
    """Change the lake's silver by hand, as no run does."""
    with open_catalog(project) as catalog, open_engine(catalog, project.lake.name) as engine:
        for statement in statements:
            engine.execute(statement)


def named(found: Sequence[Difference]) -> list[tuple[str, str | None, tuple[str, ...]]]:
    return [(one.kind, one.key["id"], one.columns) for one in found]


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    database.execute(MAKE)
    (tmp_path / "headrace.yaml").write_text(f"pipeline: verified\nsource:\n  url: {database.url}\n  tables: ['public.*']\n")
    return Project.load(tmp_path)


def test_a_copy_is_equal(project: Project) -> None:
    catch_up(project)

    found = report(project)

    assert found.equal
    [orders] = found.tables
    assert orders.source == orders.lake
    assert orders.source is not None
    assert orders.source.rows == 500


def test_a_value_that_changed_is_named_with_its_column(project: Project) -> None:
    catch_up(project)
    spoil(project, "UPDATE silver.orders SET amount = amount + 0.01 WHERE id = 17")

    assert named(result(project).differences) == [("different", "17", ("amount",))]


def test_null_is_not_an_empty_text(project: Project) -> None:
    catch_up(project)
    spoil(project, "UPDATE silver.orders SET note = NULL WHERE id = 1", "UPDATE silver.orders SET note = '' WHERE id = 3")

    assert sorted(named(result(project).differences)) == [("different", "1", ("note",)), ("different", "3", ("note",))]


def test_a_row_that_was_dropped_is_named(project: Project) -> None:
    catch_up(project)
    spoil(project, "DELETE FROM silver.orders WHERE id = 99")

    found = result(project)

    assert named(found.differences) == [("missing", "99", ())]
    assert (found.differences[0].source_rows, found.differences[0].lake_rows) == (1, 0)


def test_a_row_that_is_there_twice_is_named(project: Project) -> None:
    catch_up(project)
    spoil(project, "INSERT INTO silver.orders SELECT * FROM silver.orders WHERE id = 42")

    found = result(project)

    assert named(found.differences) == [("repeated", "42", ())]
    assert (found.differences[0].source_rows, found.differences[0].lake_rows) == (1, 2)


def test_a_row_that_the_source_lacks_is_named(project: Project) -> None:
    catch_up(project)
    spoil(project, "INSERT INTO silver.orders (id, note) VALUES (1000, 'invented')")

    assert named(result(project).differences) == [("extra", "1000", ())]


def test_a_lost_flag_is_a_difference(project: Project) -> None:
    catch_up(project)
    spoil(project, "UPDATE silver.orders SET _flags = NULL WHERE id = 50")

    assert named(result(project).differences) == [("different", "50", ("due",))]


def test_no_more_keys_are_named_than_asked_for(project: Project) -> None:
    catch_up(project)
    spoil(project, "UPDATE silver.orders SET note = 'x'")

    found = result(project, limit=3)

    assert len(found.differences) == 3
    assert found.more


def test_changes_that_the_lake_does_not_have_are_told_from_its_lag(project: Project, database: Database) -> None:
    catch_up(project)
    database.execute("UPDATE orders SET note = 'later' WHERE id = 5")

    found = report(project)

    assert not found.equal
    assert found.behind_bytes > 0
    assert named(found.tables[0].differences) == [("different", "5", ("note",))]

    catch_up(project)
    assert report(project).equal


def test_it_is_equal_under_writes_too(project: Project, database: Database) -> None:
    catch_up(project)
    stopped = threading.Event()

    def write() -> None:
        with database.connect() as connection:
            n = 0
            while not stopped.is_set():
                n += 1
                with connection.transaction():
                    connection.execute("INSERT INTO orders (id, note) VALUES (%s, 'new')", [1000 + n])
                    connection.execute("UPDATE orders SET amount = amount + 1 WHERE id = %s", [n % 500 + 1])
                    connection.execute("DELETE FROM orders WHERE id = %s", [1000 + n - 20])
                    connection.execute("UPDATE orders SET id = -id WHERE id = %s", [1000 + n - 10])

    writer = threading.Thread(target=write)
    with following(project):
        writer.start()
        try:
            reports = [report(project) for _ in range(4)]
        finally:
            stopped.set()
            writer.join()
    assert all(one.equal for one in reports), [one.tables for one in reports if not one.equal]
    assert reports[0].position < reports[-1].position


def test_a_version_that_is_past_the_position_is_not_in_the_way(
    project: Project, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lake at an earlier position is an earlier version and the changes from there, folded."""
    catch_up(project)
    database.execute("UPDATE orders SET note = 'before' WHERE id < 10", "INSERT INTO orders (id) VALUES (2000)")

    def later(*arguments: object) -> object:
        database.execute("DELETE FROM orders WHERE id = 2000", "UPDATE orders SET note = 'after' WHERE id < 5")
        catch_up(project)  # in one commit with the changes before the position
        return found_before(*arguments)

    found_before = proof._await
    monkeypatch.setattr(proof, "_await", later)
    found = report(project)

    assert found.equal
    assert found.behind_bytes == 0
    assert found.tables[0].source is not None
    assert found.tables[0].source.rows == 501


def test_a_column_that_is_new_at_the_source_is_null_in_the_lake(project: Project, database: Database) -> None:
    catch_up(project)
    database.execute("ALTER TABLE orders ADD COLUMN rank int")
    assert report(project).equal

    database.execute("UPDATE orders SET rank = 1 WHERE id = 8")
    assert named(result(project).differences) == [("different", "8", ("rank",))]

    catch_up(project)
    assert report(project).equal


def test_a_table_without_a_key_is_compared_by_its_rows(project: Project, database: Database) -> None:
    database.execute("CREATE TABLE log (line text)", "INSERT INTO log VALUES ('a'), ('a'), (NULL), ('')")
    catch_up(project)
    assert result(project, "log").equal

    spoil(project, "INSERT INTO silver.log (line) VALUES ('a')")

    found = result(project, "log")
    assert [(one.kind, one.key, one.source_rows, one.lake_rows) for one in found.differences] == [
        ("repeated", {"line": "a"}, 2, 3)
    ]
    assert "no key" in found.note


def test_columns_may_have_the_names_that_the_queries_use_themselves(project: Project, database: Database) -> None:
    names = [
        "e",
        "i",
        "c",
        "u",
        "k",
        "h",
        "b",
        "x",
        "r",
        "shown",
        "cells",
        "order",
        "position",
        "barrier",
        'wi"th',
        "it's",
        "a b",
    ]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    columns = ", ".join(f"{name} timestamptz[]" if n % 2 else f"{name} text[]" for n, name in enumerate(quoted))
    values = ", ".join("ARRAY[now(), NULL]" if n % 2 else "'{a,NULL}'" for n in range(len(names)))
    database.execute(f"CREATE TABLE odd ({columns}, v text PRIMARY KEY)", f"INSERT INTO odd VALUES ({values}, 'y')")
    catch_up(project)

    assert result(project, "odd").equal

    spoil(project, 'UPDATE silver.odd SET "it\'s" = NULL')
    assert [one.columns for one in result(project, "odd").differences] == [("it's",)]


def test_tables_that_cannot_be_compared_say_why(project: Project, database: Database) -> None:
    database.execute("CREATE TABLE gone (id int PRIMARY KEY)")
    catch_up(project)
    database.execute("DROP TABLE gone")

    found = report(project)

    assert {one.table.name: (one.equal, one.problem) for one in found.tables} == {
        "gone": (False, "the source has no such table"),
        "orders": (True, ""),
    }
    assert not found.equal


def test_a_table_that_the_lake_does_not_know_is_refused(project: Project) -> None:
    catch_up(project)

    with pytest.raises(ProjectError, match=r"no table public\.nothing; it has public\.orders"):
        report(project, "nothing")


def test_a_database_in_another_encoding_is_compared_in_utf8(postgres: Postgres, tmp_path: Path) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    database = Database(server=postgres, name="latin")
    database.execute("CREATE TABLE words (word text PRIMARY KEY)", "INSERT INTO words VALUES ('Grüße'), ('')")
    (tmp_path / "headrace.yaml").write_text(f"pipeline: latin\nsource:\n  url: {database.url}\n  tables: [words]\n")
    project = Project.load(tmp_path)
    catch_up(project)

    assert report(project).equal

    spoil(project, "DELETE FROM silver.words WHERE word = 'Grüße'")
    assert [one.key for one in report(project).tables[0].differences] == [{"word": "Grüße"}]
    with database.connect() as connection:
        connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = 'latin'")
    postgres.execute("DROP DATABASE latin WITH (FORCE)")
