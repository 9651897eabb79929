"""``headrace versions``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def versions(
    context: typer.Context,
    last: Annotated[int, typer.Option(min=1, help="How many of the latest versions to list.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, oldest first.")] = False,
) -> None:
    """List the lake's latest versions: each is one commit of all tables, and can be queried by its number or time.

    Example: headrace versions --last 5
    """
    from headrace.cli.folder import project_of
    from headrace.pipeline import open_catalog

    with open_catalog(project_of(context), create=False) as catalog:
        listed = catalog.versions(first=max(0, catalog.latest_version() - last + 1))
    if as_json:
        document = [{"version": one.number, "committed_at": one.committed_at.isoformat()} for one in listed]
        typer.echo(json.dumps(document, indent=2))
        return
    table = Table(box=None)
    table.add_column("version", justify="right")
    table.add_column("committed at (UTC)")
    for one in listed:
        table.add_row(str(one.number), f"{one.committed_at:%Y-%m-%d %H:%M:%S.%f}")
    Console().print(table)
