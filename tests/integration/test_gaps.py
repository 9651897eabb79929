"""What the source's log does not tell is noticed: no table goes on with changes missing, or with another table's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from headrace.change import ChangeBatch
from headrace.events import Event, Parked
from headrace.pipeline import mark_for_resync, open_reader, open_run, verify_lake
from headrace.position import parse_lsn
from headrace.project import Project
from headrace.run import Run
from headrace.schema import TableId
from headrace.source.postgres import capture
from tests.conftest import Database
from tests.integration.test_source import source_of


class Shop:
    """Two tables, and a pipeline that follows them."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder
        self.execute = database.execute
        self.execute(
            "CREATE TABLE items (id int PRIMARY KEY, price int)",
            "CREATE TABLE orders (id int PRIMARY KEY)",
            "INSERT INTO items VALUES (1, 10)",
            "INSERT INTO orders VALUES (1)",
        )

    def project(self, *, without: Sequence[str] = ()) -> Project:
        (self._folder / "headrace.yaml").write_text(
            f"pipeline: shop\nsource:\n  url: {self._database.url}\n  tables: ['public.*']\n  exclude: {list(without)}\n"
        )
        return Project.load(self._folder)

    def catch_up(self, *, without: Sequence[str] = ()) -> list[Event]:
        events: list[Event] = []
        with open_run(self.project(without=without), events.append) as run:
            run.run(until_caught_up=True)
        return events

    @contextmanager
    def following(self) -> Iterator[list[Event]]:
        events: list[Event] = []
        with open_run(self.project(), events.append) as run:
            thread = threading.Thread(target=run.run)
            thread.start()
            try:
                yield events
            finally:
                run.stop()
                thread.join(60)

    def copy_again(self, table: str) -> None:
        mark_for_resync(self.project(), table)
        self.catch_up()

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        with open_reader(self.project()) as engine:
            return engine.execute(sql.replace(" FROM ", " FROM lake.")).fetchall()

    def equal(self, table: str = "items") -> bool:
        return verify_lake(self.project(), [table]).equal


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    shop = Shop(database, tmp_path)
    shop.catch_up()
    return shop


def parked(events: Sequence[Event]) -> dict[str, str]:
    return {event.table.name: event.fault.reason for event in events if isinstance(event, Parked)}


def test_a_table_left_out_for_a_while_does_not_go_on_as_if_nothing_were_missing(shop: Shop) -> None:
    shop.execute("INSERT INTO items VALUES (2, 20)")
    events = shop.catch_up(without=["items"])
    shop.execute("INSERT INTO items VALUES (3, 30)")
    shop.catch_up()

    assert "the project names it no more" in parked(events)["items"]
    shop.copy_again("items")
    assert shop.equal()


def test_a_copy_that_the_log_does_not_continue_any_more_is_made_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.execute("CREATE TABLE late (id int PRIMARY KEY)", "INSERT INTO late VALUES (1)")

    def crash(*_: object) -> None:
        raise RuntimeError("crashed between the copy and its publication")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(Run, "_publish", crash)
        shop.catch_up()
    shop.execute("INSERT INTO late VALUES (2)", "INSERT INTO orders VALUES (2)")
    shop.catch_up(without=["late"])
    shop.execute("INSERT INTO late VALUES (3)")

    shop.catch_up()

    assert shop.equal("late")


def test_a_table_dropped_and_created_again_is_parked(shop: Shop) -> None:
    shop.execute("DROP TABLE items", "CREATE TABLE items (id int PRIMARY KEY, price int)", "INSERT INTO items VALUES (7, 70)")

    assert parked(shop.catch_up()) == {"items": "it was dropped and created again at the source"}
    shop.copy_again("items")
    assert shop.equal()


