"""Decoded or copied rows → the change layout: every value of its lake type, or null with its exact text beside it.

DuckDB casts all columns of a batch in one query. Whether a value did not fit is seen by counting nulls, so that the usual batch,
in which every value fits, costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.change import TEXT_MAP, change_schema
from headrace.schema import TableSchema
from headrace.source.postgres.decoded import DecodedRows
from headrace.source.postgres.types import Fitted, TypeMapping

Bools = npt.NDArray[np.bool_]
UNAVAILABLE = pa.list_(pa.string())


def row_type(schema: TableSchema, mappings: Sequence[TypeMapping]) -> pa.StructType:
    """The Arrow struct of a table's rows in the change layout."""
    return pa.struct([pa.field(c.name, m.arrow) for c, m in zip(schema.columns, mappings, strict=True)])


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The old or the new rows of a batch: struct[n] and map<string, string>[n]."""

    rows: pa.Array
    texts: pa.Array


class Converter:
    """Converts batches, one at a time: it belongs to one thread. A batch has less than 2 GB of text."""

    def __init__(self, *, threads: int = 1) -> None:
        self._connection = duckdb.connect(
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "threads": str(threads),
                "arrow_lossless_conversion": "true",  # a uuid stays one
            }
        )
        self._connection.execute("SET TimeZone = 'UTC'")

    def close(self) -> None:
        self._connection.close()

    def convert(self, rows: DecodedRows, schema: TableSchema, mappings: Sequence[TypeMapping]) -> pa.Table:
        """``rows`` in the change layout, in the same order."""
        n = rows.rows
        row = row_type(schema, mappings)
        before = self._side(rows.before, rows.before_present, row, mappings)
        after = self._side(rows.after, rows.after_present, row, mappings)
        columns = [
            rows.op.cast(pa.string()),
            rows.commit_lsn,
            rows.ordinal,
            rows.change_lsn,
            rows.xid,
            rows.commit_time,
            before.rows,
            after.rows,
            pa.nulls(n, UNAVAILABLE) if rows.unavailable is None else _names_where(rows.unavailable, row),
            before.texts,
            after.texts,
        ]
        return pa.Table.from_arrays(columns, schema=change_schema(row))

    def convert_copy(
        self,
        batch: pa.RecordBatch,
        schema: TableSchema,
        mappings: Sequence[TypeMapping],
        *,
        lsn: int,
        commit_time: datetime,
        first_ordinal: int,
    ) -> pa.Table:
        """Rows of a first copy in the change layout: ``batch`` is what ADBC read of the mappings' ``copy_sql``, in schema order.

        Row i gets the ordinal -1 - ``first_ordinal`` - i: the rows of a table's copy differ by it and sort before every change.
        """
        n = batch.num_rows
        row = row_type(schema, mappings)
        fitted: list[Fitted | None] = []
        texts: list[pa.Array | None] = []
        for column, mapping in zip(batch.columns, mappings, strict=True):
            as_values = mapping.copied_values
            fitted.append(None if as_values is None else as_values(column))
            texts.append(column if as_values is None else None)
        for place, cast in self._cast(texts, mappings).items():
            fitted[place] = cast
        after = _assemble([column for column in fitted if column is not None], np.ones(n, np.bool_), row)
        columns = [
            pa.repeat("r", n),
            pa.repeat(lsn, n),
            pa.array(np.arange(-1 - first_ordinal, -1 - first_ordinal - n, -1, dtype=np.int64)),
            pa.repeat(lsn, n),
            pa.repeat(0, n),
            pa.repeat(pa.scalar(commit_time, pa.timestamp("us", tz="UTC")), n),
            pa.nulls(n, row),
            after.rows,
            pa.nulls(n, UNAVAILABLE),
            pa.nulls(n, TEXT_MAP),
            after.texts,
        ]
        return pa.Table.from_arrays(columns, schema=change_schema(row))

    def _side(
        self, texts: tuple[pa.Array, ...] | None, present: Bools, row: pa.StructType, mappings: Sequence[TypeMapping]
    ) -> _Side:
        if texts is None:
            return _Side(rows=pa.nulls(len(present), row), texts=pa.nulls(len(present), TEXT_MAP))
        cast = self._cast(texts, mappings)
        return _assemble([cast[n] for n in range(len(texts))], present, row)

    def _cast(self, texts: Sequence[pa.Array | None], mappings: Sequence[TypeMapping]) -> dict[int, Fitted]:
        """The columns that have a text (string[n] of some kind) as lake values, by their place."""
        done, inputs = {}, {}
        for n, (text, mapping) in enumerate(zip(texts, mappings, strict=True)):
            if text is None:
                continue
            if mapping.always_fits and text.type == mapping.arrow:
                done[n] = Fitted(values=text)
            else:
                inputs[n] = text if mapping.prepare is None else mapping.prepare(text)
        if not inputs:
            return done
        source = pa.table({f"c{n}": values for n, values in inputs.items()})
        select = ", ".join(f"{mappings[n].typed_sql(f'c{n}')} AS c{n}" for n in inputs)
        self._connection.register("batch", source)
        try:
            result = self._connection.sql(f"SELECT {select} FROM batch").to_arrow_table(max(source.num_rows, 1))
        finally:
            self._connection.unregister("batch")
        for n, column in zip(inputs, result.columns, strict=True):
            text = texts[n]
            assert text is not None
            values = _one_array(column, mappings[n].arrow)
            misfits = None
            if values.null_count != text.null_count:
                misfits = pc.if_else(pc.is_null(values), text.cast(pa.string()), pa.scalar(None, pa.string()))
            done[n] = Fitted(values=values, misfits=misfits)
        return done


def _one_array(column: pa.ChunkedArray, type_: pa.DataType) -> pa.Array:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return array if array.type == type_ else array.cast(type_)  # differs in a list's element name only


def _assemble(columns: Sequence[Fitted], present: Bools, row: pa.StructType) -> _Side:
    mask = None if present.all() else pa.array(~present)
    rows = pa.StructArray.from_arrays([column.values for column in columns], fields=list(row), mask=mask)
    return _Side(rows=rows, texts=_texts(columns, len(present), row))


def _texts(columns: Sequence[Fitted], n: int, row: pa.StructType) -> pa.Array:
    """map<string, string>[n]: column name → exact text of the values that did not fit; null where all did."""
    found = [(field.name, column.misfits) for field, column in zip(row, columns, strict=True) if column.misfits is not None]
    if not found:
        return pa.nulls(n, TEXT_MAP)
    where = np.stack([pc.is_valid(misfits).to_numpy(zero_copy_only=False) for _, misfits in found], axis=1)
    _, column_of = np.nonzero(where)  # row by row
    # All columns' texts one after another; the place of a row's text there is its column's start and its rank in the column.
    texts = pa.concat_arrays([misfits.drop_null() for _, misfits in found])
    starts = np.concatenate([[0], np.cumsum(where.sum(axis=0))])[:-1]
    places = (np.cumsum(where, axis=0) - 1 + starts)[where]
    return pa.MapArray.from_arrays(
        _offsets(where),
        pa.array([name for name, _ in found]).take(pa.array(column_of)),
        texts.take(pa.array(places)),
        mask=pa.array(~where.any(axis=1)),
    )


def _names_where(where: Bools, row: pa.StructType) -> pa.Array:
    """list<string>[n]: the names of the columns that are marked in a row; null where none is."""
    names = pa.array([field.name for field in row]).take(pa.array(np.nonzero(where)[1]))
    return pa.ListArray.from_arrays(_offsets(where), names, mask=pa.array(~where.any(axis=1)))


def _offsets(where: Bools) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(where.sum(axis=1))]).astype(np.int32))
