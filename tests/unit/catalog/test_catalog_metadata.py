from __future__ import annotations

import copy
from typing import Any

import pytest
from pyiceberg.table.metadata import TableMetadataUtil

from headrace.catalog.metadata import apply_updates, check_requirements, creating_updates, normalised
from headrace.catalog.refusals import BadUpdate
from headrace.errors import CommitConflict
from tests.catalog_changes import schema, snapshot_updates

NOW = 1_700_000_100_000
LOCATION = "file:///lake/silver/orders"


def apply(base: dict[str, Any] | None, *updates: dict[str, Any], now_ms: int = NOW) -> dict[str, Any]:
    """Apply, and prove that the base was left alone and that PyIceberg, an independent reader, takes the result."""
    before = copy.deepcopy(base)
    made = apply_updates(base, updates, now_ms=now_ms, location=LOCATION, base_location="file:///lake/base.json")
    assert base == before
    TableMetadataUtil.parse_obj(copy.deepcopy(made))
    return made


@pytest.fixture
def table() -> dict[str, Any]:
    return apply(None, *creating_updates({"name": "orders", "schema": schema("id", "total")}))


@pytest.fixture
def filled(table: dict[str, Any]) -> dict[str, Any]:
    return apply(apply(table, *snapshot_updates(11, number=1)), *snapshot_updates(12, number=2, parent=11))


def test_a_new_table_has_every_field_of_the_format(table: dict[str, Any]) -> None:
    assert table["format-version"] == 2
    assert table["location"] == LOCATION
    assert table["last-column-id"] == 2
    assert table["current-schema-id"] == 0
    assert table["partition-specs"] == [{"spec-id": 0, "fields": []}]
    assert table["sort-orders"] == [{"order-id": 0, "fields": []}]
    assert table["last-partition-id"] == 999
    assert table["last-updated-ms"] == NOW
    assert table["metadata-log"] == []


def test_a_new_table_without_schema_is_refused() -> None:
    with pytest.raises(BadUpdate, match="needs a schema"):
        apply(None, {"action": "set-properties", "updates": {}})


def test_sound_field_ids_are_kept() -> None:
    given = {"type": "struct", "fields": [{"id": 7, "name": "a", "type": "long", "required": False}]}
    made = apply(None, *creating_updates({"name": "t", "schema": given}))
    assert made["schemas"][0]["fields"][0]["id"] == 7
    assert made["last-column-id"] == 7


def test_missing_field_ids_are_assigned_outer_fields_first_and_references_follow() -> None:
    inner = {"type": "struct", "fields": [{"id": 0, "name": "x", "type": "int", "required": False}]}
    given = {
        "type": "struct",
        "identifier-field-ids": [2],
        "fields": [
            {"id": 1, "name": "s", "type": {**inner, "fields": [{**inner["fields"][0], "id": 5}]}, "required": False},
            {
                "id": 0,
                "name": "l",
                "type": {"type": "list", "element-id": 6, "element": "string", "element-required": False},
                "required": False,
            },
            {
                "id": 3,
                "name": "m",
                "type": {"type": "map", "key-id": 7, "key": "string", "value-id": 8, "value": "long", "value-required": False},
                "required": False,
            },
            {"id": 2, "name": "k", "type": "timestamptz", "required": True},
        ],
    }
    spec = {"fields": [{"source-id": 2, "transform": "hour", "name": "k_hour"}]}
    made = apply(None, *creating_updates({"name": "t", "schema": given, "partition-spec": spec}))
    fields = made["schemas"][0]["fields"]
    assert [field["id"] for field in fields] == [1, 2, 3, 4]
    assert fields[0]["type"]["fields"][0]["id"] == 5
    assert fields[1]["type"]["element-id"] == 6
    assert (fields[2]["type"]["key-id"], fields[2]["type"]["value-id"]) == (7, 8)
    assert made["schemas"][0]["identifier-field-ids"] == [4]
    assert made["partition-specs"] == [
        {"spec-id": 0, "fields": [{"source-id": 4, "transform": "hour", "name": "k_hour", "field-id": 1000}]}
    ]
    assert made["last-partition-id"] == 1000
    assert made["last-column-id"] == 8


