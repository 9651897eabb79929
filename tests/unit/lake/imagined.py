"""An imagined source table: applies random transactions to a dictionary, row by row, and tells them as changes.

It is the obvious reference for silver: whatever was changed in whatever way, silver must be the dictionary.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyiceberg.types import DecimalType, IcebergType, LongType, StringType

from headrace.change import ChangeBatch, change_schema
from headrace.position import Position
from headrace.schema import Column, TableId, TableSchema

START = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
NAN = "NaN"
"""A number that the lake type cannot hold."""

Row = dict[str, Any]


def columns(*pairs: tuple[str, IcebergType]) -> tuple[Column, ...]:
    return tuple(Column(name=name, type=kind, source_type=str(kind)) for name, kind in pairs)


class ImaginedTable:
    """Columns: the key, ``v`` bigint, ``big`` text (may be unavailable), ``amount`` numeric(12,2) (may be NaN, and unavailable)."""

    def __init__(self, name: str, *, key: tuple[str, ...] = ("id",), text_key: bool = False) -> None:
        kind: IcebergType = StringType() if text_key else LongType()
        keys = [(column, kind) for column in key or ("id",)]
        self.schema = TableSchema(
            table=TableId("public", name),
            columns=columns(*keys, ("v", LongType()), ("big", StringType()), ("amount", DecimalType(12, 2))),
            key=key,
        )
        self.key_names = key or ("id",)
        self.text_key = text_key
        self.rows: dict[Any, Row] = {}
        """By key: the row's values, and its last change's position as ``_lsn`` and ``_ordinal``."""
        self.appended: list[Row] = []
        self.key = key

    @property
    def id(self) -> TableId:
        return self.schema.table

    def arrow(self) -> pa.StructType:
        key = pa.string() if self.text_key else pa.int64()
        return pa.struct(
            [*((name, key) for name in self.key_names), ("v", pa.int64()), ("big", pa.string()), ("amount", pa.decimal128(12, 2))]
        )

    def expected(self) -> list[tuple[Any, ...]]:
        """What silver must have, in order: the columns, position, flags."""
        rows = self.rows.values() if self.key else self.appended
        return sorted(map(self._silver, rows), key=repr)

    def _silver(self, row: Row) -> tuple[Any, ...]:
        amount = None if row["amount"] == NAN else row["amount"]
        flags = ["amount:unrepresentable"] if row["amount"] == NAN else None
        return (*(row[name] for name in self.key_names), row["v"], row["big"], amount, row["_lsn"], row["_ordinal"], flags)


class Imagination:
    """Makes transactions over some tables and keeps the tables' dictionaries up to date."""

    def __init__(self, *tables: ImaginedTable, seed: int = 0, keys: int = 40) -> None:
        self.tables = tables
        self.random = random.Random(seed)
        self.keys = keys
        self.lsn = 1_000
        self.at = START
        self._changes: dict[TableId, list[Row]] = {}
        self._ordinal = 0

    def batch(self, *, transactions: int = 1, changes: int = 8, cut: bool = False) -> ChangeBatch:
        """The next transactions as one batch. ``cut``: without the end of the last one."""
        self._changes = {}
        for _ in range(transactions):
            self.lsn += 100
            self.at += timedelta(seconds=self.random.choice([1, 60, 3600]))
            self._ordinal = 0
            for _ in range(self.random.randint(1, changes)):
                self._change(self.random.choice(self.tables))
        return self._told(cut)

    def only(self, table: ImaginedTable, operations: list[tuple[Any, ...]], *, cut: bool = False) -> ChangeBatch:
        """One transaction of these: ("c", key), ("u", key), ("move", key, new key), ("d", key), ("t",)."""
        self._changes = {}
        self.lsn += 100
        self._ordinal = 0
        for name, *keys in operations:
            self._apply(table, name, *[(key,) if not isinstance(key, tuple) else key for key in keys])
        return self._told(cut)

    def _told(self, cut: bool) -> ChangeBatch:
        return ChangeBatch(
            tables={
                table.id: arrow_changes(table, self._changes[table.id]) for table in self.tables if table.id in self._changes
            },
            schemas={table.id: table.schema for table in self.tables},
            end=None if cut else Position(1, self.lsn),
            commit_time=self.at,
        )

    def copied(self, table: ImaginedTable, keys: int) -> pa.Table:
        """``r`` rows of a table's first copy, which replaces what it had."""
        self._changes = {}
        table.rows = {}
        for number in range(keys):
            self._ordinal = number - keys
            self._put(table, "r", self._key(table, number), None, [])
        return arrow_changes(table, self._changes.get(table.id, []))

    def _change(self, table: ImaginedTable) -> None:
        live = list(table.rows)
        chance = self.random.random()
        if not table.key:
            self._apply(table, "t") if chance < 0.01 else self._apply(table, "c", (self.random.randrange(self.keys),))
            return
        if chance < 0.01:
            self._apply(table, "t")
            return
        free = [key for key in (self._key(table, number) for number in range(self.keys)) if key not in table.rows]
        if (chance < 0.4 or not live) and free:
            self._apply(table, "c", self.random.choice(free))
        elif chance < 0.7:
            self._apply(table, "u", self.random.choice(live))
        elif chance < 0.8 and free:
            self._apply(table, "move", self.random.choice(live), self.random.choice(free))
        elif chance < 0.85 and len(live) > 1 and free:
            # Two keys change places by way of a third.
            one, two = self.random.sample(live, 2)
            third = self.random.choice(free)
            self._apply(table, "move", one, third)
            self._apply(table, "move", two, one)
            self._apply(table, "move", third, two)
        else:
            self._apply(table, "d", self.random.choice(live))

    def _key(self, table: ImaginedTable, number: int) -> tuple[Any, ...]:
        parts = [number // 7**place % 7 if len(table.key_names) > 1 else number for place in range(len(table.key_names))]
        return tuple(f"k{part}" for part in parts) if table.text_key else tuple(parts)

    def _apply(self, table: ImaginedTable, name: str, *keys: tuple[Any, ...]) -> None:
        if name == "t":
            table.rows, table.appended = {}, []
            self._tell(table, {"op": "t"})
        elif name == "d":
            del table.rows[keys[0]]
            self._tell(table, {"op": "d", "before": self._key_row(table, keys[0])})
        elif name == "c":
            self._put(table, "c", keys[0], None, [])
        else:
            old = table.rows[keys[0]]
            kept = ["big"] if self.random.random() < 0.5 else []
            kept += ["amount"] if self.random.random() < 0.2 else []
            self._put(table, "u", keys[-1], old, kept)

    def _put(self, table: ImaginedTable, op: str, key: tuple[Any, ...], old: Row | None, kept: list[str]) -> None:
        row: Row = {
            **dict(zip(table.key_names, key, strict=True)),
            "v": self.random.randrange(10**6),
            "big": self.random.choice([None, "", f"text {self.random.random()}"]),
            "amount": self.random.choice([None, Decimal(self.random.randrange(10**6)).scaleb(-2), NAN]),
        }
        before = None
        if old is not None:
            row |= {name: old[name] for name in kept}
            old_key = tuple(old[name] for name in table.key_names)
            if old_key != key:
                del table.rows[old_key]
                before = self._key_row(table, old_key)
            elif self.random.random() < 0.3:
                before = self._key_row(table, old_key)  # as with REPLICA IDENTITY FULL
        change: Row = {"op": op, "before": before, "unavailable": kept or None}
        after = {name: None if name in kept else value for name, value in row.items()}
        if after["amount"] == NAN:
            after["amount"] = None
            change["after_text"] = [("amount", NAN)]
        change["after"] = after
        position = self._tell(table, change)
        row |= position
        if table.key:
            table.rows[key] = row
        else:
            table.appended.append(row)

    def _key_row(self, table: ImaginedTable, key: tuple[Any, ...]) -> Row:
        return {**dict.fromkeys(field.name for field in table.arrow()), **dict(zip(table.key_names, key, strict=True))}

    def _tell(self, table: ImaginedTable, change: Row) -> Row:
        position = {"_lsn": self.lsn, "_ordinal": self._ordinal}
        told = {
            **dict.fromkeys(change_schema(table.arrow()).names),
            "commit_lsn": self.lsn,
            "ordinal": self._ordinal,
            "change_lsn": self.lsn - 50 + self._ordinal,
            "xid": self.lsn // 100,
            "commit_time": self.at,
            **change,
        }
        self._changes.setdefault(table.id, []).append(told)
        self._ordinal += 1
        return position


def arrow_changes(table: ImaginedTable, changes: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(changes, schema=change_schema(table.arrow()))


def silver_tuples(table: ImaginedTable, rows: list[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows that were read from silver, as `ImaginedTable.expected` has them."""
    names = [*table.key_names, "v", "big", "amount", "_commit_lsn", "_ordinal", "_flags"]
    return sorted((tuple(row[name] for name in names) for row in rows), key=repr)
