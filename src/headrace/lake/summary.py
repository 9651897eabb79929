"""A snapshot's summary: what it changed, and the totals that engines read instead of adding up manifests."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.lake.live_file import LiveFile
from headrace.lake.manifests import DATA


def summary(added: Sequence[LiveFile], removed: Sequence[LiveFile], live: Sequence[LiveFile]) -> dict[str, str]:
    """Of a snapshot that adds and removes these files and then has ``live``."""
    added_data, removed_data, data = (_data(files) for files in (added, removed, live))
    added_deletes, removed_deletes, deletes = (_deletes(files) for files in (added, removed, live))
    changes = {
        "added-data-files": len(added_data),
        "deleted-data-files": len(removed_data),
        "added-records": _rows(added_data),
        "deleted-records": _rows(removed_data),
        "added-delete-files": len(added_deletes),
        "added-position-delete-files": len(added_deletes),
        "added-position-deletes": _rows(added_deletes),
        "removed-delete-files": len(removed_deletes),
        "removed-position-delete-files": len(removed_deletes),
        "removed-position-deletes": _rows(removed_deletes),
        "added-files-size": _size(added),
        "removed-files-size": _size(removed),
    }
    totals = {
        "total-records": _rows(data),
        "total-data-files": len(data),
        "total-delete-files": len(deletes),
        "total-position-deletes": _rows(deletes),
        "total-equality-deletes": 0,
        "total-files-size": _size(live),
    }
    operation = "overwrite" if removed or added_deletes else "append"
    shown = {name: str(number) for name, number in changes.items() if number}
    return {"operation": operation, **shown, **{name: str(number) for name, number in totals.items()}}


def _data(files: Sequence[LiveFile]) -> list[LiveFile]:
    return [file for file in files if file.content == DATA]


def _deletes(files: Sequence[LiveFile]) -> list[LiveFile]:
    return [file for file in files if file.content != DATA]


def _rows(files: Sequence[LiveFile]) -> int:
    return sum(file.rows for file in files)


def _size(files: Sequence[LiveFile]) -> int:
    return sum(file.size for file in files)
