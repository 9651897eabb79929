"""Which files are merged: levels of an LSM tree."""

from __future__ import annotations

import random

from headrace.lake.levels import MergeLimits, Sized, choose_merge, level

LIMITS = MergeLimits(fanout=4, base_rows=5_000, base_bytes=1 << 40, most_rows=8_000, most_bytes=1 << 40)


def sized(*rows: int) -> list[Sized]:
    return [Sized(rows=count, size=count) for count in rows]


def test_a_level_is_a_power_of_the_fanout() -> None:
    assert [level(rows, 4) for rows in (0, 1, 3, 4, 15, 16, 64)] == [0, 0, 0, 1, 1, 2, 3]


def test_a_level_is_merged_once_it_is_full() -> None:
    assert choose_merge(sized(10, 10, 10), LIMITS) == []
    assert choose_merge(sized(10, 10, 10, 10), LIMITS) == [0, 1, 2, 3]


def test_a_merge_that_fills_the_next_level_takes_that_along() -> None:
    assert choose_merge(sized(10, 10, 10, 10, 50, 50, 50), LIMITS) == [0, 1, 2, 3, 4, 5, 6]
    assert choose_merge(sized(10, 10, 10, 10, 50, 50), LIMITS) == [0, 1, 2, 3]


def test_base_files_stay() -> None:
    assert choose_merge(sized(5_000, 6_000, 7_000, 8_000, 9_000), LIMITS) == []


def test_one_commit_merges_no_more_than_the_limits_allow() -> None:
    chosen = choose_merge(sized(*[3_000] * 8), LIMITS)
    assert len(chosen) == 2


def test_files_stay_few_and_rows_are_rewritten_seldom() -> None:
    chance = random.Random(1)
    files: list[int] = []
    rewritten = added = most = 0
    for _ in range(5_000):
        rows = chance.randint(1, 200)
        added += rows
        chosen = set(choose_merge(sized(*files), LIMITS))
        merged = sum(files[index] for index in chosen)
        rewritten += merged
        files = [count for index, count in enumerate(files) if index not in chosen] + ([merged] if merged else []) + [rows]
        most = max(most, sum(count < LIMITS.base_rows for count in files))
    assert most <= 4 * 7
    assert rewritten <= 6 * added
