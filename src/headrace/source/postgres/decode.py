"""pgoutput messages → rows, column by column with numpy over all messages of a chunk at once.

A chunk is two Arrow arrays as `pg_logical_slot_get_binary_changes` returns them: the message's LSN and its bytes. The formats
are those
of "Logical Replication Message Formats" in PostgreSQL's documentation, protocol version 1, text values. No Python loop runs
over rows: a
tuple's columns are found by stepping through all rows of a table in parallel, one column at a time, and a value stays where it
was received,
as an Arrow string view into the chunk's buffer. Loops run only over what is rare: relation and truncate messages.

This module does no I/O. What it has to remember from chunk to chunk (the open transaction, the known relations) is in `Decoder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.source.postgres.decoded import DecodedRows

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

BEGIN, COMMIT, RELATION, INSERT, UPDATE, DELETE, TRUNCATE = b"BCRIUDT"
NULL, UNCHANGED, TEXT, BINARY = b"nutb"
POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970-01-01
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VIEW = 16  # bytes of an Arrow view: length, then 12 bytes inline or prefix, buffer index and offset
_OP = {INSERT: 0, UPDATE: 1, DELETE: 2, TRUNCATE: 3}
_OP_NAMES = pa.array(["c", "u", "d", "t"])
_OP_OF_KIND = np.zeros(256, np.int8)
for _kind, _code in _OP.items():
    _OP_OF_KIND[_kind] = _code
# _INLINE[n] keeps the first n of the 12 inline bytes: the rest of a short view must be zero.
_INLINE = np.where(np.arange(12) < np.arange(13)[:, None], 255, 0).astype(np.uint8).view(np.uint32)


@dataclass(frozen=True, kw_only=True)
class RelationColumn:
    name: str
    type_oid: int
    typmod: int
    identity: bool
    """Part of the replica identity (every column of a table with REPLICA IDENTITY FULL)."""


@dataclass(frozen=True, kw_only=True)
class RelationMessage:
    """A relation message: the columns that the rows after it have. Generated columns are absent unless published."""

    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Consecutive messages. ``tables`` has the rows of each relation oid, all under ``relations[oid]``.

    ``end_lsn`` is set when the messages end with a transaction's commit: its end LSN. ``commit_us`` is then its commit time in
    microseconds since 1970.
    """

    tables: Mapping[int, DecodedRows]
    relations: Mapping[int, RelationMessage]
    end_lsn: int | None
    commit_us: int
    messages: int
    bytes: int

    @property
    def commit_time(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.commit_us)


class MalformedMessage(ValueError):
    """A message does not follow the protocol: an unknown output plugin option, or damage on the way."""


def parse_relation(message: bytes) -> RelationMessage:
    """A relation message's bytes, with its leading ``R``."""
    oid = int.from_bytes(message[1:5], "big")
    end = message.index(0, 5)
    schema = message[5:end].decode() or "pg_catalog"
    start, end = end + 1, message.index(0, end + 1)
    name = message[start:end].decode()
    identity = chr(message[end + 1])
    count = int.from_bytes(message[end + 2 : end + 4], "big")
    columns, at = [], end + 4
    for _ in range(count):
        end = message.index(0, at + 1)
        columns.append(
            RelationColumn(
                name=message[at + 1 : end].decode(),
                type_oid=int.from_bytes(message[end + 1 : end + 5], "big"),
                typmod=int.from_bytes(message[end + 5 : end + 9], "big", signed=True),
                identity=bool(message[at] & 1),
            )
        )
        at = end + 9
    return RelationMessage(oid=oid, schema=schema, name=name, replica_identity=identity, columns=tuple(columns))


