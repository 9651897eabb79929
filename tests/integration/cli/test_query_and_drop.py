"""What `headrace query` and `headrace drop` say when they cannot do what is asked; and two pipelines in one lake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cli.app import main
from headrace.errors import ProjectError
from headrace.pipeline import open_run
from headrace.project import Project
from tests.conftest import Database, fresh_database

Run = Callable[..., tuple[int, str, str]]


def project_of(folder: Path, url: str, *, extra: str = "", tables: str = "[items]", pipeline: str = "shop") -> Project:
    folder.mkdir(exist_ok=True)
    (folder / "headrace.yaml").write_text(f"pipeline: {pipeline}\nsource:\n  url: {url}\n  tables: {tables}\n{extra}")
    return Project.load(folder)


def catch_up(project: Project) -> None:
    with open_run(project, lambda _: None) as run:
        run.run(until_caught_up=True)


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)", "INSERT INTO items SELECT n FROM generate_series(1, 10) n")
    project = project_of(tmp_path / "shop", database.url)
    catch_up(project)
    return project


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main(["-C", str(tmp_path / "shop"), *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, " ".join(shown.err.split())

    return run


@pytest.mark.parametrize("place", ["missing/answer.csv", "."])
def test_an_answer_that_cannot_be_written_names_its_file(project: Project, said: Run, tmp_path: Path, place: str) -> None:
    code, _, error = said("query", "SELECT 1", "-f", "csv", "-o", str(tmp_path / place))

    assert code == 2
    assert "the answer cannot be written to" in error


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("nonsense", "nonsense names no version: it takes latest, a number, or a time"),
        ("4711", "The catalog has no version 4711"),
        ("1999-01-01", "1999"),
        ("-1", "names no version"),
    ],
)
def test_a_version_that_there_is_not_is_wrong_usage(project: Project, said: Run, version: str, found: str) -> None:
    code, _, error = said("query", f"--version={version}", "SELECT 1")

    assert code == 2
    assert found in error
    assert "To do:" in error


@pytest.mark.parametrize("damage", ["missing", "empty", "overwritten", "scrambled"])
@pytest.mark.parametrize("kind", ["data/**/*.parquet", "metadata/*.avro"])
def test_a_file_that_is_missing_or_damaged_is_not_taken_for_a_wrong_query(
    project: Project, said: Run, damage: str, kind: str
) -> None:
    for path in (project.warehouse / "silver" / "items").glob(kind):
        if damage == "missing":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[4:-8] = b"\xff" * len(content[4:-8])
            path.write_bytes({"empty": b"", "overwritten": b"x" * 100, "scrambled": bytes(content)}[damage])

    code, _, error = said("query", "SELECT * FROM silver.items")

    assert code == 7, error
    assert "A file of the lake" in error
    assert "headrace rebuild TABLE" in error and "SHOW ALL TABLES" not in error
    if damage == "missing" or (kind.startswith("data") and damage != "scrambled"):
        assert str(project.warehouse) in error


def test_drop_offers_only_what_it_can_remove(database: Database, postgres: object, said: Run, tmp_path: Path) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    catch_up(project_of(tmp_path / "shop", database.url, extra=f"lake:\n  catalog:\n    store: {database.url}\n"))

    code, out, _ = said("drop")

    assert code == 0
    assert "--slot" in out and "--publications" in out and "--lake" not in out


def test_two_pipelines_whose_tables_would_be_one_in_the_lake_are_refused(database: Database, tmp_path: Path) -> None:
    lake = f"lake:\n  warehouse: {tmp_path / 'both'}\n"
    table = ("CREATE TABLE items (id int PRIMARY KEY)", "INSERT INTO items VALUES (1)")
    database.execute(*table)
    catch_up(project_of(tmp_path / "shop", database.url, extra=lake))
    with fresh_database(database.server) as second:
        second.execute(*table, "CREATE TABLE others (id int PRIMARY KEY)")
        both = project_of(tmp_path / "branch", second.url, extra=lake, tables="[items, others]", pipeline="branch")
        with pytest.raises(ProjectError, match="would be the same table items") as refused:
            catch_up(both)
        assert "public.items of pipeline shop" in refused.value.message
        assert "public.items of pipeline branch" in refused.value.message
        catch_up(project_of(tmp_path / "branch", second.url, extra=lake, tables="[others]", pipeline="branch"))
    catch_up(project_of(tmp_path / "shop", database.url, extra=lake))
