"""The DuckDB session over the lake."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from headrace.catalog import Catalog
from headrace.catalog.serve import Endpoint, serve_in_thread
from headrace.errors import LakeUnavailable
from headrace.lake import engine
from headrace.lake.engine import connect, open_engine


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db", tmp_path / "lake") as catalog:
        yield catalog


def test_tables_of_the_lake_need_no_database_name(catalog: Catalog) -> None:
    for namespace in ("bronze", "silver", "headrace"):
        catalog.create_namespace(namespace)
    with open_engine(catalog, "lake") as session:
        session.execute("create table bronze.orders (id bigint)")
        session.execute("insert into bronze.orders values (1)")
        session.execute("create table silver.orders (id bigint)")
        assert session.execute("select count(*) from bronze.orders").fetchone() == (1,)
        assert session.execute("select count(*) from silver.orders join lake.bronze.orders using (id)").fetchone() == (0,)


def test_temporary_tables_and_arrow_beside_the_lake(catalog: Catalog) -> None:
    catalog.create_namespace("silver")
    with open_engine(catalog) as session:
        session.execute("create temp table numbers as select range from range(3)")
        assert session.execute("select count(*) from numbers").fetchone() == (3,)


def test_an_empty_lake_opens(catalog: Catalog) -> None:
    with open_engine(catalog) as session:
        assert session.execute("select 1").fetchone() == (1,)


def test_the_session_is_in_utc_and_downloads_nothing(catalog: Catalog) -> None:
    with open_engine(catalog) as session:
        settings = ("TimeZone", "http_retries", "autoinstall_known_extensions", "autoload_known_extensions")
        assert [session.execute(f"select current_setting('{name}')").fetchone() for name in settings] == [
            ("UTC",),
            (0,),
            (False,),
            (False,),
        ]


def test_the_session_is_bounded_when_asked(catalog: Catalog) -> None:
    with open_engine(catalog, memory_limit="400MB", threads=1) as session:
        assert session.execute("select current_setting('threads')").fetchone() == (1,)
        assert session.execute("select current_setting('memory_limit')").fetchone() == ("381.4 MiB",)


def test_an_open_engine_keeps_its_version_and_lets_it_go(catalog: Catalog) -> None:
    version = catalog.create_namespace("silver")
    with open_engine(catalog):
        catalog.create_namespace("gold")
        assert [lease.version for lease in catalog.live_leases()] == [version]
    assert catalog.live_leases() == []


def test_the_token_does_not_show_in_the_session(catalog: Catalog) -> None:
    catalog.create_namespace("silver")
    with serve_in_thread(catalog) as endpoint, open_engine(endpoint) as session:
        shown = str(session.execute("from duckdb_secrets()").fetchall()) + str(
            session.execute("from duckdb_databases()").fetchall()
        )
        assert endpoint.token not in shown


@pytest.mark.parametrize(
    ("warehouse", "reason"),
    [
        ("lake@99", "nearest that it has: 0"),
        ("lake@2001-01-01", "earliest is version 0"),
        ("pond", "no warehouse 'pond'; there are lake and lake@latest"),
    ],
)
def test_a_version_that_is_not_there_is_explained(catalog: Catalog, warehouse: str, reason: str) -> None:
    with serve_in_thread(catalog) as endpoint, pytest.raises(LakeUnavailable, match=reason), open_engine(endpoint, warehouse):
        pass


def test_a_warehouse_goes_by_its_own_name(catalog: Catalog) -> None:
    catalog.create_namespace("silver")
    with open_engine(catalog, "shop") as session:
        session.execute("create table silver.orders (id bigint)")
    with open_engine(catalog, "shop@2") as session:
        assert session.execute("select count(*) from lake.silver.orders").fetchone() == (0,)


def test_a_catalog_that_does_not_answer_is_named(catalog: Catalog) -> None:
    with serve_in_thread(catalog) as endpoint:
        pass
    with pytest.raises(LakeUnavailable, match="lake@latest cannot be attached"), open_engine(endpoint):
        pass


def test_a_wrong_token_is_named_and_not_shown(catalog: Catalog) -> None:
    with serve_in_thread(catalog) as endpoint:
        wrong = Endpoint(url=endpoint.url, token="not-the-token")
        with pytest.raises(LakeUnavailable, match="Not authorized") as failure, open_engine(wrong):
            pass
    assert "not-the-token" not in str(failure.value)


def test_a_missing_extension_names_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "EXTENSIONS", ("no_such_thing",))
    with pytest.raises(LakeUnavailable, match="pip install duckdb-extension-no_such_thing=="):
        connect()


def test_an_extension_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb, "__version__", "9.9.9")
    with pytest.raises(LakeUnavailable, match=r"version 9\.9\.9, but its extension avro is for v1"):
        connect()


def test_a_server_starts_and_stops_at_once(catalog: Catalog) -> None:
    with serve_in_thread(catalog):
        pass  # imports
    begun = time.monotonic()
    with serve_in_thread(catalog):
        started = time.monotonic() - begun
    assert started < 0.1
    assert time.monotonic() - begun < 0.5
