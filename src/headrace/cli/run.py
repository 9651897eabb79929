"""``headrace run``."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console


def run(
    context: typer.Context,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End when the lake stands where the source's log ended at the beginning.")
    ] = False,
    duration: Annotated[str | None, typer.Option("--for", metavar="DURATION", help="End after this long: 30s, 10m, 2h.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show trouble only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each event.")] = False,
) -> None:
    """Copy the tables that are new, then follow the source, until stopped.

    Ctrl-C and SIGTERM end it after the commit under way. Started again, it goes on where the lake stands.

    Example: headrace run --for 10m
    """
    from headrace.cli.folder import project_of
    from headrace.cli.watching import watcher
    from headrace.errors import ProjectError, TablesParked
    from headrace.pipeline import open_run
    from headrace.project.units import parse_duration

    project = project_of(context)
    try:
        seconds = parse_duration(duration) if duration is not None else None
    except ValueError as error:
        raise ProjectError(f"--for {duration} is not a duration such as 30s, 10m or 2h") from error
    with watcher(Console(), as_json=as_json, quiet=quiet) as watch, open_run(project, watch) as running:

        def stop(_number: int, _frame: FrameType | None) -> None:
            running.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            running.run(until_caught_up=until_caught_up, seconds=seconds)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        parked = running.parked()
    if parked and until_caught_up:
        raise TablesParked(
            f"tables are parked: {', '.join(str(table) for table in sorted(parked))}; the others are up to date",
            remedy="`headrace status` says why, and what to do.",
        )
