"""Which versions are kept: all of the last minutes, then ever fewer, as in a backup rotation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from headrace.catalog.history import EPOCH, Version

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Every version younger than ``every`` is kept; of those younger than ``minutely`` the last one of each minute (UTC), than
    ``hourly`` of each hour, than ``daily`` of each day. What is older goes. The latest version always stays.
    """

    every: timedelta
    minutely: timedelta
    hourly: timedelta
    daily: timedelta

    def kept(self, versions: Sequence[Version], now: datetime) -> set[int]:
        """The numbers of those to keep. ``versions`` are in order.

        What is kept at one time is a subset of what is kept earlier: the last version of an hour is also the last of its minute.
        """
        kept = {versions[-1].number} if versions else set()
        for limit, period in ((self.minutely, MINUTE), (self.hourly, HOUR), (self.daily, DAY)):
            last = {(version.committed_at - EPOCH) // period: version for version in versions}  # later ones replace earlier
            kept |= {version.number for version in last.values() if now - version.committed_at < limit}
        return kept | {version.number for version in versions if now - version.committed_at < self.every}
