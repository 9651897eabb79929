"""The decoder on messages that a real PostgreSQL 18 sent (record_pgoutput.py has the statements)."""

from __future__ import annotations

import base64
import json

import pytest

from .record_pgoutput import DATA
from .reference_decoder import UNCHANGED, ReferenceDecoder
from .test_decode import columnar, in_order

LINES = [json.loads(line) for line in DATA.read_text().splitlines()]
MESSAGES = [base64.b64decode(data) for _, data in LINES]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_recorded_messages_decode_as_by_the_reference_in_chunks_of(size: int) -> None:
    reference = ReferenceDecoder()
    for n, message in enumerate(MESSAGES):
        reference.message(5000 + n, message)
    rows, _ = columnar(MESSAGES, list(range(size, len(MESSAGES), size)))
    assert in_order(rows) == in_order(reference.rows)


def test_recorded_messages_say_what_was_done() -> None:
    rows, _ = columnar(MESSAGES, [])
    rows = in_order(rows)
    items = [row for row in rows if row.relation == "public.items"]
    assert [row.op for row in items] == ["c", "c", "c", "u", "u", "d", "c", "c", "u", "c", "t", "c"]
    assert items[1].after == ["2", "", None, "f", None], "an empty text is not null"
    key_update = items[4]
    assert (key_update.before or [])[0] == "2" and (key_update.after or [])[0] == "20"
    assert items[5].before == ["3", None, None, None, None]
    assert (items[8].after or [])[4] is UNCHANGED
    assert items[9].after == ["7", "with", "1.00", "t", "more", "columns"]
    assert [row.op for row in rows if row.relation == "public.logs"] == ["c", "t"], (
        "what was rolled back to a savepoint never comes"
    )
    assert all("never" not in (row.after or []) for row in rows)
    wide = [row for row in rows if row.relation == "public.wide"]
    assert [(row.op, row.before, row.after) for row in wide] == [
        ("u", ["1", "old"], ["1", "old!"]),
        ("d", ["2", None], None),
    ]
    transaction = next(row for row in rows if row.after == ["kept"])
    same = [row for row in rows if row.commit_lsn == transaction.commit_lsn]
    assert [row.ordinal for row in same] == [0, 1]
