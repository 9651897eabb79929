"""``headrace resync`` and ``headrace rebuild``: two ways to make a table right again."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def resync(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help="The source table: schema.table, or a name in public.")],
) -> None:
    """Have the next `run` copy a table again from the source, with its present columns, in place of its rows in silver.

    The remedy for a parked table. Bronze keeps what it has, marked with a truncate before the new copy.

    Example: headrace resync public.orders
    """
    from headrace.cli.folder import project_of
    from headrace.pipeline import mark_for_resync

    name = mark_for_resync(project_of(context), table)
    Console().print(f"{name} is copied again when `headrace run` starts.")


def rebuild(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help="The source table: schema.table, or a name in public.")],
) -> None:
    """Make a table's silver anew from its bronze, without asking the source. Needs that no `run` is active.

    Example: headrace rebuild public.orders
    """
    from headrace.cli.folder import project_of
    from headrace.pipeline import rebuild_silver

    name, rows, version = rebuild_silver(project_of(context), table)
    Console().print(f"silver of {name} was rebuilt from bronze: {rows:,} rows, version {version}")
