"""The catalog's reference page names everything that the server does."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.catalog.endpoints import OPERATIONS, Operation
from headrace.catalog.wire import STATUS

PAGE = (Path(__file__).parents[3] / "docs/reference/catalog.md").read_text()
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_every_endpoint_is_on_the_page_with_its_right_to_change(operation: Operation) -> None:
    path = operation.path.replace("tables/{name}", "tables/{table}").replace("views/{name}", "views/{view}")
    found = [row for row in ROWS if f"`{operation.method}`" in row[0] and row[1].split("(")[0].strip() == f"`{path}`"]
    assert len(found) == 1
    assert found[0][2].strip() == ("403" if operation.changes else "yes")


@pytest.mark.parametrize(("status", "kind"), [(status, kind) for _, status, kind in STATUS])
def test_every_error_is_on_the_page(status: int, kind: str) -> None:
    assert any(line.startswith(f"| {status}") and f"`{kind}`" in line for line in PAGE.splitlines())
