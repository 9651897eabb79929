"""Parquet files of rows: written in pieces that a commit stages one after the other, read back by field id."""

from __future__ import annotations

import datetime
import decimal
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.conversions import to_bytes
from pyiceberg.types import DecimalType, PrimitiveType

from headrace.catalog.files import path_of
from headrace.lake.manifests import DATA, DataFile
from headrace.lake.storage import Storage

FIELD_ID = b"PARQUET:field_id"
ROW_GROUP_ROWS = 131_072
ROW_GROUP_BYTES = 32 << 20
FILE_ROWS, FILE_BYTES = 1_000_000, 1 << 30
SMALL_ROWS = 16_384
PLAIN_ROWS, PLAIN_BYTES = 2_048, 256 << 10
BOUND_LETTERS = 16
SAMPLED_ROWS = 4_096

Bounded = Mapping[str, tuple[int, PrimitiveType]]
"""Columns whose smallest and largest value go into manifests: name → field id and type."""


class RowFile:
    """A Parquet file being written. Rows of one schema are appended in pieces; a piece is written while the next is being made.

    Not safe for several threads. ``location`` is known at once; the file is complete when `finish` was called and the storage is
    settled.
    """

    def __init__(
        self,
        storage: Storage,
        location: str,
        schema: pa.Schema,
        *,
        bounded: Bounded,
        partition: int | str | None = None,
        content: int = DATA,
    ) -> None:
        self.location = location
        self.schema = schema
        self.rows = 0
        self.partition = partition
        self.content = content
        self.held: pa.Table | None = None
        """The rows, as long as the file is a single small piece."""
        self._storage = storage
        self._bounded = bounded
        self._bounds: dict[str, tuple[Any, Any]] = {}
        self._writing: Future[None] | None = None
        self._file: Any = None
        self._writer: pq.ParquetWriter | None = None
        self._finished: Future[int] | None = None
        self._size: int | None = None
        self._nbytes = 0

    @property
    def full(self) -> bool:
        """True if further rows should go into another file."""
        return self.rows >= FILE_ROWS or self._nbytes >= FILE_BYTES

    def append(self, rows: pa.Table) -> int:
        """Append rows of the file's schema; the position of the first."""
        first = self.rows
        self.rows += rows.num_rows
        self._nbytes += rows.nbytes
        if self.held is not None:
            self._put(self.held)
            self.held = None
        if first == 0 and rows.num_rows <= SMALL_ROWS:
            # The usual file of a live commit: written whole, when it is finished.
            self.held = rows
        else:
            self._put(rows)
        self._widen_bounds(rows)
        return first

    def finish(self) -> None:
        """Write the rest and make the file durable, on a writer thread. May be called again."""
        if self._finished is not None or self._size is not None:
            return
        if self.held is not None and self.rows <= PLAIN_ROWS and self.held.nbytes <= PLAIN_BYTES:
            content = _plain(self.held)
            self._size = len(content)
            self._storage.write(self.location, content)  # until the storage is settled only ``held`` can be read
            return
        self._wait()
        self._storage.note(self.location)
        self._finished = self._storage.run(self._finish)

    def wait(self) -> int:
        """Finish the file and wait until it can be read; its size in bytes. Raises OSError."""
        self.finish()
        if self._size is None:
            assert self._finished is not None
            self._size = self._finished.result()
        return self._size

    def abort(self) -> None:
        """Give up a file that is not finished, and remove it; one that is finished is left alone."""
        if self._finished is not None or self._size is not None:
            return
        if self._writing is not None:
            self._writing.exception()
        if self._file is not None:
            with suppress(OSError, pa.ArrowException):
                if self._writer is not None:
                    self._writer.close()
            with suppress(OSError):
                self._file.close()
            path_of(self.location).unlink(missing_ok=True)
            self._file = self._writer = None

    def described(self) -> DataFile:
        """The finished file as manifests describe it. Waits until its size is known."""
        size = self.wait()
        lower, upper = {}, {}
        for name, (field_id, kind) in self._bounded.items():
            low, high = self._bounds.get(name, (None, None))
            if (encoded := lower_bound(kind, low)) is not None:
                lower[field_id] = encoded
            if (encoded := upper_bound(kind, high)) is not None:
                upper[field_id] = encoded
        return DataFile(
            content=self.content,
            location=self.location,
            rows=self.rows,
            size=size,
            partition=self.partition,
            lower=lower,
            upper=upper,
        )

    def _put(self, rows: pa.Table) -> None:
        self._wait()
        self._writing = self._storage.run(self._write, rows)

    def _wait(self) -> None:
        # One piece is written while the next is being made: that is what bounds memory.
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, rows: pa.Table) -> None:
        if self._writer is None:
            path = path_of(self.location)
            self._file = path.open("xb", buffering=1 << 20)
            self._writer = pq.ParquetWriter(
                self._file, self.schema, compression="zstd", store_schema=False, use_dictionary=repeating(rows)
            )
        self._writer.write_table(rows, row_group_rows(rows))

    def _finish(self) -> int:
        if self.held is not None or self._writer is None:
            self._write(self.held if self.held is not None else self.schema.empty_table())
        assert self._writer is not None
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._file.close()
        self._writer = None
        return int(size)

    def _widen_bounds(self, rows: pa.Table) -> None:
        for name in self._bounded:
            column = rows.column(name)
            if isinstance(column.type, pa.BaseExtensionType):
                column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
            found = pc.min_max(column)
            low, high = found["min"].as_py(), found["max"].as_py()
            if low is None:
                continue
            known = self._bounds.get(name)
            self._bounds[name] = (low, high) if known is None else (min(known[0], low), max(known[1], high))


