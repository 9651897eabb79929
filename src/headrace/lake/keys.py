"""Keys as fixed-width numbers ("lanes"), for the key index: 64 or 128 bits that are equal exactly when the keys are.

Up to 128 bits of numbers, dates, times and UUIDs are their own lanes. Anything wider is hashed: the 128-bit MD5 of the columns'
texts, each preceded by its length, after a random salt of the index, so that nobody can prepare keys that collide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import duckdb

Lane = npt.NDArray[np.uint64]

_NARROW = {"boolean", "int", "long", "date", "time", "timestamp", "timestamptz", "float", "double"}


@dataclass(frozen=True)
class Lanes:
    """n keys: ``hi`` and, for keys wider than 64 bits, ``lo`` (uint64[n] each)."""

    hi: Lane
    lo: Lane | None

    def __len__(self) -> int:
        return len(self.hi)

    def take(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice) -> Lanes:
        return Lanes(self.hi[index], None if self.lo is None else self.lo[index])

    def order(self, *, presorted: bool = False) -> npt.NDArray[np.int64]:
        """The stable order of the keys. ``presorted``: they are a few sorted stretches one after the other."""
        hi = self.hi
        if len(hi) < 2 or bool((hi[1:] > hi[:-1]).all()):
            return np.arange(len(hi))
        if not presorted:
            # The fastest sort is not stable, which matters only where keys are equal.
            order = np.argsort(hi)
            ordered = hi[order]
            if bool((ordered[1:] != ordered[:-1]).all()):
                return order
        order = np.argsort(hi, kind="stable")
        if self.lo is None:
            return order
        # Upper halves of different keys are hardly ever equal, and sorting by both halves takes three times as long.
        ordered, lo = hi[order], self.lo[order]
        mixed = bool(((ordered[1:] == ordered[:-1]) & (lo[1:] != lo[:-1])).any())
        return np.lexsort((self.lo, hi)) if mixed else order

    def same_as_previous(self) -> npt.NDArray[np.bool_]:
        """bool[n]: whether each key equals the one before it; false for the first."""
        same = np.zeros(len(self.hi), np.bool_)
        same[1:] = self.hi[1:] == self.hi[:-1]
        if self.lo is not None:
            same[1:] &= self.lo[1:] == self.lo[:-1]
        return same

    def equal(self, other: Lanes) -> npt.NDArray[np.bool_]:
        """bool[n]: which keys of two equally long ones are equal, one by one."""
        same: npt.NDArray[np.bool_] = self.hi == other.hi
        if self.lo is not None and other.lo is not None:
            same &= self.lo == other.lo
        return same


def joined(parts: Sequence[Lanes]) -> Lanes:
    if len(parts) == 1:
        return parts[0]
    los = [part.lo for part in parts if part.lo is not None]
    return Lanes(np.concatenate([part.hi for part in parts]), np.concatenate(los) if los else None)


class UnusableKey(Exception):
    """A key column is null: the source's value cannot be held by the lake type, so the row has no key there."""

    def __init__(self, column: int) -> None:
        super().__init__(column)
        self.column = column


class KeyCodec:
    """Turns key columns of these Iceberg types (in JSON form) into lanes. The same for a type and its widened form."""

    def __init__(self, kinds: Sequence[object], salt: str) -> None:
        bits = [_bits(kind) for kind in kinds]
        self.hashed = 0 in bits or sum(max(64, one) for one in bits) > 128
        self.wide = self.hashed or sum(max(64, one) for one in bits) > 64
        self._salt = salt
        self._connection: duckdb.DuckDBPyConnection | None = None
        names = [f"k{number}" for number in range(len(kinds))]
        parts = ", ".join(f"strlen({name}), ':', {name}" for name in names)
        texts = ", ".join(f"CAST({name} AS VARCHAR) AS {name}" for name in names)
        self._names = names
        self._sql = (
            "SELECT CAST(h >> 64 AS UBIGINT), CAST(h & 18446744073709551615 AS UBIGINT)"
            f" FROM (SELECT md5_number(concat('{salt}', {parts})) AS h FROM (SELECT {texts} FROM keys))"
        )

    @property
    def form(self) -> str:
        """What an index made with this codec can be read with."""
        return f"md5:{self._salt}" if self.hashed else "128" if self.wide else "64"

    def lanes(self, columns: Sequence[pa.Array]) -> Lanes:
        """The keys of n rows. Raises UnusableKey when one has a null."""
        for number, column in enumerate(columns):
            if column.null_count:
                raise UnusableKey(number)
        if self.hashed:
            return self._hash(columns)
        lanes = [lane for column in columns for lane in _direct(column)]
        return Lanes(lanes[0], lanes[1] if len(lanes) > 1 else None)

    def _hash(self, columns: Sequence[pa.Array]) -> Lanes:
        if not len(columns[0]):
            return Lanes(np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        if self._connection is None:
            import duckdb  # takes long, and only long keys need it

            self._connection = duckdb.connect(config={"threads": 2})
        self._connection.register("keys", pa.Table.from_arrays([_hashable(column) for column in columns], names=self._names))
        found = self._connection.execute(self._sql).to_arrow_table()
        self._connection.unregister("keys")
        hi, lo = (column.to_numpy().astype(np.uint64, copy=False) for column in found.columns)
        return Lanes(hi, lo)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _bits(kind: object) -> int:
    """How many bits a value takes, 0 if they vary."""
    if not isinstance(kind, str):  # a list
        return 0
    if kind in _NARROW:
        return 64
    return 128 if kind == "uuid" or kind.startswith("decimal") else 0


def _hashable(column: pa.Array) -> pa.Array:
    """The column as DuckDB turns it into the same text whatever the session's settings, widened or not."""
    if pa.types.is_list(column.type):
        return pa.ListArray.from_arrays(column.offsets, _hashable(column.values))
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.int32()) if pa.types.is_date32(column.type) else column
        return column.cast(pa.int64())
    return column.cast(pa.float64()) if pa.types.is_float32(column.type) else column


def _direct(column: pa.Array) -> list[Lane]:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column = column.storage
        kind = column.type
    if pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
        data = np.frombuffer(column.buffers()[1], np.uint64, count=2 * len(column), offset=16 * column.offset)
        pairs = data.reshape(-1, 2)
        # A decimal's scale never changes, so its 128-bit number is the value whatever the precision.
        return [np.ascontiguousarray(pairs[:, 1]), np.ascontiguousarray(pairs[:, 0])]
    if pa.types.is_floating(kind):
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        values = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN, and no negative zero: as PostgreSQL compares
        return [np.ascontiguousarray(values).view(np.uint64)]
    if pa.types.is_date32(kind):
        column = column.cast(pa.int32())
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_temporal(kind):
        column = column.cast(pa.int64())
    whole = pc.cast(column, pa.int64())
    return [whole.to_numpy(zero_copy_only=False).view(np.uint64)]
