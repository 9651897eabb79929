"""What the decoder hands on: one table's rows with every value still as PostgreSQL's text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class DecodedRows:
    """Changes of one table, in source order: n rows under one schema of c columns.

    ``after`` and ``before`` have one array per schema column, each of n values of PostgreSQL's text (string_view, string or
    large_string); a value is null where it is SQL NULL, was not sent, or the row has no such tuple.
    """

    op: pa.Array
    """string or dictionary of string [n]: ``c``, ``u``, ``d``, ``t``."""
    commit_lsn: pa.Array
    """int64[n]"""
    ordinal: pa.Array
    """int64[n]"""
    change_lsn: pa.Array
    """int64[n]"""
    xid: pa.Array
    """int64[n]"""
    commit_time: pa.Array
    """timestamp[us, UTC][n]"""
    after: tuple[pa.Array, ...] | None
    """None when no row has a new tuple."""
    after_present: npt.NDArray[np.bool_]
    """bool[n]: the row has a new tuple."""
    unavailable: npt.NDArray[np.bool_] | None
    """bool[n, c]: the new tuple has the column's unchanged old value, which was not sent; None where all were, as usual."""
    before: tuple[pa.Array, ...] | None
    """None when no row has an old tuple. Of an old tuple that is only a key, the other columns are null."""
    before_present: npt.NDArray[np.bool_]
    """bool[n]: the row has an old tuple, whole or only its key."""

    @property
    def rows(self) -> int:
        return len(self.op)
