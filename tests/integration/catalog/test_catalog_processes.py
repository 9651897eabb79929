"""Several processes on one catalog."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.catalog import Catalog
from tests.catalog_changes import creation

COMMITS = 100

# Each process moves two tables together, many times; a commit that another one overtook is built again on the new state.
WRITER = """
import sys
from pathlib import Path
from headrace.catalog import Catalog
from headrace.errors import CommitConflict
from tests.catalog_changes import snapshot

location, warehouse, process, commits = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with Catalog.open(location if location.startswith("postgresql") else Path(location), warehouse, timeout=60) as catalog:
    print("ready", flush=True)
    sys.stdin.readline()
    conflicts = 0
    for turn in range(commits):
        while True:
            now = catalog.latest_version()
            a, b = (catalog.load("silver", name, now).metadata for name in "ab")
            parents = [one["current-snapshot-id"] if one["current-snapshot-id"] != -1 else None for one in (a, b)]
            new = process * 1_000_000 + turn + 1
            changes = [
                snapshot(name, new, number=one["last-sequence-number"] + 1, parent=parent)
                for name, one, parent in zip("ab", (a, b), parents)
            ]
            try:
                catalog.commit(changes)
                break
            except CommitConflict:
                conflicts += 1
    print(conflicts)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "catalog.db") if request.param == "sqlite" else str(request.getfixturevalue("database").url)


def ready(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A writer that has opened the catalog and starts when it gets a line."""
    root = Path(__file__).parents[3]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    return writer


def test_processes_that_commit_at_once_lose_no_commit(location: str, tmp_path: Path) -> None:
    warehouse = tmp_path / "lake"
    with Catalog.open(location, warehouse) as catalog:
        catalog.create_namespace("silver")
        first = catalog.commit([creation("a"), creation("b")]).version
        writers = [ready(location, str(warehouse), str(number), str(COMMITS)) for number in (1, 2)]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        outputs = [writer.communicate(timeout=120) for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0], outputs
        assert catalog.latest_version() == first + 2 * COMMITS
        expected = {process * 1_000_000 + turn + 1 for process in (1, 2) for turn in range(COMMITS)}
        for name in "ab":
            metadata = catalog.load("silver", name).metadata
            assert {one["snapshot-id"] for one in metadata["snapshots"]} == expected
            assert metadata["last-sequence-number"] == 2 * COMMITS
        for version in range(first, first + 2 * COMMITS + 1):  # the two tables moved together at every version
            assert len({catalog.load("silver", name, version).metadata["current-snapshot-id"] for name in "ab"}) == 1


@pytest.mark.parametrize(("point", "committed"), [("before-catalog-commit", False), ("catalog-committed", True)])
def test_a_process_killed_around_its_commit_leaves_all_of_it_or_nothing(
    location: str, tmp_path: Path, point: str, committed: bool
) -> None:
    warehouse = tmp_path / "lake"
    with Catalog.open(location, warehouse) as catalog:
        catalog.create_namespace("silver")
        catalog.commit([creation("a"), creation("b")])
        writer = ready(location, str(warehouse), "1", "10", HEADRACE_FAILPOINTS=f"{point}=kill:3")
        writer.communicate("go\n", timeout=60)
        assert writer.returncode == -signal.SIGKILL
        numbers = [catalog.load("silver", name).metadata["last-sequence-number"] for name in "ab"]
        assert numbers == ([3, 3] if committed else [2, 2])
        again = ready(location, str(warehouse), "2", "5")
        assert again.communicate("go\n", timeout=60)[1] == ""
        assert catalog.load("silver", "a").metadata["last-sequence-number"] == numbers[0] + 5
