"""A lake goes on from the server that it began with, and from no other, whatever the numbers of its log are."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import PositionLost
from headrace.events import Event
from headrace.pipeline import open_reader, open_run, verify_lake
from headrace.project import Project
from headrace.testing.postgres import Postgres
from tests.conftest import Database, fresh_database

TABLE = ("CREATE TABLE items (id int PRIMARY KEY)", "INSERT INTO items SELECT n FROM generate_series(1, 10) n")


@pytest.fixture
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        server.execute(*TABLE)
        yield server


def project_of(folder: Path, url: str) -> Project:
    (folder / "headrace.yaml").write_text(f"pipeline: shop\nsource:\n  url: {url}\n  tables: [items]\n")
    return Project.load(folder)


def catch_up(project: Project) -> None:
    events: list[Event] = []
    with open_run(project, events.append) as run:
        run.run(until_caught_up=True)


def promote(server: Postgres) -> None:
    """Start it as a standby and make it a primary, on a timeline of its own."""
    signal = server.data / "standby.signal"
    signal.touch()
    shutil.chown(signal, server.data.owner(), server.data.group())
    server.start()
    server.execute("SELECT pg_promote(true)")
    deadline = time.monotonic() + 30
    with server.connect() as connection:
        while connection.execute("SELECT pg_is_in_recovery()").fetchone() != (False,):
            assert time.monotonic() < deadline


def test_another_server_at_the_url_is_refused(server: Postgres, database: Database, tmp_path: Path) -> None:
    catch_up(project_of(tmp_path, server.url))
    with open_reader(project_of(tmp_path, server.url)) as engine:
        kept = engine.execute("SELECT server FROM lake.headrace.progress WHERE table_name IS NULL").fetchone()
    database.execute(*TABLE, "SELECT pg_create_logical_replication_slot('headrace_shop', 'pgoutput')")

    with pytest.raises(PositionLost, match="another server answers at") as refused:
        catch_up(project_of(tmp_path, database.url))

    assert kept is not None and kept[0].endswith("/1")
    assert kept[0].partition("/")[0] in refused.value.message
    assert "headrace drop --slot --lake" in refused.value.remedy


def test_a_promoted_server_whose_log_goes_on_from_the_lake_is_followed(server: Postgres, tmp_path: Path) -> None:
    project = project_of(tmp_path, server.url)
    catch_up(project)
    server.stop()
    promote(server)
    server.execute("INSERT INTO items VALUES (11)")

    catch_up(project)

    assert verify_lake(project).equal
    with open_reader(project) as engine:
        kept = engine.execute("SELECT server FROM lake.headrace.progress WHERE table_name IS NULL").fetchone()
    assert kept is not None and kept[0].endswith("/2")


def test_a_backup_that_was_promoted_before_the_lakes_position_is_refused(server: Postgres, tmp_path: Path) -> None:
    project = project_of(tmp_path, server.url)
    catch_up(project)
    server.stop()
    backup = server.data.with_name("backup")
    subprocess.run(["cp", "-a", server.data, backup], check=True)
    server.start()
    server.execute("INSERT INTO items VALUES (11)")
    catch_up(project)
    server.stop()
    shutil.rmtree(server.data)
    backup.rename(server.data)
    promote(server)
    server.execute("INSERT INTO items SELECT n FROM generate_series(12, 5000) n")

    with pytest.raises(PositionLost, match="the source was promoted or restored: its timeline 2 parted from it at"):
        catch_up(project)


def test_a_lake_that_never_noted_its_server_notes_it(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fresh_database(postgres) as database:
        database.execute(*TABLE)
        project = project_of(tmp_path, database.url)
        with monkeypatch.context() as patch:
            patch.setattr("headrace.lake.writer.LakeWriter.note_server", lambda *_: None)
            catch_up(project)
        catch_up(project)
        database.execute("INSERT INTO items VALUES (11)")
        catch_up(project)
        with open_reader(project) as engine:
            kept = engine.execute("SELECT server FROM lake.headrace.progress WHERE table_name IS NULL").fetchone()
    assert kept is not None and kept[0]
