"""Apply the updates and check the requirements of the Iceberg REST specification on table metadata in its JSON form, format
version 2.

Pure: a document and updates in, a new document out. Documents are plain dicts, because one is changed several times a commit and
parsing it into models would cost more than the commit. A document is never changed once made: a new one shares with the old one
what did not change, so **nobody may mutate** a document or anything in it, nor the updates that were applied to it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.catalog.field_ids import all_ids, are_sound, assign_fresh
from headrace.catalog.refusals import BadUpdate
from headrace.errors import CommitConflict

Document = dict[str, Any]
Update = Mapping[str, Any]
Requirement = Mapping[str, Any]

FORMAT_VERSION = 2
MAIN = "main"
NO_SNAPSHOT = -1
LAST_ADDED = -1
PARTITION_ID_START = 1000

# Every metadata file carries this log, at up to 130 bytes an entry and several files a second; the versions of the catalog
# are our history.
METADATA_LOG_PROPERTY, METADATA_LOG_DEFAULT = "write.metadata.previous-versions-max", 20

# What engines put among the properties of a new table but is no property of it.
RESERVED_PROPERTIES = frozenset({"format-version", "uuid", "snapshot-count", "current-snapshot-id", "current-snapshot-summary"})


def check_requirements(document: Document | None, requirements: Sequence[Requirement], *, table: str) -> None:
    """Raise CommitConflict if the document (None: no such table) does not fulfil a requirement, BadUpdate if one is unknown."""
    for requirement in requirements:
        kind = requirement.get("type")
        if kind == "assert-create":
            if document is not None:
                raise _conflict(table, "it exists already")
        elif kind not in _REQUIRED:
            raise BadUpdate(f"Commit to {table}: unknown requirement {kind!r}; nothing was changed.")
        elif document is None:
            raise _conflict(table, "it does not exist")
        elif reason := _unfulfilled(document, requirement):
            raise _conflict(table, reason)


def _conflict(table: str, reason: str) -> CommitConflict:
    return CommitConflict(
        f"Commit to {table}: requirement failed: {reason}. Nothing was changed.",
        remedy="Load the table again and repeat the work on what it is now.",
    )


# requirement → (field of the requirement, field of the document)
_REQUIRED = {
    "assert-table-uuid": ("uuid", "table-uuid"),
    "assert-ref-snapshot-id": ("snapshot-id", "refs"),
    "assert-last-assigned-field-id": ("last-assigned-field-id", "last-column-id"),
    "assert-current-schema-id": ("current-schema-id", "current-schema-id"),
    "assert-last-assigned-partition-id": ("last-assigned-partition-id", "last-partition-id"),
    "assert-default-spec-id": ("default-spec-id", "default-spec-id"),
    "assert-default-sort-order-id": ("default-sort-order-id", "default-sort-order-id"),
}


def _unfulfilled(document: Document, requirement: Requirement) -> str | None:
    kind = requirement["type"]
    asked, field = _REQUIRED[kind]
    if asked not in requirement:
        raise BadUpdate(f"Requirement {kind} has no {asked!r}; nothing was changed.")
    expected = requirement[asked]
    if kind != "assert-ref-snapshot-id":
        found = document[field]
        return (
            None
            if found == (str(expected).lower() if field == "table-uuid" else expected)
            else f"{field} is {found}, expected {expected}"
        )
    if "ref" not in requirement:
        raise BadUpdate(f"Requirement {kind} has no 'ref'; nothing was changed.")
    ref = document["refs"].get(requirement["ref"])
    at = None if ref is None else ref["snapshot-id"]
    if at == expected:
        return None
    return f"ref {requirement['ref']} is {'absent' if at is None else f'at snapshot {at}'}, expected {expected or 'none'}"


def apply_updates(
    base: Document | None,
    updates: Sequence[Update],
    *,
    now_ms: int,
    location: str,
    base_location: str | None = None,
    table: str = "table",
) -> Document:
    """The document after the updates.

    ``base`` None makes a new table, at ``location`` unless an update sets another. ``now_ms`` is milliseconds since 1970 (UTC);
    ``base_location`` is where the base document was read, for the metadata log. Raises BadUpdate (the request makes no
    sense for this table)
    or CommitConflict (it was built on a state that has passed).
    """
    draft = _Draft(_new_document(location) if base is None else {**base}, base, now_ms, table)
    for update in updates:
        action = update.get("action")
        handler = _ACTIONS.get(action) if isinstance(action, str) else None
        if handler is None:
            raise draft.bad(f"unknown update {action!r}")
        try:
            handler(draft, update)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise draft.bad(f"update {action} is malformed ({type(error).__name__}: {error})") from error
    return draft.finish(base_location)


def normalised(document: Document) -> Document:
    """A document that another program wrote, with every optional field in place. Raises BadUpdate unless it is of format
    version 2.
    """
    if document.get("format-version") != FORMAT_VERSION:
        raise BadUpdate(
            f"The table metadata has format version {document.get('format-version')}; this catalog keeps {FORMAT_VERSION}."
        )
    full = {**_OPTIONAL, **{key: value for key, value in document.items() if value is not None}}
    if full["current-snapshot-id"] != NO_SNAPSHOT and MAIN not in full["refs"]:
        full["refs"] = {**full["refs"], MAIN: {"snapshot-id": full["current-snapshot-id"], "type": "branch"}}
    return full


_OPTIONAL: Mapping[str, Any] = {
    "properties": {},
    "current-snapshot-id": NO_SNAPSHOT,
    "refs": {},
    "snapshots": [],
    "statistics": [],
    "partition-statistics": [],
    "snapshot-log": [],
    "metadata-log": [],
}


def _new_document(location: str) -> Document:
    return {
        "format-version": FORMAT_VERSION,
        "table-uuid": str(uuid.uuid4()),
        "location": location,
        "last-sequence-number": 0,
        "last-updated-ms": 0,
        "last-column-id": 0,
        "current-schema-id": -1,
        "schemas": [],
        "default-spec-id": 0,
        "partition-specs": [],
        "last-partition-id": PARTITION_ID_START - 1,
        "default-sort-order-id": 0,
        "sort-orders": [],
        "properties": {},
        "current-snapshot-id": NO_SNAPSHOT,
        "refs": {},
        "snapshots": [],
        "statistics": [],
        "partition-statistics": [],
        "snapshot-log": [],
        "metadata-log": [],
    }


class _Draft:
    """A document being made: ``doc`` is a shallow copy of the base, whose values are replaced and never changed in place."""

    def __init__(self, doc: Document, base: Document | None, now_ms: int, table: str) -> None:
        self.doc, self.base, self.now_ms, self.table = doc, base, now_ms, table
        self.last_schema: int | None = None
        self.last_spec: int | None = None
        self.last_order: int | None = None
        self.main_time = now_ms

    def bad(self, reason: str) -> BadUpdate:
        return BadUpdate(f"Commit to {self.table}: {reason}. Nothing was changed.")

    def resolve(self, asked: int, last_added: int | None, key: str, id_key: str) -> int:
        """``asked``, or the last added for -1, once it is known to exist in ``doc[key]``."""
        found = last_added if asked == LAST_ADDED else asked
        if found is None:
            raise self.bad(f"-1 stands for the last added of {key}, but this commit adds none")
        if all(one[id_key] != found for one in self.doc[key]):
            raise self.bad(f"{key} has no id {found}")
        return found

    def schema(self) -> Mapping[str, Any]:
        """The schema that specs and orders of this commit refer to."""
        wanted = self.last_schema if self.last_schema is not None else self.doc["current-schema-id"]
        for schema in self.doc["schemas"]:
            if schema["schema-id"] == wanted:
                return dict(schema)
        raise self.bad("the table has no schema yet")

    def check_sources(self, fields: Sequence[Mapping[str, Any]], what: str) -> None:
        if fields:
            known = set(all_ids(self.schema()))
            for field in fields:
                sources = field["source-ids"] if "source-ids" in field else [field["source-id"]]
                if missing := [one for one in sources if one not in known]:
                    raise self.bad(f"{what} refers to field id {missing[0]}, which the schema does not have")

    def finish(self, base_location: str | None) -> Document:
        doc, base = self.doc, self.base
        if base is None:
            self._complete_new()
        main = doc["current-snapshot-id"]
        # One entry a commit, however often main moved in it; readers refuse a log that runs backwards, so a clock
        # that did is overruled.
        if main != NO_SNAPSHOT and (base is None or base["current-snapshot-id"] != main):
            log = doc["snapshot-log"]
            at = max(self.main_time, log[-1]["timestamp-ms"]) if log else self.main_time
            doc["snapshot-log"] = [*log, {"timestamp-ms": at, "snapshot-id": main}]
        log = doc["snapshot-log"]
        doc["last-updated-ms"] = max(self.now_ms, doc["last-updated-ms"], log[-1]["timestamp-ms"] if log else 0)
        if base is not None and base_location is not None:
            entry = {"timestamp-ms": base["last-updated-ms"], "metadata-file": base_location}
            doc["metadata-log"] = [*doc["metadata-log"], entry][-self._log_length() :]
        return doc

    def _complete_new(self) -> None:
        doc = self.doc
        if not doc["schemas"]:
            raise self.bad("a new table needs a schema")
        if doc["current-schema-id"] == -1:
            doc["current-schema-id"] = self.last_schema
        if not doc["partition-specs"]:
            doc["partition-specs"] = [{"spec-id": 0, "fields": []}]
        if not doc["sort-orders"]:
            doc["sort-orders"] = [{"order-id": 0, "fields": []}]

    def _log_length(self) -> int:
        try:
            return max(1, int(self.doc["properties"].get(METADATA_LOG_PROPERTY, METADATA_LOG_DEFAULT)))
        except ValueError:
            return METADATA_LOG_DEFAULT


def _assign_uuid(draft: _Draft, update: Update) -> None:
    given = str(uuid.UUID(update["uuid"]))
    if draft.base is not None and draft.base["table-uuid"] != given:
        raise draft.bad("a table's uuid cannot be changed")
    draft.doc["table-uuid"] = given


def _upgrade_format_version(draft: _Draft, update: Update) -> None:
    if update["format-version"] != FORMAT_VERSION:
        raise draft.bad(
            f"format version {update['format-version']} is asked for; this catalog keeps tables in version {FORMAT_VERSION}"
        )


def _add_schema(draft: _Draft, update: Update) -> None:
    doc, schema = draft.doc, update["schema"]
    ids = list(all_ids(schema))
    if not are_sound(ids):
        raise draft.bad("the schema's field ids are not all positive and different")
    doc["last-column-id"] = max([doc["last-column-id"], *[one for one in ids if one is not None]])
    for known in doc["schemas"]:
        if known["fields"] == schema["fields"] and set(known.get("identifier-field-ids") or ()) == set(
            schema.get("identifier-field-ids") or ()
        ):
            draft.last_schema = known["schema-id"]
            return
    draft.last_schema = max((known["schema-id"] for known in doc["schemas"]), default=-1) + 1
    doc["schemas"] = [*doc["schemas"], {"type": "struct", **schema, "schema-id": draft.last_schema}]


def _set_current_schema(draft: _Draft, update: Update) -> None:
    draft.doc["current-schema-id"] = draft.resolve(update["schema-id"], draft.last_schema, "schemas", "schema-id")


def _add_spec(draft: _Draft, update: Update) -> None:
    doc, fields = draft.doc, update["spec"]["fields"]
    draft.check_sources(fields, "the partition spec")
    assigned = []
    for field in fields:
        field_id = field.get("field-id")
        if field_id is None:
            field_id = _known_partition_id(doc, field) or doc["last-partition-id"] + 1
        doc["last-partition-id"] = max(doc["last-partition-id"], field_id)
        assigned.append({**field, "field-id": field_id})
    for known in doc["partition-specs"]:
        if known["fields"] == assigned:
            draft.last_spec = known["spec-id"]
            return
    draft.last_spec = max((known["spec-id"] for known in doc["partition-specs"]), default=-1) + 1
    doc["partition-specs"] = [*doc["partition-specs"], {"spec-id": draft.last_spec, "fields": assigned}]


def _known_partition_id(doc: Document, field: Mapping[str, Any]) -> int | None:
    """The id that an earlier spec gave to the same transform of the same column: format version 2 asks for it to be kept."""
    for spec in doc["partition-specs"]:
        for known in spec["fields"]:
            if (
                known["source-id"] == field["source-id"]
                and known["transform"] == field["transform"]
                and known["name"] == field["name"]
            ):
                return int(known["field-id"])
    return None


def _set_default_spec(draft: _Draft, update: Update) -> None:
    draft.doc["default-spec-id"] = draft.resolve(update["spec-id"], draft.last_spec, "partition-specs", "spec-id")


def _add_sort_order(draft: _Draft, update: Update) -> None:
    doc, fields = draft.doc, update["sort-order"]["fields"]
    draft.check_sources(fields, "the sort order")
    for known in doc["sort-orders"]:
        if known["fields"] == fields:
            draft.last_order = known["order-id"]
            return
    # Order 0 means unsorted, by the specification.
    draft.last_order = max((known["order-id"] for known in doc["sort-orders"]), default=0) + 1 if fields else 0
    doc["sort-orders"] = [*doc["sort-orders"], {"order-id": draft.last_order, "fields": list(fields)}]


def _set_default_sort_order(draft: _Draft, update: Update) -> None:
    draft.doc["default-sort-order-id"] = draft.resolve(update["sort-order-id"], draft.last_order, "sort-orders", "order-id")


def _add_snapshot(draft: _Draft, update: Update) -> None:
    doc, snapshot = draft.doc, update["snapshot"]
    number, last = snapshot["sequence-number"], doc["last-sequence-number"]
    snapshot["manifest-list"], snapshot["summary"]["operation"]  # both required
    if any(known["snapshot-id"] == snapshot["snapshot-id"] for known in doc["snapshots"]):
        raise draft.bad(f"snapshot {snapshot['snapshot-id']} exists already")
    if number <= last and snapshot.get("parent-snapshot-id") is not None:
        raise CommitConflict(
            f"Commit to {draft.table}: snapshot {snapshot['snapshot-id']} has sequence number {number}, the table is at {last}. "
            "Nothing was changed.",
            remedy="Load the table again and repeat the work on what it is now.",
        )
    doc["snapshots"] = [*doc["snapshots"], snapshot]
    doc["last-sequence-number"] = max(number, last)


def _set_snapshot_ref(draft: _Draft, update: Update) -> None:
    doc, name, snapshot_id = draft.doc, update["ref-name"], update["snapshot-id"]
    snapshot = next((one for one in doc["snapshots"] if one["snapshot-id"] == snapshot_id), None)
    if snapshot is None:
        raise draft.bad(f"ref {name} cannot be set to snapshot {snapshot_id}, which the table does not have")
    if update["type"] not in ("branch", "tag") or (name == MAIN and update["type"] != "branch"):
        raise draft.bad(f"ref {name} cannot be a {update['type']!r}")
    retention = {
        key: update[key] for key in ("max-ref-age-ms", "max-snapshot-age-ms", "min-snapshots-to-keep") if update.get(key)
    }
    doc["refs"] = {**doc["refs"], name: {"snapshot-id": snapshot_id, "type": update["type"], **retention}}
    if name == MAIN:
        doc["current-snapshot-id"] = snapshot_id
        new = draft.base is None or all(one["snapshot-id"] != snapshot_id for one in draft.base["snapshots"])
        draft.main_time = snapshot["timestamp-ms"] if new else draft.now_ms


def _remove_snapshots(draft: _Draft, update: Update) -> None:
    doc, gone = draft.doc, set(update["snapshot-ids"])
    doc["snapshots"] = [one for one in doc["snapshots"] if one["snapshot-id"] not in gone]
    doc["refs"] = {name: ref for name, ref in doc["refs"].items() if ref["snapshot-id"] not in gone}
    if doc["current-snapshot-id"] in gone:
        doc["current-snapshot-id"] = NO_SNAPSHOT
    for key in ("statistics", "partition-statistics"):
        doc[key] = [one for one in doc.get(key, ()) if one["snapshot-id"] not in gone]
    log: list[Any] = []
    for entry in doc["snapshot-log"]:
        # A log with a gap would answer "what was current then" wrongly: what lies before a removed snapshot goes too.
        log = [] if entry["snapshot-id"] in gone else [*log, entry]
    doc["snapshot-log"] = log


def _remove_snapshot_ref(draft: _Draft, update: Update) -> None:
    doc, name = draft.doc, update["ref-name"]
    doc["refs"] = {known: ref for known, ref in doc["refs"].items() if known != name}
    if name == MAIN:
        doc["current-snapshot-id"], doc["snapshot-log"] = NO_SNAPSHOT, []


def _set_location(draft: _Draft, update: Update) -> None:
    draft.doc["location"] = update["location"].rstrip("/")


def _set_properties(draft: _Draft, update: Update) -> None:
    updates = update["updates"] if "updates" in update else update["updated"]
    if not all(isinstance(value, str) for value in updates.values()):
        raise draft.bad("property values must be strings")
    draft.doc["properties"] = {**draft.doc["properties"], **updates}


def _remove_properties(draft: _Draft, update: Update) -> None:
    removals = set(update["removals"] if "removals" in update else update["removed"])
    draft.doc["properties"] = {key: value for key, value in draft.doc["properties"].items() if key not in removals}


def _set_statistics_in(key: str, field: str) -> Callable[[_Draft, Update], None]:
    def set_statistics(draft: _Draft, update: Update) -> None:
        file = update[field]
        others = [one for one in draft.doc.get(key, ()) if one["snapshot-id"] != file["snapshot-id"]]
        draft.doc[key] = [*others, file]

    return set_statistics


def _remove_statistics_in(key: str) -> Callable[[_Draft, Update], None]:
    def remove_statistics(draft: _Draft, update: Update) -> None:
        draft.doc[key] = [one for one in draft.doc.get(key, ()) if one["snapshot-id"] != update["snapshot-id"]]

    return remove_statistics


def _remove_schemas(draft: _Draft, update: Update) -> None:
    gone = set(update["schema-ids"])
    if draft.doc["current-schema-id"] in gone:
        raise draft.bad("the current schema cannot be removed")
    draft.doc["schemas"] = [one for one in draft.doc["schemas"] if one["schema-id"] not in gone]


def _remove_partition_specs(draft: _Draft, update: Update) -> None:
    gone = set(update["spec-ids"])
    if draft.doc["default-spec-id"] in gone:
        raise draft.bad("the default partition spec cannot be removed")
    draft.doc["partition-specs"] = [one for one in draft.doc["partition-specs"] if one["spec-id"] not in gone]


_ACTIONS: Mapping[str, Callable[[_Draft, Update], None]] = {
    "assign-uuid": _assign_uuid,
    "upgrade-format-version": _upgrade_format_version,
    "add-schema": _add_schema,
    "set-current-schema": _set_current_schema,
    "add-spec": _add_spec,
    "set-default-spec": _set_default_spec,
    "add-sort-order": _add_sort_order,
    "set-default-sort-order": _set_default_sort_order,
    "add-snapshot": _add_snapshot,
    "set-snapshot-ref": _set_snapshot_ref,
    "remove-snapshots": _remove_snapshots,
    "remove-snapshot-ref": _remove_snapshot_ref,
    "set-location": _set_location,
    "set-properties": _set_properties,
    "remove-properties": _remove_properties,
    "set-statistics": _set_statistics_in("statistics", "statistics"),
    "remove-statistics": _remove_statistics_in("statistics"),
    "set-partition-statistics": _set_statistics_in("partition-statistics", "partition-statistics"),
    "remove-partition-statistics": _remove_statistics_in("partition-statistics"),
    "remove-schemas": _remove_schemas,
    "remove-partition-specs": _remove_partition_specs,
}


def creating_updates(request: Mapping[str, Any], *, table: str = "table") -> list[dict[str, Any]]:
    """The updates that make the table of a CreateTableRequest. Field ids are kept if sound, else assigned anew from 1.

    Raises BadUpdate when the request is malformed or asks for a format version other than 2.
    """
    try:
        schema, spec, order = request["schema"], request.get("partition-spec"), request.get("write-order")
        properties = dict(request.get("properties") or {})
        asked = properties.get("format-version", str(FORMAT_VERSION))
        if asked != str(FORMAT_VERSION):
            raise BadUpdate(
                f"Create {table}: format version {asked} is asked for; this catalog keeps tables in version {FORMAT_VERSION}."
            )
        if not are_sound(list(all_ids(schema))):
            schema, new = assign_fresh(schema)
            spec, order = _with_sources(spec, new), _with_sources(order, new)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadUpdate(
            f"Create {table}: the request is malformed ({type(error).__name__}: {error}). Nothing was created."
        ) from error
    updates: list[dict[str, Any]] = [
        {"action": "add-schema", "schema": schema},
        {"action": "set-current-schema", "schema-id": LAST_ADDED},
        {"action": "add-spec", "spec": spec or {"fields": []}},
        {"action": "set-default-spec", "spec-id": LAST_ADDED},
        {"action": "add-sort-order", "sort-order": order or {"fields": []}},
        {"action": "set-default-sort-order", "sort-order-id": LAST_ADDED},
    ]
    if request.get("location"):
        updates.append({"action": "set-location", "location": request["location"]})
    kept = {key: value for key, value in properties.items() if key not in RESERVED_PROPERTIES}
    return [*updates, {"action": "set-properties", "updates": kept}]


def _with_sources(spec: Mapping[str, Any] | None, new: Mapping[int, int]) -> Mapping[str, Any] | None:
    if spec is None:
        return None
    return {**spec, "fields": [{**field, "source-id": new[field["source-id"]]} for field in spec["fields"]]}
