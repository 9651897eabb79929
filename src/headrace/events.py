"""What a run tells whoever watches it: the terminal's progress display, JSON lines, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from headrace.change import TableFault
from headrace.position import Position
from headrace.schema import TableId


@dataclass(frozen=True, kw_only=True)
class Said:
    """Something that the user should know: what the run waits for, what it found."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Copying:
    """A table's first copy has come this far. ``estimated_rows`` is the source's own estimate, None if it has none."""

    table: TableId
    rows: int
    estimated_rows: int | None
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Committed:
    """One atomic commit of the lake. ``rows`` counts the changes per table; ``lag_bytes`` is what the source's log has
    beyond it.
    """

    version: int
    position: Position
    rows: Mapping[TableId, int]
    seconds: float
    commit_time: datetime | None
    lag_bytes: int


@dataclass(frozen=True, kw_only=True)
class CaughtUp:
    """The lake stands where the source's log ends."""

    position: Position


@dataclass(frozen=True, kw_only=True)
class Reading:
    """From now on the log is read by this reader (``bulk`` or ``stream``), and why."""

    reader: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Parked:
    table: TableId
    fault: TableFault


@dataclass(frozen=True, kw_only=True)
class Retrying:
    """The run lost its source or lake and will try again after so many seconds."""

    reason: str
    seconds: float
    tables: tuple[TableId, ...] = field(default=())


Event = Said | Copying | Reading | Committed | CaughtUp | Parked | Retrying
Watch = Callable[[Event], None]
