"""``headrace check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli import show
from headrace.errors import SourceNotReady

if TYPE_CHECKING:
    from rich.text import Text

    from headrace.project import Project
    from headrace.source.postgres.checks import Report
    from headrace.source.postgres.connect import Connector


def check(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")] = False,
) -> None:
    """Look for all that would stop a run or surprise its user, each with its cure. Changes nothing.

    Ends with 0 when `headrace run` would work, with 4 when it would not.

    Example: headrace check --json
    """
    from headrace.cli.folder import project_of

    report = examine(project_of(context))
    if as_json:
        show.json_document(document(report))
    else:
        show.lines(*as_text(report), summary(report))
    if not report.ready:
        raise typer.Exit(SourceNotReady.exit_code)


def examine(project: Project, connector: Connector | None = None) -> Report:
    """Every check of the project's source and lake. Raises SourceUnreachable, SourceNotReady, ProjectError."""
    from headrace.cli.lake_checks import lake_findings
    from headrace.pipeline import connector_of
    from headrace.source.postgres.checks import Names, preflight

    return preflight(
        connector or connector_of(project),
        include=project.source.tables,
        exclude=project.source.exclude,
        names=Names(slot=project.slot, publication=project.publication, appends_publication=project.appends_publication),
        copy_connections=project.source.copying.connections,
        elsewhere=[lambda: lake_findings(project)],
    )


def document(report: Report) -> dict[str, Any]:
    """The report as it stands in JSON."""
    return {
        "ready": report.ready,
        "findings": [
            {
                "check": finding.check,
                "severity": finding.severity,
                "object": finding.object,
                "found": finding.found,
                "consequence": finding.consequence,
                "cure": finding.cure,
            }
            for finding in report.findings
        ],
        "could_not_run": [{"check": failed.check, "reason": failed.reason} for failed in report.failed],
    }


def as_text(report: Report, *, notes: bool = True) -> list[Text]:
    """The findings as lines for a person."""
    findings = [finding for finding in report.findings if notes or finding.severity != "note"]
    blocks = show.found((one.severity, f"{one.object}: {one.found}; {one.consequence}", one.cure) for one in findings)
    return blocks + show.found(("unknown", f"{failed.check} could not run: {failed.reason}", "") for failed in report.failed)


def summary(report: Report) -> str:
    counts = [
        f"{number} {severity}{'' if number == 1 else 's'}"
        for severity in ("blocker", "warning", "note")
        if (number := sum(finding.severity == severity for finding in report.findings))
    ]
    if report.failed:
        counts.append(f"{len(report.failed)} could not run")
    outcome = "`headrace run` would work" if report.ready else "`headrace run` would not work yet"
    return f"{outcome}: {', '.join(counts) if counts else 'nothing found'}."
