"""The first rows of an answer, whatever types it has."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from headrace.errors import BadQuery
from headrace.lake.ask import Answer, ask


@pytest.fixture
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def asked(engine: duckdb.DuckDBPyConnection, sql: str, *, limit: int = 10) -> Answer:
    answer = ask(engine, sql, limit=limit)
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("TIMESTAMPTZ '2024-02-29 12:00:00.5+02'", "2024-02-29 10:00:00.5+00"),
        ("DATE 'infinity'", "infinity"),
        ("TIMESTAMP '20000-01-01'", "20000-01-01 00:00:00"),
        ("1.50::DECIMAL(9, 2)", "1.50"),
        ("'\\x00ff'::BLOB", "\\x00ff"),
        ("{'name': 'x', 'tags': ['a', NULL]}", "{'name': x, 'tags': [a, NULL]}"),
        ("MAP {'day': 'infinity'}", "{day=infinity}"),
        ("NULL", None),
    ],
)
def test_any_value_is_shown(engine: duckdb.DuckDBPyConnection, value: str, shown: str | None) -> None:
    assert asked(engine, f"SELECT {value} AS value").rows == [(shown,)]


def test_columns_keep_their_names_even_where_two_are_alike(engine: duckdb.DuckDBPyConnection) -> None:
    answer = asked(engine, "SELECT 1 AS a, 2 AS a, count(*)")
    assert (answer.columns, answer.rows) == (["a", "a", "count_star()"], [("1", "2", "1")])


def test_rows_beyond_the_limit_are_told_of(engine: duckdb.DuckDBPyConnection) -> None:
    answer = asked(engine, "FROM range(3)", limit=2)
    assert (answer.rows, answer.more) == ([("0",), ("1",)], True)
    assert not asked(engine, "FROM range(3)", limit=3).more


def test_a_statement_without_result_has_no_answer(engine: duckdb.DuckDBPyConnection) -> None:
    assert ask(engine, "SET threads = 1", limit=1) is None


@pytest.mark.parametrize("sql", ["SELECT 'x'::INTEGER", "SELEC 1", "FROM nowhere"])
def test_what_fails_is_told_in_duckdbs_words(engine: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises(BadQuery, match="Error"):
        ask(engine, sql, limit=1)
