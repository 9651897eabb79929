"""`headrace history`: what became of one row, from bronze."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.app import main
from headrace.pipeline import mark_for_resync, open_run
from headrace.project import Project
from tests.conftest import Database

History = Callable[..., list[dict[str, Any]]]
Said = Callable[..., tuple[int, str, str]]

ANIMALS = (
    "CREATE TABLE animals (id int PRIMARY KEY, name text, born date, story text)",
    "ALTER TABLE animals ALTER COLUMN story SET STORAGE EXTERNAL",
    "INSERT INTO animals VALUES (1, 'Ada', '2020-01-01', repeat('long ', 2000)), (2, 'Bo', 'infinity', NULL)",
)


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "headrace.yaml").write_text(f"pipeline: zoo\nsource:\n  url: {database.url}\n  tables: ['public.*', 'sales.*']\n")
    return Project.load(folder)


def catch_up(project: Project) -> None:
    with open_run(project, lambda _: None) as run:
        run.run(until_caught_up=True)


@pytest.fixture
def said(project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main(["-C", str(project.folder), "history", *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, " ".join(shown.err.split())

    return run


@pytest.fixture
def history(said: Said) -> History:
    def listed(*arguments: str) -> list[dict[str, Any]]:
        code, out, err = said("--json", *arguments)
        assert code == 0, err
        found: list[dict[str, Any]] = json.loads(out)
        return found

    return listed


def operations(versions: list[dict[str, Any]]) -> list[str]:
    return [version["operation"] for version in versions]


def test_every_version_of_a_row_is_listed_oldest_first(database: Database, project: Project, history: History) -> None:
    database.execute(*ANIMALS)
    catch_up(project)
    database.execute("UPDATE animals SET name = 'Ada Lovelace' WHERE id = 1", "DELETE FROM animals WHERE id = 1")
    database.execute("INSERT INTO animals VALUES (1, 'another Ada', NULL, NULL)")
    catch_up(project)

    copied, updated, deleted, created = history("animals", "1")

    story = "long " * 2000
    assert copied["operation"] == "copy" and copied["before"] is None and copied["transaction"] is None
    assert copied["after"] == {"id": 1, "name": "Ada", "born": "2020-01-01", "story": story}
    assert updated["operation"] == "update" and updated["key_changed"] is None
    assert updated["after"] == {"id": 1, "name": "Ada Lovelace", "born": "2020-01-01"}
    assert updated["unavailable"] == ["story"], "the source did not send it"
    assert deleted["operation"] == "delete" and deleted["before"] == {"id": 1} and deleted["after"] is None
    assert created["operation"] == "create" and created["after"]["name"] == "another Ada"
    assert copied["commit_time"] <= updated["commit_time"] <= deleted["commit_time"] <= created["commit_time"]
    transactions = [version["transaction"] for version in (updated, deleted, created)]
    assert transactions == sorted(set(transactions))


def test_a_change_of_key_is_in_the_history_of_both_keys(database: Database, project: Project, history: History) -> None:
    database.execute(*ANIMALS)
    catch_up(project)
    database.execute("UPDATE animals SET id = 20 WHERE id = 1", "UPDATE animals SET name = 'x' WHERE id = 20")
    catch_up(project)

    assert operations(history("animals", "1")) == ["copy", "update"]
    moved, changed = history("animals", "20")
    assert moved == history("animals", "id=1")[1]
    assert moved["key_changed"] == {"from": {"id": 1}, "to": {"id": 20}}
    assert changed["after"]["name"] == "x" and changed["key_changed"] is None


def test_what_the_type_cannot_hold_is_shown_exactly(database: Database, project: Project, history: History) -> None:
    database.execute(
        "CREATE TABLE odd (day date PRIMARY KEY, price numeric(9,2), at timestamp, ratio float, raw bytea, list int[], ok boolean)",
        "INSERT INTO odd VALUES ('2020-01-01', 'NaN', '0044-03-15 BC', 'NaN', '\\x00ff', '{1,NULL}', true)",
        "INSERT INTO odd VALUES ('2020-01-02', '9999999.10', '2020-01-01 12:00', 0.1, NULL, '{{1},{2}}', false)",
    )
    catch_up(project)

    (first,) = history("odd", "2020-01-01")
    (second,) = history("odd", "2020-01-02")

    assert first["after"] == {
        "day": "2020-01-01",
        "price": "NaN",
        "at": "0044-03-15 00:00:00 BC",
        "ratio": "NaN",
        "raw": "\\x00ff",
        "list": [1, None],
        "ok": True,
    }
    assert first["exact_text"] == ["price", "at"]
    assert second["after"]["price"] == "9999999.10" and second["after"]["list"] == "{{1},{2}}"
    assert second["exact_text"] == ["list"]


def test_a_key_that_silver_cannot_hold_is_found_by_its_text(database: Database, project: Project, history: History) -> None:
    database.execute("CREATE TABLE days (day date PRIMARY KEY, n int)", "INSERT INTO days VALUES ('2020-01-01', 1)")
    catch_up(project)
    database.execute("INSERT INTO days VALUES ('infinity', 2)", "UPDATE days SET day = '2020-01-02' WHERE day = 'infinity'")
    catch_up(project)

    created, moved = history("days", "infinity")

    assert created["after"] == {"day": "infinity", "n": 2} and created["exact_text"] == ["day"]
    assert moved["key_changed"] == {"from": {"day": "infinity"}, "to": {"day": "2020-01-02"}}


def test_a_truncate_is_a_version_of_the_rows_that_were_there(database: Database, project: Project, history: History) -> None:
    database.execute(*ANIMALS)
    catch_up(project)
    database.execute("DELETE FROM animals WHERE id = 2", "TRUNCATE animals", "INSERT INTO animals VALUES (1, 'new', NULL, NULL)")
    catch_up(project)
    mark_for_resync(project, "animals")
    catch_up(project)

    assert operations(history("animals", "1")) == ["copy", "truncate", "create", "copied again", "copy"]
    assert operations(history("animals", "2")) == ["copy", "delete"]


def test_a_key_of_several_columns_is_given_in_order_or_by_name(database: Database, project: Project, history: History) -> None:
    database.execute(
        "CREATE SCHEMA sales",
        "CREATE TABLE sales.lines (line int, place text, n numeric(8,2), PRIMARY KEY (place, line))",
        "INSERT INTO sales.lines VALUES (1, 'a=b', 1), (2, 'a=b', 2), (1, 'line=1', 3)",
    )
    catch_up(project)

    ((first,), (same,)) = history("sales.lines", "a=b", "1"), history("sales.lines", "line=1", "place=a=b")
    (other,) = history("sales.lines", "line=1", "1")

    assert first == same and first["after"] == {"line": 1, "place": "a=b", "n": "1.00"}
    assert other["after"]["n"] == "3.00"


def test_old_rows_are_shown_as_far_as_they_are_logged(database: Database, project: Project, history: History) -> None:
    database.execute(*ANIMALS, "ALTER TABLE animals REPLICA IDENTITY FULL")
    catch_up(project)
    database.execute("UPDATE animals SET name = 'B' WHERE id = 2", "DELETE FROM animals WHERE id = 2")
    catch_up(project)

    _, updated, deleted = history("animals", "2")

    assert updated["before"] == {"id": 2, "name": "Bo", "born": "infinity", "story": None}
    assert deleted["before"] == {"id": 2, "name": "B", "born": "infinity", "story": None}


def test_a_listing_can_be_narrowed(database: Database, project: Project, history: History, said: Said) -> None:
    database.execute(*ANIMALS)
    catch_up(project)
    database.execute(*[f"UPDATE animals SET name = 'n{n}' WHERE id = 2" for n in range(5)])
    catch_up(project)

    assert [version["after"] for version in history("animals", "2", "--columns", "name", "--limit", "2")] == [
        {"name": "n3"},
        {"name": "n4"},
    ]
    assert "earlier versions" in said("animals", "2", "--limit", "2")[2]
    assert "earlier versions" not in said("animals", "2", "--limit", "6")[2]


def test_a_table_shows_what_changed(database: Database, project: Project, said: Said) -> None:
    database.execute(*ANIMALS)
    catch_up(project)
    database.execute(
        "UPDATE animals SET name = '[red]Bob[/]' WHERE id = 2",
        "UPDATE animals SET id = 3 WHERE id = 2",
        "DELETE FROM animals WHERE id = 1",
    )
    catch_up(project)

    code, out, _ = said("animals", "2")

    assert code == 0
    for shown in ("copy", "born: infinity", "name: Bo → [red]Bob[/]", "key: id=2 → id=3"):
        assert shown in out
    assert "id: 1" in said("animals", "1")[1]


def test_what_is_not_there_is_wrong_usage(database: Database, project: Project, said: Said) -> None:
    assert said("animals", "1")[0] == 7, "there is no lake yet"
    database.execute(*ANIMALS, "CREATE TABLE logs (line text)")
    catch_up(project)
    for arguments, message in (
        (("plants", "1"), "the lake has no table public.plants; it has public.animals, public.logs"),
        (("logs", "1"), "table public.logs has no key"),
        (("animals", "1", "2"), "the key of table public.animals is (id)"),
        (("animals", "one"), "the value given for id, of the key of table public.animals, is none of type integer"),
        (("animals", "1.5"), "is none of type integer"),
        (("animals", "99"), "bronze has no change of a row with this key in table public.animals"),
        (("animals", "1", "--columns", "name,age"), "table public.animals has no column age"),
    ):
        code, out, error = said(*arguments)
        assert (code, out) == (2, ""), error
        assert message in error
