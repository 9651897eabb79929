"""The endpoints of the Iceberg REST specification over the catalog: each takes a Call and gives the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response

from headrace.catalog.metadata import creating_updates
from headrace.catalog.pointers import Identifier, Kind, shown
from headrace.catalog.refusals import AlreadyExists, BadUpdate, NoSuchNamespace
from headrace.catalog.store import LoadedTable, TableChange
from headrace.catalog.view_metadata import creating_view_updates
from headrace.catalog.wire import (
    Call,
    Refused,
    answer,
    done,
    etag_of,
    field_of,
    identifier_of,
    levels_of,
    namespace_of,
    page_of,
    table_answer,
)
from headrace.errors import CommitConflict

CREATE = {"type": "assert-create"}


# Namespaces


def list_namespaces(call: Call) -> Response:
    parent = call.query.get("parent") or None
    found = call.catalog.namespaces(call.version)
    if parent is not None and parent not in found:
        raise NoSuchNamespace(f"There is no namespace {shown(parent)}.")
    above = [] if parent is None else levels_of(parent)
    below = [name for name in found if levels_of(name)[:-1] == above]
    page, following = page_of(below, call.query)
    return answer({"namespaces": [levels_of(name) for name in page], "next-page-token": following})


def create_namespace(call: Call) -> Response:
    body = call.json()
    namespace, properties = namespace_of(body.get("namespace")), _properties(body, "properties")
    call.catalog.create_namespace(namespace, properties)
    return answer({"namespace": levels_of(namespace), "properties": properties})


def load_namespace(call: Call) -> Response:
    properties = call.catalog.namespace(call.namespace, call.version)
    return answer({"namespace": levels_of(call.namespace), "properties": properties})


def namespace_exists(call: Call) -> Response:
    call.catalog.namespace(call.namespace, call.version)
    return done()


def drop_namespace(call: Call) -> Response:
    call.catalog.drop_namespace(call.namespace)
    return done()


def update_namespace(call: Call) -> Response:
    body = call.json()
    updates, removals = _properties(body, "updates"), field_of(body, "removals", list, [], required=False)
    if both := sorted(set(updates) & set(removals)):
        raise Refused(422, "UnprocessableEntityException", f"Properties both set and removed: {', '.join(both)}.")
    before = call.catalog.set_namespace_properties(call.namespace, updates, removals)
    return answer(
        {
            "updated": sorted(updates),
            "removed": sorted(set(removals) & set(before)),
            "missing": sorted(set(removals) - set(before)),
        }
    )


# Tables


def list_tables(call: Call) -> Response:
    return _listed(call, "table")


def create_table(call: Call) -> Response:
    body = call.json()
    name = field_of(body, "name", str)
    called = f"{shown(call.namespace)}.{name}"
    updates = creating_updates(body, table=called)
    change = TableChange(namespace=call.namespace, name=name, requirements=[CREATE], updates=updates)
    if field_of(body, "stage-create", bool, False, required=False):
        return table_answer(_as_existing(lambda: call.catalog.preview(change), called), staged=True)
    return table_answer(_as_existing(lambda: _commit_one(call, change), called))


def load_table(call: Call) -> Response:
    location = call.catalog.metadata_location(*call.identifier, call.version)
    if call.headers.get("if-none-match") == etag_of(location):
        return Response(status_code=304, headers={"ETag": etag_of(location)})
    table = call.catalog.load(*call.identifier, call.version)
    if call.query.get("snapshots") == "refs":
        wanted = {ref["snapshot-id"] for ref in table.metadata["refs"].values()}
        snapshots = [one for one in table.metadata["snapshots"] if one["snapshot-id"] in wanted]
        return table_answer(table, orjson.dumps({**table.metadata, "snapshots": snapshots}))
    return table_answer(table)


def table_exists(call: Call) -> Response:
    call.catalog.metadata_location(*call.identifier, call.version)
    return done()


def commit_table(call: Call) -> Response:
    body = call.json()
    if "identifier" in body and identifier_of(body["identifier"]) != call.identifier:
        raise BadUpdate("The request's identifier is another table than its path.")
    return table_answer(_commit_one(call, _change(body, call.identifier, "table")))


def commit_transaction(call: Call) -> Response:
    changes = [
        _change(one, identifier_of(one.get("identifier")), "table") for one in field_of(call.json(), "table-changes", list)
    ]
    call.catalog.commit(changes)
    return done()


def drop_table(call: Call) -> Response:
    # Whether or not a purge is asked for, files stay while a kept version of the catalog reaches them.
    call.catalog.drop_table(*call.identifier)
    return done()


def register_table(call: Call) -> Response:
    body = call.json()
    if field_of(body, "overwrite", bool, False, required=False):
        raise Refused(406, "UnsupportedOperationException", "Registering over an existing table is not supported: drop it first.")
    return table_answer(
        call.catalog.register(call.namespace, field_of(body, "name", str), field_of(body, "metadata-location", str))
    )


def rename_table(call: Call) -> Response:
    return _renamed(call, "table")


def report_metrics(_: Call) -> Response:
    # Nothing is kept of them; refusing would make engines warn at every scan.
    return done()


# Views


def list_views(call: Call) -> Response:
    return _listed(call, "view")


def create_view(call: Call) -> Response:
    body = call.json()
    name = field_of(body, "name", str)
    called = f"{shown(call.namespace)}.{name}"
    updates = creating_view_updates(body, view=called)
    change = TableChange(namespace=call.namespace, name=name, requirements=[CREATE], updates=updates, kind="view")
    return table_answer(_as_existing(lambda: _commit_one(call, change), called))


def load_view(call: Call) -> Response:
    return table_answer(call.catalog.load(*call.identifier, call.version, kind="view"))


def view_exists(call: Call) -> Response:
    call.catalog.metadata_location(*call.identifier, call.version, kind="view")
    return done()


def replace_view(call: Call) -> Response:
    return table_answer(_commit_one(call, _change(call.json(), call.identifier, "view")))


def drop_view(call: Call) -> Response:
    call.catalog.drop_table(*call.identifier, kind="view")
    return done()


def rename_view(call: Call) -> Response:
    return _renamed(call, "view")


# What they share


def _properties(body: Mapping[str, Any], name: str) -> dict[str, str]:
    found = field_of(body, name, dict, {}, required=False)
    if not all(isinstance(value, str) for value in found.values()):
        raise BadUpdate(f"The request's {name!r} must have strings as values.")
    return dict(found)


def _listed(call: Call, kind: Kind) -> Response:
    page, following = page_of(call.catalog.tables(call.namespace, call.version, kind=kind), call.query)
    levels = levels_of(call.namespace)
    return answer({"identifiers": [{"namespace": levels, "name": name} for name in page], "next-page-token": following})


def _change(body: Any, identifier: Identifier, kind: Kind) -> TableChange:
    if not isinstance(body, dict):
        raise BadUpdate("A table change is a JSON object.")
    parts = {name: field_of(body, name, list, [], required=name == "updates") for name in ("requirements", "updates")}
    if not all(isinstance(one, dict) for part in parts.values() for one in part):
        raise BadUpdate("Requirements and updates are JSON objects.")
    return TableChange(namespace=identifier[0], name=identifier[1], kind=kind, **parts)


def _commit_one(call: Call, change: TableChange) -> LoadedTable:
    return call.catalog.commit([change]).tables[change.identifier]


def _as_existing(make: Callable[[], LoadedTable], called: str) -> LoadedTable:
    # A create request carries no requirement of the client's own: the only one that can fail is ours that the name is free.
    try:
        return make()
    except CommitConflict as error:
        raise AlreadyExists(f"{called} exists already.") from error


def _renamed(call: Call, kind: Kind) -> Response:
    body = call.json()
    call.catalog.rename(identifier_of(body.get("source")), identifier_of(body.get("destination")), kind=kind)
    return done()


@dataclass(frozen=True, kw_only=True)
class Operation:
    """``path`` is below the prefix. One that is not ``changes`` may be called through a pinned prefix."""

    method: str
    path: str
    answer: Callable[[Call], Response]
    changes: bool


_NAMESPACE = "/namespaces/{namespace}"
_TABLE = "/namespaces/{namespace}/tables/{name}"
_VIEW = "/namespaces/{namespace}/views/{name}"

OPERATIONS = tuple(
    Operation(method=method, path=path, answer=handler, changes=changes)
    for method, path, handler, changes in (
        ("GET", "/namespaces", list_namespaces, False),
        ("POST", "/namespaces", create_namespace, True),
        ("GET", _NAMESPACE, load_namespace, False),
        ("HEAD", _NAMESPACE, namespace_exists, False),
        ("DELETE", _NAMESPACE, drop_namespace, True),
        ("POST", f"{_NAMESPACE}/properties", update_namespace, True),
        ("GET", f"{_NAMESPACE}/tables", list_tables, False),
        ("POST", f"{_NAMESPACE}/tables", create_table, True),
        ("POST", f"{_NAMESPACE}/register", register_table, True),
        ("GET", _TABLE, load_table, False),
        ("HEAD", _TABLE, table_exists, False),
        ("POST", _TABLE, commit_table, True),
        ("DELETE", _TABLE, drop_table, True),
        ("POST", f"{_TABLE}/metrics", report_metrics, False),
        ("POST", "/tables/rename", rename_table, True),
        ("POST", "/transactions/commit", commit_transaction, True),
        ("GET", f"{_NAMESPACE}/views", list_views, False),
        ("POST", f"{_NAMESPACE}/views", create_view, True),
        ("GET", _VIEW, load_view, False),
        ("HEAD", _VIEW, view_exists, False),
        ("POST", _VIEW, replace_view, True),
        ("DELETE", _VIEW, drop_view, True),
        ("POST", "/views/rename", rename_view, True),
    )
)
