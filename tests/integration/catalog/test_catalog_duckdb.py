"""A plain DuckDB reads and writes through the REST catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from headrace.catalog import Catalog
from headrace.catalog.serve import Endpoint, serve_in_thread
from headrace.lake.engine import attach, connect

Connection = duckdb.DuckDBPyConnection


@pytest.fixture(params=["lake", "a lake"])
def catalog(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db", tmp_path / request.param) as catalog:
        catalog.create_namespace("silver")
        yield catalog


@pytest.fixture
def endpoint(catalog: Catalog) -> Iterator[Endpoint]:
    with serve_in_thread(catalog) as endpoint:
        yield endpoint


@pytest.fixture
def duck(endpoint: Endpoint) -> Iterator[Connection]:
    with connect() as connection:
        attach(connection, endpoint, "lake")
        connection.execute("use lake.silver")
        yield connection


def test_a_table_is_created_filled_changed_and_emptied(duck: Connection) -> None:
    duck.execute(
        "create table orders (id bigint, total decimal(12, 2), item struct(name varchar, tags varchar[]), made timestamptz)"
    )
    duck.execute(
        "insert into orders select range, range * 1.5, {name: 'x', tags: ['a', 'b']}, '2026-01-01 00:00:00Z' from range(1000)"
    )
    assert duck.execute("select count(*), sum(total), min(item.tags[2]) from orders").fetchone() == (1000, 749250, "b")
    duck.execute("update orders set total = 0 where id < 10")
    duck.execute("delete from orders where id >= 990")
    assert duck.execute("select count(*), sum(total) from orders").fetchone() == (990, 734265)


def test_a_schema_evolves(duck: Connection) -> None:
    duck.execute("create table orders (id integer)")
    duck.execute("insert into orders values (1)")
    duck.execute("alter table orders add column note varchar")
    duck.execute("insert into orders values (2, 'two')")
    assert duck.execute("select id, note from orders order by id").fetchall() == [(1, None), (2, "two")]


def test_a_transaction_over_two_tables_is_one_version(duck: Connection, catalog: Catalog) -> None:
    duck.execute("create table a (id bigint)")
    duck.execute("create table b (id bigint)")
    version = catalog.latest_version()
    duck.execute("begin")
    duck.execute("insert into a values (1)")
    duck.execute("insert into b values (1)")
    assert catalog.latest_version() == version
    duck.execute("commit")
    assert catalog.latest_version() == version + 1


def test_a_transaction_that_another_overtook_is_refused_whole(duck: Connection, endpoint: Endpoint) -> None:
    duck.execute("create table a (id bigint)")
    duck.execute("create table b (id bigint)")
    duck.execute("insert into b values (1), (2)")
    duck.execute("begin")
    duck.execute("insert into a values (1)")
    duck.execute("delete from b where id = 1")
    with connect() as other:
        attach(other, endpoint, "lake")
        other.execute("delete from lake.silver.b where id = 2")
    with pytest.raises(duckdb.Error, match="CommitFailedException"):
        duck.execute("commit")
    assert duck.execute("select count(*) from a").fetchone() == (0,)
    assert duck.execute("select id from b").fetchall() == [(1,)]


def test_a_pinned_attach_holds_still_while_the_lake_moves(duck: Connection, endpoint: Endpoint) -> None:
    duck.execute("create table a (id bigint)")
    duck.execute("create table b (id bigint)")
    attach(duck, endpoint, "lake@latest", name="pinned")
    for _ in range(3):
        duck.execute("begin")
        duck.execute("insert into a values (1)")
        duck.execute("insert into b values (1)")
        duck.execute("commit")
    count = "select (select count(*) from {0}.silver.a), (select count(*) from {0}.silver.b)"
    assert duck.execute(count.format("pinned")).fetchone() == (0, 0)
    assert duck.execute(count.format("lake")).fetchone() == (3, 3)
    duck.execute("drop table lake.silver.a")
    assert duck.execute(count.format("pinned")).fetchone() == (0, 0)


def test_every_version_is_attached_by_number(duck: Connection, endpoint: Endpoint, catalog: Catalog) -> None:
    duck.execute("create table a (id bigint)")
    numbers = {}
    for rows in range(1, 4):
        duck.execute("insert into a values (?)", [rows])
        numbers[catalog.latest_version()] = rows
    for number, rows in numbers.items():
        attach(duck, endpoint, f"lake@{number}", name=f"v{number}")
        assert duck.execute(f"select count(*) from v{number}.silver.a").fetchone() == (rows,)


def test_writing_to_a_pinned_version_is_refused(duck: Connection, endpoint: Endpoint) -> None:
    duck.execute("create table a (id bigint)")
    attach(duck, endpoint, "lake@latest", name="pinned")
    with pytest.raises(duckdb.Error, match="attach to lake to write"):
        duck.execute("insert into pinned.silver.a values (1)")


def test_namespaces_and_tables_are_listed_created_and_dropped(duck: Connection) -> None:
    duck.execute("create schema lake.gold")
    duck.execute('create table lake.gold."Ärger & Co" (id bigint)')
    tables = duck.execute("select schema_name, table_name from duckdb_tables() where database_name = 'lake'").fetchall()
    assert tables == [("gold", "Ärger & Co")]
    duck.execute('insert into lake.gold."Ärger & Co" values (1)')
    assert duck.execute('from lake.gold."Ärger & Co"').fetchall() == [(1,)]
    duck.execute('drop table lake.gold."Ärger & Co"')
    duck.execute("drop schema lake.gold")
    assert duck.execute("select schema_name from duckdb_schemas() where database_name = 'lake'").fetchall() == [("silver",)]


def test_an_oauth_client_attaches(endpoint: Endpoint) -> None:
    with connect() as duck:
        duck.execute(
            f"attach 'lake' as lake (type iceberg, endpoint '{endpoint.url}', client_id 'any', client_secret '{endpoint.token}', "
            f"oauth2_server_uri '{endpoint.url}/v1/oauth/tokens')"
        )
        assert duck.execute("select schema_name from duckdb_schemas() where database_name = 'lake'").fetchall() == [("silver",)]
