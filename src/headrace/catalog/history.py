"""Versions of the catalog, leases that keep them, and notes.

Every change of the catalog makes the next version; version 0 is the empty lake. A version is one state of all tables together,
and
the unit in which history is kept: what any kept version reaches may not be removed.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from headrace.catalog.database import Database, Session
from headrace.catalog.refusals import NoSuchVersion

THINNED_AT_ONCE = 500
"""Versions forgotten in one transaction: commits wait for it."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 (UTC) of an aware datetime, exactly."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment_of(value: int) -> datetime:
    return EPOCH + timedelta(microseconds=value)


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True, order=True)
class Version:
    """A state of all tables: ``number`` grows by commit, ``committed_at`` (aware, UTC) never goes back."""

    number: int
    committed_at: datetime


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Somebody reads ``version``: it must be kept until ``expires_at`` (aware, UTC)."""

    id: str
    version: int
    expires_at: datetime


class History:
    """Versions, leases and notes in the catalog's database. Methods raise LakeUnavailable when it cannot be used."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock

    def latest_version(self) -> int:
        with self._database.read() as session:
            return int(session.rows("select max(number) from versions")[0][0])

    def versions(self, *, first: int = 0, last: int | None = None) -> list[Version]:
        """Every kept version from ``first`` to ``last`` (both included; None: the latest), in order."""
        with self._database.read() as session:
            found = session.rows(
                "select number, committed_at from versions where number >= ? and number <= ? order by number",
                (first, 2**62 if last is None else last),
            )
        return [Version(number=number, committed_at=moment_of(at)) for number, at in found]

    def version_at(self, moment: datetime) -> int:
        """The last version committed at or before ``moment`` (aware). Raises NoSuchVersion before the first."""
        if moment.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        with self._database.read() as session:
            found = session.rows(
                "select number from versions where committed_at <= ? order by committed_at desc, number desc limit 1",
                (microseconds(moment),),
            )
            if found:
                return int(found[0][0])
            number, at = session.rows("select number, committed_at from versions order by number limit 1")[0]
        raise NoSuchVersion(
            f"The catalog has no version as early as {moment.astimezone(UTC).isoformat()}.",
            remedy=f"The earliest is version {number}, committed at {moment_of(at).isoformat()}.",
        )

    def require_version(self, number: int) -> None:
        """Raises NoSuchVersion, naming the nearest versions that are kept."""
        with self._database.read() as session:
            self._require(session, number)

    def thin(self, numbers: Sequence[int]) -> int:
        """Forget these versions, and what tables were at no other one; how many that were.

        The latest version and those that are leased stay. Files are left alone: see `headrace.lake.sweep`.
        """
        forgotten = 0
        for begin in range(0, len(numbers), THINNED_AT_ONCE):
            some = numbers[begin : begin + THINNED_AT_ONCE]
            with self._database.write() as session:
                marks = ", ".join("?" * len(some))
                rows = session.rows(
                    f"select number from versions where number in ({marks}) and number < (select max(number) from versions)"
                    " and number not in (select version from leases where expires_at > ?)",
                    (*some, self._now()),
                )
                going = [int(number) for (number,) in rows]
                if going:
                    marks = ", ".join("?" * len(going))
                    session.run(f"delete from versions where number in ({marks})", tuple(going))
                    for table in ("pointers", "namespaces"):
                        session.run(
                            f"delete from {table} where to_version > ? and from_version <= ? and not exists (select 1"
                            f" from versions where number >= {table}.from_version and number < {table}.to_version)",
                            (min(going), max(going)),
                        )
            forgotten += len(going)
        return forgotten

    def metadata_locations(self, versions: Iterable[int]) -> dict[str, bool]:
        """The metadata files of all tables and views at these versions; True for those that are the present ones."""
        numbers = sorted(versions)
        with self._database.read() as session:
            rows = session.rows("select metadata_location, from_version, to_version from pointers")
        found = {}
        for location, begin, end in rows:
            at = bisect_left(numbers, begin)
            if end is None or (at < len(numbers) and numbers[at] < end):
                found[str(location)] = end is None
        return found

    def lease(self, version: int, seconds: float) -> str:
        """Keep ``version`` for that long; the lease's id. Raises NoSuchVersion."""
        with self._database.write() as session:
            self._require(session, version)
            now = self._now()
            session.run("delete from leases where expires_at <= ?", (now,))
            lease = uuid.uuid4().hex
            session.run(
                "insert into leases (id, version, expires_at) values (?, ?, ?)", (lease, version, now + int(seconds * 1_000_000))
            )
        return lease

    def renew(self, lease: str, version: int, seconds: float) -> None:
        """Keep ``version`` for that long from now on under the lease's id, even if it ran out meanwhile. Raises
        NoSuchVersion if it was too late.
        """
        with self._database.write() as session:
            self._require(session, version)
            until = self._now() + int(seconds * 1_000_000)
            session.run(
                "insert into leases (id, version, expires_at) values (?, ?, ?) "
                "on conflict (id) do update set expires_at = excluded.expires_at",
                (lease, version, until),
            )

    def release(self, lease: str) -> None:
        """End the lease; nothing happens if it has ended already."""
        with self._database.write() as session:
            session.run("delete from leases where id = ?", (lease,))

    def live_leases(self) -> list[Lease]:
        with self._database.read() as session:
            found = session.rows(
                "select id, version, expires_at from leases where expires_at > ? order by version, id", (self._now(),)
            )
        return [Lease(id=lease, version=version, expires_at=moment_of(until)) for lease, version, until in found]

    def note(self, key: str) -> str | None:
        """The note of that key, or None. Notes are outside versions: there is only their last value."""
        with self._database.read() as session:
            found = session.rows("select value from notes where key = ?", (key,))
        return str(found[0][0]) if found else None

    def notes(self, prefix: str) -> dict[str, str]:
        """All notes whose keys begin so."""
        with self._database.read() as session:
            return dict(session.rows("select key, value from notes where substr(key, 1, ?) = ?", (len(prefix), prefix)))

    def set_note(self, key: str, value: str | None) -> None:
        """Write the note durably; None removes it."""
        with self._database.write() as session:
            if value is None:
                session.run("delete from notes where key = ?", (key,))
            else:
                session.run(
                    "insert into notes (key, value) values (?, ?) on conflict (key) do update set value = excluded.value",
                    (key, value),
                )

    def _now(self) -> int:
        return microseconds(self._clock())

    def _next_version(self, session: Session) -> Version:
        """Append the next version in a write session."""
        number, at = session.rows("select number, committed_at from versions order by number desc limit 1")[0]
        # A clock that was set back must not make a later version look earlier.
        following = Version(number=number + 1, committed_at=moment_of(max(self._now(), at)))
        session.run(
            "insert into versions (number, committed_at) values (?, ?)", (following.number, microseconds(following.committed_at))
        )
        return following

    @staticmethod
    def _require(session: Session, number: int) -> None:
        if session.rows("select 1 from versions where number = ?", (number,)):
            return
        nearest = session.rows(
            "select max(case when number < ? then number end), min(case when number > ? then number end) from versions",
            (number, number),
        )[0]
        named = " and ".join(str(one) for one in nearest if one is not None)
        raise NoSuchVersion(f"The catalog has no version {number}, or not any more.", remedy=f"The nearest that it has: {named}.")
