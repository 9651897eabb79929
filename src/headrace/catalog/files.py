"""Metadata files in the warehouse folder: where they lie, writing them durably, reading them once.

A location is ``file:///`` followed by the absolute path as it is, nothing percent-encoded: DuckDB, PyIceberg and Spark all take
the part after the scheme literally. For the same reason a warehouse path may not contain ``#``, ``?`` or ``%``, over which they
differ,
and folders of tables are named with letters, digits, ``_`` and ``-`` only.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from headrace.catalog.metadata import Document, normalised
from headrace.catalog.refusals import BadUpdate
from headrace.errors import ProjectError, lake_failure

SCHEME = "file://"
CACHE_BYTES = 32 << 20
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def location_of(path: Path) -> str:
    """``/lake/silver`` → ``file:///lake/silver``."""
    return f"{SCHEME}{path}"


def path_of(location: str) -> Path:
    """``file:///lake/silver``, ``file:/lake/silver`` or ``/lake/silver`` → the path. Raises BadUpdate for anything else."""
    text = location
    if text.startswith("file:"):
        text = "/" + text[len("file:") :].lstrip("/")
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts:
        raise BadUpdate(f"{location!r} is not a location in a local folder; this catalog keeps its warehouse in one.")
    return path


def folder_name(name: str) -> str:
    """A folder for a table or namespace of that name: the name itself where that is plain, else something like it with a hash."""
    if not _UNSAFE.search(name):
        return name
    return f"{_UNSAFE.sub('_', name)[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, kw_only=True)
class MetadataFile:
    """One metadata file: where it is, the document in it (never to be mutated) and its bytes."""

    location: str
    document: Document
    content: bytes = field(repr=False)


class MetadataFiles:
    """The metadata files of one warehouse. Safe to use from several threads.

    Files are immutable and their names never used again, so what was read or written once is kept in memory, up to
    ``CACHE_BYTES`` of file content.
    """

    def __init__(self, warehouse: Path) -> None:
        self.warehouse = Path.cwd() / warehouse
        if bad := sorted(set(str(self.warehouse)) & set("#?%")):
            raise ProjectError(
                f"The warehouse folder {self.warehouse} has {' and '.join(bad)} in its path, which engines read differently.",
                remedy="Choose a folder without # ? % in its path.",
            )
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, MetadataFile] = OrderedDict()
        self._cached_bytes = 0
        # fsync waits for the disk, not for the processor: files of one commit are flushed side by side and share journal commits.
        self._writers = ThreadPoolExecutor(4, thread_name_prefix="headrace-metadata")

    def close(self) -> None:
        self._writers.shutdown()

    def table_location(self, namespace: Sequence[str], name: str) -> str:
        return location_of(self.warehouse.joinpath(*map(folder_name, namespace), folder_name(name)))

    def compose(self, document: Document, previous: str | None) -> MetadataFile:
        """A file that holds ``document``, still unwritten, numbered after ``previous``. Raises BadUpdate if it would
        lie outside the warehouse.
        """
        folder = self._inside(document["location"]) / "metadata"
        location = f"{SCHEME}{folder}/{_number_after(previous):05d}-{uuid.uuid4()}.metadata.json"
        return MetadataFile(location=location, document=document, content=orjson.dumps(document))

    def write(self, files: Sequence[MetadataFile]) -> None:
        """Make the files durable, folders included. Raises LakeUnavailable; then none of them counts."""
        paths = [path_of(file.location) for file in files]
        try:
            new_folders = {path.parent for path in paths if not path.parent.exists()}
            for folder in sorted(new_folders):
                _make_folder(folder)
            if len(files) == 1:
                _write(paths[0], files[0].content)
            else:
                list(self._writers.map(_write, paths, [file.content for file in files]))
        except OSError as error:
            self.discard(files)
            raise lake_failure(error)(
                f"Table metadata cannot be written to the warehouse {self.warehouse}: {error.strerror or error}. "
                "Nothing was committed.",
                remedy="Check that the folder exists, is writable, and that its disk has room.",
            ) from error
        with self._lock:
            for file in files:
                self._keep(file)

    def discard(self, files: Iterable[MetadataFile]) -> None:
        """Remove files that no pointer will ever name."""
        for file in files:
            with suppress(OSError):
                path_of(file.location).unlink(missing_ok=True)
            with self._lock:
                gone = self._cache.pop(file.location, None)
                self._cached_bytes -= len(gone.content) if gone else 0

    def read(self, location: str, *, kind: str = "table") -> MetadataFile:
        """The file at that location. Raises LakeUnavailable when it is not there or no metadata."""
        with self._lock:
            known = self._cache.get(location)
            if known is not None:
                self._cache.move_to_end(location)
                return known
        try:
            content = self._inside(location).read_bytes()
            if location.endswith((".gz.metadata.json", ".metadata.json.gz")):
                content = gzip.decompress(content)
            document = orjson.loads(content)
        except (OSError, ValueError, EOFError) as error:
            raise lake_failure(error)(
                f"The metadata file {location} cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}. "
                f"Its {kind} cannot be opened at the versions that use it.",
                remedy="Restore the file from a backup, or drop the table and copy it again.",
            ) from error
        if kind == "table":
            full = normalised(document)
            document, content = full, content if full == document else orjson.dumps(full)
        file = MetadataFile(location=location, document=document, content=content)
        with self._lock:
            self._keep(file)
        return file

    def _keep(self, file: MetadataFile) -> None:
        old = self._cache.pop(file.location, None)
        self._cache[file.location] = file
        self._cached_bytes += len(file.content) - (len(old.content) if old else 0)
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1].content)

    def _inside(self, location: str) -> Path:
        # A client of the REST interface chooses locations: none may make us read or write elsewhere on this machine.
        path = path_of(location)
        if not path.is_relative_to(self.warehouse) or path == self.warehouse:
            raise BadUpdate(f"{location!r} lies outside the warehouse {location_of(self.warehouse)}.")
        return path


def _number_after(previous: str | None) -> int:
    if previous is None:
        return 0
    number = previous.rsplit("/", 1)[-1].split("-", 1)[0]
    return int(number) + 1 if number.isdecimal() else 0


def _make_folder(folder: Path) -> None:
    """Create the folder and make its entry, and those of new folders above it, durable."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _flush_folder(made.parent)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
