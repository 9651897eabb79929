from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import adbc_driver_manager
import psycopg
import pytest

from headrace.errors import HeadraceError, ProjectError, SourceNotReady, SourceUnreachable
from headrace.source.postgres.connect import SESSION, Connector, batches_of, database_of, split_password
from headrace.testing.postgres import Postgres, free_port
from tests.conftest import Database

PASSWORD = "hunter2/@:?#%[ ]&x"
"""Every character that means something in a URL."""

OPENINGS: dict[str, Callable[[Connector], Any]] = {
    "psycopg": Connector.connect,
    "replication": Connector.connect_replication,
    "adbc": Connector.adbc,
}
each_opening = pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Postgres]:
    """A server that asks for passwords."""
    with Postgres(password="hunter2", settings={"max_connections": "8", "superuser_reserved_connections": "3"}) as server:
        server.execute(
            f"CREATE ROLE app LOGIN REPLICATION PASSWORD '{PASSWORD}'",
            "CREATE ROLE one LOGIN REPLICATION PASSWORD 'hunter2' CONNECTION LIMIT 0",
        )
        server.execute("CREATE DATABASE closed", "REVOKE CONNECT ON DATABASE closed FROM public")
        yield server


def url(
    server: Postgres,
    *,
    user: str = "app",
    password: str = PASSWORD,
    host: str = "127.0.0.1",
    port: int = 0,
    rest: str = "/postgres",
) -> str:
    return f"postgresql://{user}:{quote(password, safe='')}@{host}:{port or server.port}{rest}"


def refusal(connector: Connector, opening: Callable[[Connector], Any]) -> HeadraceError:
    with pytest.raises(HeadraceError) as raised:
        opening(connector).close()
    error = raised.value
    assert error.__cause__ is None
    for secret in ("hunter2", quote(PASSWORD, safe="")):
        assert secret not in str(error)
        assert secret not in repr(connector)
    assert error.remedy
    return error


# --- sessions ---


def test_every_session_has_the_pinned_settings_whatever_the_role_prefers(database: Database) -> None:
    database.execute(
        f"ALTER DATABASE {database.name} SET datestyle = 'SQL, DMY'",
        f"ALTER DATABASE {database.name} SET intervalstyle = 'iso_8601'",
        f"ALTER DATABASE {database.name} SET timezone = 'Asia/Tokyo'",
        f"ALTER DATABASE {database.name} SET bytea_output = 'escape'",
        f"ALTER DATABASE {database.name} SET statement_timeout = '1s'",
        f"ALTER DATABASE {database.name} SET search_path = 'public'",
    )
    connector = Connector(database.url, application="headrace/shop")
    values = ", ".join(f"current_setting('{name}')" for name in (*SESSION, "application_name", "client_encoding"))
    expected = [*SESSION.values(), "headrace/shop", "UTF8"]
    with connector.connect() as session:
        assert list(session.execute(f"SELECT {values}").fetchone() or ()) == expected
    with connector.adbc() as session, session.cursor() as cursor:
        cursor.execute(f"SELECT {values}")
        assert list(cursor.fetchone()) == expected
    with connector.connect_replication() as session:
        found = [session.pgconn.exec_(f"SHOW {name}".encode()).get_value(0, 0) for name in SESSION]
        assert [(value or b"").decode() for value in found] == expected[: len(SESSION)]


def test_options_of_the_url_are_kept(database: Database) -> None:
    with Connector(database.url + "?options=-c%20work_mem%3D7MB&application_name=mine").connect() as session:
        row = session.execute(
            "SELECT current_setting('work_mem'), current_setting('TimeZone'), current_setting('application_name')"
        ).fetchone()
    assert row == ("7MB", "UTC", "mine")


@each_opening
def test_a_password_with_any_character_works_in_the_url_and_beside_it(
    guarded: Postgres, opening: Callable[[Connector], Any]
) -> None:
    opening(Connector(url(guarded))).close()
    opening(Connector(f"postgresql://app@127.0.0.1:{guarded.port}/postgres", password=PASSWORD)).close()
    opening(Connector(f"host=127.0.0.1 port={guarded.port} dbname=postgres user=app", password=PASSWORD)).close()


# --- what can be wrong ---


@each_opening
def test_a_wrong_password_is_refused(guarded: Postgres, opening: Callable[[Connector], Any]) -> None:
    error = refusal(Connector(url(guarded, password=PASSWORD + "?")), opening)
    assert isinstance(error, SourceUnreachable)
    assert (
        f"the source (postgres at 127.0.0.1:{guarded.port} as app) cannot be used: it refuses this user name and password"
        in error.message
    )
    assert "source.password" in error.remedy