@pytest.mark.parametrize("version", ["1", "3"])
def test_only_format_version_2_is_made(version: str) -> None:
    request = {"name": "t", "schema": schema("id"), "properties": {"format-version": version}}
    with pytest.raises(BadUpdate, match=f"format version {version}"):
        creating_updates(request)


def test_reserved_properties_do_not_become_properties() -> None:
    updates = creating_updates({"name": "t", "schema": schema("id"), "properties": {"format-version": "2", "owner": "me"}})
    assert apply(None, *updates)["properties"] == {"owner": "me"}


@pytest.mark.parametrize("version", [1, 3])
def test_the_format_version_is_not_changed(table: dict[str, Any], version: int) -> None:
    assert apply(table, {"action": "upgrade-format-version", "format-version": 2})["format-version"] == 2
    with pytest.raises(BadUpdate):
        apply(table, {"action": "upgrade-format-version", "format-version": version})


def test_a_table_keeps_its_uuid(table: dict[str, Any]) -> None:
    assert apply(table, {"action": "assign-uuid", "uuid": table["table-uuid"]})["table-uuid"] == table["table-uuid"]
    with pytest.raises(BadUpdate, match="uuid"):
        apply(table, {"action": "assign-uuid", "uuid": "6c2f8a3e-0c0d-4b4e-9a39-0f6d1d3c2b1a"})


def test_a_schema_is_added_made_current_and_found_again(table: dict[str, Any]) -> None:
    wider = {"action": "add-schema", "schema": schema("id", "total", "note"), "last-column-id": 3}
    current = {"action": "set-current-schema", "schema-id": -1}
    second = apply(table, wider, current)
    assert (second["current-schema-id"], second["last-column-id"], len(second["schemas"])) == (1, 3, 2)
    third = apply(second, {"action": "add-schema", "schema": schema("id", "total")}, current)
    assert (third["current-schema-id"], third["last-column-id"], len(third["schemas"])) == (0, 3, 2)


def test_a_schema_with_repeated_ids_is_refused(table: dict[str, Any]) -> None:
    twice = {"type": "struct", "fields": [{"id": 1, "name": name, "type": "long", "required": False} for name in "ab"]}
    with pytest.raises(BadUpdate, match="field ids"):
        apply(table, {"action": "add-schema", "schema": twice})


@pytest.mark.parametrize(
    ("action", "key", "what"),
    [
        ("set-current-schema", "schema-id", "schemas"),
        ("set-default-spec", "spec-id", "partition-specs"),
        ("set-default-sort-order", "sort-order-id", "sort-orders"),
    ],
)
def test_the_last_added_must_have_been_added_and_others_exist(table: dict[str, Any], action: str, key: str, what: str) -> None:
    with pytest.raises(BadUpdate, match=f"last added of {what}"):
        apply(table, {"action": action, key: -1})
    with pytest.raises(BadUpdate, match=f"{what} has no id 9"):
        apply(table, {"action": action, key: 9})


def test_partition_fields_keep_their_ids_in_later_specs(table: dict[str, Any]) -> None:
    bucket = {"source-id": 1, "transform": "bucket[4]", "name": "id_bucket"}
    other = {"source-id": 2, "transform": "identity", "name": "total"}
    first = apply(table, {"action": "add-spec", "spec": {"fields": [bucket]}}, {"action": "set-default-spec", "spec-id": -1})
    assert first["default-spec-id"] == 1
    second = apply(
        first, {"action": "add-spec", "spec": {"fields": [other, bucket]}}, {"action": "set-default-spec", "spec-id": -1}
    )
    assert [field["field-id"] for field in second["partition-specs"][2]["fields"]] == [1001, 1000]
    assert second["last-partition-id"] == 1001
    removed = apply(second, {"action": "remove-partition-specs", "spec-ids": [0, 1]})
    assert [spec["spec-id"] for spec in removed["partition-specs"]] == [2]
    with pytest.raises(BadUpdate, match="default partition spec"):
        apply(second, {"action": "remove-partition-specs", "spec-ids": [2]})


