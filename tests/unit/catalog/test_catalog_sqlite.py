"""What the SQLite store says when its file is in trouble."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.catalog import Catalog
from headrace.catalog.sqlite import SqliteDatabase
from headrace.errors import LakeUnavailable, ProjectError
from tests.catalog_changes import creation, properties


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


@pytest.fixture
def catalog(path: Path, tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(path, tmp_path / "lake", timeout=0.2) as catalog:
        catalog.create_namespace("silver")
        yield catalog


def test_commits_are_flushed_to_disk(path: Path) -> None:
    database = SqliteDatabase(path, timeout=1, create=True)
    with database.read() as session:
        assert session.rows("pragma journal_mode") == [("wal",)]
        assert session.rows("pragma synchronous") == [(2,)]
    database.close()


def test_a_catalog_that_stays_locked_is_named(catalog: Catalog, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(LakeUnavailable, match=r"locked by another writer for 0\.2 s") as failure:
        catalog.commit([creation()])
    assert str(path) in failure.value.message
    assert failure.value.remedy
    other.execute("rollback")
    other.close()
    catalog.commit([creation()])


def test_reading_goes_on_while_another_writes(catalog: Catalog, path: Path) -> None:
    catalog.commit([creation()])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    assert catalog.tables("silver") == ["orders"]
    other.close()


def test_a_file_that_is_no_database_is_named(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(LakeUnavailable, match="not a SQLite database"):
        Catalog.open(path, tmp_path / "lake")


def test_a_damaged_catalog_is_named(path: Path, tmp_path: Path) -> None:
    with Catalog.open(path, tmp_path / "lake") as catalog:
        catalog.create_namespace("silver")
        catalog.commit([creation(f"t{number}") for number in range(50)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with (
        pytest.raises(LakeUnavailable, match=r"is damaged|is not a SQLite database"),
        Catalog.open(path, tmp_path / "lake") as again,
    ):
        again.tables("silver")


def test_a_full_disk_is_named_and_nothing_is_lost(catalog: Catalog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.commit([creation()])
    database = catalog._database
    assert isinstance(database, SqliteDatabase)
    with database.read() as session:  # the same error as a full disk, without filling one
        session.rows("pragma max_page_count = 1")
    for key in range(1000):
        try:
            catalog.set_note(str(key), "x" * 4000)
        except LakeUnavailable as error:
            assert "the disk is full" in error.message
            break
    else:
        pytest.fail("the disk never became full")
    with database.read() as session:
        session.rows("pragma max_page_count = 1000000")
    assert catalog.load("silver", "orders").metadata["properties"] == {}
    catalog.commit([properties(x="1")])


def test_a_path_that_is_a_folder_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(LakeUnavailable, match="cannot be opened"):
        Catalog.open(tmp_path, tmp_path / "lake")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeUnavailable, match="cannot be made"):
        Catalog.open(tmp_path / "file/catalog.db", tmp_path / "lake")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_an_unwritable_catalog_is_named(catalog: Catalog, path: Path, tmp_path: Path) -> None:
    path.chmod(0o400)
    with Catalog.open(path, tmp_path / "lake") as reading, pytest.raises(LakeUnavailable, match="cannot be written"):
        assert reading.namespaces() == ["silver"]
        reading.create_namespace("gold")


def test_a_catalog_that_may_not_be_made_must_be_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(LakeUnavailable, match="There is no catalog"):
        Catalog.open(path, tmp_path / "lake", create=False)
    assert not path.exists()


def test_a_catalog_of_another_layout_is_refused(path: Path, tmp_path: Path) -> None:
    Catalog.open(path, tmp_path / "lake").close()
    database = sqlite3.connect(path)
    database.execute("update catalog_settings set value = '99'")
    database.commit()
    database.close()
    with pytest.raises(LakeUnavailable, match="layout 99"):
        Catalog.open(path, tmp_path / "lake")


@pytest.mark.parametrize("folder", ["100%", "a#b", "what?"])
def test_a_warehouse_whose_path_engines_read_differently_is_refused(path: Path, tmp_path: Path, folder: str) -> None:
    with pytest.raises(ProjectError, match="engines read differently"):
        Catalog.open(path, tmp_path / folder)


def test_an_interrupted_commit_leaves_the_connection_usable(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("headrace.failpoint.hit", interrupt)
        catalog.commit([creation()])
    assert catalog.tables("silver") == []
    catalog.commit([creation()])