@each_opening
def test_a_missing_password_is_refused(
    guarded: Postgres, opening: Callable[[Connector], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    error = refusal(Connector(f"postgresql://app@127.0.0.1:{guarded.port}/postgres"), opening)
    assert "it refuses this user name and password (fe_sendauth: no password supplied)" in error.message


@each_opening
def test_a_wrong_database_is_named(guarded: Postgres, opening: Callable[[Connector], Any]) -> None:
    error = refusal(Connector(url(guarded, rest="/shpo")), opening)
    assert isinstance(error, SourceUnreachable)
    assert 'it has no such database (database "shpo" does not exist)' in error.message


@each_opening
def test_a_database_that_may_not_be_entered_is_named(guarded: Postgres, opening: Callable[[Connector], Any]) -> None:
    error = refusal(Connector(url(guarded, rest="/closed")), opening)
    assert isinstance(error, SourceNotReady)
    assert "GRANT CONNECT" in error.remedy


@each_opening
def test_a_server_that_is_not_there_refuses(guarded: Postgres, opening: Callable[[Connector], Any]) -> None:
    port = free_port()
    error = refusal(Connector(url(guarded, port=port)), opening)
    assert isinstance(error, SourceUnreachable)
    assert error.retried
    assert f"at 127.0.0.1:{port} as app) cannot be used: nothing listens there" in error.message


@each_opening
def test_an_unknown_host_is_named(guarded: Postgres, opening: Callable[[Connector], Any]) -> None:
    error = refusal(Connector(url(guarded, host="nowhere.invalid")), opening)
    assert isinstance(error, SourceUnreachable)
    assert "nowhere.invalid" in error.message
    assert "its host name is not known" in error.message


@each_opening
def test_a_server_without_ssl_says_so(guarded: Postgres, opening: Callable[[Connector], Any]) -> None:
    error = refusal(Connector(url(guarded, rest="/postgres?sslmode=require")), opening)
    assert "client and server do not agree on SSL" in error.message
    assert "sslmode" in error.remedy


@each_opening
def test_a_server_that_does_not_answer_is_given_up(opening: Callable[[Connector], Any]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = refusal(Connector(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/shop?connect_timeout=2"), opening)
    assert "it does not answer" in error.message


@pytest.mark.parametrize("opening", [Connector.connect, Connector.adbc], ids=["psycopg", "adbc"])
def test_too_many_connections_are_told_apart(guarded: Postgres, opening: Callable[[Connector], Any]) -> None:
    error = refusal(Connector(url(guarded, user="one", password="hunter2")), opening)
    assert isinstance(error, SourceUnreachable)
    assert "it has no connection left" in error.message


def test_a_full_server_is_told_apart(guarded: Postgres) -> None:
    held: list[psycopg.Connection[Any]] = []
    try:
        with pytest.raises(SourceUnreachable, match="it has no connection left") as raised:
            for _ in range(20):
                held.append(Connector(url(guarded)).connect())
        assert "max_connections" in raised.value.remedy
    finally:
        for session in held:
            session.close()


def test_a_role_without_replication_is_told_apart(guarded: Postgres) -> None:
    guarded.execute("DROP ROLE IF EXISTS plain", "CREATE ROLE plain LOGIN PASSWORD 'hunter2'")
    error = refusal(Connector(url(guarded, user="plain", password="hunter2")), Connector.connect_replication)
    assert isinstance(error, SourceNotReady)
    assert "this user may not use replication" in error.message


def test_a_lost_connection_is_told_apart(database: Database) -> None:
    connector = Connector(database.url)
    with connector.connect() as session:
        with pytest.raises(psycopg.Error) as raised:
            session.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        lost = connector.failed(raised.value)
    assert isinstance(lost, SourceUnreachable)
    assert "the connection was lost" in lost.message


def test_a_connection_lost_by_adbc_is_told_apart(database: Database) -> None:
    connector = Connector(database.url)
    session = connector.adbc()
    with session.cursor() as cursor:
        with pytest.raises(Exception) as raised:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            cursor.fetchall()
        lost = connector.failed(raised.value)
    session.close()
    assert isinstance(lost, SourceUnreachable)
    assert "the connection was lost" in lost.message


def test_a_value_that_postgresql_quotes_in_an_error_is_not_shown(database: Database) -> None:
    connector = Connector(database.url)
    with connector.connect() as session, pytest.raises(psycopg.Error) as raised:
        session.execute("SELECT 'private value'::int")
    error = connector.failed(raised.value)
    assert "private value" not in str(error)
    assert "SQLSTATE 22P02" in error.message
    with connector.adbc() as adbc, adbc.cursor() as cursor, pytest.raises(Exception) as raised_by_adbc:
        cursor.execute("SELECT ('private ' || 'value')::int")
    assert "private value" not in str(connector.failed(raised_by_adbc.value))


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql://u:hun@ter2@h/d",
        "postgresql://u:hun/ter2@h/d",
        "postgresql://u:hun@ter2:x@h/d",
        "postgresql://h:hunter2/d",
        "postgresql://u:hunter2%zz@h/d",
        "postgresql://u:hunter2@h/d?hunter2",
        "postgresql://u:hunter2@h/d?hunter2=1",
        "postgresql+psycopg2://u:hunter2@h/d",
        "mysql://u:hunter2@h/d",
        "host=h password=hunter2 hunter2",
        "hunter2",
    ],
)
def test_a_url_that_cannot_be_understood_is_refused_without_quoting_it(wrong: str) -> None:
    with pytest.raises(ProjectError) as raised:
        Connector(wrong)
    assert "hun" not in str(raised.value)
    assert "ter2" not in str(raised.value)
    assert "percent-encoded" in raised.value.remedy
    assert raised.value.__cause__ is None


# --- URLs ---


@pytest.mark.parametrize(
    ("whole", "without", "password"),
    [
        ("postgresql://u:p%40ss@h:5/d?a=b", "postgresql://u@h:5/d?a=b", "p@ss"),
        ("postgresql://u@h/d", "postgresql://u@h/d", None),
        ("postgresql:///d?user=u&password=p%40ss", "postgresql:///d?user=u", "p@ss"),
        ("postgresql:///d?password=p", "postgresql:///d", "p"),
        ("postgresql://u:p@h1,h2:6/d", "postgresql://u@h1,h2:6/d", "p"),
        ("host=h password='p s' user=u", "host=h user=u", "p s"),
    ],
)
def test_a_password_is_taken_out_of_a_url(whole: str, without: str, password: str | None) -> None:
    if "?a=b" in whole:
        whole, without = whole.replace("a=b", "sslmode=prefer"), without.replace("a=b", "sslmode=prefer")
    left, taken = split_password(whole)
    assert taken == password
    assert psycopg.conninfo.conninfo_to_dict(left) == psycopg.conninfo.conninfo_to_dict(without)


def test_a_urls_database_is_what_libpq_takes_for_it() -> None:
    assert database_of("postgresql://u:p@h/shop?sslmode=disable") == "shop"
    assert database_of("postgresql://u@h") == "u"
    assert database_of("host=h dbname=shop") == "shop"


FAILING = """
CREATE FUNCTION failing(text) RETURNS int LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'private value' USING ERRCODE = $1, DETAIL = 'private value'; END $$
"""


@pytest.mark.parametrize(
    ("sqlstate", "kind"), [("22P02", SourceNotReady), ("P0001", SourceNotReady), ("57014", SourceUnreachable)]
)
def test_an_error_half_way_through_the_rows_is_explained_without_their_values(
    database: Database, sqlstate: str, kind: type[HeadraceError]
) -> None:
    database.execute(FAILING)
    connector = Connector(database.url)
    statement = f"SELECT CASE WHEN i = 300000 THEN public.failing('{sqlstate}') ELSE i END FROM generate_series(1, 400000) i"
    with connector.adbc() as session, session.cursor() as cursor, pytest.raises(adbc_driver_manager.Error) as raised:
        cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": "65536"})
        cursor.execute(statement)
        for _ in batches_of(cursor):
            pass
    error = connector.failed(raised.value)
    assert type(error) is kind
    if kind is SourceNotReady:
        assert "private" not in str(error) and sqlstate in error.message
    else:  # the message is the server's own; its details still quote rows
        assert error.message.count("private value") == 1


def test_what_an_error_says_of_the_row_is_not_shown(database: Database) -> None:
    database.execute("CREATE TABLE public.unique_ones (email text PRIMARY KEY)")
    connector = Connector(database.url)
    with connector.connect() as session, pytest.raises(psycopg.Error) as raised:
        session.execute("INSERT INTO public.unique_ones VALUES ('me@example.org'), ('me@example.org')")
    error = connector.failed(raised.value)
    assert "unique_ones_pkey" in error.message
    assert "me@example.org" not in str(error)
