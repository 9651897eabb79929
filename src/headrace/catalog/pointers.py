"""Rows of the catalog's database: which namespaces there are, and which metadata file each table and view points to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from headrace.catalog.database import Session
from headrace.catalog.refusals import AlreadyExists, NoSuchNamespace, NoSuchTable, NoSuchView
from headrace.errors import LakeUnavailable

SEPARATOR = "\x1f"
"""Joins the levels of a nested namespace, as in the REST specification."""

Kind = Literal["table", "view"]
Identifier = tuple[str, str]
"""Namespace and name."""

AT = "from_version <= ? and (to_version is null or to_version > ?)"


@dataclass(frozen=True, kw_only=True)
class Pointer:
    kind: Kind
    location: str


def shown(namespace: str) -> str:
    """The namespace as people write it: levels joined by dots."""
    return namespace.replace(SEPARATOR, ".")


def no_namespace(namespace: str) -> NoSuchNamespace:
    return NoSuchNamespace(f"There is no namespace {shown(namespace)}.")


def missing(kind: Kind, namespace: str, name: str) -> LakeUnavailable:
    refusal = NoSuchView if kind == "view" else NoSuchTable
    return refusal(f"There is no {kind} {shown(namespace)}.{name}.")


def state_at(version: int | None) -> tuple[str, tuple[int, ...]]:
    return ("to_version is null", ()) if version is None else (AT, (version, version))


def namespace_properties(session: Session, namespace: str, version: int | None = None) -> dict[str, str] | None:
    where, parameters = state_at(version)
    found = session.rows(f"select properties from namespaces where name = ? and {where}", (namespace, *parameters))
    return orjson.loads(found[0][0]) if found else None


def begin_namespace(session: Session, namespace: str, properties: Mapping[str, str], version: int) -> None:
    session.run(
        "insert into namespaces (name, properties, from_version) values (?, ?, ?)",
        (namespace, orjson.dumps(properties).decode(), version),
    )


def end_namespace(session: Session, namespace: str, version: int) -> None:
    session.run("update namespaces set to_version = ? where name = ? and to_version is null", (version, namespace))


def pointers_of(session: Session, identifiers: Sequence[Identifier]) -> dict[Identifier, Pointer]:
    """What is at those names now."""
    if not identifiers:
        return {}
    pairs: list[Any] = [part for identifier in identifiers for part in identifier]
    marks = ", ".join(["(?, ?)"] * len(identifiers))
    found = session.rows(
        "select namespace, name, kind, metadata_location from pointers "
        f"where to_version is null and (namespace, name) in (values {marks})",
        pairs,
    )
    return {(namespace, name): Pointer(kind=kind, location=location) for namespace, name, kind, location in found}


def current_location(session: Session, namespace: str, name: str, kind: Kind) -> str | None:
    found = session.rows(
        "select metadata_location from pointers where namespace = ? and name = ? and kind = ? and to_version is null",
        (namespace, name, kind),
    )
    return str(found[0][0]) if found else None


def require_free(session: Session, namespace: str, name: str) -> None:
    if namespace_properties(session, namespace) is None:
        raise no_namespace(namespace)
    taken = session.rows("select kind from pointers where namespace = ? and name = ? and to_version is null", (namespace, name))
    if taken:
        raise AlreadyExists(f"A {taken[0][0]} {shown(namespace)}.{name} exists already.")


def begin_pointer(session: Session, identifier: Identifier, kind: Kind, location: str, version: int) -> None:
    session.run(
        "insert into pointers (namespace, name, kind, metadata_location, from_version) values (?, ?, ?, ?, ?)",
        (*identifier, kind, location, version),
    )


def end_pointer(session: Session, identifier: Identifier, version: int) -> None:
    session.run(
        "update pointers set to_version = ? where namespace = ? and name = ? and to_version is null", (version, *identifier)
    )
