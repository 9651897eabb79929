"""Checks of the server: its version and settings, and what runs on it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from headrace.errors import HeadraceError
from headrace.source.postgres.checks.finding import Examined, Finding

OLDEST_VERSION = 14
SLOTS_NEEDED = 3
SECONDS_UNTIL_LONG = 60


def server_version(look: Examined) -> Iterator[Finding]:
    """The server is PostgreSQL 14 or newer."""
    if too_old(look.connection.info.server_version):
        yield version_finding(look.connection.info.server_version)


def too_old(version: int) -> bool:
    return version < OLDEST_VERSION * 10000


def version_finding(version: int) -> Finding:
    return Finding(
        check="server-version",
        severity="blocker",
        object="server",
        found=f"its version is {version // 10000}",
        consequence=f"Headrace needs PostgreSQL {OLDEST_VERSION} or newer",
        cure="Upgrade the server.",
    )


def primary(look: Examined) -> Iterator[Finding]:
    """The server is a primary: a standby cannot have publications made."""
    if look.row("SELECT pg_is_in_recovery() AS standby")["standby"]:
        yield Finding(
            check="primary",
            severity="blocker",
            object="server",
            found="it is a standby (in recovery)",
            consequence="neither publications nor heartbeats can be written there",
            cure="Give the primary's host in source.url.",
        )


def wal_level(look: Examined) -> Iterator[Finding]:
    """`wal_level` is `logical`."""
    level = look.row("SELECT current_setting('wal_level') AS level")["level"]
    if level != "logical":
        yield Finding(
            check="wal-level",
            severity="blocker",
            object="setting wal_level",
            found=f"it is {level}",
            consequence="the log does not have what is needed to decode changes",
            cure="ALTER SYSTEM SET wal_level = 'logical'; then restart the server. (Amazon RDS: rds.logical_replication = 1.)",
        )


def encoding(look: Examined) -> Iterator[Finding]:
    """The database's encoding can be converted to UTF-8; SQL_ASCII cannot."""
    found = look.row("SELECT current_setting('server_encoding') AS encoding")["encoding"]
    if found == "SQL_ASCII":
        yield Finding(
            check="encoding",
            severity="blocker",
            object="database",
            found="its encoding is SQL_ASCII",
            consequence="nobody knows how its texts are encoded, and the first that is not UTF-8 would stop the pipeline",
            cure="Dump and restore into a database with encoding UTF8.",
        )


def free_slots(look: Examined) -> Iterator[Finding]:
    """Three replication slots are free: the durable one, one to read from, one for a copy's snapshot."""
    if look.running:
        return
    row = look.row(
        "SELECT current_setting('max_replication_slots')::int AS most, count(*)::int AS used,"
        " count(*) FILTER (WHERE slot_name = %(slot)s)::int AS ours FROM pg_replication_slots",
        slot=look.names.slot,
    )
    needed, free = SLOTS_NEEDED - row["ours"], row["most"] - row["used"]
    if free < needed:
        yield Finding(
            check="free-slots",
            severity="blocker",
            object="setting max_replication_slots",
            found=f"{free} of {row['most']} replication slots are free",
            consequence=f"a run needs {needed}: it could not begin",
            cure=f"ALTER SYSTEM SET max_replication_slots = {row['used'] + needed + 2}; then restart the server. Or drop a slot"
            " nobody uses: SELECT slot_name, active, restart_lsn FROM pg_replication_slots;",
        )


def free_senders(look: Examined) -> Iterator[Finding]:
    """A WAL sender is free, for the snapshot of a copy."""
    if look.running:
        return
    row = look.row(
        "SELECT current_setting('max_wal_senders')::int AS most, count(*)::int AS used FROM pg_stat_replication",
    )
    if row["used"] >= row["most"]:
        yield Finding(
            check="free-senders",
            severity="blocker",
            object="setting max_wal_senders",
            found=f"none of {row['most']} WAL senders is free",
            consequence="the snapshot for a copy cannot be taken",
            cure=f"ALTER SYSTEM SET max_wal_senders = {row['most'] + 2}; then restart the server. Or stop a client nobody uses.",
        )


def free_connections(look: Examined) -> Iterator[Finding]:
    """Connections are free, at the server and for this user."""
    if look.running:
        return
    needed = 4 + look.copy_connections
    row = look.row(
        """
        SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
               - coalesce(current_setting('reserved_connections', true)::int, 0)
               - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int AS free,
               CASE WHEN r.rolconnlimit >= 0 AND NOT r.rolsuper THEN r.rolconnlimit
                    - (SELECT count(*) FROM pg_stat_activity WHERE usesysid = r.oid)::int END AS free_for_role,
               CASE WHEN d.datconnlimit >= 0 AND NOT r.rolsuper THEN d.datconnlimit
                    - (SELECT count(*) FROM pg_stat_activity WHERE datid = d.oid)::int END AS free_for_database
          FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()
        """
    )
    limits = {
        "setting max_connections": (row["free"], "Raise max_connections, or close connections nobody uses."),
        f"role {look.user}": (row["free_for_role"], f'ALTER ROLE "{look.user}" CONNECTION LIMIT -1;'),
        "database": (row["free_for_database"], "ALTER DATABASE … CONNECTION LIMIT -1;"),
    }
    for about, (free, cure) in limits.items():
        if free is not None and free < needed:
            yield Finding(
                check="free-connections",
                severity="warning",
                object=about,
                found=f"{max(free, 0)} more connections are possible",
                consequence=f"a run uses up to {needed} at a time, and fails when it gets none",
                cure=cure,
            )


