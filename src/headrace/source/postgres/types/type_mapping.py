"""The form of every type's mapping: how its values become lake values exactly, and how both sides write them for a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
from pyiceberg.types import IcebergType

Sql = Callable[[str], str]
"""From an SQL expression of one value to an SQL expression."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A copied column as lake values, and PostgreSQL's text of those that the lake type cannot hold."""

    values: pa.Array
    """n values of the mapping's ``arrow`` type; null where the source has NULL or the value does not fit."""
    misfits: pa.Array | None = None
    """string[n]: the exact text where a value does not fit, else null; None when all fit."""


def output_text(ident: str) -> str:
    """PostgreSQL: the text that the type's output function gives, as in logical replication.

    A cast to text is something else for some types: it strips a bpchar, adds a netmask to an inet, spells out a boolean.
    ``IS DISTINCT FROM NULL`` because a row with only null fields ``IS NULL``.
    """
    return f"CASE WHEN {ident} IS DISTINCT FROM NULL THEN pg_catalog.concat({ident}) END"


def same(expression: str) -> str:
    return expression


@dataclass(frozen=True, kw_only=True)
class TypeMapping:
    """How a PostgreSQL type is held in the lake.

    A value whose text is not null but whose typed value is null is *unrepresentable*: the lake holds null and a flag, and its
    exact text goes to ``before_text``/``after_text``.
    """

    iceberg: IcebergType
    """List types carry element id -1: the lake gives the ids."""
    arrow: pa.DataType
    """The type of the column in the change layout."""
    exact: str
    """For the reference page: what is exact, and which values are unrepresentable."""

    typed_sql: Sql
    """DuckDB (TimeZone UTC): from the text, or what ``prepare`` made of it, to the lake value; null if unrepresentable."""
    prepare: Callable[[pa.Array], pa.Array] | None = None
    """A step in numpy on the text (string_view, string, large_string) before ``typed_sql``; null if unrepresentable."""
    always_fits: bool = False
    """No value is unrepresentable, and the text itself is the value."""

    copy_sql: Sql = output_text
    """PostgreSQL: what the first copy selects."""
    copied_values: Callable[[pa.Array], Fitted] | None = None
    """From that column as ADBC gives it to lake values. None: the column is text, for ``prepare`` and ``typed_sql``."""

    canonical_source_sql: Sql = output_text
    canonical_lake_sql: Sql = same
    """Text that is the same, character for character, for equal values: in PostgreSQL and in DuckDB. NULL for NULL."""
    source_representable_sql: Sql | None = None
    """PostgreSQL: whether a value that is not NULL fits the lake type. None: every value does."""
