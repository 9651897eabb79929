"""The change batch: what every source yields, every backbone carries and the lake takes.

Rows of one table are an Arrow table in the *change layout*, in source order:

=============== ============================ =====================================================================
column          Arrow type                   meaning
=============== ============================ =====================================================================
``op``          string                       ``c`` create, ``u`` update, ``d`` delete, ``r`` read (copy), ``t`` truncate
``commit_lsn``  int64                        LSN of the transaction's commit record; for ``r`` the copy's snapshot LSN
``ordinal``     int64                        order of the change in its transaction, from 0; negative for ``r``
``change_lsn``  int64                        LSN of the change's own log record
``xid``         int64                        source transaction id (0 for ``r``)
``commit_time`` timestamp[us, UTC]           commit time at the source (for ``r``: time of the snapshot)
``before``      struct of the table's types  old row: its key, or all of it where the source logs it; null if not logged
``after``       struct of the table's types  new row; null for ``d`` and ``t``
``unavailable`` list<string>                 columns of ``after`` that the source did not send (unchanged TOAST)
``before_text`` map<string, string>          exact text of the values of ``before`` that their lake type cannot hold
``after_text``  map<string, string>          the same for ``after``; null where every value fits, as usual
=============== ============================ =====================================================================

``(commit_lsn, ordinal)`` identifies a change of one table within an epoch and orders it. A ``u`` whose ``before`` is null, or
has the key of ``after``, changes no key. Operation letters are Debezium's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa

from headrace.position import Position
from headrace.schema import TableId, TableSchema

TEXT_MAP = pa.map_(pa.string(), pa.string())


def change_schema(row: pa.StructType) -> pa.Schema:
    """The change layout for rows of this struct type."""
    return pa.schema(
        [
            ("op", pa.string()),
            ("commit_lsn", pa.int64()),
            ("ordinal", pa.int64()),
            ("change_lsn", pa.int64()),
            ("xid", pa.int64()),
            ("commit_time", pa.timestamp("us", tz="UTC")),
            ("before", row),
            ("after", row),
            ("unavailable", pa.list_(pa.string())),
            ("before_text", TEXT_MAP),
            ("after_text", TEXT_MAP),
        ]
    )


QUARANTINE = pa.schema(
    [
        ("op", pa.string()),
        ("commit_lsn", pa.int64()),
        ("ordinal", pa.int64()),
        ("change_lsn", pa.int64()),
        ("xid", pa.int64()),
        ("commit_time", pa.timestamp("us", tz="UTC")),
        ("before", TEXT_MAP),
        ("after", TEXT_MAP),
    ]
)
"""Rows that cannot be typed as their table is known: every column as the source's text, by name; unavailable ones are left out.
"""


@dataclass(frozen=True, kw_only=True)
class TableFault:
    """Why a table cannot be followed from a position on, and what its operator can do about it.

    ``bronze_goes_on``: only silver stands still. Else the table's changes go to the quarantine.
    """

    reason: str
    remedy: str
    lsn: int
    bronze_goes_on: bool = False


@dataclass(frozen=True, kw_only=True)
class ChangeBatch:
    """Some consecutive changes of a source, over any of its tables.

    A batch may begin and end inside a transaction: ``end`` is the position after its last change if that closes a transaction,
    else None, and then nothing may become visible before a later batch that has one. All rows of one table in a batch are under
    one schema, ``schemas[table]``. ``faults`` names tables that cannot be followed from this batch on; their rows, and those of
    tables that were parked before, are in ``quarantined``, in the `QUARANTINE` layout. ``reached`` marks a batch without
    rows that
    says how far the source's log was read.
    """

    tables: Mapping[TableId, pa.Table]
    schemas: Mapping[TableId, TableSchema]
    end: Position | None
    commit_time: datetime | None = None
    """Commit time of the last complete transaction in the batch (aware, UTC)."""
    source_bytes: int = 0
    faults: Mapping[TableId, TableFault] = field(default_factory=dict)
    quarantined: Mapping[TableId, pa.Table] = field(default_factory=dict)
    reached: bool = False

    @property
    def rows(self) -> int:
        return sum(table.num_rows for table in self.tables.values())
