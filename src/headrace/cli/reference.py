"""The reference pages of commands and of checks, from the commands and checks themselves.

``python -m headrace.cli.reference commands > docs/reference/commands.md``, and the same with ``checks``.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer

from headrace.cli.app import app

INTRODUCTION = """\
# Commands

Every command has `--help`. `-C DIR` names the project's folder, before or after the command; without it, it is the folder you are
in. Reports go to standard output, advice and errors to standard error; `--json` gives one JSON document. See also the
[exit codes](exit-codes.md). (This page is generated: `python -m headrace.cli.reference commands`.)
"""
CHECKS_INTRODUCTION = """\
# Checks

What `headrace check` (and `headrace init`) looks at. Each finding says what it is about, what was found, what follows, and its
cure. Nothing is changed, at the source or in the lake.

| severity | meaning |
|---|---|
| blocker | `headrace run` would fail, or would break something at the source; `headrace check` ends with exit code 4 |
| warning | `headrace run` works, but something may surprise you, or fail later |
| note | worth knowing |

A check that could not run (a privilege for a system view is missing, say) is reported as *unknown*, and counts as a blocker.
(This page is generated: `python -m headrace.cli.reference checks`.)
"""


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command with the words that call it, groups first."""
    group = typer.main.get_command(app) if group is None else group
    yield " ".join(("headrace", *path)), group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def commands_page() -> str:
    """The reference page of commands, in Markdown."""
    parts = [INTRODUCTION]
    for name, command in commands():
        parts += [f"## `{name}`", "", _text(command.help or ""), ""]
        rows = [row for row in map(_row, command.params) if row]
        if rows:
            parts += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def checks_page() -> str:
    """The reference page of checks, in Markdown."""
    from headrace.cli.lake_checks import CHECKS as OF_THE_LAKE
    from headrace.source.postgres.checks import CHECKS as OF_THE_SOURCE
    from headrace.source.postgres.checks import check_name

    def rows(checks: Iterable[Callable[..., Any]]) -> list[str]:
        lines = [f"| `{check_name(check)}` | {' '.join(inspect.cleandoc(check.__doc__ or '').split())} |" for check in checks]
        return ["| check | that |", "|---|---|", *lines, ""]

    return "\n".join([CHECKS_INTRODUCTION, "## The source", "", *rows(OF_THE_SOURCE), "## The lake", "", *rows(OF_THE_LAKE)])


def _text(text: str) -> str:
    """A docstring as Markdown, its example as code."""
    text = inspect.cleandoc(text).replace("<", "&lt;")
    return re.sub(
        r"^Example: (.*(?:\n(?!\n).*)*)", lambda found: f"```\n{found[1].replace('&lt;', '<')}\n```", text, flags=re.MULTILINE
    )


def _row(parameter: Any) -> str:
    if parameter.name == "help" or getattr(parameter, "hidden", False):
        return ""
    argument = parameter.param_type_name == "argument"
    words = parameter.metavar or parameter.name.upper() if argument else ", ".join((*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    if callable(default) or default in (None, False, (), []) or parameter.required:
        shown = "*required*" if parameter.required else ""
    else:
        shown = f"`{getattr(default, 'value', default)}`"
    help_text = (getattr(parameter, "help", "") or "").replace("|", "\\|").replace("<", "&lt;")
    return f"| `{words}` | {shown} | {help_text} |"


def main() -> None:
    pages = {"commands": commands_page, "checks": checks_page}
    sys.stdout.write(pages[sys.argv[1]]())


if __name__ == "__main__":
    main()
