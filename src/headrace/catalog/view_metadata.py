"""Apply updates to view metadata in its JSON form, as ``metadata`` does for tables (and nobody mutates one)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.catalog.metadata import Document, Requirement, Update
from headrace.catalog.refusals import BadUpdate
from headrace.errors import CommitConflict

LAST_ADDED = -1
HISTORY_PROPERTY, HISTORY_DEFAULT = "version.history.num-entries", 10


def check_view_requirements(document: Document | None, requirements: Sequence[Requirement], *, view: str) -> None:
    """Raise CommitConflict if the document (None: no such view) does not fulfil a requirement, BadUpdate if one is unknown."""
    for requirement in requirements:
        kind = requirement.get("type")
        if kind == "assert-create":
            failed = "it exists already" if document is not None else None
        elif kind == "assert-view-uuid":
            found = None if document is None else document["view-uuid"]
            failed = None if found == requirement.get("uuid") else f"view-uuid is {found}, expected {requirement.get('uuid')}"
        else:
            raise BadUpdate(f"Commit to {view}: unknown requirement {kind!r}; nothing was changed.")
        if failed:
            raise CommitConflict(
                f"Commit to {view}: requirement failed: {failed}. Nothing was changed.",
                remedy="Load the view again and repeat the change.",
            )


def apply_view_updates(
    base: Document | None, updates: Sequence[Update], *, now_ms: int, location: str, view: str = "view"
) -> Document:
    """The view's document after the updates; ``base`` None makes a new view. Raises BadUpdate."""
    draft = _Draft({**base} if base else _new_document(location), base, now_ms, view)
    for update in updates:
        action = update.get("action")
        handler = _ACTIONS.get(action) if isinstance(action, str) else None
        if handler is None:
            raise draft.bad(f"unknown update {action!r}")
        try:
            handler(draft, update)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise draft.bad(f"update {action} is malformed ({type(error).__name__}: {error})") from error
    return draft.finish()


def creating_view_updates(request: Mapping[str, Any], *, view: str = "view") -> list[dict[str, Any]]:
    """The updates that make the view of a CreateViewRequest. Raises BadUpdate when it is malformed."""
    try:
        updates: list[dict[str, Any]] = [
            {"action": "add-schema", "schema": request["schema"]},
            {"action": "add-view-version", "view-version": {**request["view-version"], "schema-id": LAST_ADDED}},
            {"action": "set-current-view-version", "view-version-id": LAST_ADDED},
            {"action": "set-properties", "updates": dict(request.get("properties") or {})},
        ]
    except (KeyError, TypeError) as error:
        raise BadUpdate(
            f"Create {view}: the request is malformed ({type(error).__name__}: {error}). Nothing was created."
        ) from error
    if request.get("location"):
        updates.append({"action": "set-location", "location": request["location"]})
    return updates


def _new_document(location: str) -> Document:
    return {
        "view-uuid": str(uuid.uuid4()),
        "format-version": 1,
        "location": location,
        "current-version-id": 0,
        "versions": [],
        "version-log": [],
        "schemas": [],
        "properties": {},
    }


class _Draft:
    def __init__(self, doc: Document, base: Document | None, now_ms: int, view: str) -> None:
        self.doc, self.base, self.now_ms, self.view = doc, base, now_ms, view
        self.last_schema: int | None = None
        self.last_version: int | None = None
        self.renumbered: dict[int, int] = {}
        """Ids that the client gave to its new versions and that were taken → what they became."""

    def bad(self, reason: str) -> BadUpdate:
        return BadUpdate(f"Commit to {self.view}: {reason}. Nothing was changed.")

    def finish(self) -> Document:
        doc = self.doc
        if not any(version["version-id"] == doc["current-version-id"] for version in doc["versions"]):
            raise self.bad("a view needs a current version")
        kept = max(1, int(doc["properties"].get(HISTORY_PROPERTY, HISTORY_DEFAULT)))
        if len(doc["versions"]) > kept:
            newest = sorted((one["version-id"] for one in doc["versions"]), reverse=True)[:kept]
            doc["versions"] = [one for one in doc["versions"] if one["version-id"] in {*newest, doc["current-version-id"]}]
        return doc


def _assign_uuid(draft: _Draft, update: Update) -> None:
    given = str(uuid.UUID(update["uuid"]))
    if draft.base is not None and draft.base["view-uuid"] != given:
        raise draft.bad("a view's uuid cannot be changed")
    draft.doc["view-uuid"] = given


def _upgrade_format_version(draft: _Draft, update: Update) -> None:
    if update["format-version"] != 1:
        raise draft.bad(f"view format version {update['format-version']} is asked for; there is only 1")


def _add_schema(draft: _Draft, update: Update) -> None:
    doc, schema = draft.doc, update["schema"]
    for known in doc["schemas"]:
        if known["fields"] == schema["fields"]:
            draft.last_schema = known["schema-id"]
            return
    draft.last_schema = max((known["schema-id"] for known in doc["schemas"]), default=-1) + 1
    doc["schemas"] = [*doc["schemas"], {"type": "struct", **schema, "schema-id": draft.last_schema}]


def _add_view_version(draft: _Draft, update: Update) -> None:
    doc, given = draft.doc, update["view-version"]
    schema_id = draft.last_schema if given["schema-id"] == LAST_ADDED else given["schema-id"]
    if all(known["schema-id"] != schema_id for known in doc["schemas"]):
        raise draft.bad(f"the view version refers to schema {given['schema-id']}, which the view does not have")
    if not given["representations"]:
        raise draft.bad("the view version has no representation")
    taken, wanted = {known["version-id"] for known in doc["versions"]}, given.get("version-id", 1)
    draft.last_version = max(taken) + 1 if wanted in taken else wanted
    draft.renumbered[wanted] = draft.last_version
    version = {"timestamp-ms": draft.now_ms, "summary": {}, "default-namespace": [], **given}
    doc["versions"] = [*doc["versions"], {**version, "schema-id": schema_id, "version-id": draft.last_version}]


def _set_current_view_version(draft: _Draft, update: Update) -> None:
    doc, asked = draft.doc, update["view-version-id"]
    found = draft.last_version if asked == LAST_ADDED else draft.renumbered.get(asked, asked)
    if all(known["version-id"] != found for known in doc["versions"]):
        raise draft.bad(f"the view has no version {asked}")
    doc["current-version-id"] = found
    doc["version-log"] = [*doc["version-log"], {"timestamp-ms": draft.now_ms, "version-id": found}]


def _set_location(draft: _Draft, update: Update) -> None:
    draft.doc["location"] = update["location"].rstrip("/")


def _set_properties(draft: _Draft, update: Update) -> None:
    draft.doc["properties"] = {**draft.doc["properties"], **update["updates"]}


def _remove_properties(draft: _Draft, update: Update) -> None:
    removals = set(update["removals"])
    draft.doc["properties"] = {key: value for key, value in draft.doc["properties"].items() if key not in removals}


_ACTIONS: Mapping[str, Callable[[_Draft, Update], None]] = {
    "assign-uuid": _assign_uuid,
    "upgrade-format-version": _upgrade_format_version,
    "add-schema": _add_schema,
    "add-view-version": _add_view_version,
    "set-current-view-version": _set_current_view_version,
    "set-location": _set_location,
    "set-properties": _set_properties,
    "remove-properties": _remove_properties,
}
