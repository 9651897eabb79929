"""`headrace verify`: all tables of source and lake compared by content at one source position, while both go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.errors import LakeUnavailable, ProjectError
from headrace.position import Position
from headrace.schema import TableId
from headrace.source.postgres.connect import Connector
from headrace.verify.comparison import ComparedTable, TableResult, compare, fingerprint_of, source_side
from headrace.verify.fingerprint import Fingerprint
from headrace.verify.lake_state import Lake, lake_state
from headrace.verify.source_state import NotComparable, SourceState, source_state

NAMED_KEYS = 20
PATIENCE = 60.0
POLL = 0.2


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found at ``position``, in the lake's ``version``.

    ``behind_bytes``: so much of the source's log before the position the lake has not read. Tables that are equal all the same
    are proven equal there; a difference may be a change that the lake is yet to take.
    """

    position: Position
    version: int
    behind_bytes: int
    tables: tuple[TableResult, ...]

    @property
    def equal(self) -> bool:
        return all(table.equal for table in self.tables)


def verify(
    *,
    connector: Connector,
    slot: str,
    lake: Lake,
    tables: Sequence[TableId] = (),
    limit: int = NAMED_KEYS,
    patience: float = PATIENCE,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Compare these tables, or all of the pipeline's. ``limit``: how many differing keys are named for each.

    The source is read under a snapshot, so that it may go on changing. While a run follows it, the lake is waited for until it
    has reached the snapshot's position; when it has not come nearer for ``patience`` seconds, it is compared as it is.
    Raises SourceUnreachable, SourceNotReady, LakeUnavailable, and ProjectError for a table that the lake does not have.
    """
    epoch, wanted = _named(lake, tables)
    with source_state(connector, slot=slot, say=say) as source:
        position = Position(epoch, source.lsn)
        compared = {table: _read_source(source, table, say) for table in wanted}
        reached = _await(lake, position, lambda: source.running(slot), patience, say)
        with lake_state(lake, position) as state:
            results = []
            for table in wanted:
                read = compared[table]
                if isinstance(read, TableResult):
                    results.append(read)
                    continue
                say(f"{table}: reading the lake")
                try:
                    results.append(compare(source, state, read[0], read[1], limit=limit))
                except NotComparable as reason:
                    results.append(TableResult(table=table, source=read[1], problem=str(reason)))
            return Report(
                position=position,
                version=state.version,
                behind_bytes=max(position.lsn - reached.lsn, 0) if reached.epoch == epoch else 0,
                tables=tuple(results),
            )


def _named(lake: Lake, tables: Sequence[TableId]) -> tuple[int, list[TableId]]:
    """The lake's epoch, and the tables to compare."""
    progress = lake.progress(lake.catalog.latest_version())
    if progress is None or progress.position is None:
        raise LakeUnavailable("the lake has no table yet", remedy="`headrace run` makes the first copy.")
    if unknown := [table for table in tables if table not in progress.tables]:
        known = ", ".join(str(table) for table in sorted(progress.tables))
        raise ProjectError(f"the lake has no table {unknown[0]}; it has {known}")
    return progress.position.epoch, list(tables) or sorted(progress.tables)


def _read_source(
    source: SourceState, table: TableId, say: Callable[[str], None]
) -> tuple[ComparedTable, Fingerprint] | TableResult:
    say(f"{table}: reading the source")
    try:
        compared = ComparedTable(table=table, relation=source.relation(table), utf8=source.utf8)
    except NotComparable as reason:
        return TableResult(table=table, problem=str(reason))
    return compared, fingerprint_of(source.rows(source_side(compared).fingerprint_sql()))


def _await(lake: Lake, position: Position, running: Callable[[], bool], patience: float, say: Callable[[str], None]) -> Position:
    """The lake's position, once it is not before this one, no run goes on, or the run does not come nearer."""
    told, best, deadline = False, None, time.monotonic() + patience
    while True:
        active = running()  # asked first: a run that ends after its last commit has left nothing to wait for
        reached = lake.position()
        assert reached is not None
        if reached >= position or not active:
            return reached
        if best is None or reached > best:
            best, deadline = reached, time.monotonic() + patience
        elif time.monotonic() > deadline:
            return reached
        if not told:
            say(f"waiting for the lake, which is at {reached}, to reach {position}")
            told = True
        time.sleep(POLL)
