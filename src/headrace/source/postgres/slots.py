"""The replication slot, the publications and the lock that belong to a pipeline at its source.

The durable slot is only ever advanced, never read from: readers consume a temporary copy of it. So the source keeps its log
until the lake
has it, whatever a reader does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from headrace.errors import AlreadyRunning, PositionLost, SourceNotReady
from headrace.position import format_lsn
from headrace.schema import TableId
from headrace.source.port import Stopped
from headrace.source.postgres.connect import COPY_AGAIN
from headrace.source.postgres.waiting import Patience

Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A row of ``pg_replication_slots``. LSNs are numbers; ``retained_bytes`` is the log that the source keeps for the slot."""

    name: str
    plugin: str
    database: str
    active_pid: int | None
    restart_lsn: int | None
    confirmed_lsn: int | None
    wal_status: str | None
    safe_wal_bytes: int | None
    two_phase: bool
    retained_bytes: int


_SLOT = """
SELECT slot_name, plugin, database, active_pid, (restart_lsn - '0/0')::bigint, (confirmed_flush_lsn - '0/0')::bigint,
       wal_status, safe_wal_size, two_phase,
       CASE WHEN pg_is_in_recovery() THEN 0
            ELSE coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint END
FROM pg_replication_slots WHERE slot_name = %s AND slot_type = 'logical'
"""


def find_slot(connection: Connection, name: str) -> Slot | None:
    row = connection.execute(_SLOT, [name]).fetchone()
    if row is None:
        return None
    return Slot(
        name=row[0],
        plugin=row[1],
        database=row[2],
        active_pid=row[3],
        restart_lsn=row[4],
        confirmed_lsn=row[5],
        wal_status=row[6],
        safe_wal_bytes=row[7],
        two_phase=row[8],
        retained_bytes=row[9],
    )


def create_slot(connection: Connection, name: str, patience: Patience) -> int:
    """Make the durable slot; returns the LSN from which it has every change. Waits for the transactions that now run.

    Raises SourceNotReady, and Stopped: there is no slot then.
    """

    def create() -> TupleRow | None:
        query = "SELECT (lsn - '0/0')::bigint FROM pg_create_logical_replication_slot(%s, 'pgoutput')"
        return connection.execute(query, [name]).fetchone()

    try:
        row = patience.wait(connection, create, what=f"making slot {name}")
    except psycopg.errors.ConfigurationLimitExceeded as error:
        raise SourceNotReady(
            f"the source has no free replication slot for {name!r}: every one of max_replication_slots is taken",
            remedy="Raise max_replication_slots (restart needed) or drop a slot nobody uses: SELECT * FROM pg_replication_slots;",
        ) from error
    assert row is not None
    return int(row[0])


def idle_slot(connection: Connection, name: str, *, patience: float = 5.0) -> Slot | None:
    """The slot once no session uses it. Raises AlreadyRunning.

    Call with the pipeline's lock: a session of ours that still streams is then what a killed run left, and is ended.
    """
    deadline = time.monotonic() + patience
    while (slot := find_slot(connection, name)) is not None and slot.active_pid is not None:
        if time.monotonic() > deadline:
            raise _in_use(slot)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND usename = current_user"
            " AND application_name = current_setting('application_name')",
            [slot.active_pid],
        )
        time.sleep(0.1)
    return slot


def release_slot(connection: Connection, name: str, pid: int, *, patience: float = 2.0) -> None:
    """Wait until the session ``pid``, whose client has hung up, lets go of the slot; after ``patience`` seconds it is ended."""
    deadline = time.monotonic() + patience
    while (slot := find_slot(connection, name)) is not None and slot.active_pid == pid:
        if time.monotonic() > deadline:
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        time.sleep(0.02)


def _in_use(slot: Slot) -> AlreadyRunning:
    return AlreadyRunning(
        f"slot {slot.name!r} is in use by process {slot.active_pid} of the source, which is not a run of this pipeline:"
        " a slot has one consumer at a time",
        remedy="Stop that consumer (pg_stat_activity shows whose it is), or give the pipeline another slot name"
        " (source.slot in headrace.yaml).",
    )


