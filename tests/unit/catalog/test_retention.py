"""Which versions are kept as they grow older."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

from headrace.catalog.history import Version
from headrace.catalog.retention import Retention

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
RULE = Retention(every=timedelta(minutes=10), minutely=timedelta(hours=2), hourly=timedelta(days=2), daily=timedelta(days=30))


def versions(*ages: timedelta) -> list[Version]:
    """Versions of these ages at noon, the oldest first."""
    return [Version(number=number, committed_at=NOON - age) for number, age in enumerate(sorted(ages, reverse=True))]


def seconds(*ages: float) -> list[Version]:
    return versions(*(timedelta(seconds=age) for age in ages))


def test_everything_young_is_kept() -> None:
    young = seconds(*range(600))
    assert RULE.kept(young, NOON) == {version.number for version in young}


def test_then_the_last_of_each_minute() -> None:
    found = seconds(*range(1200, 1500))  # 11:35:01 to 11:40:00
    kept = [one.committed_at for one in found if one.number in RULE.kept(found, NOON)]
    assert [f"{at:%H:%M:%S}" for at in kept] == ["11:35:59", "11:36:59", "11:37:59", "11:38:59", "11:39:59", "11:40:00"]


def test_then_of_each_hour_and_of_each_day_and_then_nothing() -> None:
    found = versions(*(timedelta(minutes=10 * number + 1) for number in range(6 * 24 * 40)))
    kept = [one.committed_at for one in found if one.number in RULE.kept(found, NOON)]
    ages = [NOON - at for at in kept]
    assert max(ages) < timedelta(days=30)
    hourly = [age for age in ages if timedelta(hours=3) < age < timedelta(days=2)]
    assert len(hourly) == 45
    daily = [age for age in ages if age > timedelta(days=3)]
    assert len(daily) == 27
    assert all(at.hour == 23 and at.minute == 59 for at in kept if NOON - at > timedelta(days=3))


def test_the_latest_version_stays_however_old() -> None:
    found = versions(timedelta(days=400), timedelta(days=300))
    assert RULE.kept(found, NOON) == {1}
    assert RULE.kept([], NOON) == set()


def test_what_is_kept_later_was_kept_before() -> None:
    draw = Random(4)
    found = versions(*(timedelta(seconds=draw.uniform(0, 40 * 86400)) for _ in range(3000)))
    at, kept = NOON, {version.number for version in found}
    for _ in range(50):
        at += timedelta(seconds=draw.uniform(0, 86400))
        left = [version for version in found if version.number in kept]
        now_kept = RULE.kept(left, at)
        assert now_kept == RULE.kept(found, at), "thinning in steps keeps what thinning at once would"
        kept = now_kept
