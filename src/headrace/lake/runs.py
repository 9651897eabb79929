"""Sorted runs: the immutable pieces that a key index is made of, in memory or as memory-mapped files."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.lake.keys import Lane, Lanes

ABSENT = np.uint64(0xFFFFFFFFFFFFFFFF)
"""No place: a deleted key in a run, an unknown or deleted one in an answer."""

MERGE_ROWS = 1 << 20
_CHECK_BYTES = 1 << 22
_LANE_BYTES = 8


class Damaged(Exception):
    """A file of the index is missing or not what was written."""


@dataclass(frozen=True)
class Run:
    """n entries in ascending order of their keys, each key once: where its row is, or ABSENT if it was deleted."""

    keys: Lanes
    places: Lane
    path: Path | None = None
    """The file that the arrays are mapped from."""
    checksum: int = 0
    mapped: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.places)

    def look_up(self, keys: Lanes, found: Lane, unknown: npt.NDArray[np.bool_]) -> None:
        """Of the sorted ``keys``, fill in ``found`` those that are ``unknown`` so far and in this run, and mark them known."""
        if not len(self):
            return
        begin = int(np.searchsorted(keys.hi, self.keys.hi[0], "left"))
        end = int(np.searchsorted(keys.hi, self.keys.hi[-1], "right"))
        wanted = np.flatnonzero(unknown[begin:end]) + begin
        if not len(wanted):
            return
        hi = keys.hi[wanted]
        at = np.searchsorted(self.keys.hi, hi, "left")
        if keys.lo is None or self.keys.lo is None:
            inside = at < len(self)
            at, wanted, hi = at[inside], wanted[inside], hi[inside]
            hits = self.keys.hi[at] == hi
            found[wanted[hits]] = self.places[at[hits]]
            unknown[wanted[hits]] = False
            return
        lo = keys.lo[wanted]
        # Different keys may share their upper half: step on to the next entry as long as that is so.
        while len(wanted):
            inside = at < len(self)
            at, wanted, hi, lo = at[inside], wanted[inside], hi[inside], lo[inside]
            near = self.keys.hi[at] == hi
            at, wanted, hi, lo = at[near], wanted[near], hi[near], lo[near]
            hits = self.keys.lo[at] == lo
            found[wanted[hits]] = self.places[at[hits]]
            unknown[wanted[hits]] = False
            rest = ~hits
            at, wanted, hi, lo = at[rest] + 1, wanted[rest], hi[rest], lo[rest]

    def slice(self, begin: int, end: int) -> Run:
        return Run(self.keys.take(slice(begin, end)), self.places[begin:end])

    def release(self) -> None:
        """Give the mapped pages back to the system, which keeps them cached: they no longer count as this process's memory."""
        if self.mapped is not None:
            self.mapped.madvise(mmap.MADV_DONTNEED)


def merged(runs: Sequence[Run], *, drop_deleted: bool) -> Run:
    """One run of these, oldest first: of a key's entries the newest stays."""
    los = [run.keys.lo for run in runs if run.keys.lo is not None]
    keys = Lanes(np.concatenate([run.keys.hi for run in runs]), np.concatenate(los) if los else None)
    places = np.concatenate([run.places for run in runs])
    order = keys.order(presorted=True)  # stable: entries of a key stay oldest first
    keys, places = keys.take(order), places[order]
    last = np.ones(len(places), np.bool_)
    last[:-1] = ~keys.same_as_previous()[1:]
    if drop_deleted:
        last &= places != ABSENT
    if not last.all():
        keys, places = keys.take(last), places[last]
    return Run(keys, places)


def merged_in_pieces(runs: Sequence[Run], *, drop_deleted: bool) -> Iterator[Run]:
    """As `merged`, in ascending pieces that take a bounded amount of memory."""
    total = sum(len(run) for run in runs)
    pieces = -(-total // MERGE_ROWS)
    if pieces <= 1:
        yield merged(runs, drop_deleted=drop_deleted)
        return
    samples = np.sort(np.concatenate([run.keys.hi[:: max(1, total // (pieces * 64))] for run in runs]))
    cuts = np.unique(samples[np.linspace(0, len(samples), pieces + 1)[1:-1].astype(np.int64)])
    bounds = [np.concatenate([[0], np.searchsorted(run.keys.hi, cuts), [len(run)]]) for run in runs]
    for piece in range(len(cuts) + 1):
        parts = [run.slice(int(bound[piece]), int(bound[piece + 1])) for run, bound in zip(runs, bounds, strict=True)]
        yield merged(parts, drop_deleted=drop_deleted)


def write_run(path: Path, pieces: Iterator[Run], *, wide: bool) -> Run:
    """Write ascending pieces to a file as one run, mapped from it. Raises OSError."""
    count = checksum = 0
    lanes = [path.with_name(f"{path.name}.{lane}") for lane in range(3 if wide else 2)]
    files = [lane.open("xb") for lane in lanes]
    try:
        for piece in pieces:
            count += len(piece)
            columns = [piece.keys.hi, piece.places] if piece.keys.lo is None else [piece.keys.hi, piece.keys.lo, piece.places]
            for file, column in zip(files, columns, strict=True):
                file.write(np.ascontiguousarray(column).view(np.uint8).data)
        # Each lane was gathered in a file of its own; a run is one file, one lane after the other.
        with path.open("xb") as whole:
            for lane, file in zip(lanes, files, strict=True):
                file.close()
                with lane.open("rb") as source:
                    while content := source.read(_CHECK_BYTES):
                        checksum = zlib.crc32(content, checksum)
                        whole.write(content)
    finally:
        for lane, file in zip(lanes, files, strict=True):
            file.close()
            lane.unlink(missing_ok=True)
    return map_run(path, count, checksum, wide=wide)


def checksum_of(path: Path) -> int:
    """CRC-32 of the file. Read, not mapped: reading does not count as this process's memory."""
    checksum = 0
    with path.open("rb") as file:
        while content := file.read(_CHECK_BYTES):
            checksum = zlib.crc32(content, checksum)
    return checksum


def map_run(path: Path, count: int, checksum: int, *, wide: bool) -> Run:
    """Map a run of ``count`` entries from its file. Raises Damaged if the file has another size."""
    lanes = 3 if wide else 2
    if not count:
        empty = np.zeros(0, np.uint64)
        return Run(Lanes(empty, empty if wide else None), empty, path, checksum)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != count * lanes * _LANE_BYTES:
                raise Damaged(f"{path} has another size than it was written with")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise Damaged(f"{path} cannot be read") from error
    mapped.madvise(mmap.MADV_RANDOM)
    columns = np.frombuffer(mapped, np.uint64).reshape(lanes, count)
    return Run(Lanes(columns[0], columns[1] if wide else None), columns[-1], path, checksum, mapped)
