"""Connections to the source: the same settings in every session, and errors that say what is wrong without a secret.

Decoded text depends on session settings (a float's digits, a date's order, a bytea's form), so every session pins them at its
start, whichever library opens it. libpq's messages about a malformed URL quote parts of it, and where a password has an unescaped
``@`` or ``/`` such a part is a piece of the password: they are never passed on, and such a URL is refused before libpq sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from headrace.errors import HeadraceError, PositionLost, ProjectError, SourceNotReady, SourceUnreachable

if TYPE_CHECKING:
    import pyarrow as pa

SESSION = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "lc_monetary": "C",  # the text of a money value
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmloption": "content",
    "row_security": "off",  # a policy then makes a copy fail instead of silently leaving rows out
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "search_path": "",
}
"""Settings that every session has."""
SOURCE_URL = "source.url"
NETWORK = {
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
"""libpq parameters, unless the URL sets them."""


class Connector:
    """Opens sessions at one database. ``url`` may hold the password, or ``password`` beside it; neither is ever shown.

    ``setting`` is the key of the project file that has the URL, and ``called`` what messages call the database. Raises
    ProjectError when the URL cannot be understood.
    """

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        application: str = "headrace",
        setting: str = SOURCE_URL,
        called: str = "the source",
    ) -> None:
        self._setting, self._called = setting, called
        parameters = _parameters(url, setting)
        if password is not None:
            parameters["password"] = password
        self._secret = parameters.get("password")
        options = " ".join(f"-c {name}={_option(value)}" for name, value in SESSION.items())
        given = parameters.get("options")
        parameters["options"] = f"{given} {options}" if given else options
        parameters = {"application_name": application, **NETWORK, **parameters}
        self.target = _target(parameters)
        """Where sessions go and as whom, in words without a secret: ``shop at db.example:5432 as app``."""
        self._conninfo = make_conninfo("", **parameters)

    def __repr__(self) -> str:
        return f"Connector({self.target})"

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[TupleRow]:
        """A session for SQL. Raises SourceUnreachable, SourceNotReady."""
        try:
            return psycopg.connect(self._conninfo, autocommit=autocommit)
        except psycopg.Error as error:
            raise self.failed(error) from None

    def connect_replication(self) -> psycopg.Connection[TupleRow]:
        """A session for replication commands in this database; simple queries only. Raises SourceUnreachable, SourceNotReady."""
        try:
            return psycopg.connect(self._conninfo, autocommit=True, replication="database")
        except psycopg.Error as error:
            raise self.failed(error) from None

    def adbc(self) -> Any:
        """An autocommitting ADBC (DBAPI) session, whose results are Arrow. Raises SourceUnreachable, SourceNotReady."""
        import adbc_driver_manager
        import adbc_driver_postgresql.dbapi

        try:
            return adbc_driver_postgresql.dbapi.connect(self._conninfo, autocommit=True)
        except adbc_driver_manager.Error as error:
            raise self.failed(error) from None

    def failed(self, error: BaseException) -> HeadraceError:
        """What an error of psycopg, ADBC or Arrow on one of these sessions means to the user."""
        state = getattr(error, "sqlstate", None)
        if state is None and isinstance(error, psycopg.Error):
            state = error.diag.sqlstate
        text = self._without_secret(_first_lines(str(error)))
        failure = _explain(text, state, f"{self._called} ({self.target})")
        failure.remedy = failure.remedy.replace(SOURCE_URL, self._setting)
        return failure

    def _without_secret(self, text: str) -> str:
        if self._secret:
            text = text.replace(self._secret, "…")
        return text


def batches_of(cursor: Any) -> Iterator[pa.RecordBatch]:
    """The result of an ADBC cursor. Raises adbc_driver_manager.Error, with its SQLSTATE, also while rows arrive."""
    import pyarrow as pa

    try:
        yield from cursor.fetch_record_batch()
    except (OSError, pa.ArrowException) as error:
        # Arrow's stream interface has only a text for what breaks half-way; the driver's own reader knows the SQLSTATE.
        helper = getattr(getattr(getattr(cursor, "_results", None), "reader", None), "_helper", None)
        if helper is not None:
            helper.check_error(error)
        raise


def _parameters(url: str, setting: str = SOURCE_URL) -> dict[str, Any]:
    """libpq's parameters of a URL, or of a ``key=value`` text. Raises ProjectError, which quotes nothing of it."""
    text = url.strip()
    scheme = re.match(r"[a-z0-9+.-]*(?=://)", text, re.IGNORECASE)
    remedy = (
        "Write postgresql://user@host:port/database, with special characters in a name or password percent-encoded"
        " (@ is %40, / is %2F)"
        + (", or give the password apart: source.password: {env: VARIABLE} or {file: PATH}." if setting == SOURCE_URL else ".")
    )
    if scheme and scheme[0] not in ("postgresql", "postgres"):
        raise ProjectError(f"{setting} is a {scheme[0]}:// URL, not a PostgreSQL one", remedy=remedy)
    if scheme:
        credentials, at, rest = text.partition("://")[2].partition("@")
        if "@" in rest or (at and "/" in credentials):
            raise ProjectError(f"{setting} has an @ or / in its user name or password that is not percent-encoded", remedy=remedy)
    unclear = ProjectError(f"{setting} is not a PostgreSQL connection URL that libpq understands", remedy=remedy)
    try:
        parameters = {key: value for key, value in conninfo_to_dict(text).items() if value is not None}
    except psycopg.ProgrammingError:
        raise unclear from None
    if not all(port.isdigit() for port in filter(None, str(parameters.get("port", "")).split(","))):
        raise unclear  # else libpq would quote it, and it is a piece of a password when that has an unescaped slash
    return parameters


