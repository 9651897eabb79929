"""The warehouse folder: files are written by a few threads, and all of them are durable before a commit names them."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import pyarrow as pa

from headrace.catalog.files import folder_name, location_of, path_of
from headrace.errors import LakeUnavailable, lake_failure
from headrace.lake.fresh import fresh_name

P = ParamSpec("P")
T = TypeVar("T")

WRITERS = 4
HELD_BYTES, HELD_FILE_BYTES = 48 << 20, 512 << 10


class HeldRows:
    """The rows of the small files written last, by location: they will soon be merged, and need not be read for that."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, pa.Table] = OrderedDict()
        self._bytes = 0

    def get(self, location: str) -> pa.Table | None:
        return self._rows.get(location)

    def keep(self, location: str, rows: pa.Table) -> None:
        if rows.nbytes > HELD_FILE_BYTES:
            return
        self._rows[location] = rows
        self._bytes += rows.nbytes
        while self._bytes > HELD_BYTES:
            self.drop(next(iter(self._rows)))

    def drop(self, location: str) -> None:
        rows = self._rows.pop(location, None)
        self._bytes -= rows.nbytes if rows is not None else 0


class Storage:
    """Writes and reads files under one warehouse folder.

    Writes are under way when the methods return; `settle` waits for them and makes the folders' entries durable too. File names
    are never used twice. Every method raises LakeUnavailable when the folder cannot be used.
    """

    def __init__(self, warehouse: Path) -> None:
        self.warehouse = Path(os.path.abspath(warehouse))  # noqa: PTH100 - not through links, as the catalog
        # More threads than processors: an fsync waits for the disk, and several waiting ones share one journal commit.
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="headrace-lake")
        self.held = HeldRows()
        self._pending: list[Future[object]] = []
        self._small: list[tuple[str, bytes]] = []
        self._folders: set[str] = set()
        self._made: set[str] = set()

    def apart(self) -> Storage:
        """The same folder and threads; what is written through the other object is settled and forgotten by itself."""
        other = Storage.__new__(Storage)
        other.warehouse, other.held, other._pool, other._made = self.warehouse, self.held, self._pool, self._made
        other._pending, other._small, other._folders = [], [], set()
        return other

    def close(self) -> None:
        self._pool.shutdown()

    def table_location(self, namespace: str, name: str) -> str:
        return location_of(self.warehouse / folder_name(namespace) / folder_name(name))

    def new_location(self, table_location: str, folder: str, ending: str) -> str:
        """A location below the table's folder that no file has yet; its folder exists."""
        place = f"{table_location}/{folder}"
        if place not in self._made:
            self._make(path_of(place))
        return f"{place}/{fresh_name()}{ending}"

    def run(self, task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a task that writes, on a writer thread. `settle` waits for it."""
        future = self._pool.submit(task, *args, **kwargs)
        self._pending.append(future)  # type: ignore[arg-type]
        return future

    def write(self, location: str, content: bytes) -> None:
        """Write a new file, durably, before `settle` returns."""
        self._small.append((str(path_of(location)), content))
        self.note(location)

    def note(self, location: str) -> None:
        """A new file is being written there: its folder's entry has to become durable."""
        self._folders.add(location.rpartition("/")[0])

    def read(self, location: str) -> bytes:
        try:
            return path_of(location).read_bytes()
        except OSError as error:
            raise self.failed(error, "read") from error

    def settle(self) -> None:
        """Return when everything written so far is durable; raise if anything could not be written."""
        small, self._small = self._small, []
        folders, self._folders = self._folders, set()
        try:
            # All are created before any is flushed: creating a file waits while the file system commits its journal.
            self._side_by_side(_flush_files, _create_all(small))
            pending, self._pending = self._pending, []
            for future in pending:
                future.result()
            self._side_by_side(_flush_all, sorted(folders))
        except OSError as error:
            raise self.failed(error, "written") from error

    def _side_by_side(self, task: Callable[[Sequence[T]], None], items: Sequence[T]) -> None:
        """Run a task on all items, in as many portions as there are threads, this one included."""
        # One hand-over a portion: handing files over one by one costs more than writing them.
        futures = [self._pool.submit(task, items[first::WRITERS]) for first in range(1, min(WRITERS, len(items)))]
        try:
            task(items[::WRITERS])
        finally:
            failures = [future.exception() for future in futures]
        for failure in failures:
            if failure is not None:
                raise failure

    def forget(self) -> None:
        """Wait for what is being written, and forget whether it worked."""
        for future in self._pending:
            future.exception()
        self._pending, self._small, self._folders = [], [], set()

    def failed(self, error: OSError, what: str) -> LakeUnavailable:
        """``error`` as a LakeUnavailable that names the folder. ``what``: ``read`` or ``written``."""
        place = error.filename or self.warehouse
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return lake_failure(error)(
            f"Files in the warehouse {self.warehouse} cannot be {what}: {os.strerror(error.errno) if error.errno else error}"
            f" ({place}). Nothing of this commit is visible.",
            remedy="Make room on its disk, then run again."
            if full
            else "Check that the folder exists and is readable and writable, then run again.",
        )

    def unreadable(self, location: str, error: BaseException) -> LakeUnavailable:
        """``error``, met when a file of a table was read, as a LakeUnavailable that names the file."""
        found = error.strerror if isinstance(error, OSError) and error.strerror else ""
        if isinstance(error, OSError) and error.errno and not found:
            found = os.strerror(error.errno)
        return lake_failure(error)(
            f"A file of the lake cannot be read: {path_of(location)}: {found or 'it is damaged'}. Nothing was changed.",
            remedy="Restore it from a backup. Or make its table anew: `headrace rebuild TABLE` makes silver from bronze,"
            " `headrace resync TABLE` copies it from the source.",
        )

    def _make(self, path: Path) -> None:
        """Create the folder. Its entry and those above it are durable when this returns: whatever becomes of what is written
        there first, later files rely on it. One that exists may have been made by a process that had no time for that.
        """
        inside = [folder for folder in (path, *path.parents) if self.warehouse in folder.parents]
        try:
            unsure = [folder for folder in (path, *path.parents) if folder in inside or not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for folder in unsure:
                if location_of(folder) not in self._made:
                    flush_folder(folder.parent)
        except OSError as error:
            raise self.failed(error, "written") from error
        self._made.update(map(location_of, inside))


def _create_all(files: Sequence[tuple[str, bytes]]) -> list[int]:
    descriptors: list[int] = []
    try:
        for path, content in files:
            descriptors.append(_create(path, content))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors


def _create(path: str, content: bytes) -> int:
    """Write a new file, not yet durable; its descriptor."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _flush_files(descriptors: Sequence[int]) -> None:
    """Make the files durable, and close them."""
    for descriptor in descriptors:
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush_all(folders: Sequence[str]) -> None:
    for folder in folders:
        flush_folder(path_of(folder))


def flush_folder(folder: Path) -> None:
    """Make the folder's entries durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
