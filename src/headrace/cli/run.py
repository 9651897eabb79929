"""``headrace run``."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console

if TYPE_CHECKING:
    from headrace.run import Run


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

    Ctrl-C and SIGTERM end it after the commit under way; a second Ctrl-C ends it at once, which loses nothing either.
    Started again, it goes on where the lake stands.

    Example: headrace run --for 10m
    """
    with Stopping() as stopping:
        from headrace.cli.folder import project_of
        from headrace.cli.watching import watcher
        from headrace.errors import ProjectError, TablesParked
        from headrace.events import Said
        from headrace.maintenance import Schedule
        from headrace.pipeline import open_run
        from headrace.project.units import parse_duration

        project = project_of(context)
        try:
            seconds = parse_duration(duration) if duration is not None else None
        except ValueError as error:
            raise ProjectError(f"--for {duration} is not a duration such as 30s, 10m or 2h") from error
        with watcher(Console(), as_json=as_json, quiet=quiet) as watch, open_run(project, watch) as running:
            stopping.watch_over(running)
            with nullcontext() if until_caught_up else Schedule(project, lambda text: watch(Said(text=text))):
                running.run(until_caught_up=until_caught_up, seconds=seconds)
            parked = running.parked()
    if parked and until_caught_up:
        raise TablesParked(
            f"tables are parked: {', '.join(str(table) for table in sorted(parked))}; the others are up to date",
            remedy="`headrace status` says why, and what to do.",
        )


class Stopping:
    """While this context lasts, SIGTERM and Ctrl-C stop the run, also one that is still being opened."""

    def __init__(self) -> None:
        self._running: Run | None = None
        self._asked = self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def watch_over(self, running: Run) -> None:
        self._running = running
        if self._asked:
            running.stop()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            Console().show_cursor(True)  # a live display hides it
            os._exit(128 + signal.SIGINT)  # a crash, to the lake and to the source: both are made for it
        self._asked = True
        self._interrupted |= number == signal.SIGINT
        if self._running is not None:
            self._running.stop()
