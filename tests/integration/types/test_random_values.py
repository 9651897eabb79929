"""Random values, PostgreSQL as the oracle: arrays, numbers and moments come over exactly by both ways."""

from __future__ import annotations

import decimal
import math
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.source.postgres.types import mapping
from tests.conftest import Database
from tests.integration.types.source import Held, bring, facts_of

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["NULL", "", "{}", '"', "\\"]
)


def stored(database: Database, type_name: str, values: Sequence[Any], cast: str = "%s") -> Held:
    with database.connect() as connection:
        of = mapping(facts_of(connection, type_name))
        connection.execute("DROP TABLE IF EXISTS held")
        connection.execute(f"CREATE TABLE held (i int, x {type_name})")
        connection.execute("SET TimeZone = 'UTC'")
        rows = [(n, *value) if isinstance(value, tuple) else (n, value) for n, value in enumerate(values)]
        with connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO held VALUES (%s, {cast})", rows)
        return bring(connection, database.url, of)


def agree(held: Held) -> None:
    assert str(held.values.to_pylist()) == str(held.copied.to_pylist())  # as text: NaN is unequal to itself
    assert held.misfits == held.copied_misfits
    pairs = zip(held.source_canonical, held.lake_canonical, strict=True)
    assert all(source == lake for source, lake in pairs)
    assert [fits is not False for fits in held.representable] == [misfit is None for misfit in held.misfits]


@few
@given(st.lists(st.lists(st.none() | text, max_size=5), min_size=1, max_size=30))
def test_arrays_of_text(types_database: Database, values: list[list[str | None]]) -> None:
    held = stored(types_database, "text[]", values)

    assert held.values.to_pylist() == values
    agree(held)


@few
@given(st.lists(st.floats(), min_size=1, max_size=60))
def test_double_precision(types_database: Database, values: list[float]) -> None:
    held = stored(types_database, "double precision", values)

    assert [bits(value) for value in held.values.to_pylist()] == [bits(value) for value in values]
    agree(held)


@few
@given(st.lists(st.floats(width=32), min_size=1, max_size=60))
def test_real(types_database: Database, values: list[float]) -> None:
    held = stored(types_database, "real", values, "%s::float8::real")

    assert [bits(value) for value in held.values.to_pylist()] == [bits(value) for value in values]
    agree(held)


@few
@given(st.lists(st.decimals(-(10**60), 10**60), min_size=1, max_size=60))
def test_numeric_without_precision(types_database: Database, values: list[Any]) -> None:
    texts = [*map(str, values), "NaN", "Infinity", "-Infinity"]
    held = stored(types_database, "numeric", texts, "%s::text::numeric")

    assert held.values.to_pylist() == held.texts
    agree(held)


@few
@pytest.mark.parametrize(("precision", "scale"), [(10, 2), (38, 0), (38, 20), (4, 4), (18, 9), (5, -3)])
@given(data=st.data())
def test_numeric_with_precision(types_database: Database, precision: int, scale: int, data: st.DataObject) -> None:
    unscaled = st.integers(-(10**precision) + 1, 10**precision - 1)
    values = data.draw(st.lists(unscaled.map(lambda number: f"{number}e{-scale}"), min_size=1, max_size=60))
    held = stored(types_database, f"numeric({precision},{scale})", [*values, "NaN"], "%s::text::numeric")

    assert [str(value) for value in held.values.to_pylist()[:-1]] == [_plain(text) for text in held.texts[:-1]]
    agree(held)


@few
@pytest.mark.parametrize("type_name", ["timestamp", "timestamptz"])
@given(st.lists(st.integers(-210_866_803_200_000_000, 9_223_371_331_200_000_000 - 1), min_size=1, max_size=60))
def test_moments_of_all_years(types_database: Database, type_name: str, values: list[int]) -> None:
    # From the first to the last moment PostgreSQL knows; days apart, since an interval of microseconds alone loses digits.
    moment = f"{type_name} '1970-01-01' + (%s || ' days')::interval + (%s || ' us')::interval"
    held = stored(types_database, type_name, [divmod(us, 86_400_000_000) for us in values], moment)

    agree(held)
    assert [misfit for misfit in held.misfits if misfit] == [
        text for text, fits in zip(held.texts, held.representable, strict=True) if not fits
    ]


@few
@given(st.lists(st.integers(-2_440_588, 2_145_000_000), min_size=1, max_size=60))
def test_days_of_all_years(types_database: Database, values: list[int]) -> None:
    agree(stored(types_database, "date", values, "date '1970-01-01' + %s::int"))


def bits(value: float) -> str:
    return "NaN" if math.isnan(value) else struct.pack(">d", value).hex()


def _plain(text: str | None) -> str:
    assert text is not None
    return str(decimal.Decimal(text))
