from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from headrace.cli import app as command_line
from headrace.errors import HeadraceError, SourceUnreachable


def run(*arguments: str, folder: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "80", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_quick() -> None:
    run("--help")  # compiles what is not compiled yet
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5


def test_the_version_is_told() -> None:
    assert run("--version").stdout.startswith("headrace ")


@pytest.mark.parametrize("arguments", [["nonsense"], ["check", "--nonsense"], ["query"], ["-C"]], ids=" ".join)
def test_a_wrong_command_line_ends_with_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert done.stdout == ""


def test_the_project_folder_is_named_before_or_after_the_command(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text("nonsense: 1\n")
    for arguments in (["-C", str(tmp_path), "check"], ["check", "-C", str(tmp_path)], ["check", "--json", "-C", str(tmp_path)]):
        done = run(*arguments)
        assert done.returncode == 2
        assert f"{tmp_path}/headrace.yaml:1: nonsense is not a setting" in done.stderr
    assert f"{tmp_path}/headrace.yaml:1: nonsense" in run("check", folder=tmp_path).stderr


def test_the_project_folder_is_not_taken_from_behind_a_double_dash(tmp_path: Path) -> None:
    done = run("query", "--", "-C", str(tmp_path), folder=tmp_path)
    assert f"unexpected extra argument(s) ({tmp_path})" in done.stderr


def test_an_error_is_a_message_a_remedy_and_its_exit_code(tmp_path: Path) -> None:
    done = run("check", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"Error: there is no project file {tmp_path}/headrace.yaml",
        "To do: `headrace init --source URL` writes one; `headrace -C DIR …` looks in another folder.",
    ]


def test_debugging_shows_where_an_error_came_from(tmp_path: Path) -> None:
    done = run("check", folder=tmp_path, HEADRACE_DEBUG="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("To do: ")


class Broken(Exception):
    pass


def fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    def raises(arguments: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", raises)
    with pytest.raises(SystemExit) as ended:
        command_line.main(["check"])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_error_kind_ends_with_its_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [HeadraceError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    for kind in kinds:
        assert fails_with(kind("something", remedy="do this"), monkeypatch) == kind.exit_code
        assert capsys.readouterr().err == "Error: something\nTo do: do this\n"


def test_brackets_in_a_message_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fails_with(SourceUnreachable("host [::1] and type text[] [/]"), monkeypatch)
    assert capsys.readouterr().err == "Error: host [::1] and type text[] [/]\n"


def test_an_unexpected_error_shows_its_kind_and_not_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HEADRACE_DEBUG", raising=False)
    assert fails_with(Broken("a row's value"), monkeypatch) == 1
    shown = capsys.readouterr().err
    assert shown == "Error: headrace met something it does not know (Broken). HEADRACE_DEBUG=1 shows where.\n"


def test_an_unexpected_error_has_its_traceback_when_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_DEBUG", "1")
    assert fails_with(Broken("details"), monkeypatch) == 1
    assert "Broken: details" in capsys.readouterr().err


def test_every_command_is_registered_once() -> None:
    names = list(typer.main.get_command(command_line.app).commands)  # type: ignore[attr-defined]
    assert len(names) == len(set(names)) == len(command_line.COMMANDS)
    assert {"init", "check"} <= set(names)
