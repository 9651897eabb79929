"""What the pipeline asks of a lake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from headrace.change import ChangeBatch, TableFault
from headrace.position import Position
from headrace.schema import TableId, TableSchema
from headrace.source.port import CopySink


@dataclass(frozen=True, kw_only=True)
class TableState:
    """A table as the lake has it. ``waiting``: it is to be copied (again); ``fault``: it is parked."""

    schema: TableSchema
    waiting: bool
    fault: TableFault | None

    @property
    def following(self) -> bool:
        return not self.waiting and self.fault is None

    @property
    def captured(self) -> bool:
        """Its changes go to bronze: those of a table of which only silver is parked, too."""
        return not self.waiting and (self.fault is None or self.fault.bronze_goes_on)


@dataclass(frozen=True, kw_only=True)
class StagedCopy:
    """A finished copy of a table at ``lsn``, on disk, not visible yet."""

    table: TableId
    lsn: int
    rows: int
    source_id: str = ""
    """`TableSchema.source_id` when it was copied."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a commit did. ``rows``: changes per table; ``commit_time``: of the last source transaction in it."""

    version: int
    rows: Mapping[TableId, int]
    commit_time: datetime | None


class Lake(Protocol):
    """Takes change batches in order and makes them visible, all tables at once.

    Ordering: `stage` in source order. Durability: when `commit` returns, data and position are on disk and visible
    together; when it
    raises, nothing of it is, and nothing is staged any more. Replay: the source must go on from `position`. One writer at a time.
    """

    @property
    def position(self) -> Position | None:
        """Up to where the lake has the source's changes; None before the first commit."""

    @property
    def server(self) -> str:
        """Which server the changes came from; empty if that was never noted."""

    @property
    def tables(self) -> Mapping[TableId, TableState]: ...

    def claim(self, tables: Iterable[TableId]) -> None:
        """Raises ProjectError when another table, of any pipeline, has the place of one of these in the lake."""

    @property
    def staged(self) -> bool:
        """True if a commit would change a table."""

    def stage(self, batch: ChangeBatch) -> Mapping[TableId, TableFault]:
        """Write the batch's files. Evolves a table whose schema in the batch is newer; parks the tables in ``batch.faults``, and
        those that cannot take their changes. Returns all that are parked by it.
        """

    def park(self, name: TableId, fault: TableFault) -> None:
        """Park a table with the next commit."""

    def note_server(self, server: str) -> None:
        """Keep which server the changes come from with the next commit."""

    def note_state(self, name: TableId, state: str) -> None:
        """Keep `TableSchema.source_state` with the next commit."""

    def commit(self, end: Position) -> Receipt: ...

    def abandon(self) -> None:
        """Forget what is staged."""

    def note_idle(self, end: Position) -> None:
        """The source's log was read up to here, and nothing in it concerned the lake."""

    def note_known(self, moment: datetime) -> None:
        """Everything that was committed at the source by then, by its clock, is in the lake."""

    def copy(self, schema: TableSchema, lsn: int) -> CopySink: ...

    def staged_copies(self) -> Sequence[StagedCopy]:
        """The finished copies that no commit has adopted yet."""

    def adopt(self, copies: Iterable[StagedCopy]) -> None:
        """Make these copies part of the next commit."""
