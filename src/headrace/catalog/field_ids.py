"""Field ids of Iceberg schemas in their JSON form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def all_ids(schema: Mapping[str, Any]) -> Iterator[int | None]:
    """Every field, element, key and value id in the schema (a struct in JSON form); None where one is missing."""
    for field in schema["fields"]:
        yield field.get("id")
        yield from _ids_in(field["type"])


def _ids_in(kind: Any) -> Iterator[int | None]:
    if not isinstance(kind, Mapping):
        return
    if kind["type"] == "struct":
        yield from all_ids(kind)
    elif kind["type"] == "list":
        yield kind.get("element-id")
        yield from _ids_in(kind["element"])
    elif kind["type"] == "map":
        yield kind.get("key-id")
        yield kind.get("value-id")
        yield from _ids_in(kind["key"])
        yield from _ids_in(kind["value"])


def are_sound(ids: list[int | None]) -> bool:
    """Whether all ids are there, positive and different."""
    return all(isinstance(one, int) and one > 0 for one in ids) and len(set(ids)) == len(ids)


def assign_fresh(schema: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, int]]:
    """A copy of the schema with ids from 1 on, a struct's fields before what is nested in them, and the map from old to new
    ids.
    """
    return _Assignment().schema(schema)


class _Assignment:
    def __init__(self) -> None:
        self.last = 0
        self.new: dict[int, int] = {}

    def schema(self, schema: Mapping[str, Any]) -> tuple[dict[str, Any], dict[int, int]]:
        fresh = {**schema, **self._struct(schema)}
        if "identifier-field-ids" in schema:
            fresh["identifier-field-ids"] = [self.new[old] for old in schema["identifier-field-ids"]]
        return fresh, self.new

    def _next(self, old: int | None) -> int:
        self.last += 1
        if old is not None:
            self.new[old] = self.last
        return self.last

    def _struct(self, struct: Mapping[str, Any]) -> dict[str, Any]:
        fields = [{**field, "id": self._next(field.get("id"))} for field in struct["fields"]]
        return {"type": "struct", "fields": [{**field, "type": self._type(field["type"])} for field in fields]}

    def _type(self, kind: Any) -> Any:
        if not isinstance(kind, Mapping):
            return kind
        if kind["type"] == "struct":
            return self._struct(kind)
        if kind["type"] == "list":
            element = self._next(kind.get("element-id"))
            return {**kind, "element-id": element, "element": self._type(kind["element"])}
        key, value = self._next(kind.get("key-id")), self._next(kind.get("value-id"))
        return {**kind, "key-id": key, "value-id": value, "key": self._type(kind["key"]), "value": self._type(kind["value"])}
