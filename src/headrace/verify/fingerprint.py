"""A table's content as a few numbers that PostgreSQL and DuckDB compute alike.

A row's text has its columns one after the other, so written that nobody can mistake where one ends: ``n`` for null, ``u`` for a
value that the lake type cannot hold, else ``v`` and the canonical text, with its length before it where it is free text and a
semicolon behind it where it is not. The MD5 of that text gives two numbers of 60 bits. The sums of these over all rows, exact,
and the number of rows are the table's fingerprint: that of a multiset, whatever the order.

Both sides' SQL is here, so that what has to be equal stands side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyiceberg.types import StringType

from headrace.source.postgres.types import TypeMapping

BUCKETS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ComparedColumn:
    """``in_lake`` is false for a column that is new at the source: the lake has null for it."""

    name: str
    mapping: TypeMapping
    in_lake: bool = True


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    rows: int
    sums: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.rows:x}-{self.sums[0]:x}-{self.sums[1]:x}"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side's SQL for a table. ``relation`` is what stands after FROM."""

    relation: str
    columns: Sequence[ComparedColumn]
    key: Sequence[str]
    """The key's columns; all columns for a table without one."""

    def fingerprint_sql(self) -> str:
        """One row: count and the two sums."""
        return f"SELECT {self._sums()} FROM ({self._row_hash()} FROM {self.relation} {self._barrier}) AS r"

    def buckets_sql(self) -> str:
        """A row for each bucket that has rows: bucket (0 … 65535, by the key's MD5), count and the two sums."""
        hashed = f"{self._row_hash()}, {self._bucket()} AS b FROM {self.relation} {self._barrier}"
        return f"SELECT b, {self._sums()} FROM ({hashed}) AS r GROUP BY b"

    def rows_sql(self, buckets: Sequence[int]) -> str:
        """The rows of these buckets: key text, key for showing (list), MD5 of the row, of each column (list)."""
        shown = self._list([self._shown(column) for column in self._key_columns()])
        cells = self._list([self._md5(self._text([column])) for column in self.columns])
        chosen = f"SELECT * FROM {self.relation} WHERE {self._bucket()} IN ({', '.join(map(str, buckets))}) {self._barrier}"
        hashed = f"{self._row_hash()}, {self._text(self._key_columns())} AS k, {shown} AS shown, {cells} AS cells"
        return f"SELECT k, shown, h, cells FROM ({hashed} FROM ({chosen}) AS c) AS r"

    _barrier = ""

    def _bucket(self) -> str:
        return self._number(self._md5(self._text(self._key_columns())), 1, 4)

    def _row_hash(self) -> str:
        return f"SELECT {self._md5(self._text(self.columns))} AS h"

    def _md5(self, text: str) -> str:
        return f"md5({text})"

    def _key_columns(self) -> list[ComparedColumn]:
        return [column for column in self.columns if column.name in self.key]

    def _sums(self) -> str:
        return f"count(*), coalesce(sum({self._number('h', 1, 15)}), 0), coalesce(sum({self._number('h', 16, 15)}), 0)"

    def _text(self, columns: Sequence[ComparedColumn]) -> str:
        return " || ".join(self._column(column) for column in columns)

    def _column(self, column: ComparedColumn) -> str:
        raise NotImplementedError

    def _shown(self, column: ComparedColumn) -> str:
        raise NotImplementedError

    def _list(self, items: Sequence[str]) -> str:
        raise NotImplementedError

    def _number(self, digits: str, first: int, count: int) -> str:
        """The number that these hexadecimal digits of a text make."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SourceSide(Side):
    """PostgreSQL. ``utf8``: the server's encoding is UTF-8, else texts are converted before they are hashed."""

    utf8: bool = True

    _barrier = "OFFSET 0"  # else the planner would compute each hash once for every use of it

    def _md5(self, text: str) -> str:
        return f"md5({text})" if self.utf8 else f"md5(convert_to({text}, 'UTF8'))"

    def _column(self, column: ComparedColumn) -> str:
        name = identifier(column.name)
        text = column.mapping.canonical_source_sql(name)
        if is_free_text(column.mapping):
            return f"coalesce('v' || length({text}) || ':' || {text}, 'n')"
        fits = column.mapping.source_representable_sql
        value = f"'v' || {text} || ';'"
        if fits is not None:
            value = f"CASE WHEN {fits(name)} THEN {value} ELSE 'u' END"
        return f"CASE WHEN {name} IS DISTINCT FROM NULL THEN {value} ELSE 'n' END"

    def _shown(self, column: ComparedColumn) -> str:
        return f"CASE WHEN {identifier(column.name)} IS DISTINCT FROM NULL THEN concat({identifier(column.name)}) END"

    def _list(self, items: Sequence[str]) -> str:
        return f"ARRAY[{', '.join(items)}]::text[]"

    def _number(self, digits: str, first: int, count: int) -> str:
        return f"('x' || substr({digits}, {first}, {count}))::bit({4 * count})::bigint"


@dataclass(frozen=True, kw_only=True)
class LakeSide(Side):
    """DuckDB, over a relation in silver's layout."""

    def _column(self, column: ComparedColumn) -> str:
        if not column.in_lake:
            return "'n'"
        name = identifier(column.name)
        text = column.mapping.canonical_lake_sql(name)
        if is_free_text(column.mapping):
            return f"coalesce('v' || length({text}) || ':' || {text}, 'n')"
        null = "'n'"
        if column.mapping.source_representable_sql is not None:
            flag = literal(f"{column.name}:unrepresentable")
            null = f"CASE WHEN list_contains(_flags, {flag}) THEN 'u' ELSE 'n' END"
        return f"CASE WHEN {name} IS NOT NULL THEN 'v' || {text} || ';' ELSE {null} END"

    def _shown(self, column: ComparedColumn) -> str:
        return f"{identifier(column.name)}::VARCHAR" if column.in_lake else "NULL::VARCHAR"

    def _list(self, items: Sequence[str]) -> str:
        return f"[{', '.join(items)}]"

    def _number(self, digits: str, first: int, count: int) -> str:
        return f"('0x' || substr({digits}, {first}, {count}))::BIGINT"


def is_free_text(mapping: TypeMapping) -> bool:
    """Whether anything may stand in a canonical text; else it says itself where it ends, or has no semicolon."""
    return isinstance(mapping.iceberg, StringType)


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
