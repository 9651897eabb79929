"""``headrace maintain``."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli import show


def maintain(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Forget old versions of the lake by the rule in lake.retention, and remove the files that only they needed.

    It may be done while a run commits and while others read; `headrace run` does it by itself every lake.maintenance.interval.

    Example: headrace maintain --dry-run
    """
    from rich.console import Console

    from headrace import maintenance
    from headrace.cli.folder import project_of
    from headrace.cli.watching import size

    project = project_of(context)
    done = maintenance.plan(project) if dry_run else maintenance.maintain(project)
    if as_json:
        show.json_document(
            {
                "dry_run": dry_run,
                "versions": len(done.versions),
                "versions_kept": done.kept,
                "files": len(done.files),
                "bytes": done.bytes,
            }
        )
        return
    would = "would be " if dry_run else ""
    Console().print(
        f"{len(done.versions):,} versions {would}forgotten, {done.kept:,} kept; "
        f"{len(done.files):,} files {would}removed, {size(done.bytes)}",
        highlight=False,
    )
