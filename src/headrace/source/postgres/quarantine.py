"""Rows of a table that cannot be typed as it is known, kept as the source's text so that nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.change import QUARANTINE, TEXT_MAP
from headrace.source.postgres.decoded import DecodedRows


def quarantine_rows(rows: DecodedRows, names: Sequence[str]) -> pa.Table:
    """``rows`` in the `QUARANTINE` layout; ``names`` are the columns that they were sent with."""
    return pa.Table.from_arrays(
        [
            rows.op.cast(pa.string()),
            rows.commit_lsn,
            rows.ordinal,
            rows.change_lsn,
            rows.xid,
            rows.commit_time,
            _as_map(rows.before, rows.before_present, None, names),
            _as_map(rows.after, rows.after_present, rows.unavailable, names),
        ],
        schema=QUARANTINE,
    )


def _as_map(
    texts: tuple[pa.Array, ...] | None,
    present: npt.NDArray[np.bool_],
    unavailable: npt.NDArray[np.bool_] | None,
    names: Sequence[str],
) -> pa.Array:
    """map<string, string>[n]: name → text, with null for SQL NULL; without the unavailable columns; null where there is no
    row.
    """
    n, width = len(present), len(names)
    if texts is None:
        return pa.nulls(n, TEXT_MAP)
    sent = np.repeat(present[:, None], width, axis=1)
    if unavailable is not None:
        sent &= ~unavailable
    row, column = np.nonzero(sent)
    values = pa.concat_arrays([text.cast(pa.string()) for text in texts]).take(pa.array(column * n + row))
    offsets = np.concatenate([[0], np.cumsum(sent.sum(axis=1))]).astype(np.int32)
    keys = pa.array(list(names)).take(pa.array(column))
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values, mask=pa.array(~present))
