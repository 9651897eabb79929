"""Preflight: what would stop a run or surprise its user, each finding with its cure. Nothing is changed at the source.

A check is a function from `Examined` to findings; its docstring's first line is what the reference page says of it. To add one,
write it and list it in `CHECKS`. A *finding* is about the source; that a check could not run is an *error*, and is kept apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import psycopg

from headrace.errors import SourceNotReady, SourceUnreachable
from headrace.source.postgres import slots
from headrace.source.postgres.checks import publications, server, tables
from headrace.source.postgres.checks.finding import Examined, Finding, Names, Severity
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.relations import read_publications, survey

__all__ = [
    "BEFORE_A_RUN",
    "CHECKS",
    "Check",
    "Examined",
    "Failed",
    "Finding",
    "Names",
    "Report",
    "Severity",
    "check_name",
    "preflight",
    "require_ready",
]

Check = Callable[[Examined], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    server.server_version,
    server.primary,
    server.wal_level,
    server.encoding,
    server.pooler,
    server.replication,
    server.free_slots,
    server.free_senders,
    server.free_connections,
    server.kept_log,
    server.open_transactions,
    tables.tables_found,
    tables.table_privileges,
    tables.replica_identity,
    tables.row_level_security,
    tables.generated_columns,
    tables.types,
    tables.inheritance,
    publications.publication_privileges,
    publications.publication_contents,
    publications.slot_state,
)

BEFORE_A_RUN: tuple[Check, ...] = (
    server.server_version,
    server.primary,
    server.wal_level,
    server.encoding,
    server.pooler,
    tables.tables_found,
    tables.table_privileges,
    tables.replica_identity,
    tables.row_level_security,
    publications.publication_privileges,
    publications.publication_contents,
)
"""What a run has to look at itself, since it would not notice, or only when half done. It takes some 20 ms."""

_ORDER: dict[Severity, int] = {"blocker": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A check that could not run, and why: it says nothing about the source."""

    check: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings, blockers first."""

    findings: tuple[Finding, ...]
    failed: tuple[Failed, ...]

    @property
    def blockers(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "blocker"]

    @property
    def ready(self) -> bool:
        """A run would work, as far as every check can tell."""
        return not self.blockers and not self.failed


def preflight(
    connector: Connector,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    names: Names,
    copy_connections: int = 2,
    checks: Sequence[Check] = CHECKS,
    elsewhere: Iterable[Callable[[], Iterable[Finding]]] = (),
) -> Report:
    """Run the checks, and those of other parts (``elsewhere``: the lake's).

    Raises SourceUnreachable or SourceNotReady when no connection is possible.
    """
    findings: list[Finding] = []
    failed: list[Failed] = []
    with connector.connect() as connection:
        if server.too_old(connection.info.server_version):  # the other checks would not understand its catalog
            return Report(findings=(server.version_finding(connection.info.server_version),), failed=())
        examined = Examined(
            connector=connector,
            connection=connection,
            include=include,
            survey=survey(connection, include, exclude),
            names=names,
            publications=read_publications(connection, [names.publication, names.appends_publication]),
            running=slots.is_running(connection, names.slot),
            copy_connections=copy_connections,
            user=connection.info.user,
        )
        for check in checks:
            try:
                findings += check(examined)
            except psycopg.Error as error:
                meaning = connector.failed(error)
                if isinstance(meaning, SourceUnreachable):
                    raise meaning from error
                failed.append(Failed(check=check_name(check), reason=meaning.message))
    for look in elsewhere:
        findings += look()
    return Report(findings=tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity])), failed=tuple(failed))


def require_ready(report: Report) -> None:
    """Raises SourceNotReady when there is a blocker, with all of them and the first one's cure; or a check that could not run."""
    if report.blockers:
        first = report.blockers[0]
        raise SourceNotReady(
            "; ".join(f"{finding.object}: {finding.found}, so {finding.consequence}" for finding in report.blockers),
            remedy=first.cure + (" (`headrace check` has all findings with their cures.)" if len(report.blockers) > 1 else ""),
        )
    if report.failed:
        raise SourceNotReady(
            "what a run needs could not be looked up: "
            + "; ".join(f"check {failed.check}: {failed.reason}" for failed in report.failed),
            remedy="Give this user the privilege that is missing, then say this again.",
        )


def check_name(check: Callable[..., object]) -> str:
    """As findings and the reference page call it."""
    return check.__name__.replace("_", "-")
