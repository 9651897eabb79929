"""Rows of the catalog's database: which namespaces there are, and which metadata file each table and view points to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
    where, pairs = _among(identifiers)
    found = session.rows(
        f"select namespace, name, kind, metadata_location from pointers where to_version is null and {where}", pairs
    )
    return {(namespace, name): Pointer(kind=kind, location=location) for namespace, name, kind, location in found}


def pointer_at(session: Session, identifier: Identifier, version: int | None = None) -> Pointer | None:
    """What was at that name at the version, or is now."""
    columns = "select kind, metadata_location, to_version from pointers where namespace = ? and name = ?"
    if version is None:
        found = session.rows(f"{columns} and to_version is null", identifier)
    else:  # only the last row that begins by then can hold at the version: a look-up, however long the history
        found = session.rows(f"{columns} and from_version <= ? order by from_version desc limit 1", (*identifier, version))
    for kind, location, end in found:
        if end is None or (version is not None and end > version):
            return Pointer(kind=kind, location=location)
    return None


def require_free(session: Session, namespace: str, name: str) -> None:
    if namespace_properties(session, namespace) is None:
        raise no_namespace(namespace)
    taken = pointer_at(session, (namespace, name))
    if taken is not None:
        raise AlreadyExists(f"A {taken.kind} {shown(namespace)}.{name} exists already.")


def begin_pointers(session: Session, new: Sequence[tuple[Identifier, Pointer]], version: int) -> None:
    """Point names, free as of ``version``, to metadata files from it on."""
    if new:
        rows = [part for identifier, pointer in new for part in (*identifier, pointer.kind, pointer.location, version)]
        marks = ", ".join(["(?, ?, ?, ?, ?)"] * len(new))
        session.run(f"insert into pointers (namespace, name, kind, metadata_location, from_version) values {marks}", rows)


def end_pointers(session: Session, identifiers: Sequence[Identifier], version: int) -> None:
    """Free the names from ``version`` on."""
    if identifiers:
        where, pairs = _among(identifiers)
        session.run(f"update pointers set to_version = ? where to_version is null and {where}", (version, *pairs))


def _among(identifiers: Sequence[Identifier]) -> tuple[str, list[str]]:
    marks = ", ".join(["(?, ?)"] * len(identifiers))
    return f"(namespace, name) in (values {marks})", [part for identifier in identifiers for part in identifier]
