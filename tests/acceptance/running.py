"""A project in a folder of its own, and the `headrace` command run on it as its user would: in another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.catalog.store import Catalog
from headrace.project.load import Project


@dataclass(frozen=True, kw_only=True)
class Finished:
    code: int
    out: str
    err: str


class RunningProject:
    """`headrace` on one project; ``url`` may hold anything psycopg takes."""

    def __init__(self, folder: Path, url: str, *, tables: str = "[public.*]", extra: str = "") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "headrace.yaml").write_text(
            f"pipeline: {folder.name.replace('-', '_')}\nsource:\n  url: {url}\n  tables: {tables}\n{extra}"
        )
        self.project = Project.load(folder)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "headrace", "-C", str(self.folder), *arguments]

    def run(self, *arguments: str, failpoints: str = "", timeout: float = 300) -> Finished:
        done = subprocess.run(
            self.command(*arguments), env=self._environment(failpoints), capture_output=True, text=True, timeout=timeout
        )
        return Finished(code=done.returncode, out=done.stdout, err=done.stderr)

    def must(self, *arguments: str, timeout: float = 300) -> str:
        """Run a command that has to succeed; returns what it printed."""
        done = self.run(*arguments, timeout=timeout)
        assert done.code == 0, f"headrace {' '.join(arguments)} ended with {done.code}:\n{done.out}\n{done.err}"
        return done.out

    def start(self, *arguments: str, failpoints: str = "") -> subprocess.Popen[str]:
        """Run a command in the background; its output goes to ``run.log`` in the project's folder."""
        with (self.folder / "run.log").open("a") as log:
            return subprocess.Popen(
                self.command(*arguments), env=self._environment(failpoints), stdout=log, stderr=subprocess.STDOUT, text=True
            )

    def query(self, sql: str, *arguments: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = json.loads(self.must("query", sql, "--format", "json", *arguments))
        return result

    def catalog(self) -> Catalog:
        return Catalog.open(self.project.catalog_location(), self.project.warehouse, create=False)

    def log(self) -> str:
        path = self.folder / "run.log"
        return path.read_text() if path.exists() else ""

    @staticmethod
    def _environment(failpoints: str) -> Mapping[str, str]:
        return {**os.environ, "HEADRACE_FAILPOINTS": failpoints, "COLUMNS": "200"}


def stop(process: subprocess.Popen[str], *, within: float = 60) -> int:
    """Ask a run to stop, as a supervisor does; returns its exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(within)


def wait_until(condition: Any, *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)