def test_a_spec_or_order_of_an_unknown_column_is_refused(table: dict[str, Any]) -> None:
    field = {"source-id": 99, "transform": "identity", "name": "x"}
    with pytest.raises(BadUpdate, match="field id 99"):
        apply(table, {"action": "add-spec", "spec": {"fields": [field]}})
    with pytest.raises(BadUpdate, match="field id 99"):
        apply(
            table,
            {"action": "add-sort-order", "sort-order": {"fields": [{**field, "direction": "asc", "null-order": "nulls-first"}]}},
        )


def test_sort_orders_are_numbered_from_1_and_the_empty_one_is_0(table: dict[str, Any]) -> None:
    order = {"fields": [{"source-id": 1, "transform": "identity", "direction": "asc", "null-order": "nulls-first"}]}
    default = {"action": "set-default-sort-order", "sort-order-id": -1}
    sorted_ = apply(table, {"action": "add-sort-order", "sort-order": order}, default)
    assert sorted_["default-sort-order-id"] == 1
    assert apply(sorted_, {"action": "add-sort-order", "sort-order": {"fields": []}}, default)["default-sort-order-id"] == 0


def test_a_snapshot_moves_main_and_is_logged(filled: dict[str, Any]) -> None:
    assert filled["current-snapshot-id"] == 12
    assert filled["refs"] == {"main": {"snapshot-id": 12, "type": "branch"}}
    assert filled["last-sequence-number"] == 2
    assert [entry["snapshot-id"] for entry in filled["snapshot-log"]] == [11, 12]
    assert filled["metadata-log"][-1] == {"timestamp-ms": NOW, "metadata-file": "file:///lake/base.json"}


def test_two_snapshots_in_one_commit_are_one_entry_of_the_log(table: dict[str, Any]) -> None:
    made = apply(table, *snapshot_updates(11, number=1), *snapshot_updates(12, number=2, parent=11))
    assert [entry["snapshot-id"] for entry in made["snapshot-log"]] == [12]


def test_a_snapshot_built_on_a_passed_state_is_a_conflict(filled: dict[str, Any]) -> None:
    with pytest.raises(CommitConflict, match="sequence number 2"):
        apply(filled, *snapshot_updates(13, number=2, parent=11))


def test_a_snapshot_id_is_used_once(filled: dict[str, Any]) -> None:
    with pytest.raises(BadUpdate, match="exists already"):
        apply(filled, *snapshot_updates(12, number=3, parent=12))


def test_a_clock_that_went_back_does_not_make_the_log_run_backwards(filled: dict[str, Any]) -> None:
    made = apply(filled, *snapshot_updates(13, number=3, parent=12, at_ms=1_600_000_000_000), now_ms=1_600_000_000_000)
    times = [entry["timestamp-ms"] for entry in made["snapshot-log"]]
    assert times == sorted(times)
    assert made["last-updated-ms"] >= times[-1]


def test_refs_are_set_carry_their_retention_and_are_removed(filled: dict[str, Any]) -> None:
    tag = {"action": "set-snapshot-ref", "ref-name": "kept", "type": "tag", "snapshot-id": 11, "max-ref-age-ms": 5}
    tagged = apply(filled, tag)
    assert tagged["refs"]["kept"] == {"snapshot-id": 11, "type": "tag", "max-ref-age-ms": 5}
    assert "kept" not in apply(tagged, {"action": "remove-snapshot-ref", "ref-name": "kept"})["refs"]
    with pytest.raises(BadUpdate, match="snapshot 99"):
        apply(filled, {**tag, "snapshot-id": 99})
    with pytest.raises(BadUpdate, match="cannot be a 'tag'"):
        apply(filled, {**tag, "ref-name": "main"})


