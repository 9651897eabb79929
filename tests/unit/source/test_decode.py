"""The columnar decoder gives what a slow, obvious one gives, however the messages are cut into chunks."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.source.postgres.decode import Decoder, MalformedMessage, parse_relation

from .reference_decoder import UNCHANGED, ReferenceDecoder, Row

COLUMNS = {101: 3, 102: 1, 103: 6}


def relation_message(oid: int, columns: int, *, name: str | None = None) -> bytes:
    message = b"R" + struct.pack(">I", oid) + b"public\0" + (name or f"t{oid}").encode() + b"\0d" + struct.pack(">H", columns)
    for n in range(columns):
        message += bytes([1 if n == 0 else 0]) + f"c{n}".encode() + b"\0" + struct.pack(">Ii", 25, -1)
    return message


def tuple_bytes(values: list[Any]) -> bytes:
    result = struct.pack(">H", len(values))
    for value in values:
        if value is None:
            result += b"n"
        elif value is UNCHANGED:
            result += b"u"
        else:
            data = value.encode()
            result += b"t" + struct.pack(">I", len(data)) + data
    return result


texts = st.one_of(st.none(), st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
new_texts = st.one_of(texts, st.just(UNCHANGED))


@st.composite
def changes(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from("IIIUUDT"))
    if kind == "T":
        oids = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=3, unique=True))
        return b"T" + struct.pack(">IB", len(oids), 0) + b"".join(struct.pack(">I", oid) for oid in oids)
    oid = draw(st.sampled_from(sorted(COLUMNS)))
    width = COLUMNS[oid]
    old = draw(st.lists(texts, min_size=width, max_size=width))
    new = draw(st.lists(new_texts if kind == "U" else texts, min_size=width, max_size=width))
    head = kind.encode() + struct.pack(">I", oid)
    if kind == "I":
        return head + b"N" + tuple_bytes(new)
    if kind == "D":
        return head + draw(st.sampled_from([b"K", b"O"])) + tuple_bytes(old)
    with_old = draw(st.sampled_from([b"", b"K", b"O"]))
    return head + (with_old + tuple_bytes(old) if with_old else b"") + b"N" + tuple_bytes(new)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    messages = [relation_message(oid, width) for oid, width in COLUMNS.items()]
    lsn = 1000
    for xid in range(draw(st.integers(1, 5))):
        lsn += 100
        messages.append(b"B" + struct.pack(">QqI", lsn, draw(st.integers(0, 2**55)), 700 + xid))
        messages += draw(st.lists(changes(), max_size=8))
        messages.append(b"C\0" + struct.pack(">QQq", lsn, lsn + 48, 0))
    return messages


def columnar(messages: list[bytes], cuts: list[int]) -> tuple[list[Row], list[int | None]]:
    """Decode in chunks cut at these indices, and write the result as the reference does."""
    decoder, rows, ends = Decoder(), [], []
    bounds = [0, *sorted(set(cuts)), len(messages)]
    for first, last in itertools.pairwise(bounds):
        lsns = pa.array([5000 + n for n in range(first, last)], pa.int64())
        # a slice of a longer array, as Arrow readers hand them over
        data = pa.array([b"xyz", *messages[first:last]], pa.binary()).slice(1)
        for decoded in decoder.decode(lsns, data):
            ends.append(decoded.end_lsn)
            for oid, found in decoded.tables.items():
                relation = decoded.relations[oid]
                width = len(relation.columns)
                for n in range(found.rows):
                    after = before = None
                    if found.after_present[n]:
                        after = [found.after[c][n].as_py() for c in range(width)]
                        if found.unavailable is not None:
                            after = [UNCHANGED if found.unavailable[n, c] else after[c] for c in range(width)]
                    if found.before_present[n]:
                        before = [found.before[c][n].as_py() for c in range(width)]
                    rows.append(
                        Row(
                            f"{relation.schema}.{relation.name}",
                            found.op[n].as_py(),
                            found.commit_lsn[n].as_py(),
                            found.ordinal[n].as_py(),
                            found.change_lsn[n].as_py(),
                            found.xid[n].as_py(),
                            found.commit_time.view(pa.int64())[n].as_py(),
                            before,
                            after,
                        )
                    )
    return rows, ends


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.commit_lsn, row.ordinal, row.relation))


@settings(max_examples=150, deadline=None)
@given(streams(), st.data())
def test_any_stream_decodes_as_by_the_reference_however_it_is_cut(messages: list[bytes], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, len(messages) - 1), max_size=4))
    reference = ReferenceDecoder()
    for n, message in enumerate(messages):
        reference.message(5000 + n, message)
    rows, ends = columnar(messages, cuts)
    assert in_order(rows) == in_order(reference.rows)
    assert [end for end in ends if end is not None][-1] == reference.ends[-1]


def test_values_that_end_at_the_last_byte_of_the_buffer_are_whole() -> None:
    begin = b"B" + struct.pack(">QqI", 10, 0, 7)
    for length in (0, 1, 11, 12, 13, 40):
        insert = b"I" + struct.pack(">I", 102) + b"N" + tuple_bytes(["x" * length])
        rows, ends = columnar([relation_message(102, 1), begin, insert], [])
        assert rows[0].after == ["x" * length]
        assert ends == [None], "the transaction is still open"


def test_rows_before_and_after_a_change_of_columns_are_kept_apart() -> None:
    begin, commit = b"B" + struct.pack(">QqI", 10, 0, 7), b"C\0" + struct.pack(">QQq", 10, 12, 0)
    narrow = b"I" + struct.pack(">I", 102) + b"N" + tuple_bytes(["a"])
    wide = b"I" + struct.pack(">I", 102) + b"N" + tuple_bytes(["b", "c"])
    rows, ends = columnar([relation_message(102, 1), begin, narrow, relation_message(102, 2), wide, commit], [])
    assert [row.after for row in rows] == [["a"], ["b", "c"]]
    assert ends == [None, 12]


def test_a_relation_message_is_read_with_its_types_and_identity() -> None:
    relation = parse_relation(relation_message(103, 2, name="orders"))
    assert (relation.schema, relation.name, relation.replica_identity) == ("public", "orders", "d")
    assert [(column.name, column.type_oid, column.identity) for column in relation.columns] == [
        ("c0", 25, True),
        ("c1", 25, False),
    ]


def test_a_tuple_that_does_not_fit_its_relation_is_refused() -> None:
    begin = b"B" + struct.pack(">QqI", 10, 0, 7)
    wrong = b"I" + struct.pack(">I", 102) + b"N" + tuple_bytes(["a", "b"])
    with pytest.raises(MalformedMessage, match="2 columns"):
        columnar([relation_message(102, 1), begin, wrong], [])
    with pytest.raises(MalformedMessage, match="before its relation message"):
        columnar([begin, wrong], [])
