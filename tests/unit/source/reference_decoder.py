"""A slow and obvious decoder of pgoutput, message by message, to hold the columnar one against."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

UNCHANGED = object()


@dataclass
class Row:
    relation: str
    op: str
    commit_lsn: int
    ordinal: int
    change_lsn: int
    xid: int
    commit_us: int
    before: list[Any] | None
    after: list[Any] | None


@dataclass
class Reader:
    data: bytes
    at: int = 0

    def number(self, code: str) -> int:
        value = struct.unpack_from(">" + code, self.data, self.at)[0]
        self.at += struct.calcsize(code)
        return int(value)

    def byte(self) -> str:
        self.at += 1
        return chr(self.data[self.at - 1])

    def text(self) -> str:
        end = self.data.index(0, self.at)
        value = self.data[self.at : end].decode()
        self.at = end + 1
        return value

    def tuple(self) -> list[Any]:
        values: list[Any] = []
        for _ in range(self.number("H")):
            kind = self.byte()
            if kind == "n":
                values.append(None)
            elif kind == "u":
                values.append(UNCHANGED)
            else:
                assert kind == "t"
                length = self.number("I")
                values.append(self.data[self.at : self.at + length].decode())
                self.at += length
        return values


@dataclass
class ReferenceDecoder:
    relations: dict[int, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    _transaction: tuple[int, int, int] = (0, 0, 0)
    _ordinal: int = 0

    def message(self, lsn: int, data: bytes) -> None:
        reader = Reader(data)
        kind = reader.byte()
        if kind == "B":
            commit_lsn, time, xid = reader.number("Q"), reader.number("q"), reader.number("I")
            self._transaction, self._ordinal = (commit_lsn, time + 946_684_800_000_000, xid), 0
        elif kind == "C":
            reader.byte()
            reader.number("Q")
            self.ends.append(reader.number("Q"))
        elif kind == "R":
            oid = reader.number("I")
            self.relations[oid] = f"{reader.text()}.{reader.text()}"
        elif kind in "IUD":
            relation = self.relations[reader.number("I")]
            before = after = None
            marker = reader.byte()
            if marker in "KO":
                before = reader.tuple()
                marker = reader.byte() if kind == "U" else ""
            if marker == "N":
                after = reader.tuple()
            self._add(relation, {"I": "c", "U": "u", "D": "d"}[kind], lsn, before, after)
            self._ordinal += 1
        elif kind == "T":
            count = reader.number("I")
            reader.byte()
            for _ in range(count):
                self._add(self.relations[reader.number("I")], "t", lsn, None, None)
            self._ordinal += 1

    def _add(self, relation: str, op: str, lsn: int, before: list[Any] | None, after: list[Any] | None) -> None:
        commit_lsn, commit_us, xid = self._transaction
        self.rows.append(Row(relation, op, commit_lsn, self._ordinal, lsn, xid, commit_us, before, after))
