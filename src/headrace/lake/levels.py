"""Which small files are merged into one: levels as in a log-structured merge tree.

A file's level is the logarithm of its live rows to the base ``fanout``. A level that has ``fanout`` files is merged into one of a
higher level, so a row is rewritten once a level, and a table has at most about ``fanout`` files a level whatever its age. Files
from ``base_rows`` or
``base_bytes`` on are *base* files and stay as they are, until so many of their rows are dead that they count as small again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MergeLimits:
    """``most_rows`` and ``most_bytes`` bound what one commit merges in one table, and so how long it takes."""

    fanout: int = 8
    base_rows: int = 131_072
    base_bytes: int = 16 << 20
    most_rows: int = 400_000
    most_bytes: int = 32 << 20

    def is_base(self, rows: int, size: int) -> bool:
        return rows >= self.base_rows or size >= self.base_bytes


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A file's live rows, and about how many bytes they take (``size``)."""

    rows: int
    size: int


def level(rows: int, fanout: int) -> int:
    """⌊log_fanout(rows)⌋, 0 for fewer than ``fanout``."""
    result = 0
    while rows >= fanout:
        rows //= fanout
        result += 1
    return result


def choose_merge(files: Sequence[Sized], limits: MergeLimits, *, fanout: int | None = None) -> list[int]:
    """Indexes of the files to merge into one now; empty when there is nothing to do. Prefers small ones.

    ``fanout`` overrides how many files of a level are needed, not how levels are counted.
    """
    needed = fanout or limits.fanout
    by_level: dict[int, list[int]] = {}
    for index, file in enumerate(files):
        if not limits.is_base(file.rows, file.size):
            by_level.setdefault(level(file.rows, limits.fanout), []).append(index)
    chosen: list[int] = []
    rows = size = 0
    reached = -1
    for number in sorted(by_level):
        members = by_level[number]
        # What was chosen so far will be one file; where that completes the next level too, it is merged in the same go.
        joins = chosen and level(rows, limits.fanout) >= number
        if len(members) + bool(joins) < needed:
            if chosen and number > reached:
                break
            continue
        for index in members:
            file = files[index]
            if len(chosen) > 1 and (rows + file.rows > limits.most_rows or size + file.size > limits.most_bytes):
                return chosen
            chosen.append(index)
            rows += file.rows
            size += file.size
        reached = level(rows, limits.fanout)
    return chosen if len(chosen) > 1 else []
