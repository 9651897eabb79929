"""Read a project: the file, the variables it refers to, overrides. Every error says where, what was found and what expected."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from headrace.errors import ProjectError
from headrace.project import secrets
from headrace.project.model import EXPECTED, Lake, ProjectFile, Section, Source, Surroundings, Unresolved
from headrace.project.secrets import Secret
from headrace.project.settings import all_settings, expectation, keys_of, section_of

FILE_NAME = "headrace.yaml"
STATE_FOLDER = ".headrace"
OVERRIDE = "HEADRACE__"
_REFERENCE = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")

Place = tuple[str | int, ...]
"""Where a value stands: the keys and list positions that lead to it."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project folder and what its file says. ``folder`` is absolute."""

    folder: Path
    pipeline: str
    source: Source
    lake: Lake

    @classmethod
    def load(cls, folder: Path | str = ".", *, environ: Mapping[str, str] | None = None) -> Project:
        """Read ``headrace.yaml`` in this folder. Raises ProjectError."""
        home = Path(folder).absolute()
        file = read_project_file(home / FILE_NAME, environ=os.environ if environ is None else environ)
        return cls(folder=home, pipeline=file.pipeline, source=file.source, lake=file.lake)

    @property
    def state(self) -> Path:
        """The folder for what Headrace itself keeps on this machine. It can hold secrets: make it by `make_state`."""
        return self.folder / STATE_FOLDER

    def make_state(self) -> Path:
        secrets.private_folder(self.state)
        return self.state

    @property
    def warehouse(self) -> Path:
        return self.folder / self.lake.warehouse

    def catalog_location(self) -> Path | str:
        """The SQLite file of the catalog, or its database's URL, which is secret. Raises ProjectError."""
        store = self.lake.catalog.store
        return self.warehouse / "catalog.db" if store is None else store.reveal()

    @property
    def slot(self) -> str:
        return self.source.slot or f"headrace_{self.pipeline}"

    @property
    def publication(self) -> str:
        return self.source.publication or f"headrace_{self.pipeline}"

    @property
    def appends_publication(self) -> str:
        """The publication of the tables without key, which publishes only inserts and truncates."""
        return f"{self.publication}_appends"

    def catalog_token(self) -> Secret:
        """The token that the catalog's clients present: the project's, or one that is made now and kept in the state folder."""
        return self.lake.catalog.token or secrets.kept_secret(self.make_state() / "catalog-token")


def read_project_file(path: Path, *, environ: Mapping[str, str]) -> ProjectFile:
    """Raises ProjectError."""
    reading = _Reading(path=path, environ=environ)
    values = reading.values()
    try:
        return ProjectFile.model_validate(values, context=Surroundings(folder=path.parent, environ=environ))
    except ValidationError as error:
        raise reading.failed(error.errors(include_url=False, include_context=False)) from None


