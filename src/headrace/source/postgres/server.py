"""Which server this is. LSNs of two servers, or of two timelines after they parted, do not compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from headrace.errors import PositionLost
from headrace.position import format_lsn, parse_lsn
from headrace.source.postgres.connect import Connector

START_AGAIN = (
    "Check that source.url is the right server. If it is: `headrace drop --slot --lake`, then copy again with `headrace run`."
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """``system``: the system identifier, given by initdb and shared with all physical copies. ``timeline`` rises when a standby
    is promoted, or a backup recovered to a point in time.
    """

    system: str
    timeline: int

    def __str__(self) -> str:
        return f"{self.system}/{self.timeline}"


def server_from(text: str) -> Server:
    system, _, timeline = text.partition("/")
    return Server(system=system, timeline=int(timeline))


def read_server(connection: psycopg.Connection[Any]) -> Server:
    row = connection.execute(
        "SELECT system_identifier::text, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) FROM pg_control_system()"
    ).fetchone()
    assert row is not None
    return Server(system=row[0], timeline=int(row[1], 16))


def require_same(known: Server, now: Server, *, position: int, connector: Connector) -> None:
    """Raises PositionLost unless what the lake has up to ``position``, read from ``known``, is a part of the log of ``now``."""
    if now.system != known.system:
        raise PositionLost(
            f"another server answers at source.url: its system identifier is {now.system}, the lake follows {known.system}",
            remedy=START_AGAIN,
        )
    if now.timeline == known.timeline:
        return
    parted = _parted(connector, now.timeline).get(known.timeline)
    if parted is None or position > parted:
        where = f"parted from it at {format_lsn(parted)}" if parted is not None else "does not come from it"
        raise PositionLost(
            f"the source was promoted or restored: its timeline {now.timeline} {where}, and the lake stands at"
            f" {format_lsn(position)} of timeline {known.timeline}",
            remedy=START_AGAIN,
        )


def _parted(connector: Connector, timeline: int) -> dict[int, int]:
    """Where the earlier timelines of this one ended, by timeline."""
    if timeline == 1:
        return {}
    with connector.connect_replication() as connection:
        result = connection.pgconn.exec_(f"TIMELINE_HISTORY {timeline}".encode())
        if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
        lines = [line.split() for line in (result.get_value(0, 1) or b"").decode(errors="replace").splitlines()]
    return {int(line[0]): parse_lsn(line[1]) for line in lines if len(line) > 1 and line[0].isdigit()}
