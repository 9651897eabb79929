"""The reference pages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace import errors
from headrace.cli.lake_checks import CHECKS as LAKE_CHECKS
from headrace.cli.reference import checks_page, commands, commands_page
from headrace.source.postgres.checks import CHECKS, check_name

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_the_page_of_commands_is_current() -> None:
    kept = (REFERENCE / "commands.md").read_text()
    assert kept == commands_page(), "run: python -m headrace.cli.reference commands > docs/reference/commands.md"


def test_the_page_of_checks_is_current() -> None:
    kept = (REFERENCE / "checks.md").read_text()
    assert kept == checks_page(), "run: python -m headrace.cli.reference checks > docs/reference/checks.md"
    for check in (*CHECKS, *LAKE_CHECKS):
        assert f"| `{check_name(check)}` |" in kept
        assert check.__doc__


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_explains_itself_with_an_example(name: str, command: object) -> None:
    if not getattr(command, "commands", None) or name == "headrace":
        assert re.search(r"^Example: headrace ", command.help, re.MULTILINE)  # type: ignore[attr-defined]
    for parameter in command.params:  # type: ignore[attr-defined]
        assert parameter.help, f"{name} {parameter.name}"


def test_every_exit_code_is_documented() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]*)\|", (REFERENCE / "exit-codes.md").read_text(), re.MULTILINE)
    documented = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HeadraceError)]
    assert documented == {kind.__name__: kind.exit_code for kind in kinds}
