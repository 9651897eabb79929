"""What the pipeline asks of a source."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from headrace.change import ChangeBatch, TableFault
from headrace.position import Position
from headrace.schema import TableId, TableSchema


class Stopped(Exception):
    """The source was asked to stop while it waited."""


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """A table the project names, as the source has it now."""

    schema: TableSchema
    estimated_rows: int | None
    note: str = ""
    """What its reader should know: for instance that it has no key, so that silver appends."""


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """`TableSchema.source_state` of tables at a moment; all that was committed until then stands before ``lsn`` in the log.

    ``at``: the moment, by the source's clock (aware).
    """

    lsn: int
    at: datetime
    states: Mapping[TableId, str]


class CopySink(Protocol):
    """Where one table's copy goes. Chunks may come from several threads; nothing is visible before the sink is adopted."""

    def append(self, rows: pa.Table) -> None:
        """Take ``r`` rows in the change layout."""

    def finish(self) -> None:
        """All rows came. The copy survives a crash from here on."""

    def discard(self) -> None:
        """Forget what came: the table has to be read again."""


class Source(Protocol):
    """A database whose committed changes can be read in order, more than once, from a position that it keeps for us.

    Order: batches come in commit order, whole transactions one after the other. Replay: `changes` from a position gives
    every change after
    it again. Durability: the source keeps everything after the last acknowledged position. One `changes` iteration at a time.
    """

    def open(self, position: Position | None, server: str = "") -> AbstractContextManager[Position]:
        """Take the pipeline's lock, make what is missing (publications, slot), and give the position to go on from.

        ``position`` is where the lake stands, None for a new one, and ``server`` what `server` was then. Raises
        AlreadyRunning, PositionLost, SourceNotReady, SourceUnreachable, and Stopped when `stop` was called meanwhile.
        """

    def server(self) -> str:
        """Which server this is, while the source is open: positions of two servers do not compare."""

    def tables(self) -> Mapping[TableId, SourceTable]:
        """The tables that the project names, as they are now."""

    def gaps(self, known: Mapping[TableId, TableSchema]) -> Mapping[TableId, TableFault]:
        """Those of the tables in a lake of which changes are missing, although the log goes on: why, and what to do."""

    def glimpse(self, known: Mapping[TableId, TableSchema]) -> Glimpse:
        """How the source holds the rows of these tables now. Cheap, and never waits for a table."""

    def unlogged(self, glimpse: Glimpse, known: Mapping[TableId, TableSchema]) -> Mapping[TableId, TableFault | None]:
        """Of these tables, followed up to the glimpse, those whose state has changed since it was kept; and why they cannot be
        followed any more, None where the rows are the same.
        """

    def copy(
        self, tables: Sequence[TableId], sink: Callable[[TableSchema, int], CopySink], progress: Callable[[TableId, int], None]
    ) -> None:
        """Read these tables whole; ``sink(schema, lsn)`` is asked once per table and try. Reports rows read so far."""

    def changes(
        self,
        start: Position,
        *,
        tables: Mapping[TableId, TableSchema],
        from_lsn: Mapping[TableId, int],
        parked: Mapping[TableId, TableFault],
        until: int | None = None,
    ) -> Generator[ChangeBatch, None, None]:
        """Changes after ``start``; of a table in ``from_lsn`` only transactions that committed at or after that LSN."""

    def end(self) -> int:
        """The LSN where the source's log ends now."""

    def end_seen(self) -> int:
        """The LSN where the source's log ended when last asked, without asking."""

    def acknowledge(self, position: Position) -> None:
        """Everything up to here is durable in the lake: the source may forget it. Called from a thread of its own."""

    def stop(self) -> None:
        """End `changes` and `copy` soon. From any thread."""