class Decoder:
    """Decodes a slot's messages, chunk after chunk; a transaction may span chunks."""

    def __init__(self) -> None:
        self._relations: dict[int, RelationMessage] = {}
        self._raw: dict[int, bytes] = {}
        # of the transaction that is open at the end of the last chunk
        self._commit_lsn = self._commit_us = self._xid = self._changes = 0

    def decode(self, lsns: pa.Array, messages: pa.Array) -> Iterator[Decoded]:
        """The chunk's rows, cut where a relation's columns change and after its last commit.

        ``lsns``: binary[n], 8 bytes each (``pg_lsn``'s binary form), or int64[n]. ``messages``: binary[n]. Raises
        MalformedMessage.
        """
        if len(messages) == 0:
            return
        chunk = _Chunk(lsns, messages)
        cuts = self._cuts(chunk)
        transactions = self._transactions(chunk)
        for first, last in pairwise(cuts):
            yield self._segment(chunk, transactions, first, last)

    def _cuts(self, chunk: _Chunk) -> list[int]:
        """Message indices at which a new segment starts: after the last commit, and at relation messages that change columns."""
        cuts = {0, len(chunk.kinds)}
        commits = np.flatnonzero(chunk.kinds == COMMIT)
        if len(commits):
            cuts.add(int(commits[-1]) + 1)
        known = dict(self._raw)
        for index in np.flatnonzero(chunk.kinds == RELATION):
            raw = chunk.message(int(index))
            oid = int.from_bytes(raw[1:5], "big")
            if oid in known and known[oid] != raw:
                cuts.add(int(index))
            known[oid] = raw
        return sorted(cuts)

    def _transactions(self, chunk: _Chunk) -> _Transactions:
        """Per message: commit LSN, commit time, xid of its transaction, and its order among the transaction's changes."""
        begins = np.flatnonzero(chunk.kinds == BEGIN)
        at = chunk.offsets[begins]
        commit_lsn = np.concatenate([[self._commit_lsn], chunk.big_endian(at + 1, 8)])
        commit_us = np.concatenate([[self._commit_us], chunk.big_endian(at + 9, 8) + POSTGRES_EPOCH_US])
        xid = np.concatenate([[self._xid], chunk.big_endian(at + 17, 4)])
        number = np.cumsum(chunk.kinds == BEGIN)
        changes: Ints = np.cumsum(chunk.is_change) - chunk.is_change  # changes before this message
        before = np.concatenate([[-self._changes], changes[begins]])
        result = _Transactions(commit_lsn, commit_us, xid, number, changes - before[number])
        self._commit_lsn, self._commit_us, self._xid = int(commit_lsn[-1]), int(commit_us[-1]), int(xid[-1])
        self._changes = int(result.ordinal[-1]) + int(chunk.is_change[-1])
        return result

    def _segment(self, chunk: _Chunk, transactions: _Transactions, first: int, last: int) -> Decoded:
        kinds = chunk.kinds[first:last]
        for index in np.flatnonzero(kinds == RELATION):
            raw = chunk.message(first + int(index))
            relation = parse_relation(raw)
            self._relations[relation.oid], self._raw[relation.oid] = relation, raw
        rows = np.flatnonzero((kinds == INSERT) | (kinds == UPDATE) | (kinds == DELETE)) + first
        oids = chunk.big_endian(chunk.offsets[rows] + 1, 4)
        truncated = self._truncates(chunk, np.flatnonzero(kinds == TRUNCATE) + first)
        tables = {}
        for oid in {*np.unique(oids).tolist(), *truncated}:
            relation = self._relation(oid)
            selected = rows[oids == oid]
            if oid in truncated:
                selected = np.sort(np.concatenate([selected, truncated[oid]]))
            tables[oid] = _rows(chunk, transactions, selected, len(relation.columns))
        ends_with_commit = kinds[-1] == COMMIT
        return Decoded(
            tables=tables,
            relations={oid: self._relations[oid] for oid in tables},
            end_lsn=int(chunk.big_endian(chunk.offsets[last - 1 : last] + 10, 8)[0]) if ends_with_commit else None,
            commit_us=int(transactions.commit_us[transactions.number[last - 1]]),
            messages=last - first,
            bytes=int(chunk.offsets[last] - chunk.offsets[first]),
        )

    def _relation(self, oid: int) -> RelationMessage:
        try:
            return self._relations[oid]
        except KeyError:
            raise MalformedMessage(f"a change of relation {oid} came before its relation message") from None

    @staticmethod
    def _truncates(chunk: _Chunk, indices: Ints) -> dict[int, Ints]:
        found: dict[int, list[int]] = {}
        for index in indices.tolist():
            message = chunk.message(index)
            for n in range(int.from_bytes(message[1:5], "big")):
                found.setdefault(int.from_bytes(message[6 + 4 * n : 10 + 4 * n], "big"), []).append(index)
        return {oid: np.array(messages, np.int64) for oid, messages in found.items()}


