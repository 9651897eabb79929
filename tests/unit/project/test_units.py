from __future__ import annotations

import pytest

from headrace.project.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2 min", 120),
        ("1d", 86400),
        ("0", 0),
        ("0s", 0),
        ("1H", 3600),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "s", "10 parsecs", "1h later", "-1s", "1h 30"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256 << 20), ("1kB", 1024), ("1 GiB", 1 << 30), ("1.5gb", 3 << 29), ("12", 12), ("12B", 12), ("1TB", 1 << 40)],
)
def test_a_size_is_read_as_postgresql_does(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "12XB", "-1MB", "1 MB 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "50ms", "10s", "90s", "2m", "1h", "3d", "1.5ms"])
def test_a_written_duration_reads_back_the_same(text: str) -> None:
    seconds = parse_duration(text)
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("size", "text"), [(256 << 20, "256MB"), (1536, "1536B"), (64 << 10, "64kB"), (1 << 40, "1TB"), (0, "0B")]
)
def test_a_size_is_written_in_the_largest_whole_unit(size: int, text: str) -> None:
    assert format_size(size) == text
    assert parse_size(text) == size