def test_a_table_taken_out_of_the_publication_is_parked_whenever_that_is_seen(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(f"ALTER PUBLICATION {shop.project().publication} DROP TABLE items", "INSERT INTO items VALUES (2, 20)")

    def crash(*_: object) -> None:
        raise RuntimeError("crashed before anything was committed")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(Run, "_copy", crash)
        shop.catch_up()

    assert "had not the whole table for a time" in parked(shop.catch_up())["items"]
    shop.copy_again("items")
    assert shop.equal()


def test_rows_that_came_while_a_table_had_another_name_are_not_lost(shop: Shop) -> None:
    shop.execute(
        "ALTER TABLE items RENAME TO hidden",
        "INSERT INTO hidden VALUES (2, 20)",
        "ALTER TABLE hidden RENAME TO items",
        "INSERT INTO items VALUES (3, 30)",
    )

    shop.catch_up()

    assert shop.equal()


def test_two_tables_that_swap_their_names_are_not_mixed(shop: Shop) -> None:
    shop.execute(
        "CREATE TABLE items_new (id int PRIMARY KEY, price int)",
        "INSERT INTO items VALUES (2, 20)",
        "BEGIN; ALTER TABLE items RENAME TO items_old; ALTER TABLE items_new RENAME TO items; COMMIT",
        "INSERT INTO items VALUES (3, 30)",
        "INSERT INTO items_old VALUES (4, 40)",
    )

    assert set(parked(shop.catch_up())) == {"items"}
    shop.copy_again("items")
    assert shop.equal("items")
    assert shop.equal("items_old")


def test_another_table_that_takes_the_name_is_not_taken_for_the_first(database: Database) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)", "CREATE PUBLICATION headrace_test FOR ALL TABLES")
    items = TableId("public", "items")
    source = source_of(database.url)
    with source.open(None) as start:
        schema = source.tables()[items].schema
        database.execute(
            "INSERT INTO items VALUES (1)",
            "ALTER TABLE items RENAME TO items_old",
            "CREATE TABLE items (id int PRIMARY KEY)",
            "INSERT INTO items VALUES (2)",
            "INSERT INTO items_old VALUES (3)",
        )
        batches = list(source.changes(start, tables={items: schema}, from_lsn={}, parked={}, until=source.end()))

    [fault] = [batch.faults[items] for batch in batches if batch.faults]
    assert fault.reason == "it was dropped and created again at the source"
    taken = [row for batch in batches if items in batch.tables for row in batch.tables[items].column("after").to_pylist()]
    aside = [
        row for batch in batches if items in batch.quarantined for row in batch.quarantined[items].column("after").to_pylist()
    ]
    assert sorted([row["id"] for row in taken] + [int(dict(row)["id"]) for row in aside]) == [1, 2, 3]


@pytest.mark.parametrize("default", ["DEFAULT floor(random() * 9)", "GENERATED BY DEFAULT AS IDENTITY", "DEFAULT 7"])
def test_a_column_added_with_values_for_the_rows_there_are_parks_its_table(shop: Shop, default: str) -> None:
    shop.execute(f"ALTER TABLE items ADD COLUMN extra int {default}", "INSERT INTO items (id) VALUES (2)")

    assert "added with a default" in parked(shop.catch_up())["items"]


def test_a_column_dropped_and_added_again_while_a_run_goes_on_parks_its_table(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "RESOLVE_AGAIN", 0.0)
    with shop.following() as events:
        shop.execute("INSERT INTO items VALUES (2, 20)")
        wait_until(lambda: shop.equal())
        shop.execute("ALTER TABLE items DROP price", "ALTER TABLE items ADD price int", "INSERT INTO items VALUES (3, 30)")
        wait_until(lambda: bool(parked(events)))

    assert parked(events) == {"items": "column price was dropped and added again"}


def test_a_table_that_the_lake_cannot_go_on_with_is_told_to_be_parked(shop: Shop) -> None:
    shop.execute("CREATE TABLE days (day date PRIMARY KEY)")
    shop.catch_up()
    shop.execute("INSERT INTO days VALUES ('infinity')")

    assert "key column day has a value that its lake type cannot hold" in parked(shop.catch_up())["days"]