class _Reading:
    """One reading of a project file; remembers where each value came from, for messages."""

    def __init__(self, *, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._values: dict[str, Any] = {}
        self._lines: dict[Place, int] = {}
        self._variables: dict[Place, str] = {}
        """Values that an environment variable overrides, and its name."""
        self._written: dict[Place, str] = {}
        """Texts with references, as the file has them: what they stand for may be secret."""

    def values(self) -> dict[str, Any]:
        document = self._parse()
        if not isinstance(document, dict):
            raise ProjectError(
                f"{self._path}: expected keys and values (pipeline, source, lake), found {_found(document)}",
                remedy="`headrace init --source URL` writes a project file to start from.",
            )
        values: dict[str, Any] = self._plain(document, ())
        for name in sorted(self._environ):
            if name.startswith(OVERRIDE):
                self._override(values, name)
        self._values = values
        return values

    def _parse(self) -> Any:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ProjectError(
                f"there is no project file {self._path}",
                remedy="`headrace init --source URL` writes one; `headrace -C DIR …` looks in another folder.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ProjectError(f"the project file {self._path} cannot be read: {reason}") from error
        try:
            return YAML(typ="rt").load(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark
            place = f"{self._path}:{mark.line + 1}" if mark is not None else f"{self._path}"
            # What the parser quotes of the line is left out: it may be a secret.
            problem = (error.problem or "not YAML").partition(" with value ")[0].partition('"')[0].strip()
            raise ProjectError(
                f"{place}: not valid YAML: {problem}", remedy="Mind indentation, quotes and repeated keys."
            ) from None
        except YAMLError:
            raise ProjectError(f"{self._path}: not valid YAML", remedy="The file must be text in YAML.") from None

    def _plain(self, node: Any, place: Place) -> Any:
        """Plain dicts, lists and values with references resolved; notes lines on the way."""
        tag = getattr(getattr(node, "tag", None), "value", None)
        if tag is not None:
            raise ProjectError(
                f"{self._path}:{self._line(place)}: {'.'.join(map(str, place))} has the YAML tag {tag}, which means nothing here"
            )
        if isinstance(node, dict):
            for key in node:
                self._lines[*place, str(key)] = _mark(node).key(key)[0] + 1
            return {str(key): self._plain(value, (*place, str(key))) for key, value in node.items()}
        if isinstance(node, list):
            for index in range(len(node)):
                self._lines[*place, index] = _mark(node).item(index)[0] + 1
            return [self._plain(value, (*place, index)) for index, value in enumerate(node)]
        if isinstance(node, bool) or node is None:
            return node
        if isinstance(node, str):
            return self._resolve(str(node), place)
        for number in (int, float):
            if isinstance(node, number):
                return number(node)
        return node

    def _resolve(self, text: str, place: Place) -> str | Unresolved:
        if "$" not in text:
            return text
        missing = []

        def value(reference: re.Match[str]) -> str:
            if reference[0] == "$$":
                return "$"
            found = self._environ.get(reference["name"]) or reference["default"]
            if found is None:
                missing.append(reference["name"])
            return found or ""

        resolved = _REFERENCE.sub(value, text)
        if resolved != text:
            self._written[place] = text
        return Unresolved(text=text, variable=missing[0]) if missing else resolved

    def _override(self, values: dict[str, Any], name: str) -> None:
        keys = [key.lower() for key in name.removeprefix(OVERRIDE).split("__")]
        target = values
        for key in keys[:-1]:
            inner = target.get(key)
            if inner is None:
                inner = target[key] = {}
            if not isinstance(inner, dict):
                raise ProjectError(f"environment variable {name} overrides {'.'.join(keys)}, but {key} is not a section")
            target = inner
        target[keys[-1]] = self._environ[name]
        self._variables[tuple(keys)] = self._written[tuple(keys)] = name

    def failed(self, errors: list[ErrorDetails]) -> ProjectError:
        messages, remedies = [], []
        for error in sorted(errors, key=lambda error: self._line(error["loc"])):
            message, remedy = self._explain(error)
            messages.append(message)
            if remedy and remedy not in remedies:
                remedies.append(remedy)
        return ProjectError("\n".join(messages), remedy=" ".join(remedies))

    def _line(self, place: Place) -> int:
        """The line of the value, or of the nearest section around it."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def _given(self, place: Place, otherwise: Any) -> Any:
        """The value as the file has it, not as validation had turned it when it failed."""
        value: Any = self._values
        for part in place:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return otherwise
        return value

    def _variable(self, place: Place) -> str | None:
        """The environment variable that gave this value, or an override in it that the file has nothing of."""
        for overridden, name in self._variables.items():
            if overridden == place[: len(overridden)] or (overridden[: len(place)] == place and place not in self._lines):
                return name
        return None

    def _explain(self, error: ErrorDetails) -> tuple[str, str]:
        place = error["loc"]
        name = ".".join(f"{part}" for part in place)
        variable = self._variable(place)
        where = f"environment variable {variable}" if variable else f"{self._path}:{self._line(place)}"
        section, field = _lookup(place)
        if error["type"] == "extra_forbidden":
            known = sorted(keys_of(section))
            near = difflib.get_close_matches(str(place[-1]), known, n=1) or _elsewhere(str(place[-1]))
            hint = f"; did you mean {near[0]}?" if near else ""
            return (
                f"{where}: {name} is not a setting{hint}",
                f"Known here: {', '.join(known)}. docs/reference/project-file.md has them all.",
            )
        expected = error["msg"] if error["type"] == EXPECTED else expectation(field) if field is not None else "a section"
        if error["type"] == "missing":
            return f"{where}: {name} is missing; expected {expected}", ""
        value = self._given(place, error["input"])
        if isinstance(value, Unresolved):
            missing = secrets.missing_variable(value.variable, where=f"{where}: {name}")
            return missing.message, missing.remedy
        written = self._written.get(place)
        secret = field is not None and Secret in (field.annotation, *get_args(field.annotation))
        if written is not None and variable is None:
            found = f"{written!r}"
        else:
            found = _found(value, show=not secret and variable is None)
        return f"{where}: {name} is {found}; expected {expected}", ""


def _mark(node: Any) -> Any:
    """Where ruamel.yaml's collections keep the lines of what is in them."""
    return node.lc


def _found(value: Any, *, show: bool = True) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, bool | int | float | str) and show:
        return f"{str(value).lower() if isinstance(value, bool) else repr(value)}"
    return {bool: "true or false", int: "a number", float: "a number", str: "a text"}.get(type(value), "something else")


def _lookup(place: Place) -> tuple[type[Section], FieldInfo | None]:
    """The innermost section on the way to a place, and the field that the place is or lies in."""
    section: type[Section] = ProjectFile
    field = None
    for part in place:
        field = keys_of(section).get(str(part)) if not isinstance(part, int) else field
        inner = section_of(field) if field is not None else None
        if inner is None:
            break
        if part is not place[-1]:
            section = inner
    return section, field


def _elsewhere(key: str) -> list[str]:
    """Settings of this name, or nearly, in any section: keys are often right but indented wrongly."""
    paths = {path.rpartition(".")[2]: path for path, _ in all_settings()}
    return [paths[name] for name in difflib.get_close_matches(key, paths, n=1, cutoff=0.8)]
