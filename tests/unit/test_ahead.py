"""`ahead` keeps order, hands errors on, stays within its depth and ends its thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from headrace.ahead import ahead


def test_items_arrive_in_order() -> None:
    assert list(ahead(iter(range(1000)), depth=3, name="test")) == list(range(1000))


def test_an_error_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("lost")

    seen = []
    with pytest.raises(KeyError, match="lost"):
        seen.extend(ahead(broken(), depth=5, name="test"))
        for item in ahead(broken(), depth=5, name="test"):
            seen.append(item)
    items: list[int] = []
    with pytest.raises(KeyError):
        for item in ahead(broken(), depth=5, name="test"):
            items.append(item)
    assert items == [1, 2]


def test_the_producer_runs_at_most_its_depth_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for n in range(100):
            made.append(n)
            yield n

    with closing(ahead(items(), depth=2, name="test")) as stream:
        next(stream)
        time.sleep(0.2)
        assert len(made) <= 4  # one taken, two waiting, one in hand


def test_closing_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            n = 0
            while True:
                yield n
                n += 1
        finally:
            closed.set()

    stream = ahead(items(), depth=1, name="endless")
    assert next(stream) == 0
    stream.close()
    assert closed.is_set()
    assert not any(thread.name == "headrace-endless" for thread in threading.enumerate())
