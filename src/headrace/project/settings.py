"""The settings that the model has, by the keys of the file, and what each may be in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from headrace.project.model import Expects, ProjectFile, Section
from headrace.project.units import format_duration, format_size


def keys_of(section: type[Section]) -> dict[str, FieldInfo]:
    """The section's fields by the keys that the file uses."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section class of a field that is one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def all_settings(section: type[Section] = ProjectFile, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of the file with its dotted path; a section comes before what is in it."""
    for key, field in keys_of(section).items():
        yield prefix + key, field
        inner = section_of(field)
        if inner is not None:
            yield from all_settings(inner, f"{prefix}{key}.")


def expectation(field: FieldInfo) -> str:
    """What a field may be, in words."""
    if section_of(field) is not None:
        return "a section"
    bounds = [
        f"{words} {written(field, getattr(item, name))}"
        for item in field.metadata
        for name, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))
        if getattr(item, name, None) is not None
    ]
    return ", ".join([_words(field), *bounds]) + (" or null" if type(None) in get_args(field.annotation) else "")


def written(field: FieldInfo, value: Any) -> str:
    """A value as it would be written in the file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if "a duration" in _words(field):
        return format_duration(value)
    if "a size" in _words(field):
        return format_size(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(value)}]"
    return str(value)


def default_text(field: FieldInfo) -> str:
    """A field's default as it would be written in the file."""
    return written(field, field.get_default(call_default_factory=False))


def _words(field: FieldInfo) -> str:
    metadata = [*field.metadata, *(item for kind in get_args(field.annotation) for item in getattr(kind, "__metadata__", ()))]
    return next((item.words for item in metadata if isinstance(item, Expects)), "text")
