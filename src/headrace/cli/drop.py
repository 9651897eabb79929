"""``headrace drop``."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli import show


def drop(
    context: typer.Context,
    slot: Annotated[bool, typer.Option("--slot", help="The replication slot at the source.")] = False,
    publications: Annotated[bool, typer.Option("--publications", help="The two publications at the source.")] = False,
    lake: Annotated[
        bool, typer.Option("--lake", help="The warehouse folder with all tables, the catalog, and the local state.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what a pipeline has made: each part only when asked for, after saying what would go. Without options it only says.

    Example: headrace drop --slot --publications --lake
    """
    from headrace.cli.folder import project_of
    from headrace.errors import ProjectError
    from headrace.removal import apply, plan

    project = project_of(context)
    steps = plan(project, slot=slot, publications=publications, lake=lake)
    asked = slot or publications or lake
    if not steps:
        show.lines("There is nothing to remove.")
        return
    show.lines("This removes:" if asked else "This pipeline has, and `headrace drop` can remove:")
    show.lines(*(f"  {step.text}  ({step.option})" for step in steps))
    if not asked:
        return
    if not yes and not typer.confirm("Remove it? It cannot be brought back"):
        raise ProjectError("nothing was removed")
    for step in apply(project, steps):
        show.lines(f"removed: {step.text}")
