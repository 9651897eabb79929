"""What goes over the wire of the REST catalog: requests taken apart, answers and errors put together."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response

from headrace.catalog.pointers import SEPARATOR
from headrace.catalog.refusals import (
    AlreadyExists,
    BadUpdate,
    CommitOutcomeUnknown,
    NamespaceNotEmpty,
    NoSuchNamespace,
    NoSuchTable,
    NoSuchVersion,
    NoSuchView,
)
from headrace.catalog.store import Catalog, LoadedTable
from headrace.errors import CommitConflict, HeadraceError, LakeUnavailable

# The first kind that fits counts: kinds before the kinds they derive from. Only these say that nothing was changed by a commit:
# 500 is CommitStateUnknownException, upon which no client may clean up.
STATUS: Sequence[tuple[type[HeadraceError], int, str]] = (
    (CommitConflict, 409, "CommitFailedException"),
    (CommitOutcomeUnknown, 500, "CommitStateUnknownException"),
    (NoSuchTable, 404, "NoSuchTableException"),
    (NoSuchView, 404, "NoSuchViewException"),
    (NoSuchNamespace, 404, "NoSuchNamespaceException"),
    (NoSuchVersion, 404, "NotFoundException"),
    (AlreadyExists, 409, "AlreadyExistsException"),
    (NamespaceNotEmpty, 409, "NamespaceNotEmptyException"),
    (BadUpdate, 400, "BadRequestException"),
    (LakeUnavailable, 503, "ServiceUnavailableException"),
)


class Refused(Exception):
    """An answer other than success that no catalog error stands for."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request: ``version`` is the version its prefix is pinned to (None: live)."""

    catalog: Catalog
    version: int | None
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def namespace(self) -> str:
        return self.path["namespace"]

    @property
    def identifier(self) -> tuple[str, str]:
        return self.path["namespace"], self.path["name"]

    def json(self) -> dict[str, Any]:
        try:
            found = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise BadUpdate(f"The request's body is not JSON: {error}.") from error
        if not isinstance(found, dict):
            raise BadUpdate("The request's body is not a JSON object.")
        return found


def field_of(
    document: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None, *, required: bool = True
) -> Any:
    """The field of a request's body, of that type. Raises BadUpdate."""
    value = document.get(name)
    if value is None and not required:
        return default
    if not isinstance(value, kind):
        raise BadUpdate(f"The request's field {name!r} is {'missing' if value is None else 'of the wrong type'}.")
    return value


def namespace_of(levels: Any) -> str:
    """``["accounting", "tax"]`` → the catalog's name of the namespace. Raises BadUpdate."""
    if not isinstance(levels, list) or not levels or not all(isinstance(level, str) and level for level in levels):
        raise BadUpdate("A namespace is a list of one or more names.")
    return SEPARATOR.join(levels)


def identifier_of(value: Any) -> tuple[str, str]:
    """``{"namespace": [...], "name": ...}`` → namespace and name. Raises BadUpdate."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise BadUpdate("A table identifier has a 'namespace' and a 'name'.")
    return namespace_of(value.get("namespace")), value["name"]


def levels_of(namespace: str) -> list[str]:
    return namespace.split(SEPARATOR)


def page_of(names: Sequence[str], query: Mapping[str, str]) -> tuple[list[str], str | None]:
    """The page of sorted names that the query asks for, and the token of the next. Everything, unless the query has a page
    token.
    """
    if "pageToken" not in query:
        return list(names), None
    try:
        size = int(query.get("pageSize") or len(names) or 1)
        after = base64.b64decode(query["pageToken"], b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as error:
        raise BadUpdate("The page token or page size is not one of ours.") from error
    if size < 1:
        raise BadUpdate("The page size must be 1 or more.")
    rest = [name for name in names if name > after] if after else list(names)
    page = rest[:size]
    return page, base64.urlsafe_b64encode(page[-1].encode()).decode() if len(rest) > size else None


def answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), status, headers, media_type="application/json")


def done() -> Response:
    return Response(status_code=204)


def error_answer(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return answer({"error": {"message": message, "type": kind, "code": status}}, status, headers)


def refusal(error: HeadraceError) -> Response:
    status, kind = next(((status, kind) for one, status, kind in STATUS if isinstance(error, one)), (500, "InternalServerError"))
    return error_answer(status, kind, str(error), {"Retry-After": "1"} if status == 503 else None)


def table_answer(table: LoadedTable, content: bytes | None = None, *, staged: bool = False) -> Response:
    """A LoadTableResult, whose metadata is passed on as it lies in its file."""
    located = {} if staged else {"metadata-location": table.metadata_location}
    document = {**located, "metadata": orjson.Fragment(content or table.content), "config": {}}
    return answer(document, headers=None if staged else {"ETag": etag_of(table.metadata_location)})


def etag_of(location: str) -> str:
    return f'"{hashlib.sha256(location.encode()).hexdigest()[:32]}"'
