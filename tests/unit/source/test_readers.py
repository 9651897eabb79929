"""Which reader reads: in bulk when far behind, as a stream when close, and no to and fro in between."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from headrace.source.postgres.readers import Choice, LogState, ReaderChoice, keep_reader, kept_reader

MB = 1 << 20


class Log:
    """A log that grows and is read; shows itself to a choice once a second."""

    def __init__(self, *, lag: int, restart_lag: int | None = None) -> None:
        self.choice = ReaderChoice()
        self.at = 100.0
        self.end = 100_000 * MB
        self.position = self.end - lag
        self.restart = self.end - restart_lag if restart_lag is not None else None

    def look(self) -> Choice:
        restart = self.position if self.restart is None else self.restart
        return self.choice.choose(LogState(position=self.position, end=self.end, restart=restart), self.at)

    def go_on(self, seconds: int, *, written: int = 0, read: int = 0) -> list[str]:
        """The choice after each second, in which so many bytes were written and read."""
        readers = []
        for _ in range(seconds):
            self.at += 1
            self.end += written
            self.position = min(self.position + read, self.end)
            readers.append(self.look().reader)
        return readers


def test_a_backlog_is_read_in_bulk_until_the_log_ends_nearby() -> None:
    log = Log(lag=1000 * MB)
    assert log.look() == Choice(reader="bulk", reason="1,049 MB behind")
    readers = log.go_on(6, written=1 * MB, read=200 * MB)
    assert readers == ["bulk", "bulk", "bulk", "bulk", "stream", "stream"]


def test_a_small_lag_is_streamed() -> None:
    log = Log(lag=20 * MB)
    assert log.look().reader == "stream"
    assert log.go_on(30, written=5 * MB, read=6 * MB) == ["stream"] * 30


def test_a_stream_that_falls_far_behind_gives_way_after_a_while() -> None:
    log = Log(lag=0)
    log.look()
    readers = log.go_on(30, written=20 * MB, read=8 * MB)
    first = readers.index("bulk")
    assert 64 // 12 < first < 12
    assert "behind, and the stream gives 8 MB a second" in log.look().reason


def test_a_short_burst_that_the_stream_will_catch_up_with_changes_nothing() -> None:
    log = Log(lag=0)
    log.look()
    assert log.go_on(2, written=70 * MB, read=40 * MB) == ["stream"] * 2
    assert log.go_on(10, written=0, read=40 * MB) == ["stream"] * 10


def test_it_does_not_go_to_and_fro() -> None:
    log = Log(lag=0)
    log.look()
    readers = ["stream"]
    for _ in range(20):  # the source writes faster than it can be streamed
        reader = readers[-1]
        readers += log.go_on(1, written=20 * MB, read=8 * MB if reader == "stream" else 200 * MB)
    changes = sum(one != other for one, other in itertools.pairwise(readers))
    assert changes <= 4


@pytest.mark.parametrize("lag", [100 * MB, 1000 * MB])
def test_an_open_transaction_that_makes_calls_dear_is_streamed_past(lag: int) -> None:
    """Each call in bulk would decode the log from the restart position again."""
    log = Log(lag=lag, restart_lag=20 * lag)
    assert log.look().reader == "stream"
    assert log.go_on(20, written=20 * MB, read=1 * MB) == ["stream"] * 20


def test_reading_in_bulk_ends_when_a_transaction_stays_open() -> None:
    log = Log(lag=500 * MB)
    assert log.look().reader == "bulk"
    log.restart = log.position
    readers = log.go_on(8, written=50 * MB, read=100 * MB)
    assert readers[-1] == "stream"
    assert log.look().reason == "an open transaction would make every call in bulk decode the log again"


def test_the_choice_is_kept_for_other_processes(tmp_path: Path) -> None:
    assert kept_reader(tmp_path) is None
    choice = Choice(reader="stream", reason="close to the end of the log: 0 kB behind")
    keep_reader(tmp_path, choice)
    assert kept_reader(tmp_path) == choice
    (tmp_path / "reader.json").write_text("{")
    assert kept_reader(tmp_path) is None
