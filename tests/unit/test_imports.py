"""Values import nothing inward, steps know only each other's ports, and only pipeline, commands and demo wire them together."""

from __future__ import annotations

import ast
from pathlib import Path

import headrace

ROOT = Path(headrace.__file__).parent
VALUES = {"change", "schema", "position", "errors", "events", "failpoint", "ahead"}
# package: what its modules may import beside values and themselves
ALLOWED: dict[str, set[str]] = {
    "project": set(),
    "catalog": set(),
    "source": set(),
    "lake": {"source.port", "catalog"},
    "verify": {"source", "lake", "catalog"},
    "testing": {"*"},
    "cli": {"*"},
    "run": {"source.port", "lake.port"},
    "pipeline": {"*"},
    "status": {"*"},
    "removal": {"*"},
    "maintenance": {"*"},
    "__main__": {"cli"},
}


def imports_of(path: Path) -> set[str]:
    """The modules below ``headrace`` that a file imports, without that prefix."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if node.module == "headrace" else node.module for alias in node.names}
    return {name.removeprefix("headrace.") for name in found if name.startswith("headrace.")}


def violations() -> list[str]:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = parts[0]
        for name in imports_of(path):
            target = name.split(".")[0]
            if own in VALUES or own == "__init__":
                permitted = target in VALUES
            elif "*" in ALLOWED.get(own, set()):
                permitted = True
            else:
                allowed = ALLOWED[own]
                permitted = target in VALUES or target == own or target in allowed or name in allowed
            # the sources do not know each other
            if own == target == "source" and len(parts) > 2 and name.split(".")[1] not in {parts[1], "port"}:
                permitted = False
            if not permitted:
                wrong.append(f"{'.'.join(parts)} imports {name}")
    return wrong


def test_dependencies_point_inward_only() -> None:
    assert violations() == []
