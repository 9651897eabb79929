"""Maintenance beside a run that commits and readers that read: nothing that anybody needs goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from headrace import maintenance, pipeline
from headrace.catalog import Catalog
from headrace.events import Event
from headrace.lake.storage import Storage
from headrace.lake.sweep import remove, unreached
from headrace.project import Project
from tests.conftest import Database

SECONDS = 15.0
GRACE = timedelta(seconds=4)
"""Shorter than a project may set it: no commit here takes so long."""


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    database.execute(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)",
        "INSERT INTO accounts SELECT g, 100 FROM generate_series(1, 500) g",
    )
    (tmp_path / "headrace.yaml").write_text(
        f"pipeline: bank\nsource:\n  url: {database.url}\n  tables: [public.*]\n  slot: headrace_{database.name}\n"
        "lake:\n  commit: {interval: 20ms}\n  retention: {every: 1s, minutely: 0s, hourly: 0s, daily: 0s}\n"
    )
    return Project.load(tmp_path)


@contextmanager
def moving_money(database: Database) -> Iterator[None]:
    """Transactions that leave the sum of all balances as it is, until the block ends."""
    over = threading.Event()

    def move() -> None:
        with database.connect() as session:
            while not over.is_set():
                session.execute(
                    "WITH pair AS (SELECT 1 + (random() * 249)::int AS a, 251 + (random() * 249)::int AS b)"
                    " UPDATE accounts SET balance = balance + CASE WHEN id = a THEN 1 ELSE -1 END FROM pair WHERE id IN (a, b)"
                )

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def following(project: Project) -> Iterator[list[Event]]:
    """The pipeline runs while the block goes on."""
    events: list[Event] = []
    with pipeline.open_run(project, events.append) as run:
        thread = threading.Thread(target=run.run)
        thread.start()
        try:
            yield events
        finally:
            run.stop()
            thread.join()


def tidy(project: Project, catalog: Catalog) -> int:
    """As `maintenance.maintain`, with a short grace; how many files went."""
    going, _ = maintenance._versions(project, catalog)
    catalog.thin(going)
    storage = Storage(project.warehouse)
    try:
        kept = [version.number for version in catalog.versions()]
        files = unreached(storage, catalog, kept, before=datetime.now(UTC) - GRACE)
    finally:
        storage.close()
    remove(files)
    return len(files)


@pytest.mark.slow
def test_a_run_goes_on_and_readers_never_miss_a_file(database: Database, project: Project) -> None:
    removed, read = 0, 0
    with following(project), moving_money(database):
        while not project.catalog_location().exists():  # type: ignore[union-attr]
            time.sleep(0.1)
        time.sleep(2)
        end = time.monotonic() + SECONDS
        with pipeline.open_catalog(project) as catalog:
            while time.monotonic() < end:
                with pipeline.open_reader(project) as reader:  # pinned to the version that is the latest now
                    first = reader.execute("SELECT sum(balance) FROM lake.silver.accounts").fetchone()
                    removed += tidy(project, catalog)
                    time.sleep(0.5)
                    again = reader.execute("SELECT sum(balance) FROM lake.silver.accounts").fetchone()
                    assert first == again == (50_000,)
                    read += 1
    assert read > 5
    assert removed > 200
    with pipeline.open_run(project, lambda event: None) as run:
        run.run(until_caught_up=True)
    assert pipeline.verify_lake(project).equal
    with pipeline.open_catalog(project) as catalog:
        for version in catalog.versions():
            with pipeline.open_reader(project, version=str(version.number)) as reader:
                assert reader.execute("SELECT sum(balance) FROM lake.silver.accounts").fetchone() in [(50_000,), None]


def test_a_plan_says_what_would_be_done_and_changes_nothing(database: Database, project: Project) -> None:
    with pipeline.open_run(project, lambda event: None) as run:
        for number in range(6):
            database.execute(f"UPDATE accounts SET balance = balance WHERE id = {number + 1}")
            run.run(until_caught_up=True)
    time.sleep(1.1)
    before = {path for path in project.warehouse.rglob("*") if path.is_file()}
    planned = maintenance.plan(project)
    assert len(planned.versions) > 5 and planned.kept == 1
    assert planned.files == [], "all files are younger than the grace"
    assert {path for path in project.warehouse.rglob("*") if path.is_file()} >= before
    with pipeline.open_catalog(project) as catalog:
        assert len(catalog.versions()) == len(planned.versions) + planned.kept
    done = maintenance.maintain(project)
    assert list(done.versions) == list(planned.versions) and done.kept == 1
    with pipeline.open_catalog(project) as catalog:
        assert len(catalog.versions()) == 1
    assert pipeline.verify_lake(project).equal


def test_a_run_has_the_lake_maintained_when_that_is_due(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "LOOK_SECONDS", 0.1)
    (project.folder / "headrace.yaml").write_text(
        (project.folder / "headrace.yaml").read_text() + "  maintenance: {interval: 1s}\n"
    )
    project = Project.load(project.folder)
    with pipeline.open_run(project, lambda event: None) as run:
        run.run(until_caught_up=True)
    said: list[str] = []
    with maintenance.Schedule(project, said.append), pipeline.open_catalog(project) as catalog:
        deadline = time.monotonic() + 30
        while catalog.note(maintenance.LAST) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(catalog.versions()) == 1
    assert not said


def test_maintenance_that_cannot_be_done_is_told_and_ends_nothing(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "LOOK_SECONDS", 0.1)
    said: list[str] = []
    with maintenance.Schedule(project, said.append):  # there is no lake yet
        deadline = time.monotonic() + 30
        while not said:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert "there is no lake yet" in said[0]
