from __future__ import annotations

import copy
from typing import Any

import pytest
from pyiceberg.view.metadata import ViewMetadata

from headrace.catalog.refusals import BadUpdate
from headrace.catalog.view_metadata import apply_view_updates, check_view_requirements, creating_view_updates
from headrace.errors import CommitConflict
from tests.catalog_changes import schema


def version(sql: str, number: int = 1) -> dict[str, Any]:
    representation = {"type": "sql", "sql": sql, "dialect": "spark"}
    return {
        "version-id": number,
        "schema-id": -1,
        "timestamp-ms": 1,
        "summary": {},
        "default-namespace": ["gold"],
        "representations": [representation],
    }


def apply(base: dict[str, Any] | None, *updates: dict[str, Any]) -> dict[str, Any]:
    before = copy.deepcopy(base)
    made = apply_view_updates(base, updates, now_ms=5, location="file:///lake/gold/v")
    assert base == before
    ViewMetadata.model_validate(copy.deepcopy(made))
    return made


@pytest.fixture
def view() -> dict[str, Any]:
    return apply(
        None, *creating_view_updates({"name": "v", "schema": schema("id"), "view-version": version("select 1"), "properties": {}})
    )


def replaced(view: dict[str, Any], number: int) -> dict[str, Any]:
    return apply(
        view,
        {"action": "add-schema", "schema": schema("id")},
        {"action": "add-view-version", "view-version": version(f"select {number}", number)},
        {"action": "set-current-view-version", "view-version-id": -1},
    )


def test_a_new_view_has_one_version(view: dict[str, Any]) -> None:
    assert (view["current-version-id"], view["versions"][0]["schema-id"]) == (1, 0)
    assert view["version-log"] == [{"timestamp-ms": 5, "version-id": 1}]


def test_a_view_is_replaced_and_keeps_its_history(view: dict[str, Any]) -> None:
    second = replaced(view, 2)
    assert (second["current-version-id"], len(second["versions"]), len(second["schemas"])) == (2, 2, 1)


def test_a_taken_version_id_is_replaced_by_a_free_one(view: dict[str, Any]) -> None:
    made = apply(
        view,
        {"action": "add-view-version", "view-version": {**version("select 9", 1), "schema-id": 0}},
        {"action": "set-current-view-version", "view-version-id": 1},
    )
    assert made["current-version-id"] == 2


def test_the_history_is_bounded(view: dict[str, Any]) -> None:
    view = apply(view, {"action": "set-properties", "updates": {"version.history.num-entries": "3"}})
    for number in range(2, 8):
        view = replaced(view, number)
    assert [one["version-id"] for one in view["versions"]] == [5, 6, 7]


def test_properties_and_location_of_a_view_change(view: dict[str, Any]) -> None:
    made = apply(
        view,
        {"action": "set-properties", "updates": {"a": "1", "b": "2"}},
        {"action": "remove-properties", "removals": ["a"]},
        {"action": "set-location", "location": "file:///lake/x/"},
        {"action": "upgrade-format-version", "format-version": 1},
        {"action": "assign-uuid", "uuid": view["view-uuid"]},
    )
    assert (made["properties"], made["location"]) == ({"b": "2"}, "file:///lake/x")


@pytest.mark.parametrize(
    "update",
    [
        {"action": "add-snapshot"},
        {"action": "set-current-view-version", "view-version-id": 9},
        {"action": "add-view-version", "view-version": version("select 1", 2)},  # -1, and no schema was added
        {"action": "add-view-version", "view-version": {**version("select 1", 2), "schema-id": 0, "representations": []}},
        {"action": "upgrade-format-version", "format-version": 2},
        {"action": "assign-uuid", "uuid": "6c2f8a3e-0c0d-4b4e-9a39-0f6d1d3c2b1a"},
    ],
)
def test_what_a_view_cannot_do_is_refused(view: dict[str, Any], update: dict[str, Any]) -> None:
    with pytest.raises(BadUpdate):
        apply(view, update)


def test_requirements_of_views(view: dict[str, Any]) -> None:
    check_view_requirements(None, [{"type": "assert-create"}], view="v")
    check_view_requirements(view, [{"type": "assert-view-uuid", "uuid": view["view-uuid"]}], view="v")
    with pytest.raises(CommitConflict):
        check_view_requirements(view, [{"type": "assert-create"}], view="v")
    with pytest.raises(CommitConflict):
        check_view_requirements(view, [{"type": "assert-view-uuid", "uuid": "other"}], view="v")
    with pytest.raises(BadUpdate):
        check_view_requirements(view, [{"type": "assert-table-uuid", "uuid": "x"}], view="v")
