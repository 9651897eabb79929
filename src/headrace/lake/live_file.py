"""The files that a table has now or with the next commit, and places of rows in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headrace.lake.dead_rows import DeadRows
from headrace.lake.manifests import DataFile
from headrace.lake.row_files import RowFile

Places = npt.NDArray[np.uint64]
"""Where rows are: file id << 32 | position in the file."""

ROW_BITS = 32
ROW_MASK = (1 << ROW_BITS) - 1


@dataclass(slots=True, eq=False)
class LiveFile:
    """A data or delete file of the table. What is only known once it is written is None until then."""

    id: int
    location: str
    content: int
    partition: int | str | None
    rows: int = 0
    size: int = 0
    encoded: bytes = b""
    snapshot_id: int | None = None
    sequence: int | None = None
    file_sequence: int | None = None
    writing: RowFile | None = None
    described: DataFile | None = None
    merged: bool = False
    dead: DeadRows | None = None
    aims: dict[int, int] = field(default_factory=dict)
    """Of a delete file: how many rows of which data file it names."""

    @property
    def committed(self) -> bool:
        return self.snapshot_id is not None

    @property
    def live_rows(self) -> int:
        return self.rows - (self.dead.count if self.dead is not None else 0)


def by_file(places: Places) -> Iterable[tuple[int, npt.NDArray[np.uint64]]]:
    """Places grouped by file: pairs of file id and sorted positions."""
    if not len(places):
        return
    places = np.sort(places)
    ids = places >> np.uint64(ROW_BITS)
    rows = places & np.uint64(ROW_MASK)
    cuts = np.flatnonzero(ids[1:] != ids[:-1]) + 1
    for begin, end in zip([0, *cuts], [*cuts, len(places)], strict=True):
        yield int(ids[begin]), rows[begin:end]
