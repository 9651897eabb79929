"""Bronze: every change, appended, partitioned by the hour of its commit time. The quarantine is appended in the same way,
unpartitioned.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.catalog import LoadedTable
from headrace.lake.layout import BRONZE, TableLayout
from headrace.lake.levels import MergeLimits, Sized, choose_merge
from headrace.lake.live_file import LiveFile
from headrace.lake.row_files import conform
from headrace.lake.storage import Storage
from headrace.lake.table import LakeTable

OPEN_FILES = 8
CLOSED_HOUR_FANOUT = 4
MICROSECONDS_PER_HOUR = 3_600_000_000

BOUNDED = ("commit_lsn", "commit_time")


class AppendedTable:
    """A table whose rows are only ever appended, and whose small files are merged per partition."""

    def __init__(self, table: LakeTable) -> None:
        self.table = table
        table.bounded = BOUNDED
        self._writing: dict[int | None, LiveFile] = {}

    @classmethod
    def create(cls, storage: Storage, namespace: str, name: str, layout: TableLayout, limits: MergeLimits) -> AppendedTable:
        """A table that the next commit creates."""
        return cls(LakeTable(storage, namespace, name, layout, limits))

    @classmethod
    def load(cls, storage: Storage, loaded: LoadedTable, limits: MergeLimits) -> AppendedTable:
        return cls(LakeTable.load(storage, loaded, limits))

    def evolve(self, layout: TableLayout) -> None:
        if layout is not self.table.layout:
            self._end_files()
            self.table.evolve(layout)

    def append(self, rows: pa.Table) -> None:
        """Stage rows; columns are found by name, missing ones are null."""
        rows = conform(rows, self.table.layout.arrow)
        if not rows.num_rows:
            return
        if self.table.layout.partition is None:
            self._put(None, rows)
            return
        for hour, part in by_hour(rows):
            self._put(hour, part)

    def _put(self, partition: int | None, rows: pa.Table) -> None:
        file = self._writing.pop(partition, None) or self.table.new_file(partition)
        self.table.append(file, rows)
        if file.writing is not None and file.writing.full:
            _end(file)
            return
        self._writing[partition] = file
        if len(self._writing) > OPEN_FILES:
            _end(self._writing.pop(next(iter(self._writing))))

    def _end_files(self) -> None:
        for file in self._writing.values():
            _end(file)
        self._writing = {}

    @property
    def changed(self) -> bool:
        return self.table.changed

    def finish(self) -> None:
        """Merge what is due. Call before `LakeTable.change`."""
        self._end_files()
        partitions: dict[int | str | None, list[LiveFile]] = {}
        small = [
            file for file in self.table.data.values() if file.committed and not self.table.limits.is_base(file.rows, file.size)
        ]
        for file in small:
            partitions.setdefault(file.partition, []).append(file)
        hours = [hour for hour in partitions if isinstance(hour, int)]
        for partition, files in partitions.items():
            # An hour that has passed gets no more files: what is left of its levels is merged, or every hour would leave some
            # behind.
            passed = isinstance(partition, int) and partition < max(hours) - 1
            self._merge(partition, files, CLOSED_HOUR_FANOUT if passed else None)
        self.table.finish_files()

    def _merge(self, partition: int | str | None, files: list[LiveFile], all_from: int | None) -> None:
        table = self.table
        if all_from is not None and len(files) >= all_from and sum(file.rows for file in files) <= table.limits.most_rows:
            chosen = files
        else:
            chosen = [
                files[index] for index in choose_merge([Sized(rows=file.rows, size=file.size) for file in files], table.limits)
            ]
        if not chosen:
            return
        rows = pa.concat_tables([table.rows_of(file) for file in sorted(chosen, key=lambda file: file.sequence or 0)])
        for file in chosen:
            table.remove(file)
        merged = table.new_file(partition)
        merged.merged = True
        table.append(merged, rows)


def bronze_rows(changes: pa.Table | pa.RecordBatch, epoch: int, captured: datetime) -> pa.Table:
    """Rows in the change layout as bronze has them."""
    rows = pa.table(changes) if isinstance(changes, pa.RecordBatch) else changes
    count = rows.num_rows
    rows = rows.append_column("epoch", pa.repeat(pa.scalar(epoch, pa.int32()), count))
    return rows.append_column("capture_time", pa.repeat(pa.scalar(captured, pa.timestamp("us", tz="UTC")), count))


def create_bronze(storage: Storage, name: str, layout: TableLayout, limits: MergeLimits) -> AppendedTable:
    return AppendedTable.create(storage, BRONZE, name, layout, limits)


def by_hour(rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """The rows by the hour of their commit time (hours since 1970), each part in the order that they came in."""
    times = rows.column("commit_time").cast(pa.int64()).to_numpy()
    hours: npt.NDArray[np.int64] = times // MICROSECONDS_PER_HOUR
    if hours.min() == hours.max():
        yield int(hours[0]), rows
        return
    order = np.argsort(hours, kind="stable")
    ordered = hours[order]
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for begin, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        picked = order[begin:end]
        whole = bool((np.diff(picked) == 1).all())
        yield int(ordered[begin]), rows.slice(int(picked[0]), len(picked)) if whole else rows.take(pa.array(picked))


def _end(file: LiveFile) -> None:
    if file.writing is not None:
        file.writing.finish()
