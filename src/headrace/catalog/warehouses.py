"""Which version of the lake a warehouse name means, and the prefix that stands for it in the REST interface.

=================== ========================================================================
``lake``            live: each request sees the latest version; the only one to write through
``lake@latest``     the latest version at the moment of attaching, from then on unchanged
``lake@<number>``   that version
``lake@<time>``     the last version committed at or before that time (ISO 8601; UTC unless it says otherwise)
=================== ========================================================================

``lake`` stands for the warehouse's own name. Attaching to any but the first takes a lease on the version; using it renews the
lease.
"""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

from headrace.catalog.refusals import BadUpdate
from headrace.catalog.store import Catalog
from headrace.catalog.wire import Refused
from headrace.errors import LakeUnavailable

DEFAULT_NAME = "lake"
LEASE_SECONDS = 15 * 60.0

# In a query an unescaped "+" means a space.
_SPACE_FOR_PLUS = re.compile(r" (?=\d\d:?\d\d$)")


class Warehouses:
    """The warehouse names of one catalog, and the leases that were taken through them."""

    def __init__(self, catalog: Catalog, *, name: str = DEFAULT_NAME, lease_seconds: float = LEASE_SECONDS) -> None:
        self._catalog, self.name, self._seconds = catalog, name, lease_seconds
        self._pinned = re.compile(rf"{re.escape(name)}-v(\d{{1,18}})-([0-9a-f]{{32}})")
        self._lock = threading.Lock()
        self._renewed: dict[str, float] = {}
        """Lease → when this process last renewed it (monotonic seconds)."""

    def attach(self, name: str) -> str:
        """The prefix for a warehouse name; takes a lease unless that is live. Raises NoSuchVersion, BadUpdate, Refused
        for another name.
        """
        if name in ("", self.name):
            return self.name
        lake, _, asked = name.partition("@")
        if lake != self.name or not asked:
            raise Refused(
                404,
                "NoSuchWarehouseException",
                f"There is no warehouse {name!r}; there are {self.name} and {self.name}@latest, @NUMBER, @TIME.",
            )
        version = version_named(self._catalog, asked)
        lease = self._catalog.lease(version, self._seconds)
        with self._lock:
            self._renewed[lease] = time.monotonic()
        return f"{self.name}-v{version}-{lease}"

    def version(self, prefix: str) -> int | None:
        """The version that a prefix is pinned to (None: live), whose lease is renewed. Raises NoSuchVersion when it is
        not kept any more.
        """
        if prefix == self.name:
            return None
        found = self._pinned.fullmatch(prefix)
        if found is None:
            raise Refused(404, "NoSuchWarehouseException", f"The prefix {prefix!r} is none that this catalog gave out.")
        version, lease = int(found[1]), found[2]
        now = time.monotonic()
        with self._lock:
            fresh = now - self._renewed.get(lease, -self._seconds) < self._seconds / 4
        if not fresh:
            self._catalog.renew(lease, version, self._seconds)
            with self._lock:
                self._renewed[lease] = now
        return version

    def close(self) -> None:
        """End the leases: whoever goes on reading takes its own again, as long as the version is kept."""
        with self._lock:
            leases, self._renewed = list(self._renewed), {}
        for lease in leases:
            with suppress(LakeUnavailable):  # it runs out by itself
                self._catalog.release(lease)


def version_named(catalog: Catalog, asked: str) -> int:
    """The number of the version that is asked for by number, by time, or as the latest. Raises BadUpdate, and NoSuchVersion for
    a time before the first.
    """
    if asked == "latest":
        return catalog.latest_version()
    if asked.isdecimal() and len(asked) <= 18:
        return int(asked)
    try:
        moment = datetime.fromisoformat(_SPACE_FOR_PLUS.sub("+", asked))
    except ValueError:
        raise BadUpdate(f"{asked} names no version: it takes latest, a number, or a time as in 2026-01-31T12:00:00Z.") from None
    return catalog.version_at(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
