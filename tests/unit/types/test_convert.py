"""Decoded rows become the change layout: in order, with every tuple, flag and text where it belongs."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.change import change_schema
from headrace.schema import Column, TableId, TableSchema
from headrace.source.postgres.convert import Converter, row_type
from headrace.source.postgres.decoded import DecodedRows
from headrace.source.postgres.types import TypeFacts, builtin_facts, mapping

TIME = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def facts(oid: int, typmod: int = -1) -> TypeFacts:
    found = builtin_facts(oid, typmod)
    assert found is not None
    return found


COLUMNS = {"id": facts(20), "price": facts(1700, (10 << 16 | 2) + 4), "day": facts(1082), "name": facts(25), "tags": facts(1009)}
MAPPINGS = [mapping(of) for of in COLUMNS.values()]
SCHEMA = TableSchema(
    table=TableId("public", "orders"),
    columns=tuple(Column(name=name, type=mapping(of).iceberg, source_type=of.name) for name, of in COLUMNS.items()),
    key=("id",),
)
Row = tuple[str | None, ...]


def decoded(
    op: str, after: list[Row | None], before: list[Row | None] | None = None, unavailable: list[tuple[int, int]] | None = None
) -> DecodedRows:
    n = len(op)
    numbers = pa.array(np.arange(n))
    marked = np.zeros((n, len(COLUMNS)), np.bool_)
    for place in unavailable or []:
        marked[place] = True
    return DecodedRows(
        op=pa.array(list(op)).dictionary_encode(),
        commit_lsn=numbers,
        ordinal=numbers,
        change_lsn=numbers,
        xid=numbers,
        commit_time=pa.repeat(pa.scalar(TIME, pa.timestamp("us", tz="UTC")), n),
        after=None if all(row is None for row in after) else columns_of(after),
        after_present=np.array([row is not None for row in after]),
        unavailable=marked if unavailable else None,
        before=None if before is None else columns_of(before),
        before_present=np.array([row is not None for row in before]) if before else np.zeros(n, np.bool_),
    )


def columns_of(rows: list[Row | None]) -> tuple[pa.Array, ...]:
    return tuple(pa.array([row and row[n] for row in rows], pa.string()).cast(pa.string_view()) for n in range(len(COLUMNS)))


def converted(rows: DecodedRows) -> list[dict[str, Any]]:
    table = Converter().convert(rows, SCHEMA, MAPPINGS)
    table.validate(full=True)
    assert table.schema == change_schema(row_type(SCHEMA, MAPPINGS))
    result: list[dict[str, Any]] = table.to_pylist()
    return result


FULL: Row = ("1", "2.50", "2024-02-03", "a", "{x,NULL}")
FULL_VALUES = {
    "id": 1,
    "price": decimal.Decimal("2.50"),
    "day": datetime.date(2024, 2, 3),
    "name": "a",
    "tags": ["x", None],
}
NONE = dict.fromkeys(COLUMNS)


def test_inserts_updates_deletes_and_truncates_keep_their_order_and_tuples() -> None:
    rows = converted(
        decoded(
            "cuudt",
            [FULL, FULL, FULL, None, None],
            [None, None, ("9", None, None, None, None), ("1", None, None, None, None), None],
        )
    )

    assert [row["op"] for row in rows] == list("cuudt")
    assert [row["ordinal"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["after"] for row in rows] == [FULL_VALUES, FULL_VALUES, FULL_VALUES, None, None]
    assert [row["before"] for row in rows] == [None, None, {**NONE, "id": 9}, {**NONE, "id": 1}, None]
    assert all(row[name] is None for row in rows for name in ("unavailable", "before_text", "after_text"))


def test_a_row_of_nulls_is_a_row() -> None:
    assert converted(decoded("c", [(None,) * 5]))[0]["after"] == NONE


def test_values_that_do_not_fit_are_null_with_their_text_beside_them() -> None:
    rows = converted(
        decoded(
            "cccu",
            [
                FULL,
                ("2", "NaN", "infinity", "b", "{{a}}"),
                (None, None, "0044-03-15 BC", None, None),
                FULL,
            ],
            [None, None, None, ("1", "NaN", None, None, None)],
        )
    )

    assert rows[1]["after"] == {**NONE, "id": 2, "name": "b"}
    assert rows[2]["after"] == NONE
    assert [row["after_text"] for row in rows] == [
        None,
        [("price", "NaN"), ("day", "infinity"), ("tags", "{{a}}")],
        [("day", "0044-03-15 BC")],
        None,
    ]
    assert [row["before_text"] for row in rows] == [None, None, None, [("price", "NaN")]]


def test_values_that_were_not_sent_are_named() -> None:
    rows = converted(decoded("uuu", [FULL, FULL, FULL], unavailable=[(0, 3), (2, 1), (2, 4)]))

    assert [row["unavailable"] for row in rows] == [["name"], None, ["price", "tags"]]


def test_nothing_gives_nothing() -> None:
    assert converted(decoded("", [])) == []


def test_many_rows_keep_their_order() -> None:
    n = 300_000
    rows = decoded("c" * n, [(str(i), None, None, f"name {i}", None) for i in range(n)])
    after = Converter(threads=4).convert(rows, SCHEMA, MAPPINGS)["after"].combine_chunks()

    assert np.array_equal(after.field(0).to_numpy(), np.arange(n))
    assert after.field(3)[n - 1].as_py() == f"name {n - 1}"


def test_copied_rows_are_reads_with_negative_ordinals() -> None:
    batch = pa.record_batch(
        [
            pa.array([1, 2]),
            pa.array(["2.50", "NaN"]),
            pa.array([datetime.date(2024, 2, 3), None]),
            pa.array(["a", None]),
            pa.array(["{x,NULL}", None]),
        ],
        names=list("abcde"),
    )
    table = Converter().convert_copy(batch, SCHEMA, MAPPINGS, lsn=77, commit_time=TIME, first_ordinal=10)

    assert table.schema == change_schema(row_type(SCHEMA, MAPPINGS))
    first, second = table.to_pylist()
    assert first["after"] == FULL_VALUES
    assert (first["op"], first["commit_lsn"], first["ordinal"], first["commit_time"]) == ("r", 77, -11, TIME)
    assert second["ordinal"] == -12
    assert second["after"] == {**NONE, "id": 2}
    assert second["after_text"] == [("price", "NaN")]


@pytest.mark.parametrize("op", ["d", "t"])
def test_a_batch_without_new_tuples_has_none(op: str) -> None:
    before: list[Row | None] = [("1", None, None, None, None) if op == "d" else None]

    assert converted(decoded(op, [None], before))[0]["after"] is None
