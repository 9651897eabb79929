from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from headrace.cli.app import main
from headrace.project import Project
from headrace.testing.postgres import Postgres, free_port
from tests.conftest import Database

PASSWORD = "hunter2"


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Headrace(Protocol):
    def __call__(self, *arguments: str, folder: Path, **environ: str) -> Done: ...


@pytest.fixture
def headrace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Headrace:
    """The command, in this process: starting one for each call would take most of the time."""

    def call(*arguments: str, folder: Path, **environ: str) -> Done:
        with monkeypatch.context() as surroundings:
            surroundings.chdir(folder)
            surroundings.delenv("DATABASE_URL", raising=False)
            for name, value in environ.items():
                surroundings.setenv(name, value)
            try:
                main(list(arguments))
                code: object = 0
            except SystemExit as end:
                code = end.code
        shown = capsys.readouterr()
        assert isinstance(code, int)
        return Done(code, shown.out, shown.err)

    return call


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def guarded() -> Iterator[Postgres]:
    """A server that asks for passwords, with a shop in it."""
    with Postgres(password=PASSWORD) as server:
        server.execute(
            "CREATE TABLE users (id int PRIMARY KEY)",
            "CREATE SCHEMA sales",
            'CREATE TABLE sales."Odd $name" (id int PRIMARY KEY)',
            "CREATE TABLE events (at timestamptz)",
            "CREATE UNLOGGED TABLE scratch (id int)",
        )
        yield server


# --- init ---


