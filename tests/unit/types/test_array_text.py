"""PostgreSQL's text of arrays is read exactly, many at a time."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.source.postgres.types.array_text import parse

Array = list[str | None] | None


def written(array: Array) -> str | None:
    """As PostgreSQL's array_out does it, slowly."""
    return None if array is None else "{" + ",".join(_element(element) for element in array) + "}"


def _element(element: str | None) -> str:
    if element is None:
        return "NULL"
    if element and element.upper() != "NULL" and not set(element) & set('{}",\\ \t\n\r\v\f'):
        return element
    return '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'


arrays = st.none() | st.lists(
    st.none() | st.text('ab{}",\\ \nNULü🦆') | st.sampled_from(["NULL", "null", "", "\\", '"', "\\\\\\"])
)


@given(st.lists(arrays, max_size=30))
def test_whatever_is_written_is_read_back(values: list[Array]) -> None:
    texts = pa.array([written(array) for array in values], pa.string())

    assert parse(texts).to_pylist() == values
    assert parse(texts.cast(pa.string_view())).to_pylist() == values


@given(st.lists(arrays, min_size=3, max_size=30), st.integers(0, 2))
def test_a_slice_is_read_like_a_whole(values: list[Array], start: int) -> None:
    texts = pa.array([written(array) for array in values], pa.string())

    assert parse(texts.slice(start)).to_pylist() == values[start:]


@pytest.mark.parametrize("text", ["{{1,2},{3,4}}", "[0:1]={1,2}", '[2:2]={"="}', "{{}}", '[1:1][1:1]={{"a"}}', ""])
def test_other_bounds_and_more_dimensions_are_no_lists(text: str) -> None:
    assert parse(pa.array(["{a}", text, "{b}"])).to_pylist() == [["a"], None, ["b"]]


def test_nothing_makes_an_empty_column() -> None:
    assert parse(pa.array([], pa.string_view())).to_pylist() == []
    assert parse(pa.nulls(2, pa.string())).to_pylist() == [None, None]
