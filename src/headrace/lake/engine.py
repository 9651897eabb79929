"""DuckDB sessions: extensions from their wheels, nothing downloaded, the lake attached through its REST catalog."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import duckdb
import httpx

from headrace.catalog import Catalog
from headrace.catalog.serve import Endpoint, serve_in_thread
from headrace.errors import LakeUnavailable

EXTENSIONS = ("avro", "httpfs", "iceberg")
"""In the order in which they must be loaded."""

LAKE = "lake"
PREFERRED_NAMESPACE = "silver"


def extension_path(name: str) -> Path:
    """The extension's file inside its wheel. Raises LakeUnavailable when the wheel is missing or of another DuckDB version."""
    package = f"duckdb_extension_{name}"
    remedy = f"Install it: pip install duckdb-extension-{name}=={duckdb.__version__}"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise LakeUnavailable(f"DuckDB's extension {name} is not installed, without which no lake can be read.", remedy=remedy)
    folder = Path(found.origin).parent / "extensions"
    path = folder / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    if not path.is_file():
        there = ", ".join(sorted(one.name for one in folder.iterdir())) if folder.is_dir() else "none"
        raise LakeUnavailable(
            f"DuckDB is version {duckdb.__version__}, but its extension {name} is for {there}: the two do not fit.", remedy=remedy
        )
    return path


def connect(
    database: Path | None = None, *, memory_limit: str | None = None, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection, in memory or on a file, that can read Iceberg; it downloads nothing and its time zone is UTC.

    ``memory_limit`` as DuckDB writes it (``"400MB"``). Raises LakeUnavailable when an extension is missing.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    if memory_limit is not None:
        config["memory_limit"] = memory_limit
    if threads is not None:
        config["threads"] = threads
    paths = [extension_path(name) for name in EXTENSIONS]
    connection = duckdb.connect(str(database) if database else ":memory:", config=config)
    try:
        for path in paths:
            connection.execute(f"load {quoted(str(path))}")
        connection.execute("set TimeZone = 'UTC'")
        # An answer that got lost after a commit took effect would be answered 409 when asked again, and DuckDB would
        # then take its commit for failed.
        connection.execute("set http_retries = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def attach(
    connection: duckdb.DuckDBPyConnection, endpoint: Endpoint, warehouse_name: str = "lake@latest", *, name: str = LAKE
) -> None:
    """Attach the lake as database ``name``. Raises LakeUnavailable, with the catalog's own words, when it refuses."""
    connection.execute(
        f"create or replace secret {identifier(f'headrace_{name}')} (type iceberg, token {quoted(endpoint.token)})"
    )
    try:
        connection.execute(
            f"attach {quoted(warehouse_name)} as {identifier(name)} (type iceberg, endpoint {quoted(endpoint.url)}, "
            # With removal DuckDB deletes the data files of a commit whose answer it did not get, although it took effect.
            f"secret {identifier(f'headrace_{name}')}, remove_files_on_delete false)"
        )
    except duckdb.Error as error:
        reason = _refusal(endpoint, warehouse_name) or str(error).splitlines()[0]
        raise LakeUnavailable(f"The warehouse {warehouse_name} cannot be attached: {reason}") from error


@contextmanager
def open_engine(
    catalog: Catalog | Endpoint,
    warehouse_name: str = "lake@latest",
    *,
    memory_limit: str | None = None,
    threads: int | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection with the lake attached as ``lake``, so that ``select … from silver.orders`` works.

    ``warehouse_name`` chooses the version (``lake@latest``: one state of all tables, held still and kept while the engine
    is open).
    A catalog given as an object is served on loopback while the engine is open. Raises LakeUnavailable.
    """
    serving = (
        serve_in_thread(catalog, name=warehouse_name.partition("@")[0]) if isinstance(catalog, Catalog) else nullcontext(catalog)
    )
    with serving as endpoint:
        connection = connect(memory_limit=memory_limit, threads=threads)
        try:
            attach(connection, endpoint, warehouse_name)
            _use(connection)
            yield connection
        finally:
            connection.close()


def _use(connection: duckdb.DuckDBPyConnection) -> None:
    """Let names of one or two parts mean tables of the lake. DuckDB asks for a namespace that exists; an empty lake has none."""
    namespaces = [
        row[0]
        for row in connection.execute(
            "select schema_name from duckdb_schemas() where database_name = ? order by schema_name <> ?, schema_name",
            [LAKE, PREFERRED_NAMESPACE],
        ).fetchall()
    ]
    if namespaces:
        connection.execute(f"use {LAKE}.{identifier(namespaces[0])}")


def _refusal(endpoint: Endpoint, warehouse_name: str) -> str | None:
    """What the catalog has to say about attaching to that warehouse: DuckDB keeps only the status."""
    try:
        answer = httpx.get(
            f"{endpoint.url}/v1/config",
            params={"warehouse": warehouse_name},
            headers={"Authorization": f"Bearer {endpoint.token}"},
            timeout=10,
        )
        return None if answer.is_success else str(answer.json()["error"]["message"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def quoted(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'
