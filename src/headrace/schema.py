"""Table schemas as they flow from source to lake: what a column is called, what it holds, which columns are the key."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyiceberg.types import IcebergType


@dataclass(frozen=True, order=True)
class TableId:
    """A source table. Its lake name is ``table`` in schema ``public``, else ``schema__table``."""

    schema: str
    name: str

    @property
    def lake_name(self) -> str:
        return self.name if self.schema == "public" else f"{self.schema}__{self.name}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its lake type is what bronze and silver hold, its source type is what the source calls it.

    ``source_id`` tells a column from a later one of the same name (PostgreSQL: ``pg_attribute.attnum``).
    ``nullable`` says what the source enforces; lake columns are always optional.
    """

    name: str
    type: IcebergType
    source_type: str
    nullable: bool = True
    source_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class TableSchema:
    """The columns of a table in order, and the names of its key columns (empty: rows have no identity, silver appends).

    ``source_id`` tells the table, and its being published, from later ones of the same name: where it has changed, changes
    may have been missed. Empty where the source says nothing of the kind. ``source_state`` is the source's own text on how it
    held the table's rows when the lake had them all: where it has changed, they may have changed without events.
    """

    table: TableId
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    source_id: str = field(default="", compare=False)
    source_state: str = field(default="", compare=False)

    def column(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)
