"""Every setting of ``headrace.yaml``: its default, what it means and what it may be, beside the field.

The reference page is generated from this (`headrace.project.reference`); errors say what a field expects in the same words.
Values are frozen. Durations are seconds (float) and sizes bytes (int), whatever people write: ``10s``, ``256MB``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

from headrace.project import secrets
from headrace.project.secrets import Secret
from headrace.project.units import parse_duration, parse_size


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What values may refer to: the project's folder, for files, and the environment."""

    folder: Path
    environ: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Unresolved:
    """A text of the file whose ``${variable}`` is not set. Only a secret may stay so until somebody needs it."""

    text: str
    variable: str


EXPECTED = "expected"
"""Type of an error whose message says what was expected, where the field alone does not."""


@dataclass(frozen=True)
class Expects:
    """What a field may be, in words for its error message and the reference page."""

    words: str


def _duration(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
        return 0.0
    if not isinstance(value, str):
        raise ValueError("not a duration")
    return parse_duration(value)


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if not isinstance(value, str):
        raise ValueError("not a size")
    return parse_size(value)


def _whole(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would take it for 0 or 1
        raise ValueError("not a number")
    return value


def _secret(value: Any, info: ValidationInfo) -> Secret:
    surroundings = info.context
    assert isinstance(surroundings, Surroundings)
    if isinstance(value, Unresolved):
        missing = value.variable
        return secrets.from_environment(missing, {**surroundings.environ, missing: ""})
    if isinstance(value, str) and value:
        return secrets.literal(value, origin="the project file")
    match value:
        case {"env": str(name)} if len(value) == 1 and name:
            return secrets.from_environment(name, surroundings.environ)
        case {"file": str(path)} if len(value) == 1 and path:
            return secrets.from_file(surroundings.folder / path)
    raise ValueError("not a secret")


def _names(value: Any) -> Any:
    """A list; or one text with commas, as an environment variable has it."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("not a path")
    return Path(value).expanduser()


_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")

Duration = Annotated[float, BeforeValidator(_duration), Expects("a duration such as 10s, 500ms or 1h30m")]
Size = Annotated[int, BeforeValidator(_size), Expects("a size such as 256MB or 1GB")]
Whole = Annotated[int, BeforeValidator(_whole), Expects("a whole number")]
SecretText = Annotated[Secret, PlainValidator(_secret), Expects("text, {env: VARIABLE} or {file: PATH}")]
Patterns = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1)], ...], BeforeValidator(_names), Expects("a list of names")
]
FolderPath = Annotated[Path, BeforeValidator(_path), Expects("a path")]
PlainName = Annotated[
    str,
    StringConstraints(pattern=f"^{_PLAIN_NAME.pattern}$", max_length=40),
    Expects("a name of lower-case letters, digits and underscores, at most 40 characters"),
]
SlotName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9_]+$", max_length=63),
    Expects("a name of lower-case letters, digits and underscores, at most 63 characters"),
]
SourceName = Annotated[str, StringConstraints(min_length=1, max_length=55), Expects("a name of at most 55 characters")]


class Section(BaseModel):
    """A part of the project file: keys it does not have are errors, and values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        """``lake:`` with only comments below it is null in YAML."""
        return {} if value is None else value


class Capture(Section):
    """How the source's log is read."""

    call_bytes: Size = Field(
        default=parse_size("256MB"),
        gt=0,
        description="Log read by one call. Larger is faster when far behind, and takes more of the source's disk for a moment.",
    )
    chunk_bytes: Size = Field(
        default=parse_size("32MB"),
        gt=0,
        description="Size of the pieces in which messages arrive; a few are in memory at a time.",
    )
    decoding_memory: Size | None = Field(
        default=parse_size("256MB"),
        ge=65536,
        description="The source's `logical_decoding_work_mem` for us: larger transactions spill to disk. null: the server's own.",
    )


class Copy(Section):
    """How tables are read whole, at the beginning or when they have to be read again."""

    connections: Whole = Field(
        default=2, ge=1, le=32, description="Connections that read at a time, all under one snapshot, whichever tables."
    )
    chunk_bytes: Size = Field(default=parse_size("16MB"), gt=0, description="Size of the pieces in which rows arrive.")
    range_bytes: Size = Field(
        default=parse_size("64MB"),
        ge=1 << 20,
        description="A table is cut into ranges of pages of this size, shared among the connections.",
    )


class Source(Section):
    """The database that is followed."""

    url: SecretText = Field(description="Where it is: `postgresql://user@host:port/database`. Never shown by any command.")
    password: SecretText | None = Field(
        default=None,
        description="The password, beside a URL without one. Otherwise `PGPASSWORD` and `~/.pgpass` are used, as by psql.",
    )
    tables: Patterns = Field(
        min_length=1,
        description="Tables to follow: `schema.table`, also with `*` and `?`. Without a schema it is `public`. "
        "New tables that match are taken up when `run` starts.",
    )
    exclude: Patterns = Field(default=(), description="Tables to leave out, in the same form.")
    slot: SlotName | None = Field(default=None, description="The replication slot; by default `headrace_<pipeline>`.")
    publication: SourceName | None = Field(
        default=None,
        description="The publication; by default `headrace_<pipeline>`. "
        "Tables without key are in a second one, named the same with `_appends`.",
    )
    heartbeat: Duration = Field(
        default=parse_duration("10s"),
        gt=0,
        description="How often an idle database gets a message in its log, so that the slot does not hold back old log.",
    )
    capture: Capture = Field(default_factory=Capture)
    # "copy" is a method of pydantic's models; the key in the file is `copy` all the same.
    copying: Copy = Field(default_factory=Copy, alias="copy")


class Catalog(Section):
    """The catalog: which files are the tables, at every version."""

    store: SecretText | None = Field(
        default=None,
        description="Where it is kept: null for an SQLite file in the warehouse, or the `postgresql://` URL of a database.",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address on which `headrace catalog serve` listens.")
    port: Whole = Field(default=8181, ge=1, le=65535, description="Its port.")
    token: SecretText | None = Field(
        default=None,
        description="The bearer token that clients must present; null makes one and keeps it in `.headrace/catalog-token`.",
    )


class Commit(Section):
    """When changes become visible in the lake. A commit always holds whole source transactions."""

    rows: Whole = Field(
        default=500_000, ge=1, description="A commit is made at the first transaction end after this many changes, when behind."
    )
    interval: Duration = Field(
        default=parse_duration("200ms"),
        gt=0,
        description="While the source goes on writing, changes are gathered so long; after a pause they are committed at once.",
    )


class Retention(Section):
    """Which versions of the lake are kept; the latest one always is. An age of 0s keeps none of that density."""

    every: Duration = Field(default=parse_duration("15m"), gt=0, description="Every version younger than this is kept.")
    minutely: Duration = Field(
        default=parse_duration("6h"), ge=0, description="Of those younger than this, the last of each minute."
    )
    hourly: Duration = Field(default=parse_duration("7d"), ge=0, description="Of those younger than this, the last of each hour.")
    daily: Duration = Field(default=parse_duration("90d"), ge=0, description="Of those younger than this, the last of each day.")


class Maintenance(Section):
    """Forgetting old versions, and removing the files that only they needed (`headrace maintain`)."""

    interval: Duration | None = Field(
        default=parse_duration("1h"), gt=0, description="How often `headrace run` does it by itself. null: never."
    )
    grace: Duration = Field(
        default=parse_duration("1h"),
        ge=300,
        description="A file that no version needs is removed when it is older than this: it may belong to a commit under way.",
    )


class Lake(Section):
    """Where tables go."""

    warehouse: FolderPath = Field(default=Path("lake"), description="The folder for tables, relative to the project file.")
    name: PlainName = Field(
        default="lake", description="The warehouse's name in the catalog; other engines attach it by this name."
    )
    catalog: Catalog = Field(default_factory=Catalog)
    commit: Commit = Field(default_factory=Commit)
    retention: Retention = Field(default_factory=Retention)
    maintenance: Maintenance = Field(default_factory=Maintenance)


class ProjectFile(Section):
    """The whole file."""

    pipeline: PlainName = Field(
        description="The pipeline's name. It names the slot and publications at the source: unique per database server."
    )
    source: Source
    lake: Lake = Field(default_factory=Lake)
