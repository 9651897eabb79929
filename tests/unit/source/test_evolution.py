"""Which changes of a table are followed, and what is said of those that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pyiceberg.types import StringType

from headrace.schema import Column, TableId, TableSchema
from headrace.source.postgres.evolution import refusals, widens


def column(name: str, source_type: str, number: int) -> Column:
    return Column(name=name, type=StringType(), source_type=source_type, source_id=number)


ORDERS = TableSchema(
    table=TableId("public", "orders"),
    columns=(column("id", "bigint", 1), column("status", "character varying(10)", 2)),
    key=("id",),
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("smallint", "bigint"),
        ("integer", "bigint"),
        ("real", "double precision"),
        ("character varying(10)", "character varying(20)"),
        ("character varying(10)", "text"),
        ("character varying", "text"),
        ("text", "character varying"),
        ("numeric(10,2)", "numeric(12,2)"),
        ("numeric(10,2)", "numeric(38,2)"),
        ("numeric(40,2)", "numeric(50,2)"),
        ("timestamp(3) with time zone", "timestamp with time zone"),
        ("timestamp(3) with time zone", "timestamp(6) with time zone"),
    ],
)
def test_a_widening_is_followed(old: str, new: str) -> None:
    assert widens(column("a", old, 1), column("a", new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bigint", "integer"),
        ("integer", "text"),
        ("double precision", "real"),
        ("character varying(20)", "character varying(10)"),
        ("text", "character varying(10)"),
        ("character(3)", "character(5)"),  # pads the values that are there
        ("numeric(10,2)", "numeric(12,4)"),
        ("numeric(10,2)", "numeric"),
        ("numeric(10,2)", "numeric(39,2)"),  # a text in the lake
        ("numeric(37,-1)", "numeric(38,-1)"),
        ("timestamp without time zone", "timestamp with time zone"),
        ("timestamp with time zone", "timestamp(0) with time zone"),
        ("jsonb", "json"),
    ],
)
def test_what_changes_or_loses_values_is_refused(old: str, new: str) -> None:
    assert not widens(column("a", old, 1), column("a", new, 1))


def test_an_added_column_is_followed_unless_it_gave_old_rows_a_value() -> None:
    wider = replace(ORDERS, columns=(*ORDERS.columns, column("note", "text", 3)))
    assert refusals(ORDERS, wider) == []
    (reason,) = refusals(ORDERS, wider, with_default=frozenset({"note"}))
    assert "note was added with a default" in reason


def test_dropped_renamed_and_replaced_columns_are_named() -> None:
    (dropped,) = refusals(ORDERS, replace(ORDERS, columns=ORDERS.columns[:1]))
    assert "status was dropped or renamed" in dropped
    renamed = refusals(ORDERS, replace(ORDERS, columns=(ORDERS.columns[0], column("state", "character varying(10)", 2))))
    assert "state" in renamed[0]
    (again,) = refusals(ORDERS, replace(ORDERS, columns=(ORDERS.columns[0], column("status", "character varying(10)", 3))))
    assert "dropped and added again" in again


def test_a_changed_key_is_refused() -> None:
    (reason,) = refusals(ORDERS, replace(ORDERS, key=("id", "status")))
    assert "key changed" in reason