@dataclass(frozen=True)
class _Transactions:
    commit_lsn: Ints
    commit_us: Ints
    xid: Ints
    number: Ints
    """Per message: index into the three arrays above (0: the transaction that was open before the chunk)."""
    ordinal: Ints


class _Chunk:
    """A chunk's bytes, where each message starts and of which kind it is."""

    def __init__(self, lsns: pa.Array, messages: pa.Array) -> None:
        if pa.types.is_large_binary(messages.type):
            width: type = np.int64
        else:
            width = np.int32
        _, offsets, data = messages.buffers()
        start = messages.offset
        self.offsets: Ints = np.frombuffer(offsets, width)[start : start + len(messages) + 1].astype(np.int64)
        self.arrow_buffer = data
        self.buffer: Bytes = np.frombuffer(data, np.uint8)
        self.kinds: Bytes = self.buffer.take(self.offsets[:-1])
        kinds = self.kinds
        self.is_change: Bools = (kinds == INSERT) | (kinds == UPDATE) | (kinds == DELETE) | (kinds == TRUNCATE)
        self.lsns: Ints = _lsn_numbers(lsns)
        # 16-byte windows that start at every byte, so that one look-up gathers all views of a column
        self._windows = self._at_every_byte("V16")

    def message(self, index: int) -> bytes:
        return self.buffer[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def big_endian(self, at: Ints, width: int) -> Ints:
        """The unsigned big-endian numbers of ``width`` bytes (2, 4 or 8) at these offsets."""
        return self._at_every_byte(f">u{width}")[at].astype(np.int64)

    def _at_every_byte(self, kind: str) -> npt.NDArray[Any]:
        """The buffer seen as overlapping values, one starting at each byte. To be indexed, not ``take``-n: that would
        copy it whole.
        """
        width = np.dtype(kind).itemsize
        return np.ndarray((max(len(self.buffer) - width + 1, 0),), kind, buffer=self.buffer, strides=(1,))

    def views(self, at: Ints) -> npt.NDArray[np.uint32]:
        """For values whose 4-byte length stands at ``at``: uint32[n, 4], the 16 bytes from there on."""
        last = len(self.buffer) - _VIEW
        near_end = np.flatnonzero(at > last)
        if not len(near_end):
            return self._windows[at].view(np.uint32).reshape(-1, 4)
        gathered = np.zeros((len(at), _VIEW), np.uint8)
        inside = np.flatnonzero(at <= last)
        if len(inside):
            gathered[inside] = self._windows[at[inside]].view(np.uint8).reshape(-1, _VIEW)
        for row in near_end.tolist():  # only values in the buffer's last 16 bytes: a handful
            tail = self.buffer[at[row] : at[row] + _VIEW]
            gathered[row, : len(tail)] = tail
        return gathered.view(np.uint32)


def _lsn_numbers(lsns: pa.Array) -> Ints:
    if pa.types.is_integer(lsns.type):
        numbers: Ints = lsns.to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers
    storage = lsns.storage if isinstance(lsns, pa.ExtensionArray) else lsns
    data = storage.buffers()[2]
    first = int(np.frombuffer(storage.buffers()[1], np.int32)[storage.offset])
    return np.frombuffer(data, ">i8", count=len(storage), offset=first).astype(np.int64)


def _rows(chunk: _Chunk, transactions: _Transactions, selected: Ints, columns: int) -> DecodedRows:
    """The rows of one relation: ``selected`` are its insert, update, delete and truncate messages in order."""
    kinds, at = chunk.kinds[selected], chunk.offsets[selected]
    truncates = kinds == TRUNCATE
    marker = chunk.buffer.take(at + 5, mode="clip")  # what follows the oid: N (new), K (old key) or O (old row)
    before_present = ~truncates & ((marker == ord("K")) | (marker == ord("O")))
    after_present = ~truncates & (kinds != DELETE)
    if not np.all(truncates | before_present | (marker == ord("N"))):
        raise MalformedMessage("a row message has neither a new nor an old tuple")
    before = None
    start = at + 8  # both kinds of tuple: marker, two bytes that count the columns, columns
    if before_present.any():
        old = _Tuples(chunk, start[before_present], columns)
        before = tuple(old.column(n, before_present) for n in range(columns))
        after_old = np.flatnonzero(before_present)
        start[after_old] = old.end + 3  # an update's new tuple follows its old one
    after, unavailable = None, None
    if after_present.any():
        new = _Tuples(chunk, start[after_present], columns)
        after = tuple(new.column(n, after_present) for n in range(columns))
        unavailable = new.unavailable(after_present)
    number = transactions.number[selected]
    return DecodedRows(
        op=pa.DictionaryArray.from_arrays(pa.array(_OP_OF_KIND[kinds]), _OP_NAMES),
        commit_lsn=pa.array(transactions.commit_lsn[number]),
        ordinal=pa.array(transactions.ordinal[selected]),
        change_lsn=pa.array(chunk.lsns[selected]),
        xid=pa.array(transactions.xid[number]),
        commit_time=pa.array(transactions.commit_us[number]).view(pa.timestamp("us", tz="UTC")),
        after=after,
        after_present=after_present,
        unavailable=unavailable,
        before=before,
        before_present=before_present,
    )


class _Tuples:
    """The columns of many tuples of one relation, found by stepping through all of them side by side."""

    def __init__(self, chunk: _Chunk, start: Ints, columns: int) -> None:
        self._chunk = chunk
        self._columns: list[tuple[Ints, npt.NDArray[np.uint32], Bools]] = []
        self._unchanged: list[Bools | None] = []
        counts = chunk.big_endian(start - 2, 2)
        if len(counts) and not np.all(counts == columns):
            raise MalformedMessage(f"a tuple has {int(counts[counts != columns][0])} columns, its relation message {columns}")
        at = start
        for _ in range(columns):
            kind = chunk.buffer.take(at, mode="clip")
            has_value = kind == TEXT
            if has_value.all():
                views = chunk.views(at + 1)
                length = views[:, 0].byteswap()
                data = at + 5
                at = data + length
                unchanged = None
            else:
                if np.any(kind == BINARY):
                    raise MalformedMessage("a column came in binary format, which was not asked for")
                views = np.zeros((len(at), 4), np.uint32)
                present = np.flatnonzero(has_value)
                views[present] = chunk.views(at[present] + 1)
                length = views[:, 0].byteswap()
                data = at + 5
                at = np.where(has_value, data + length, at + 1)
                unchanged = kind == UNCHANGED
                if not unchanged.any():
                    unchanged = None
            views[:, 0] = length
            self._columns.append((data, views, has_value))
            self._unchanged.append(unchanged)
        self.end: Ints = at

    def column(self, n: int, present: Bools) -> pa.Array:
        """string_view[len(present)]: column ``n``, null where the value is NULL or unchanged, or ``present`` is false."""
        data, views, has_value = self._columns[n]
        self._columns[n] = (data, views[:0], has_value)  # the views are finished in place: once only
        lengths = views[:, 0]
        long = np.flatnonzero(lengths > 12)
        # Zero what lies behind short values. Long ones keep their prefix and get buffer index and offset.
        short_lengths = np.minimum(lengths, 12)
        views[:, 1:] &= _INLINE[short_lengths]
        if len(long):
            views[long, 2] = 0
            views[long, 3] = data[long].astype(np.uint32)
        if present.all():
            all_views, valid = views, has_value
        else:
            all_views = np.zeros((len(present), 4), np.uint32)
            all_views[present] = views
            valid = np.zeros(len(present), np.bool_)
            valid[present] = has_value
        bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        return pa.Array.from_buffers(pa.string_view(), len(present), [bitmap, pa.py_buffer(all_views), self._chunk.arrow_buffer])

    def unavailable(self, present: Bools) -> Bools | None:
        """bool[len(present), columns]: where a value was not sent because it did not change; None when all were."""
        if all(column is None for column in self._unchanged):
            return None
        result = np.zeros((len(present), len(self._unchanged)), np.bool_)
        for n, column in enumerate(self._unchanged):
            if column is not None:
                result[present, n] = column
        return result