def usable_slot(slot: Slot | None, name: str, *, position: int | None, database: str) -> Slot:
    """The slot, if a lake of ``database`` that stands at ``position`` can go on with it. Raises PositionLost, SourceNotReady."""
    again = f"The changes in between are lost to this pipeline: {COPY_AGAIN}"
    if slot is None:
        raise PositionLost(f"slot {name!r} does not exist at the source, but the lake continues from it", remedy=again)
    another = "Give the pipeline another slot name (source.slot in headrace.yaml), or drop that slot."
    if slot.database != database:
        raise SourceNotReady(
            f"slot {name!r} exists and belongs to database {slot.database!r}, but a slot reads one database only", remedy=another
        )
    if slot.plugin != "pgoutput" or slot.two_phase:
        raise SourceNotReady(
            f"slot {name!r} exists with plugin {slot.plugin!r}{' and two_phase' if slot.two_phase else ''};"
            " headrace needs pgoutput without it",
            remedy=another,
        )
    if slot.wal_status == "lost" or slot.restart_lsn is None or slot.confirmed_lsn is None:
        raise PositionLost(f"slot {name!r} was invalidated: the source has removed log that it still needed", remedy=again)
    if position is not None and slot.confirmed_lsn > position:
        raise PositionLost(
            f"slot {name!r} stands at {format_lsn(slot.confirmed_lsn)}, past the lake's {format_lsn(position)}:"
            " it was recreated or advanced by others",
            remedy=again,
        )
    return slot


def advance_slot(connection: Connection, name: str, lsn: int, *, patience: float = 5.0) -> None:
    """Tell the source that everything before ``lsn`` is durable in the lake. Does nothing if the slot already stands there.

    A slot whose last user has just died is busy for a moment: tried again for ``patience`` seconds, then AlreadyRunning.
    Raises PositionLost when there is no such slot any more.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            row = connection.execute(
                "SELECT CASE WHEN confirmed_flush_lsn < %s::pg_lsn THEN"
                " pg_replication_slot_advance(slot_name, least(%s::pg_lsn, pg_current_wal_flush_lsn()))::text END"
                " FROM pg_replication_slots WHERE slot_name = %s",
                [format_lsn(lsn), format_lsn(lsn), name],
            ).fetchone()
        except psycopg.errors.ObjectInUse as error:
            slot = find_slot(connection, name)
            if time.monotonic() > deadline and slot is not None:
                raise _in_use(slot) from error
            time.sleep(0.1)
            continue
        if row is None:
            raise PositionLost(
                f"slot {name!r} does not exist at the source any more: it was dropped while the pipeline followed it",
                remedy=COPY_AGAIN,
            )
        return


def drop_slot(connection: Connection, name: str) -> bool:
    """Drop the slot if it exists; True if it did. Raises AlreadyRunning when it is in use."""
    slot = find_slot(connection, name)
    if slot is None:
        return False
    try:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
    except psycopg.errors.ObjectInUse as error:
        raise AlreadyRunning(
            f"slot {name!r} is in use by process {slot.active_pid} of the source, so it was not dropped",
            remedy="Stop the run that uses it first.",
        ) from error
    return True


def lock_pipeline(connection: Connection, slot: str, *, patience: float = 3.0) -> None:
    """Take the pipeline's advisory lock on this session. Raises AlreadyRunning when another session keeps it.

    The source notices a killed run's end within a second or so, if it was busy for it: hence ``patience``, in seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended('headrace ' || %s, 0))", [slot]).fetchone()
        if row is not None and row[0]:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    holder = connection.execute(
        f"SELECT pid, host(client_addr) FROM pg_locks LEFT JOIN pg_stat_activity USING (pid) WHERE {_LOCKED}", [slot]
    ).fetchone()
    pid, address = holder if holder is not None else (None, None)
    whose = f" (process {pid} there{f', from {address}' if address else ''})" if pid is not None else ""
    raise AlreadyRunning(
        f"another run already follows slot {slot!r}: its session{whose} holds the pipeline's lock at the source",
        remedy="Let it go on, or stop it first. `headrace status` shows what it does.",
    )


_LOCKED = """
locktype = 'advisory' AND objsubid = 1 AND granted
AND (classid::bigint << 32 | objid::bigint) = hashtextextended('headrace ' || %s, 0)
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def is_running(connection: Connection, slot: str) -> bool:
    """True if some session holds the pipeline's advisory lock."""
    row = connection.execute(f"SELECT 1 FROM pg_locks WHERE {_LOCKED}", [slot]).fetchone()
    return row is not None


