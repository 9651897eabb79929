"""What the kept versions of a lake say of the past: how far each had come, and from when on each table's bronze is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from headrace.catalog import Version
from headrace.lake.progress import Progress, TableProgress, TableSource, read_progress
from headrace.lake.storage import Storage
from headrace.lake.writer import idle_position, known_time
from headrace.position import Position
from headrace.schema import TableId


class VersionedCatalog(TableSource, Protocol):
    """What is needed of the catalog to look back."""

    def versions(self, *, first: int = 0, last: int | None = None) -> list[Version]: ...

    def note(self, key: str) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A kept version and the pipeline's progress there."""

    version: Version
    progress: Progress

    @property
    def position(self) -> Position:
        assert self.progress.position is not None
        return self.progress.position

    @property
    def time(self) -> datetime:
        """Of its last transaction at the source; where it has only copies, when it was made."""
        return self.progress.commit_time or self.version.committed_at


class Timeline:
    """The versions up to ``last`` (None: the latest), with one pipeline's progress. Positions never go back."""

    def __init__(self, catalog: VersionedCatalog, storage: Storage, pipeline: str, *, last: int | None = None) -> None:
        self._catalog, self._storage, self._pipeline = catalog, storage, pipeline
        self._versions = catalog.versions(last=last)
        self._known: dict[int, Kept | None] = {}
        self._idle = idle_position(catalog, pipeline)
        self.known_time = known_time(catalog, pipeline)

    def at(self, index: int) -> Kept | None:
        """The version of this index; None before the pipeline's first commit."""
        if index not in self._known:
            version = self._versions[index]
            progress = read_progress(self._catalog, self._storage, self._pipeline, version=version.number)
            there = progress is not None and progress.position is not None
            self._known[index] = Kept(version=version, progress=progress) if there and progress is not None else None
        return self._known[index]

    @property
    def latest(self) -> Kept | None:
        return self.at(len(self._versions) - 1)

    @property
    def reached(self) -> Position | None:
        """Up to where the lake has the source's changes."""
        latest = self.latest
        return None if latest is None else max(latest.position, self._idle or latest.position)

    def _last(self, holds: Callable[[Kept], bool]) -> int:
        """The index of the last version of which this is true, as it is of all before it; -1 if there is none."""
        low, high = 0, len(self._versions)
        while low < high:
            middle = (low + high) // 2
            kept = self.at(middle)
            if kept is None or holds(kept):
                low = middle + 1
            else:
                high = middle
        return low - 1

    def newest_not_past(self, position: Position) -> Kept | None:
        """The newest version whose position is not past this one."""
        found = self._last(lambda kept: kept.position <= position)
        return None if found < 0 else self.at(found)

    def a_version_by(self, moment: datetime) -> Kept | None:
        """A version whose transactions' last was committed by then; the newest such, unless clocks were set back."""
        found = self._last(lambda kept: kept.time <= moment)
        kept = None if found < 0 else self.at(found)
        return kept if kept is not None and kept.time <= moment else None

    def complete_until(self, kept: Kept, table: TableProgress) -> Position | None:
        """Up to where bronze has every change since the table's last copy, as far as that version knows."""
        if table.copy_lsn is None:
            return None
        latest, reached = self.latest, self.reached
        if table.state == "following":
            return reached if kept is latest and reached is not None else kept.position
        # Changes were missed from some place on between its last commit and when that was noticed.
        until = table.position or Position(kept.position.epoch, table.copy_lsn)
        return until if table.fault is None else min(until, Position(kept.position.epoch, table.fault.lsn))

    def proofs(self, name: TableId, position: Position) -> Iterator[tuple[Kept, TableProgress, Position]]:
        """Versions with every change of the table from a copy up to this position in bronze, and up to where they have it."""
        index = self._last(lambda kept: kept.position <= position)
        candidates = [index + 1] if index + 1 < len(self._versions) else []
        while index >= 0 and (kept := self.at(index)) is not None:
            candidates.append(index)
            if kept.position < position:
                break
            index -= 1
        for candidate in candidates:
            kept = self.at(candidate)
            table = kept.progress.tables.get(name) if kept is not None else None
            if kept is None or table is None or table.copy_lsn is None:
                continue
            until = self.complete_until(kept, table)
            if until is not None and Position(kept.position.epoch, table.copy_lsn) <= position <= until:
                yield kept, table, until

    def a_version_after(self, moment: datetime) -> Kept | None:
        """A version that has a transaction committed after then; the first such, unless clocks were set back."""
        index = self._last(lambda kept: kept.time <= moment) + 1
        kept = self.at(index) if index < len(self._versions) else None
        return kept if kept is not None and kept.time > moment else None

    def before(self, name: TableId, position: Position) -> tuple[Kept, TableProgress, Position] | None:
        """How far before this position the table can be shown: a version that knows, and up to where."""
        kept = self.newest_not_past(position)
        table = kept.progress.tables.get(name) if kept is not None else None
        if kept is None or table is None:
            return None
        until = self.complete_until(kept, table)
        return None if until is None else (kept, table, min(until, position))

    def next_copy(self, name: TableId, position: Position) -> Kept | None:
        """The first version with a copy of the table made after this position."""

        def older(kept: Kept) -> bool:
            table = kept.progress.tables.get(name)
            return table is None or table.copy_lsn is None or Position(kept.position.epoch, table.copy_lsn) <= position

        following = self._last(older) + 1
        return self.at(following) if following < len(self._versions) else None

    def first_with_copy(self, name: TableId, copy: Position) -> Kept | None:
        """The first version with this copy of the table."""
        return self.next_copy(name, Position(copy.epoch, copy.lsn - 1))
