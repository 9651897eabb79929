"""The ``headrace`` command: its sub-commands, and how errors end it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headrace import __version__
from headrace.cli import check, demo, drop, history, init, maintain, query, resync, run, serve, show, status, verify, versions
from headrace.errors import HeadraceError

COMMANDS: tuple[Callable[..., None] | typer.Typer, ...] = (
    # A function, called as the command; or a group of commands with its own name. Heavy imports belong inside the functions.
    init.init,
    check.check,
    run.run,
    status.status,
    query.query,
    query.sql,
    history.history,
    verify.verify,
    versions.versions,
    resync.resync,
    resync.rebuild,
    maintain.maintain,
    serve.catalog,
    drop.drop,
    demo.demo,
)
DEBUG = "HEADRACE_DEBUG"


class Commands(TyperGroup):
    """Takes ``-C DIR`` before and after the command's name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        if "-C" in args[: max(end - 1, 0)]:
            at = args.index("-C")
            args = [*args[at : at + 2], *args[:at], *args[at + 2 :]]
        return super().parse_args(ctx, args)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    name="headrace",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def headrace(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("-C", metavar="DIR", help="The project folder, with headrace.yaml in it.")] = Path(),
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")] = False,
) -> None:
    """PostgreSQL into a queryable Iceberg lakehouse, exactly once, transaction by transaction.

    Example: headrace init --source postgresql://me@db.example/shop shop && headrace -C shop run

    Exit codes: 0 done, 1 unexpected, 2 wrong project file or usage, 3 source unreachable, 4 source not ready, 5 already running,
    6 position lost, 7 lake unavailable, 8 source and lake differ, 9 tables parked, 10 bad query.
    """
    context.obj = folder


for command in COMMANDS:
    if isinstance(command, typer.Typer):
        app.add_typer(command)
    else:
        app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    try:
        app(arguments)
    except HeadraceError as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        show.error(error)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        # Its text is not shown: it may hold a row's value.
        show.aside(f"Error: headrace met something it does not know ({type(error).__name__}). {DEBUG}=1 shows where.")
        sys.exit(1)
