"""Keeping a lake from growing without end: old versions are forgotten by rule, and files that only they needed are removed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

from headrace.catalog import Catalog
from headrace.catalog.retention import Retention
from headrace.errors import HeadraceError
from headrace.lake.storage import Storage
from headrace.lake.sweep import Unreached, remove, unreached
from headrace.pipeline import open_catalog
from headrace.project import Project

LAST = "headrace.maintained"
"""The catalog's note of when this was done last."""
LOOK_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``versions`` are the numbers to forget, ``kept`` how many stay, ``files`` what no version needs then."""

    versions: Sequence[int]
    kept: int
    files: Sequence[Unreached]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def plan(project: Project) -> Plan:
    """What `maintain` would do now. Changes nothing. Raises LakeUnavailable."""
    with open_catalog(project, create=False) as catalog:
        going, staying = _versions(project, catalog)
        return Plan(versions=going, kept=len(staying), files=_files(project, catalog, staying))


def maintain(project: Project) -> Plan:
    """Forget the versions and remove the files; what was done. Safe while runs commit and others read. Raises LakeUnavailable."""
    with open_catalog(project, create=False) as catalog:
        going, _ = _versions(project, catalog)
        catalog.thin(going)
        staying = [version.number for version in catalog.versions()]
        files = _files(project, catalog, staying)
        remove(files)
        catalog.set_note(LAST, datetime.now(UTC).isoformat())
        kept = set(staying)
        return Plan(versions=[number for number in going if number not in kept], kept=len(staying), files=files)


def _versions(project: Project, catalog: Catalog) -> tuple[list[int], list[int]]:
    """Which versions go and which stay: by the project's rule, and those that somebody reads."""
    ages = project.lake.retention
    rule = Retention(
        every=timedelta(seconds=ages.every),
        minutely=timedelta(seconds=ages.minutely),
        hourly=timedelta(seconds=ages.hourly),
        daily=timedelta(seconds=ages.daily),
    )
    versions = catalog.versions()
    kept = rule.kept(versions, datetime.now(UTC)) | {lease.version for lease in catalog.live_leases()}
    return [one.number for one in versions if one.number not in kept], [one.number for one in versions if one.number in kept]


def _files(project: Project, catalog: Catalog, staying: Sequence[int]) -> list[Unreached]:
    storage = Storage(project.warehouse)
    try:
        before = datetime.now(UTC) - timedelta(seconds=project.lake.maintenance.grace)
        return unreached(storage, catalog, staying, before=before)
    finally:
        storage.close()


class Schedule:
    """While this context lasts, the project's lake is maintained when that is due, by a process of its own.

    So it takes no time from the run's threads. ``say`` is told when it fails.
    """

    def __init__(self, project: Project, say: Callable[[str], None]) -> None:
        self._project = project
        self._say = say
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._loop, name="headrace-maintenance", daemon=True)

    def __enter__(self) -> Self:
        if self._project.lake.maintenance.interval is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        process = self._process
        if process is not None:
            process.terminate()  # it may be ended at any moment: what it has not removed goes the next time
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                if self._due():
                    self._run()
            except (HeadraceError, OSError) as error:
                self._say(f"maintenance did not run: {error}")

    def _due(self) -> bool:
        interval = self._project.lake.maintenance.interval
        assert interval is not None
        with open_catalog(self._project, create=False) as catalog:
            last = catalog.note(LAST)
            since = datetime.fromisoformat(last) if last is not None else catalog.versions()[0].committed_at
        return datetime.now(UTC) - since > timedelta(seconds=interval)

    def _run(self) -> None:
        command = [sys.executable, "-m", "headrace", "-C", str(self._project.folder), "maintain", "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, told = self._process.communicate()
        if self._process.returncode and not self._over.is_set():
            lines = told.decode(errors="replace").strip().splitlines()
            self._say(f"maintenance failed: {lines[0] if lines else f'exit code {self._process.returncode}'}")
        self._process = None