@dataclass(frozen=True, kw_only=True)
class Publication:
    name: str
    publish: str
    """The operations as in ``CREATE PUBLICATION … WITH (publish = …)``."""
    tables: tuple[TableId, ...]
    partitioned: frozenset[TableId] = frozenset()
    """Those of the tables that are partitioned."""


def ensure_publication(connection: Connection, publication: Publication, patience: Patience) -> None:
    """Create the publication or add the tables it lacks, which waits for DDL on them.

    Raises SourceNotReady with the SQL to run when we may not, and Stopped.
    """
    name = sql.Identifier(publication.name)

    def listed(tables: Iterable[TableId]) -> sql.Composed:
        # Without ONLY a table's inheritance children would be published too, and their updates could fail for lack of a key.
        return sql.SQL(", ").join(
            sql.SQL("{}{}").format(
                sql.SQL("" if table in publication.partitioned else "ONLY "), sql.Identifier(table.schema, table.name)
            )
            for table in tables
        )

    existing = connection.execute("SELECT puballtables FROM pg_publication WHERE pubname = %s", [publication.name]).fetchone()
    if existing is None:
        target = sql.SQL(" FOR TABLE ") + listed(publication.tables) if publication.tables else sql.SQL("")
        statement = sql.SQL("CREATE PUBLICATION {}{} WITH (publish = {}, publish_via_partition_root = true)").format(
            name, target, sql.Literal(publication.publish)
        )
    else:
        published = connection.execute(
            "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", [publication.name]
        ).fetchall()
        have = {TableId(schema, table) for schema, table in published}
        missing = [table for table in publication.tables if table not in have]
        if existing[0] or not missing:
            return
        statement = sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(name, listed(missing))
    try:
        patience.wait(connection, lambda: connection.execute(statement), what=f"publication {publication.name}")
    except psycopg.errors.InsufficientPrivilege as error:
        raise SourceNotReady(
            f"publication {publication.name!r} lacks tables that the project names, and this user may not change that",
            remedy=f"As the owner of the tables, run: {statement.as_string(connection)};",
        ) from error
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        raise SourceNotReady(
            f"publication {publication.name!r} cannot have these tables: {error.diag.message_primary}",
            remedy="`headrace check` says which tables cannot be published, and why.",
        ) from error


def published_ids(connection: Connection, names: Sequence[str]) -> dict[str, tuple[str, dict[int, int]]]:
    """Of each of the publications, by name: what changes when it is altered or made anew, and by the OIDs of the tables that are
    named in it those of their entries.

    An entry that was removed and made again has another OID; what changed in between did not go through the publication.
    """
    rows = connection.execute(
        "SELECT p.pubname, format('%%s.%%s', p.oid, p.xmin), r.prrelid::bigint, r.oid::bigint"
        " FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = ANY(%s)",
        [list(names)],
    ).fetchall()
    found: dict[str, tuple[str, dict[int, int]]] = {}
    for name, publication, table, entry in rows:
        entries = found.setdefault(name, (publication, {}))[1]
        if table is not None:
            entries[table] = entry
    return found


def drop_publications(connection: Connection, names: Sequence[str]) -> list[str]:
    """Drop those of the publications that exist; returns their names."""
    rows = connection.execute("SELECT pubname FROM pg_publication WHERE pubname = ANY(%s)", [list(names)]).fetchall()
    for (name,) in rows:
        connection.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))
    return [name for (name,) in rows]


def current_lsn(connection: Connection) -> int:
    """The LSN up to which the source's log is flushed, and so can be decoded."""
    row = connection.execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def source_time(connection: Connection) -> datetime:
    """The source's clock (aware, UTC)."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment.astimezone(UTC)


def wait_for_slot(connection: Connection, *, stopped: threading.Event, patience: float = 10.0) -> None:
    """Wait until a slot is free: that of a session which has just ended is free soon. Raises SourceNotReady, Stopped."""
    deadline = time.monotonic() + patience
    while True:
        row = connection.execute(
            "SELECT current_setting('max_replication_slots')::int - count(*) FROM pg_replication_slots"
        ).fetchone()
        if row is None or row[0] > 0:
            return
        if time.monotonic() > deadline:
            raise SourceNotReady(
                "the source has no free replication slot: a run needs a temporary one to read from, beside its own",
                remedy="Raise max_replication_slots (restart needed), or drop a slot nobody uses:"
                " SELECT slot_name, active, restart_lsn FROM pg_replication_slots;",
            )
        if stopped.wait(0.2):
            raise Stopped