def kept_log(look: Examined) -> Iterator[Finding]:
    """The server keeps log for a slot that is behind: how much, for how long, and what that may cost."""
    row = look.row(
        "SELECT setting::bigint AS megabytes FROM pg_settings WHERE name = 'max_slot_wal_keep_size'",
    )
    if row["megabytes"] >= 0:
        yield Finding(
            check="kept-log",
            severity="warning",
            object="setting max_slot_wal_keep_size",
            found=f"it is {row['megabytes']} MB",
            consequence="a pipeline that is further behind than that loses its slot, and copies its tables again",
            cure="Choose it larger than the log of the longest pause that a run may have, or -1 and watch the disk.",
        )
    else:
        yield Finding(
            check="kept-log",
            severity="note",
            object="setting max_slot_wal_keep_size",
            found="it is -1: no limit",
            consequence="once the slot exists, log is kept on the source's disk for as long as no run follows",
            cure="Do not leave a pipeline stopped for long: `headrace drop --slot` lets the log go.",
        )
    idle = look.rows(
        "SELECT setting::bigint AS seconds FROM pg_settings WHERE name = 'idle_replication_slot_timeout' AND setting <> '0'"
    )
    if idle:
        yield Finding(
            check="kept-log",
            severity="warning",
            object="setting idle_replication_slot_timeout",
            found=f"it is {idle[0]['seconds']} s",
            consequence="a pipeline that is stopped for longer loses its slot, and copies its tables again",
            cure="ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )


_OPEN_TRANSACTIONS = """
SELECT l.pid, a.usename AS user, round(extract(epoch FROM now() - coalesce(a.xact_start, a.backend_start)))::bigint AS seconds
  FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid IS NOT NULL AND l.pid <> pg_backend_pid()
   AND coalesce(now() - a.xact_start > make_interval(secs => %(long)s), true)
 GROUP BY 1, 2, 3 ORDER BY seconds DESC NULLS LAST
"""
_PREPARED = """
SELECT gid, owner, database, round(extract(epoch FROM now() - prepared))::bigint AS seconds
  FROM pg_prepared_xacts ORDER BY prepared
"""


def open_transactions(look: Examined) -> Iterator[Finding]:
    """No writing transaction is open for over a minute, and none is prepared: a new slot or snapshot waits for each."""
    for row in look.rows(_OPEN_TRANSACTIONS, long=SECONDS_UNTIL_LONG):
        age = f"for {row['seconds']} s" if row["seconds"] is not None else "for a time that this user may not see"
        yield Finding(
            check="open-transactions",
            severity="warning",
            object=f"process {row['pid']}" + (f" of {row['user']}" if row["user"] else ""),
            found=f"its transaction has been open {age}, and has written",
            consequence="making the slot and copying tables wait until it ends",
            cure=f"Let it end, or: SELECT pg_terminate_backend({row['pid']});",
        )
    for row in look.rows(_PREPARED):
        gid = row["gid"].replace("'", "''")
        yield Finding(
            check="open-transactions",
            severity="blocker",
            object=f"prepared transaction {row['gid']!r} in database {row['database']}",
            found=f"it was prepared {row['seconds']} s ago by {row['owner']}",
            consequence="making the slot and copying tables wait until it is committed or rolled back, maybe for ever",
            cure=f"In database {row['database']}: COMMIT PREPARED '{gid}'; or ROLLBACK PREPARED '{gid}';",
        )


def pooler(look: Examined) -> Iterator[Finding]:
    """No connection pooler stands between: it shares sessions among transactions, and cannot carry replication."""
    own = look.row("SELECT pg_backend_pid() AS pid")["pid"]
    with look.connector.connect(autocommit=False) as other:
        row = other.execute("SELECT pg_backend_pid()").fetchone()
        after = look.row("SELECT pg_backend_pid() AS pid")["pid"]
        shared = row is not None and row[0] == own
    if shared or after != own:
        yield Finding(
            check="pooler",
            severity="blocker",
            object="source.url",
            found="a transaction pooler (as PgBouncer) answers there: two sessions were given one server process",
            consequence="settings, locks, temporary slots and snapshots of a session are lost between its statements",
            cure="Give PostgreSQL's own host and port in source.url.",
        )
    elif look.connection.info.backend_pid != own:
        yield Finding(
            check="pooler",
            severity="warning",
            object="source.url",
            found="a pooler answers there: the process it names is not the server's",
            consequence="if it pools transactions under load, or cannot carry replication, a run fails",
            cure="Give PostgreSQL's own host and port in source.url.",
        )


def replication(look: Examined) -> Iterator[Finding]:
    """This user may use replication: tried by opening a replication connection."""
    row = look.row(
        "SELECT rolsuper OR rolreplication OR EXISTS (SELECT FROM pg_roles g WHERE pg_has_role(g.oid, 'USAGE')"
        " AND g.rolname IN ('rds_replication', 'rds_superuser')) AS may FROM pg_roles WHERE rolname = current_user"
    )
    grant = f'ALTER ROLE "{look.user}" REPLICATION; (Amazon RDS: GRANT rds_replication TO "{look.user}";)'
    if not row["may"]:
        yield Finding(
            check="replication",
            severity="blocker",
            object=f"role {look.user}",
            found="it has not the attribute REPLICATION",
            consequence="it may neither make nor read a replication slot",
            cure=grant,
        )
        return
    try:
        with look.connector.connect_replication() as session:
            answer = session.pgconn.exec_(b"IDENTIFY_SYSTEM")
        if answer.status == psycopg.pq.ExecStatus.TUPLES_OK:
            return
        found, cure = answer.get_error_message().strip(), "Give PostgreSQL's own host and port in source.url."
    except HeadraceError as error:
        found, cure = error.message, error.remedy
    yield Finding(
        check="replication",
        severity="blocker",
        object=f"role {look.user}",
        found=f"a replication connection was refused: {found}",
        consequence="the snapshot for a copy cannot be taken",
        cure=cure,
    )
