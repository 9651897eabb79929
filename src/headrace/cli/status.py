"""``headrace status``."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli import show


def status(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Show what the pipeline has and how far it is behind, whether or not it runs, and whether or not the source answers.

    Example: headrace status --json
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from headrace.cli.folder import project_of
    from headrace.cli.watching import READERS, size
    from headrace.status import document, read_status

    found = read_status(project_of(context))
    if as_json:
        show.json_document(document(found))
        return
    console = Console()
    source = found.source
    running = {True: "[green]running[/]", False: "not running", None: "unknown (the source does not answer)"}[found.running]
    console.print(f"Pipeline [bold]{found.pipeline}[/]: {running} · version {found.version} · position {found.position or '–'}")
    if source is None:
        console.print(Text(found.source_error, style="yellow"))
    else:
        lag = "caught up" if not found.lag_bytes else f"{size(found.lag_bytes)} behind, {found.lag_seconds or 0:.1f} s"
        slot = f"slot {source.slot}: " + (
            f"keeps {size(source.retained_bytes)} of log, {source.wal_status or 'unknown'}"
            if source.exists
            else "[red]missing[/]"
        )
        console.print(f"Source at {source.end}: lake {lag} · {slot}")
        if found.reader is not None:
            console.print(f"Log read {READERS[found.reader.reader]}: {found.reader.reason}")
    table = Table()
    for heading in ("table", "state", "rows", "changes", "position", "last commit (UTC)", "proven equal at"):
        table.add_column(heading, justify="right" if heading in ("rows", "changes") else "left", no_wrap=heading == "state")
    for one in found.tables:
        table.add_row(
            str(one.table),
            Text(one.state, style={"following": "green", "parked": "red"}.get(one.state, "yellow")),
            f"{one.rows:,}",
            f"{one.changes:,}",
            str(one.position or "–"),
            f"{one.commit_time:%Y-%m-%d %H:%M:%S}" if one.commit_time else "–",
            one.verified or "–",
        )
    console.print(table)
    for one in found.tables:
        if one.fault is not None:
            console.print(Text.assemble((f"{one.table} is parked: ", "red"), one.fault.reason))
            console.print(Text(f"  → {one.fault.remedy}", style="green"))
