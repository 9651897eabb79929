"""Removing files that no kept version of the lake reaches: those of versions that were thinned away, and what crashes left.

A file is *reached* if a kept version's metadata leads to it: of an earlier version the snapshot that its tables were at, of the
present one every snapshot that its metadata lists, because engines may go back to those by themselves.

A file that no version reaches may belong to a commit that is not made yet. So only files go that are older than a grace period
and than what any pipeline has been staging (`staging_since`); and a first copy's folder, from which nothing is reached yet, only
when it has not changed for a week.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import orjson

from headrace.catalog.files import path_of
from headrace.catalog.metadata import Document
from headrace.lake.manifests import read_manifest, read_manifest_list
from headrace.lake.storage import Storage
from headrace.lake.table import current_snapshot

COPY_GRACE = timedelta(days=7)
COPY = "copy-"
FOLDERS = ("data", "metadata")


class Versions(Protocol):
    """What is needed of a catalog."""

    def metadata_locations(self, versions: Iterable[int]) -> dict[str, bool]: ...
    def notes(self, prefix: str) -> dict[str, str]: ...


@dataclass(frozen=True, kw_only=True)
class Unreached:
    """A file that may be removed. ``size`` in bytes."""

    path: Path
    size: int


def unreached(storage: Storage, catalog: Versions, versions: Iterable[int], *, before: datetime) -> list[Unreached]:
    """The files that were last changed before that moment and that none of the versions reaches. Raises LakeUnavailable."""
    oldest = min([before, *staging_since(catalog)]).timestamp()
    # Listed first: what is made later is younger, and reached by what is read afterwards or by nothing yet.
    listed = list(_files(storage.warehouse, oldest))
    reached = _reached(storage, catalog.metadata_locations(versions))
    return [Unreached(path=Path(path), size=size) for path, size in listed if path not in reached]


def remove(files: Sequence[Unreached]) -> int:
    """Remove the files, and the folders of copies that are empty then; how many bytes they had. One that has gone is no error."""
    size = 0
    for file in files:
        try:
            file.path.unlink()
        except FileNotFoundError:
            continue
        size += file.size
        if file.path.parent.name.startswith(COPY) and not any(file.path.parent.iterdir()):
            file.path.parent.rmdir()
    return size


def staging_key(pipeline: str) -> str:
    """The note that says since when a pipeline has been staging a commit that takes long."""
    return f"headrace.staging.{pipeline}"


def staging_since(catalog: Versions) -> list[datetime]:
    return [datetime.fromisoformat(text) for text in catalog.notes(staging_key("")).values()]


def _files(warehouse: Path, before: float) -> Iterator[tuple[str, int]]:
    """Path and size of the tables' files that were last changed before that time (seconds since 1970)."""
    for table in _tables(warehouse):
        for folder in FOLDERS:
            yield from _below(table / folder, before)


def _tables(folder: Path) -> Iterator[Path]:
    """The folders that look like tables', at any depth of namespaces."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink() or not path.is_dir():
            continue
        if (path / "metadata").is_dir():
            yield path
        else:
            yield from _tables(path)


def _below(folder: Path, before: float) -> Iterator[tuple[str, int]]:
    if not folder.is_dir():
        return
    found: list[tuple[str, os.stat_result]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path), before)
            elif entry.is_file(follow_symlinks=False):
                found.append((entry.path, entry.stat(follow_symlinks=False)))
    if folder.name.startswith(COPY):
        before = min(before, before - COPY_GRACE.total_seconds())
        if any(stat.st_mtime >= before for _, stat in found):
            return  # a copy that may still be under way, or wait for its commit
    for path, stat in found:
        if stat.st_mtime < before:
            yield path, stat.st_size


def _reached(storage: Storage, locations: dict[str, bool]) -> set[str]:
    """The paths of everything that these metadata files lead to."""
    reached: set[str] = set()
    manifests: set[str] = set()
    for location, present in locations.items():
        reached.add(str(path_of(location)))
        document: Document = orjson.loads(storage.read(location))
        for manifest_list in _manifest_lists(document, whole=present):
            path = str(path_of(manifest_list))
            if path in reached:
                continue
            reached.add(path)
            for manifest in read_manifest_list(storage.read(manifest_list)):
                if manifest.location not in manifests:
                    manifests.add(manifest.location)
                    reached.add(str(path_of(manifest.location)))
                    entries = read_manifest(storage.read(manifest.location), manifest)
                    reached |= {str(path_of(entry["data_file"]["file_path"])) for entry in entries}
    return reached


def _manifest_lists(document: Document, *, whole: bool) -> list[str]:
    if "snapshots" not in document:  # a view
        return []
    present = current_snapshot(document)
    return [one["manifest-list"] for one in document["snapshots"] if whole or one["snapshot-id"] == present]
