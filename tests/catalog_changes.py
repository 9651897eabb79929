"""Small table changes for tests of the catalog; the tables' data files need not exist."""

from __future__ import annotations

from typing import Any

from headrace.catalog import TableChange

CREATE = {"type": "assert-create"}


def schema(*columns: str) -> dict[str, Any]:
    fields = [{"id": number, "name": name, "type": "long", "required": False} for number, name in enumerate(columns, 1)]
    return {"type": "struct", "fields": fields}


def creation(name: str = "orders", *, namespace: str = "silver", columns: tuple[str, ...] = ("id", "total")) -> TableChange:
    updates = [{"action": "add-schema", "schema": schema(*columns)}, {"action": "set-current-schema", "schema-id": -1}]
    return TableChange(namespace=namespace, name=name, requirements=[CREATE], updates=updates)


def properties(name: str = "orders", *, namespace: str = "silver", requirements: Any = (), **values: str) -> TableChange:
    updates = [{"action": "set-properties", "updates": values}]
    return TableChange(namespace=namespace, name=name, requirements=requirements, updates=updates)


def snapshot_updates(
    snapshot_id: int, *, number: int, parent: int | None = None, at_ms: int = 1_700_000_000_000
) -> list[dict[str, Any]]:
    snapshot: dict[str, Any] = {
        "snapshot-id": snapshot_id,
        "sequence-number": number,
        "timestamp-ms": at_ms,
        "manifest-list": f"file:///lake/snap-{snapshot_id}.avro",
        "summary": {"operation": "append"},
        "schema-id": 0,
    }
    if parent is not None:
        snapshot["parent-snapshot-id"] = parent
    return [
        {"action": "add-snapshot", "snapshot": snapshot},
        {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": snapshot_id},
    ]


def snapshot(name: str, snapshot_id: int, *, number: int, parent: int | None, namespace: str = "silver") -> TableChange:
    """A commit as a writer makes it: it holds only if the table is still at ``parent``."""
    requirement = {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": parent}
    updates = snapshot_updates(snapshot_id, number=number, parent=parent)
    return TableChange(namespace=namespace, name=name, requirements=[requirement], updates=updates)