def row_group_rows(rows: pa.Table) -> int:
    """How many of these rows go into a row group. A wide row's unchanged column is read back with its whole group: that must not
    be large.
    """
    each = rows.nbytes // max(1, rows.num_rows)
    return int(max(1_024, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // max(1, each))))


def repeating(rows: pa.Table) -> list[str]:
    """The leaf columns whose values repeat, judged by the first rows. Only for them a dictionary makes a file smaller and
    faster to
    write; for others Parquet would build one, and then give it up.
    """
    found = []
    for field, column in zip(rows.schema, rows.slice(0, SAMPLED_ROWS).combine_chunks().columns, strict=True):
        for path, leaf in _leaves(field.name, column.chunk(0) if column.num_chunks else pa.array([], field.type)):
            if len(leaf.unique()) <= len(leaf) // 8:
                found.append(path)
    return found


def _leaves(path: str, column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """The primitive columns below a column, with the paths that Parquet gives them. Of a repeated one all values count."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_struct(column.type):
        for number, field in enumerate(column.type):
            yield from _leaves(f"{path}.{field.name}", column.field(number))
    elif pa.types.is_map(column.type):
        yield from _leaves(f"{path}.key_value.key", column.keys)
        yield from _leaves(f"{path}.key_value.value", column.items)
    elif pa.types.is_list(column.type):
        yield from _leaves(f"{path}.list.element", column.values)
    else:
        yield path, column


def _plain(rows: pa.Table) -> bytes:
    """A small table as Parquet, neither compressed nor with dictionaries or statistics: it will soon be merged, and those take
    four times as long.
    """
    sink = pa.BufferOutputStream()
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(sink, rows.schema, store_schema=False, **plain) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def bounded_kind(kind: object) -> bool:
    """Whether bounds of columns of this Iceberg type are kept."""
    return isinstance(kind, PrimitiveType) and str(kind) not in ("boolean", "binary") and not str(kind).startswith("fixed")


def lower_bound(kind: PrimitiveType, value: Any) -> bytes | None:
    if isinstance(value, str):
        value = value[:BOUND_LETTERS]
    return None if value is None else _bound(kind, value)


def upper_bound(kind: PrimitiveType, value: Any) -> bytes | None:
    if isinstance(value, str) and len(value) > BOUND_LETTERS:
        # The cut text is smaller than the value: its last letter that has a successor is raised.
        letters = value[:BOUND_LETTERS]
        while letters and ord(letters[-1]) >= 0xD7FF:
            letters = letters[:-1]
        value = letters[:-1] + chr(ord(letters[-1]) + 1) if letters else None
    return None if value is None else _bound(kind, value)


def _bound(kind: PrimitiveType, value: Any) -> bytes | None:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, bytes):
        return value if len(value) == 16 else None
    if isinstance(kind, DecimalType) and isinstance(value, decimal.Decimal):
        unscaled = int(value.scaleb(kind.scale, decimal.Context(prec=60)))
        return unscaled.to_bytes((unscaled if unscaled >= 0 else ~unscaled).bit_length() // 8 + 1, "big", signed=True)
    if isinstance(value, (bool, int, float, str, uuid.UUID)):
        return to_bytes(kind, value)
    if isinstance(value, datetime.datetime):
        origin = datetime.datetime(1970, 1, 1, tzinfo=value.tzinfo)
        return ((value - origin) // datetime.timedelta(microseconds=1)).to_bytes(8, "little", signed=True)
    if isinstance(value, datetime.date):
        return (value - datetime.date(1970, 1, 1)).days.to_bytes(4, "little", signed=True)
    if isinstance(value, datetime.time):
        midnight = datetime.timedelta(
            hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond
        )
        return (midnight // datetime.timedelta(microseconds=1)).to_bytes(8, "little", signed=True)
    return None


def read_rows(
    storage: Storage, location: str, wanted: pa.Schema | None = None, *, at: npt.NDArray[np.unsignedinteger] | None = None
) -> pa.Table:
    """A data file's rows: all of them, or those ``at`` these ascending positions; with only the columns of ``wanted``, and in
    that schema.

    Raises LakeUnavailable.
    """
    try:
        with pq.ParquetFile(path_of(location)) as file:
            names = None
            if wanted is not None:
                schema = file.schema_arrow
                names = [schema.field(index).name for index in _matches(schema, wanted) if index is not None]
            if at is None:
                rows = file.read(columns=names, use_threads=file.metadata.num_rows > SMALL_ROWS)
            else:
                rows = _read_at(file, names, at)
            count = file.metadata.num_rows if at is None else len(at)
    except (OSError, pa.ArrowException) as error:
        raise storage.unreadable(location, error) from error
    if wanted is None:
        return rows
    if not names:
        return pa.Table.from_arrays([pa.nulls(count, field.type) for field in wanted], schema=wanted)
    return conform(rows, wanted)


def _read_at(file: pq.ParquetFile, names: Sequence[str] | None, at: npt.NDArray[np.unsignedinteger]) -> pa.Table:
    """Rows at ascending positions, reading only the row groups that have some."""
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    begins = np.concatenate([[0], np.cumsum(sizes)])
    group = np.searchsorted(begins, at, "right") - 1
    pieces = []
    for number in np.unique(group):
        positions = at[group == number].astype(np.int64) - begins[number]
        pieces.append(file.read_row_group(int(number), columns=names).take(pa.array(positions)))
    return pa.concat_tables(pieces)


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """``rows`` in ``schema``: columns are found by field id where both have one, else by name; missing ones are null.

    Narrower types are widened. Structs are treated likewise. Nothing is copied where the types are equal already.
    """
    if rows.schema.equals(schema, check_metadata=True):
        return rows
    columns = _children(rows.schema, rows.columns, schema, rows.num_rows)
    return pa.Table.from_arrays(columns, schema=schema)


def _children(fields: Any, values: Sequence[Any], wanted: Any, rows: int) -> list[Any]:
    """``values``, which ``fields`` describe, as the columns of the fields ``wanted``."""
    found = _matches(fields, wanted)
    return [
        pa.nulls(rows, field.type) if index is None else _cast(values[index], field.type)
        for index, field in zip(found, wanted, strict=True)
    ]


def _matches(fields: Any, wanted: Any) -> list[int | None]:
    """Which of ``fields`` each of ``wanted`` is."""
    by_name = {field.name: index for index, field in enumerate(fields)}
    if _without_ids(fields):
        return [by_name.get(field.name) for field in wanted]
    by_id = {(field.metadata or {}).get(FIELD_ID): index for index, field in enumerate(fields)}
    by_id.pop(None, None)
    unnumbered = {field.name: index for index, field in enumerate(fields) if FIELD_ID not in (field.metadata or {})}
    return [by_id.get((field.metadata or {}).get(FIELD_ID), unnumbered.get(field.name)) for field in wanted]


def _without_ids(fields: Any) -> bool:
    return not any(field.metadata for field in fields)


def _cast(values: Any, wanted: pa.DataType) -> Any:
    if values.type.equals(wanted, check_metadata=True):
        return values
    if isinstance(values, pa.ChunkedArray):
        return pa.chunked_array([_cast(chunk, wanted) for chunk in values.chunks], wanted)
    if pa.types.is_struct(wanted) and pa.types.is_struct(values.type):
        own = values.type
        if _without_ids(own) and [field.name for field in own] == [field.name for field in wanted]:
            return values.cast(wanted)
        # .field() heeds a slice, and leaves the struct's own nulls to it: nothing is copied.
        made = _children(own, [values.field(index) for index in range(own.num_fields)], wanted, len(values))
        mask = values.is_null() if values.null_count else None
        return pa.StructArray.from_arrays(made, fields=list(wanted), mask=mask)
    if isinstance(values.type, pa.BaseExtensionType) and not isinstance(wanted, pa.BaseExtensionType):
        return values.storage.cast(wanted)
    return values.cast(wanted)
