"""A lake that cannot be used for a while interrupts a run that goes on, and nothing more: no change is lost, none comes twice."""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from headrace.catalog import Catalog
from headrace.errors import LakeUnavailable
from headrace.events import Committed, Event, Retrying
from headrace.pipeline import open_reader, open_run, verify_lake
from headrace.project import Project
from headrace.testing.postgres import Postgres
from tests.conftest import Database

FIRST, LATER = 100, 10


class Shop:
    """A table that is written to, and the run that follows it in a thread."""

    def __init__(self, database: Database, folder: Path, *, store: str = "") -> None:
        self._database = database
        database.execute(
            "CREATE TABLE items (id int PRIMARY KEY)", f"INSERT INTO items SELECT n FROM generate_series(1, {FIRST}) n"
        )
        (folder / "headrace.yaml").write_text(
            f"pipeline: shop\nsource:\n  url: {database.url}\n  tables: ['public.*']\n"
            + (f"lake:\n  catalog:\n    store: {store}\n" if store else "")
        )
        self.project = Project.load(folder)
        self.events: list[Event] = []
        self.ended: BaseException | None = None

    @contextmanager
    def following(self) -> Iterator[None]:
        with open_run(self.project, self.events.append) as run:

            def go_on() -> None:
                try:
                    run.run()
                except BaseException as error:
                    self.ended = error

            thread = threading.Thread(target=go_on)
            thread.start()
            try:
                wait_until(lambda: any(isinstance(event, Committed) for event in self.events))
                yield
            finally:
                run.stop()
                thread.join(60)

    def write(self) -> None:
        """One transaction a row."""
        last = self._database.value("SELECT max(id) FROM items")
        self._database.execute(*(f"INSERT INTO items VALUES ({last + n})" for n in range(1, LATER + 1)))

    def retries(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, Retrying)]

    def pauses(self) -> list[float]:
        return [event.seconds for event in self.events if isinstance(event, Retrying)]

    def has(self, rows: int) -> bool:
        with open_reader(self.project) as engine:
            found = engine.execute(
                "SELECT (SELECT count(*) FROM silver.items),"
                " (SELECT count(*) FROM bronze.items), (SELECT count(DISTINCT (commit_lsn, ordinal)) FROM bronze.items)"
            ).fetchone()
        return found == (rows, rows, rows)


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.run.RETRY_SECONDS", (0.1, 0.2, 0.3))
    monkeypatch.setattr("headrace.pipeline.Catalog.open", partial(Catalog.open, timeout=0.5))


def test_a_run_waits_for_a_locked_catalog(database: Database, tmp_path: Path) -> None:
    shop = Shop(database, tmp_path)
    with shop.following():
        with sqlite3.connect(shop.project.catalog_location(), isolation_level=None) as other:
            other.execute("begin immediate")
            shop.write()
            wait_until(lambda: len(shop.retries()) >= 3)
            other.execute("rollback")
        other.close()
        wait_until(lambda: shop.has(FIRST + LATER))
        assert verify_lake(shop.project).equal

    assert shop.ended is None
    assert "stayed locked by another writer" in shop.retries()[0]
    assert shop.pauses()[:3] == [0.1, 0.2, 0.3]


def test_a_run_waits_for_room_on_the_disk(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    shop = Shop(database, tmp_path)
    with shop.following():
        for place in ("headrace.lake.storage._create", "headrace.catalog.files._write"):
            shop.events.clear()
            with monkeypatch.context() as patch:
                patch.setattr(place, full)
                shop.write()
                wait_until(lambda: len(shop.retries()) >= 2)
            wait_until(lambda: shop.has(database.value("SELECT count(*) FROM items")))
            assert "No space left on device" in shop.retries()[0]
        assert verify_lake(shop.project).equal
    assert shop.ended is None


def test_a_run_waits_for_the_server_of_its_catalog(database: Database, tmp_path: Path) -> None:
    with Postgres() as server:
        shop = Shop(database, tmp_path, store=server.url)
        with shop.following():
            server.stop(immediate=True)
            shop.write()
            wait_until(lambda: len(shop.retries()) >= 2)
            server.start()
            wait_until(lambda: shop.has(FIRST + LATER))
            assert verify_lake(shop.project).equal
    assert shop.ended is None
    assert "The catalog's database" in shop.retries()[0]


def test_a_damaged_catalog_ends_the_run(database: Database, tmp_path: Path) -> None:
    shop = Shop(database, tmp_path)
    with shop.following():
        with sqlite3.connect(shop.project.catalog_location()) as other:
            other.execute("delete from pointers")
        other.close()
        shop.write()
        wait_until(lambda: shop.ended is not None)

    assert isinstance(shop.ended, LakeUnavailable)
    assert not shop.retries()