def test_init_writes_a_project_that_loads_and_check_accepts(headrace: Headrace, guarded: Postgres, tmp_path: Path) -> None:
    done = headrace("init", "--source", guarded.url, "shop", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    project = Project.load(tmp_path / "shop")
    assert project.pipeline == "postgres"
    assert project.source.tables == ("public.events", "public.users", "sales.Odd $name")
    assert "table public.events: it has no primary key" in done.stdout
    assert 'ALTER TABLE "public"."events" ADD PRIMARY KEY (…);' in done.stdout
    assert done.stdout.splitlines()[-1] == "Next: `headrace -C shop run`"

    checked = headrace("check", "-C", "shop", folder=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.splitlines()[-1] == "`headrace run` would work: 1 warning, 1 note."


def test_a_password_goes_to_a_private_file_and_nowhere_else(headrace: Headrace, guarded: Postgres, tmp_path: Path) -> None:
    done = headrace("init", "--source", guarded.url, "shop", folder=tmp_path)
    kept = tmp_path / "shop" / ".headrace" / "source-password"
    assert [path for path in files_below(tmp_path) if PASSWORD in path.read_text()] == [kept]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert (kept.parent / ".gitignore").read_text() == "*\n"
    assert PASSWORD not in done.stdout
    assert str(kept) in done.stdout
    checked = headrace("check", "--json", folder=tmp_path / "shop")
    assert PASSWORD not in checked.stdout


def test_a_source_given_as_a_variable_stays_one(headrace: Headrace, guarded: Postgres, tmp_path: Path) -> None:
    done = headrace("init", "--source", "${SHOP}", "--name", "shop", folder=tmp_path, SHOP=guarded.url)
    assert done.returncode == 0
    assert 'url: "${SHOP}"' in (tmp_path / "headrace.yaml").read_text()
    assert not any(PASSWORD in path.read_text() for path in files_below(tmp_path))
    assert headrace("check", folder=tmp_path, SHOP=guarded.url).returncode == 0
    without = headrace("check", folder=tmp_path)
    assert without.returncode == 2
    assert "environment variable SHOP, which is not set" in without.stderr


def test_the_source_may_come_from_database_url(headrace: Headrace, guarded: Postgres, tmp_path: Path) -> None:
    assert headrace("init", folder=tmp_path, DATABASE_URL=guarded.url).returncode == 0
    assert 'url: "${DATABASE_URL}"' in (tmp_path / "headrace.yaml").read_text()


def test_init_without_a_source_says_how_to_give_one(headrace: Headrace, tmp_path: Path) -> None:
    done = headrace("init", folder=tmp_path)
    assert done.returncode == 2
    assert "headrace init --source postgresql://" in done.stderr


def test_an_existing_project_is_not_overwritten(headrace: Headrace, guarded: Postgres, tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text("mine")
    done = headrace("init", "--source", guarded.url, folder=tmp_path)
    assert done.returncode == 2
    assert "headrace.yaml exists already; it was not changed" in done.stderr
    assert (tmp_path / "headrace.yaml").read_text() == "mine"
    assert files_below(tmp_path) == [tmp_path / "headrace.yaml"]


def test_a_source_that_cannot_be_reached_leaves_nothing_behind(headrace: Headrace, tmp_path: Path) -> None:
    done = headrace("init", "--source", f"postgresql://u:{PASSWORD}@127.0.0.1:{free_port()}/shop", "shop", folder=tmp_path)
    assert done.returncode == 3
    assert "nothing listens there" in done.stderr
    assert PASSWORD not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_url_is_refused_without_quoting_it(headrace: Headrace, tmp_path: Path) -> None:
    done = headrace("init", "--source", f"postgresql://u:a/{PASSWORD}@h/shop", folder=tmp_path)
    assert done.returncode == 2
    assert PASSWORD not in done.stderr
    assert "percent-encoded" in done.stderr


def test_a_database_without_tables_is_refused(headrace: Headrace, database: Database, tmp_path: Path) -> None:
    done = headrace("init", "--source", database.url, folder=tmp_path)
    assert done.returncode == 4
    assert "has no table that can be captured" in done.stderr
    assert files_below(tmp_path) == []


def test_patterns_for_tables_can_be_given(headrace: Headrace, guarded: Postgres, tmp_path: Path) -> None:
    assert headrace("init", "--source", guarded.url, "--table", "sales.*", "--table", "users", folder=tmp_path).returncode == 0
    assert Project.load(tmp_path).source.tables == ("sales.*", "users")


def test_init_reports_in_json(headrace: Headrace, guarded: Postgres, tmp_path: Path) -> None:
    done = headrace("init", "--source", guarded.url, "--json", folder=tmp_path)
    document = json.loads(done.stdout)
    assert document["file"] == str(tmp_path / "headrace.yaml")
    assert document["tables"] == ["public.events", "public.users", "sales.Odd $name"]
    assert document["ready"] is True
    assert {finding["check"] for finding in document["findings"]} == {"replica-identity", "kept-log"}


def test_a_folder_that_cannot_be_written_is_named(headrace: Headrace, guarded: Postgres, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = headrace("init", "--source", guarded.url, "file/shop", folder=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/file/shop/headrace.yaml cannot be written: Not a directory" in done.stderr


# --- check ---


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Path:
    database.execute("CREATE TABLE users (id int PRIMARY KEY)")
    (tmp_path / "headrace.yaml").write_text(f"pipeline: {database.name}\nsource:\n  url: {database.url}\n  tables: [users]\n")
    return tmp_path


def document_of(headrace: Headrace, folder: Path, **environ: str) -> tuple[int, dict[str, Any]]:
    done = headrace("check", "--json", folder=folder, **environ)
    return done.returncode, json.loads(done.stdout)


def test_check_ends_with_0_when_a_run_would_work(headrace: Headrace, project: Path) -> None:
    code, document = document_of(headrace, project)
    assert (code, document["ready"], document["could_not_run"]) == (0, True, [])
    assert files_below(project) == [project / "headrace.yaml"]  # nothing was made


def test_check_ends_with_4_and_the_cure_when_a_run_would_not_work(headrace: Headrace, project: Path) -> None:
    code, document = document_of(headrace, project, HEADRACE__SOURCE__TABLES="users,orders")
    assert (code, document["ready"]) == (4, False)
    assert document["findings"][0] == {
        "check": "tables-found",
        "severity": "blocker",
        "object": "source.tables: orders",
        "found": "no such table",
        "consequence": "a run refuses to begin",
        "cure": "Correct source.tables in headrace.yaml.",
    }
    done = headrace("check", folder=project, HEADRACE__SOURCE__TABLES="users,orders")
    assert done.returncode == 4
    assert done.stdout.splitlines()[:2] == [
        "blocker source.tables: orders: no such table; a run refuses to begin",
        "        → Correct source.tables in headrace.yaml.",
    ]


def test_check_ends_with_3_when_the_source_cannot_be_reached(headrace: Headrace, project: Path) -> None:
    done = headrace("check", "--json", folder=project, HEADRACE__SOURCE__URL=f"postgresql://u@127.0.0.1:{free_port()}/shop")
    assert (done.returncode, done.stdout) == (3, "")
    assert "nothing listens there" in done.stderr


def found(document: dict[str, Any], check: str) -> list[str]:
    return [finding["found"] for finding in document["findings"] if finding["check"] == check]


def test_a_warehouse_that_is_no_folder_blocks(headrace: Headrace, project: Path) -> None:
    (project / "lake").write_text("a file")
    code, document = document_of(headrace, project)
    assert code == 4
    assert found(document, "warehouse-writable") == [f"{project}/lake is not a folder"]


def test_a_warehouse_that_cannot_be_written_blocks(headrace: Headrace, project: Path) -> None:
    code, document = document_of(headrace, project, HEADRACE__LAKE__WAREHOUSE="/proc/self/lake")
    assert code == 4
    assert "no file can be written in /proc/self" in found(document, "warehouse-writable")[0]


def test_a_damaged_catalog_blocks(headrace: Headrace, project: Path) -> None:
    (project / "lake").mkdir()
    location = Project.load(project).catalog_location()
    assert isinstance(location, Path)
    location.write_bytes(b"this is no database, and long enough to be read as one" * 20)
    code, document = document_of(headrace, project)
    assert code == 4
    assert "is not a SQLite database" in found(document, "catalog-writable")[0]


def test_a_catalogs_database_that_is_not_there_blocks_without_its_secret(headrace: Headrace, project: Path) -> None:
    store = f"postgresql://u:{PASSWORD}@127.0.0.1:{free_port()}/catalog"
    code, document = document_of(headrace, project, HEADRACE__LAKE__CATALOG__STORE=store)
    assert code == 4
    assert "the catalog's database (catalog at 127.0.0.1:" in found(document, "catalog-writable")[0]
    assert "nothing listens there" in found(document, "catalog-writable")[0]
    assert "lake.catalog.store" in json.dumps(document)
    assert "source.url" not in json.dumps(document)
    assert PASSWORD not in json.dumps(document)


def test_a_catalogs_database_that_may_not_be_changed_blocks(headrace: Headrace, project: Path, database: Database) -> None:
    database.execute(f"CREATE ROLE meek_{database.name} LOGIN")
    try:
        code, document = document_of(headrace, project, HEADRACE__LAKE__CATALOG__STORE=database.url_as(f"meek_{database.name}"))
        assert code == 4
        assert found(document, "catalog-writable") == [f"role meek_{database.name} may not make a schema in it"]
        assert document_of(headrace, project, HEADRACE__LAKE__CATALOG__STORE=database.url)[0] == 0
    finally:
        database.execute(f"DROP ROLE meek_{database.name}")