def test_without_main_a_table_has_no_current_snapshot(filled: dict[str, Any]) -> None:
    made = apply(filled, {"action": "remove-snapshot-ref", "ref-name": "main"})
    assert (made["current-snapshot-id"], made["snapshot-log"], made["refs"]) == (-1, [], {})


def test_removed_snapshots_take_their_refs_statistics_and_log_before_them_along(filled: dict[str, Any]) -> None:
    statistics = {
        "snapshot-id": 11,
        "statistics-path": "file:///lake/s.puffin",
        "file-size-in-bytes": 1,
        "file-footer-size-in-bytes": 1,
        "blob-metadata": [],
    }
    partition = {"snapshot-id": 11, "statistics-path": "file:///lake/p.parquet", "file-size-in-bytes": 1}
    tagged = apply(
        filled,
        {"action": "set-snapshot-ref", "ref-name": "kept", "type": "tag", "snapshot-id": 11},
        {"action": "set-statistics", "snapshot-id": 11, "statistics": statistics},
        {"action": "set-partition-statistics", "partition-statistics": partition},
    )
    assert tagged["statistics"] == [statistics]
    assert apply(tagged, {"action": "remove-statistics", "snapshot-id": 11})["statistics"] == []
    assert apply(tagged, {"action": "remove-partition-statistics", "snapshot-id": 11})["partition-statistics"] == []
    made = apply(tagged, {"action": "remove-snapshots", "snapshot-ids": [11]})
    assert [one["snapshot-id"] for one in made["snapshots"]] == [12]
    assert [entry["snapshot-id"] for entry in made["snapshot-log"]] == [12]
    assert list(made["refs"]) == ["main"]
    assert (made["statistics"], made["partition-statistics"]) == ([], [])


def test_properties_and_location_change(table: dict[str, Any]) -> None:
    made = apply(
        table,
        {"action": "set-properties", "updates": {"a": "1", "b": "2"}},
        {"action": "remove-properties", "removals": ["a", "unknown"]},
        {"action": "set-location", "location": "file:///lake/elsewhere/"},
    )
    assert made["properties"] == {"b": "2"}
    assert made["location"] == "file:///lake/elsewhere"
    with pytest.raises(BadUpdate, match="strings"):
        apply(table, {"action": "set-properties", "updates": {"a": 1}})


def test_schemas_are_removed_but_not_the_current_one(table: dict[str, Any]) -> None:
    wider = apply(
        table, {"action": "add-schema", "schema": schema("id", "x", "y")}, {"action": "set-current-schema", "schema-id": -1}
    )
    assert [one["schema-id"] for one in apply(wider, {"action": "remove-schemas", "schema-ids": [0]})["schemas"]] == [1]
    with pytest.raises(BadUpdate, match="current schema"):
        apply(wider, {"action": "remove-schemas", "schema-ids": [1]})


def test_the_metadata_log_is_bounded(table: dict[str, Any]) -> None:
    made = apply(table, {"action": "set-properties", "updates": {"write.metadata.previous-versions-max": "3"}})
    for _ in range(5):
        made = apply(made, {"action": "set-properties", "updates": {}})
    assert len(made["metadata-log"]) == 3


@pytest.mark.parametrize(
    "update",
    [
        {"action": "add-encryption-key", "encryption-key": {}},
        {"action": "no-such-thing"},
        {},
        {"action": "add-snapshot"},
        {"action": "add-snapshot", "snapshot": {"snapshot-id": 1}},
        {"action": "set-snapshot-ref", "ref-name": "main"},
        {"action": "add-schema", "schema": {"type": "struct"}},
        {"action": "remove-snapshots", "snapshot-ids": None},
        {"action": "set-location", "location": 5},
        {"action": "assign-uuid", "uuid": "not one"},
    ],
)
def test_an_unknown_or_malformed_update_is_refused_as_such(table: dict[str, Any], update: dict[str, Any]) -> None:
    with pytest.raises(BadUpdate, match="Nothing was changed"):
        apply(table, update)