def test_bronze_goes_on_over_restarts_while_only_silver_is_parked(shop: Shop) -> None:
    shop.execute("CREATE TABLE days (day date PRIMARY KEY, n int)")
    shop.catch_up()
    shop.execute("INSERT INTO days VALUES ('infinity', 1)")
    assert "bronze goes on" in parked(shop.catch_up())["days"]
    shop.execute("INSERT INTO days VALUES ('2020-01-01', 2)")
    shop.catch_up()
    shop.execute("ALTER TABLE days ADD COLUMN note text", "UPDATE days SET note = 'x' WHERE n = 2")
    shop.catch_up()

    assert shop.rows("SELECT op, after.n, after.note FROM bronze.days ORDER BY commit_lsn, ordinal") == [
        ("c", 1, None),
        ("c", 2, None),
        ("u", 2, "x"),
    ]
    assert shop.rows("SELECT * FROM silver.days") == []
    assert shop.rows("SELECT bronze_goes_on FROM headrace.progress WHERE table_name = 'days'") == [(True,)]

    shop.execute("DELETE FROM days WHERE day = 'infinity'")
    shop.copy_again("days")
    assert shop.equal("days")


def test_a_table_with_silver_parked_is_parked_whole_when_its_columns_change(shop: Shop) -> None:
    shop.execute("CREATE TABLE days (day date PRIMARY KEY, n int)")
    shop.catch_up()
    shop.execute("INSERT INTO days VALUES ('infinity', 1)")
    shop.catch_up()
    shop.execute("ALTER TABLE days RENAME n TO m", "INSERT INTO days VALUES ('2020-01-01', 2)")

    assert "column n was dropped or renamed" in parked(shop.catch_up())["days"]
    shop.execute("ALTER TABLE days RENAME m TO n", "INSERT INTO days VALUES ('2020-01-02', 3)")
    shop.catch_up()
    assert shop.rows("SELECT after.n FROM bronze.days") == [(1,)]
    assert shop.rows("SELECT after['m'], after['n'] FROM headrace.quarantine ORDER BY commit_lsn") == [("2", None), (None, "3")]


def test_a_commit_at_the_start_of_a_log_page_comes_once(database: Database) -> None:
    """A call that is asked to end within that page's header reads on to the commit that follows it."""
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    items = TableId("public", "items")
    source = source_of(database.url)
    with source.open(None) as start:
        schemas = {items: source.tables()[items].schema}
        page = _commit_at_a_page(database)
        first = list(source.changes(start, tables=schemas, from_lsn={}, parked={}, until=page + 8))
        reached = first[-1].end
        assert reached is not None
        rest = list(source.changes(reached, tables=schemas, from_lsn={}, parked={}, until=source.end()))

    assert ids(first, items) + ids(rest, items) == [1]


def ids(batches: Sequence[ChangeBatch], table: TableId) -> list[int]:
    return [row["id"] for batch in batches if table in batch.tables for row in batch.tables[table].column("after").to_pylist()]


def _commit_at_a_page(database: Database) -> int:
    """Insert a row whose commit record is the first of a page of the log; where that page begins."""
    with database.connect(autocommit=False) as session:

        def inserted() -> int:
            row = session.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            return parse_lsn(row[0])

        def emit(size: int) -> int:
            session.execute("SELECT pg_logical_emit_message(false, '', repeat('x', %s))", [size])
            return inserted()

        for _ in range(20):
            session.execute("INSERT INTO items SELECT coalesce(max(id), 0) + 1 FROM items")
            before = emit(0)
            overhead = emit(400) - before - 400
            at = inserted()
            if 8192 - at % 8192 < 1000:
                at = emit(1000)
            end = emit(8192 - at % 8192 - overhead)
            if end % 8192 in (0, 24):
                session.commit()
                return end - end % 8192
            session.rollback()
    pytest.skip("no commit began a page")


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)
