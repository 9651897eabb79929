"""What a pipeline has and how far it is behind, read from the lake and the source; from any process, while a run goes on or
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from headrace.catalog import Catalog
from headrace.change import TableFault
from headrace.errors import HeadraceError, LakeUnavailable
from headrace.lake.writer import idle_position
from headrace.pipeline import connector_of, open_catalog, progress_of
from headrace.position import Position, format_lsn
from headrace.project import Project
from headrace.schema import TableId
from headrace.source.postgres import slots
from headrace.source.postgres.readers import Choice, kept_reader
from headrace.verify.proven import Proven, proven_tables


@dataclass(frozen=True, kw_only=True)
class TableStatus:
    """``verified``: the position up to which `verify` has last proven the table equal, and when; or that it differed."""

    table: TableId
    state: str
    rows: int
    changes: int
    position: Position | None
    commit_time: datetime | None
    fault: TableFault | None
    verified: str


@dataclass(frozen=True, kw_only=True)
class SourceStatus:
    """The slot and the log's end at the source. ``retained_bytes``: log that the source keeps for the slot."""

    slot: str
    exists: bool
    end: str
    end_lsn: int
    confirmed: str | None
    retained_bytes: int
    wal_status: str | None
    safe_wal_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """``running`` and the lags are None when the source does not answer; ``source_error`` then says why. ``reader`` is what reads
    the log now, None while nothing does.
    """

    pipeline: str
    version: int
    position: Position | None
    running: bool | None
    reader: Choice | None
    lag_bytes: int | None
    lag_seconds: float | None
    source: SourceStatus | None
    source_error: str
    tables: Sequence[TableStatus]


def read_status(project: Project) -> Status:
    """Raises ProjectError, and LakeUnavailable when there is a lake that cannot be read."""
    source, running, source_error = None, None, ""
    try:
        source, running = _ask_source(project)
    except HeadraceError as error:
        source_error = error.message
    try:
        with open_catalog(project, create=False) as catalog:
            return _with_lake(project, catalog, source, running, source_error)
    except LakeUnavailable:
        if project.warehouse.exists() and any(project.warehouse.iterdir()):
            raise
        return Status(
            pipeline=project.pipeline,
            version=0,
            position=None,
            running=running,
            reader=None,
            lag_bytes=None,
            lag_seconds=None,
            source=source,
            source_error=source_error,
            tables=[],
        )


def _ask_source(project: Project) -> tuple[SourceStatus, bool]:
    with connector_of(project).connect() as control:
        slot = slots.find_slot(control, project.slot)
        end = slots.current_lsn(control)
        running = slots.is_running(control, project.slot)
    confirmed = slot.confirmed_lsn if slot is not None else None
    return (
        SourceStatus(
            slot=project.slot,
            exists=slot is not None,
            end=format_lsn(end),
            end_lsn=end,
            confirmed=format_lsn(confirmed) if confirmed is not None else None,
            retained_bytes=slot.retained_bytes if slot is not None else 0,
            wal_status=slot.wal_status if slot is not None else None,
            safe_wal_bytes=slot.safe_wal_bytes if slot is not None else None,
        ),
        running,
    )


def _with_lake(
    project: Project, catalog: Catalog, source: SourceStatus | None, running: bool | None, source_error: str
) -> Status:
    progress = progress_of(project, catalog)
    position = progress.position if progress is not None else None
    idle = idle_position(catalog, project.pipeline)
    if position is not None and idle is not None:
        position = max(position, idle)
    lag = max(source.end_lsn - position.lsn, 0) if source is not None and position is not None else None
    commit_time = progress.commit_time if progress is not None else None
    seconds = None
    if lag is not None:
        seconds = (datetime.now(UTC) - commit_time).total_seconds() if lag and commit_time is not None else 0.0
    verified = {table: _words(proven) for table, proven in proven_tables(catalog, project.pipeline).items()}
    tables = [
        TableStatus(
            table=table,
            state=one.state,
            rows=one.rows,
            changes=one.changes,
            position=one.position,
            commit_time=one.commit_time,
            fault=one.fault,
            verified=verified.get(table, ""),
        )
        for table, one in sorted((progress.tables if progress is not None else {}).items())
    ]
    return Status(
        pipeline=project.pipeline,
        version=catalog.latest_version(),
        position=position,
        running=running,
        reader=kept_reader(project.state) if running else None,
        lag_bytes=lag,
        lag_seconds=seconds,
        source=source,
        source_error=source_error,
        tables=tables,
    )


def _words(proven: Proven) -> str:
    return f"{proven.position} ({proven.at:%H:%M:%S})" if proven.equal else f"differed at {proven.position}"


def document(status: Status) -> dict[str, Any]:
    """The status as it stands in JSON. LSNs are texts, times ISO 8601 in UTC, lags bytes and seconds."""
    source = status.source
    return {
        "pipeline": status.pipeline,
        "version": status.version,
        "position": str(status.position) if status.position else None,
        "running": status.running,
        "reader": {"reader": status.reader.reader, "reason": status.reader.reason} if status.reader else None,
        "lag_bytes": status.lag_bytes,
        "lag_seconds": status.lag_seconds,
        "source": None
        if source is None
        else {
            "slot": source.slot,
            "slot_exists": source.exists,
            "end": source.end,
            "confirmed": source.confirmed,
            "retained_bytes": source.retained_bytes,
            "wal_status": source.wal_status,
            "safe_wal_bytes": source.safe_wal_bytes,
        },
        "source_error": status.source_error or None,
        "tables": [
            {
                "table": str(one.table),
                "state": one.state,
                "rows": one.rows,
                "changes": one.changes,
                "position": str(one.position) if one.position else None,
                "commit_time": one.commit_time.isoformat() if one.commit_time else None,
                "reason": one.fault.reason if one.fault else None,
                "remedy": one.fault.remedy if one.fault else None,
                "verified": one.verified or None,
            }
            for one in status.tables
        ],
    }