def split_password(url: str) -> tuple[str, str | None]:
    """A URL without its password, and the password. Raises ProjectError when the URL cannot be understood."""
    parameters = _parameters(url)
    password = parameters.pop("password", None)
    if password is None:
        return url.strip(), None
    if "://" not in url:
        return make_conninfo("", **parameters), str(password)
    scheme, _, rest = url.strip().partition("://")
    credentials, at, place = rest.partition("@")
    if at and ":" in credentials:
        return f"{scheme}://{credentials.partition(':')[0]}@{place}", unquote(credentials.partition(":")[2])
    before, _, query = rest.partition("?")  # as ?password=…
    kept = "&".join(part for part in query.split("&") if not part.startswith("password="))
    return f"{scheme}://{before}{'?' if kept else ''}{kept}", str(password)


def database_of(url: str) -> str:
    """The database's name that a URL gives, as libpq understands it; "" when it leaves that to the environment."""
    parameters = _parameters(url)
    return str(parameters.get("dbname") or parameters.get("user") or "")


def quoted(text: str) -> str:
    """A text as a literal of SQL and of replication commands."""
    return "'" + text.replace("'", "''") + "'"


def _option(value: str) -> str:
    """A value for libpq's ``options``, where blanks and backslashes are escaped."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _target(parameters: dict[str, Any]) -> str:
    host = parameters.get("host") or parameters.get("hostaddr") or "the local socket"
    port = parameters.get("port")
    where = host if "," in str(host) or not port else f"{host}:{port}"
    user = f" as {parameters['user']}" if parameters.get("user") else ""
    return f"{parameters.get('dbname') or 'the default database'} at {where}{user}"


def _first_lines(text: str) -> str:
    """An error's text in one line, without ADBC's and libpq's introductions, details (they quote rows) and the statement's
    context.
    """
    text = re.split(r"\n(?:DETAIL|CONTEXT|LINE \d+|STATEMENT|QUERY|Query was|HINT):?", text)[0]
    text = re.sub(r"^.*?\[libpq\] ", "", text, flags=re.DOTALL)
    text = re.sub(r"\.? SQLSTATE: \w{5}", "", text)
    text = re.sub(r"connection to server (at|on) [^:]*? failed: ", "", text)
    text = re.sub(r"^.*?\b(?=(?:ERROR|FATAL|PANIC):  )", "", text, flags=re.DOTALL)
    text = re.sub(r"^(?:connection failed|Failed to connect|Failed to execute query: could not \w+ COPY): ", "", text)
    lines = (re.sub(r"^(?:ERROR|FATAL|PANIC): +", "", line.strip()) for line in text.splitlines())
    told = [line for line in lines if line and not line.startswith(_EMPTY_WORDS)]
    return "; ".join(dict.fromkeys(told)).rstrip(".")


COPY_AGAIN = "`headrace drop --slot --lake`, then `headrace run` copies the tables again."

_EMPTY_WORDS = (
    "Multiple connection attempts",
    "Is the server running",
    "This probably means the server terminated",
    "before or while processing the request",
)

_MEANINGS: tuple[tuple[str, tuple[str, ...], type[HeadraceError], str, str], ...] = (
    # part of the message, SQLSTATEs, error, what it means, what to do
    (
        r"could not translate host name|name or service not known|resolve host|no address associated",
        (),
        SourceUnreachable,
        "its host name is not known",
        "Check the host in source.url, and that this machine's name service knows it.",
    ),
    (
        r"connection refused|no such file or directory",
        (),
        SourceUnreachable,
        "nothing listens there",
        "Check host and port in source.url, that the server runs, and its listen_addresses.",
    ),
    (
        r"timeout expired|timed out|no route to host|network is unreachable",
        (),
        SourceUnreachable,
        "it does not answer",
        "Check host and port in source.url, the network and firewalls.",
    ),
    (
        r"password authentication failed|no password supplied|empty password|SASL|SCRAM",
        ("28P01",),
        SourceUnreachable,
        "it refuses this user name and password",
        "Check the user in source.url and the password in source.password (or the URL, PGPASSWORD, ~/.pgpass).",
    ),
    (
        r"no encryption|server does not support SSL|SSL (?:is )?(?:off|required)|sslmode|certificate|SSL error",
        (),
        SourceUnreachable,
        "client and server do not agree on SSL",
        "Set sslmode in source.url as the server wants it: ?sslmode=require (or verify-full with sslrootcert, or disable).",
    ),
    (
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        ("28000",),
        SourceUnreachable,
        "its pg_hba.conf lets this user not in",
        "Let this user connect from here in the server's pg_hba.conf, for the database and for SSL as source.url asks.",
    ),
    (
        r"database \"[^\"]*\" does not exist",
        ("3D000",),
        SourceUnreachable,
        "it has no such database",
        "Check the database's name at the end of source.url.",
    ),
    (
        r"role \"[^\"]*\" does not exist",
        (),
        SourceUnreachable,
        "it has no such user",
        "Check the user's name in source.url.",
    ),
    (
        r"too many (?:clients|connections)|remaining connection slots",
        ("53300",),
        SourceUnreachable,
        "it has no connection left",
        "Wait, close other connections, or raise max_connections (or the role's CONNECTION LIMIT). Headrace uses up to 6.",
    ),
    (
        r"all replication slots are in use",
        (),
        SourceNotReady,
        "it has no replication slot left",
        "Raise max_replication_slots (restart needed), or drop a slot nobody uses: SELECT * FROM pg_replication_slots;",
    ),
    (
        r"can no longer (?:get changes from|access) replication slot|requested WAL segment .* has already been removed",
        (),
        PositionLost,
        "it has removed log that was still to be read",
        COPY_AGAIN,
    ),
    (
        r"publication \"[^\"]*\" does not exist",
        (),
        PositionLost,
        "a publication was made later than the log that is to be read",
        COPY_AGAIN,
    ),
    (
        r"snapshot \"[^\"]*\" does not exist|invalid snapshot identifier|could not import the requested snapshot",
        (),
        SourceUnreachable,
        "the session that held a copy's snapshot was lost",
        "Nothing has to be done: the tables whose copies were not finished are read again.",
    ),
    (
        r"max_wal_senders",
        (),
        SourceNotReady,
        "it has no WAL sender left",
        "Raise max_wal_senders (restart needed), or stop a replication client nobody uses.",
    ),
    (
        r"permission denied to (?:start WAL sender|use replication slots)|must be superuser or replication role",
        (),
        SourceNotReady,
        "this user may not use replication",
        "ALTER ROLE … REPLICATION; (on Amazon RDS: GRANT rds_replication TO …;)",
    ),
    (
        r"permission denied for database",
        (),
        SourceNotReady,
        "this user may not connect to the database",
        "GRANT CONNECT ON DATABASE … TO …;",
    ),
    (
        r"unsupported startup parameter",
        (),
        SourceNotReady,
        "a transaction pooler stands before it, which cannot carry replication",
        "Connect to PostgreSQL itself: give its own host and port in source.url, not the pooler's.",
    ),
    (
        r"the database system is (?:starting up|shutting down|in recovery)|not yet accepting connections",
        ("57P03",),
        SourceUnreachable,
        "it is starting up or shutting down",
        "Wait until it runs.",
    ),
    (
        r"terminating connection|server closed the connection|connection reset|connection .* was lost|EOF detected|broken pipe",
        ("57P01", "57P02", "08006", "08003"),
        SourceUnreachable,
        "the connection was lost",
        "Check that the server runs, and the network between.",
    ),
)


def _explain(text: str, state: str | None, who: str) -> HeadraceError:
    if state is not None and state[:2] in _QUOTING and not text.startswith("invalid snapshot"):
        shown = f"a value could not be read, SQLSTATE {state}"
        return SourceNotReady(f"{who} could not do what was asked: {shown}", remedy="See the server's log.")
    for pattern, states, kind, meaning, remedy in _MEANINGS:
        if state in states or re.search(pattern, text, re.IGNORECASE):
            return kind(f"{who} cannot be used: {meaning} ({text})", remedy=remedy)
    if state is None or state[:2] in _PASSING:
        return SourceUnreachable(f"{who} cannot be used: {text}", remedy="See the server's log.")
    if state == "42501":
        return SourceNotReady(f"{who} refuses what capture needs: {text}", remedy="`headrace check` lists missing privileges.")
    return SourceNotReady(f"{who} could not do what was asked: {text}", remedy="`headrace check` says what it lacks.")


_QUOTING = ("22", "P0")
"""Classes of SQLSTATE whose messages quote values (P0: whatever a function at the source says)."""
_PASSING = ("08", "28", "40", "53", "57", "58", "XX")
"""Classes of SQLSTATE that have to do with the connection or the server's state, not with what was asked."""