FULFILLED: list[tuple[str, dict[str, Any]]] = [
    ("assert-ref-snapshot-id", {"ref": "main", "snapshot-id": 12}),
    ("assert-ref-snapshot-id", {"ref": "other", "snapshot-id": None}),
    ("assert-last-assigned-field-id", {"last-assigned-field-id": 2}),
    ("assert-current-schema-id", {"current-schema-id": 0}),
    ("assert-last-assigned-partition-id", {"last-assigned-partition-id": 999}),
    ("assert-default-spec-id", {"default-spec-id": 0}),
    ("assert-default-sort-order-id", {"default-sort-order-id": 0}),
]
FAILED: list[tuple[str, dict[str, Any]]] = [
    ("assert-create", {}),
    ("assert-table-uuid", {"uuid": "6c2f8a3e-0c0d-4b4e-9a39-0f6d1d3c2b1a"}),
    ("assert-ref-snapshot-id", {"ref": "main", "snapshot-id": 11}),
    ("assert-ref-snapshot-id", {"ref": "main", "snapshot-id": None}),
    ("assert-ref-snapshot-id", {"ref": "other", "snapshot-id": 11}),
    ("assert-last-assigned-field-id", {"last-assigned-field-id": 1}),
    ("assert-current-schema-id", {"current-schema-id": 1}),
    ("assert-last-assigned-partition-id", {"last-assigned-partition-id": 1000}),
    ("assert-default-spec-id", {"default-spec-id": 1}),
    ("assert-default-sort-order-id", {"default-sort-order-id": 1}),
]


@pytest.mark.parametrize(("kind", "values"), FULFILLED)
def test_a_requirement_that_holds_passes(filled: dict[str, Any], kind: str, values: dict[str, Any]) -> None:
    check_requirements(filled, [{"type": kind, **values}], table="orders")


def test_a_uuid_is_compared_whatever_its_case(filled: dict[str, Any]) -> None:
    check_requirements(filled, [{"type": "assert-table-uuid", "uuid": filled["table-uuid"].upper()}], table="orders")


@pytest.mark.parametrize(("kind", "values"), FAILED)
def test_a_requirement_that_does_not_hold_is_a_conflict(filled: dict[str, Any], kind: str, values: dict[str, Any]) -> None:
    with pytest.raises(CommitConflict, match="orders: requirement failed"):
        check_requirements(filled, [{"type": kind, **values}], table="orders")


def test_requirements_on_a_missing_table() -> None:
    check_requirements(None, [{"type": "assert-create"}], table="orders")
    with pytest.raises(CommitConflict, match="does not exist"):
        check_requirements(None, [{"type": "assert-current-schema-id", "current-schema-id": 0}], table="orders")


@pytest.mark.parametrize(
    "requirement",
    [{"type": "assert-luck"}, {}, {"type": "assert-default-spec-id"}, {"type": "assert-ref-snapshot-id", "snapshot-id": 1}],
)
def test_an_unknown_or_malformed_requirement_is_refused(filled: dict[str, Any], requirement: dict[str, Any]) -> None:
    with pytest.raises(BadUpdate):
        check_requirements(filled, [requirement], table="orders")


def test_a_document_of_another_writer_gets_the_optional_fields(filled: dict[str, Any]) -> None:
    bare = {
        key: value for key, value in filled.items() if key not in ("refs", "statistics", "partition-statistics", "metadata-log")
    }
    full = normalised({**bare, "properties": None})
    assert full["refs"] == {"main": {"snapshot-id": 12, "type": "branch"}}
    assert (full["statistics"], full["metadata-log"], full["properties"]) == ([], [], {})
    with pytest.raises(BadUpdate, match="format version 1"):
        normalised({"format-version": 1})
