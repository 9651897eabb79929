"""Engines attached as the how-to says read the same rows: a plain DuckDB, PyIceberg and Spark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog as PyIcebergCatalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.manifest import DataFileContent

from headrace.lake.engine import EXTENSIONS, extension_path
from headrace.testing.postgres import Postgres, free_port
from tests.acceptance.running import RunningProject, stop, wait_until
from tests.acceptance.variety import SILVER, Followed, at_source, change, fill, rows
from tests.conftest import Database, fresh_database
from tests.integration.catalog.test_catalog_spark import pytestmark as spark_marks
from tests.integration.catalog.test_catalog_spark import spark

pytestmark = pytest.mark.slow

GUIDE = (Path(__file__).parents[2] / "docs/howto/attach-engines.md").read_text()
TRANSACTIONS = 60
TABLES = [f"{layer}.{table}" for layer in ("silver", "bronze") for table in SILVER]
WITH_TIME = {"silver.shifts", "bronze.shifts"}
"""Spark has no type for times of day."""


def needs_spark(test: Callable[..., None]) -> Callable[..., None]:
    for mark in spark_marks:
        test = mark(test)
    return test


@dataclass(frozen=True, kw_only=True)
class Served:
    """A lake behind `headrace catalog serve`, the database that it was made from, and how many commits made it."""

    database: Database
    running: RunningProject
    url: str
    token: str
    commits: int

    def words(self, language: str) -> str:
        """The how-to's block in that language, for this lake; what it does with `orders` is done with `everything`."""
        found = re.search(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
        assert found, language
        assert "http://127.0.0.1:8181" in found[1]
        adapted = found[1].replace("http://127.0.0.1:8181", self.url).replace("$TOKEN", self.token)
        return re.sub(r"\borders\b", "everything", adapted)


@pytest.fixture(scope="module")
def lake(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with fresh_database(postgres) as database:
        fill(database)
        running = RunningProject(tmp_path_factory.mktemp("engines") / "variety", database.url, tables="[public.*, sales.*]")
        followed = Followed(running.project, database)
        with followed.running():
            change(followed, seed=3, transactions=TRANSACTIONS)
        port = free_port()
        serving = running.start("catalog", "serve", "--port", str(port))
        try:
            wait_until(lambda: "Iceberg REST catalog at" in running.log(), seconds=30, what="the catalog's server")
            token = (running.project.state / "catalog-token").read_text().strip()
            url = f"http://127.0.0.1:{port}"
            yield Served(database=database, running=running, url=url, token=token, commits=followed.commits)
        finally:
            assert stop(serving) == 0


@pytest.fixture(scope="module")
def duck(lake: Served) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB as the how-to attaches it; only its extensions come from their wheels."""
    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        for name in EXTENSIONS:
            connection.execute(f"LOAD '{extension_path(name)}'")
        connection.execute("SET TimeZone = 'Pacific/Chatham'")
        connection.execute(lake.words("sql"))
        yield connection


@pytest.fixture(scope="module")
def iceberg(lake: Served) -> Iterator[PyIcebergCatalog]:
    """PyIceberg's catalog as the how-to opens it."""
    names: dict[str, Any] = {"TOKEN": lake.token}
    exec(lake.words("python"), names)
    catalog = names["lake"]
    assert isinstance(catalog, RestCatalog)
    yield catalog
    catalog.close()


def read(duck: duckdb.DuckDBPyConnection, table: str, columns: str = "*") -> pa.Table:
    return duck.execute(f"SELECT {columns} FROM lake.{table}").to_arrow_table()


def test_the_lake_has_what_makes_reading_hard(lake: Served, iceberg: PyIcebergCatalog) -> None:
    table = iceberg.load_table("silver.everything")
    snapshot = table.current_snapshot()
    assert snapshot is not None
    manifests = snapshot.manifests(table.io)
    found = Counter(entry.data_file.content for manifest in manifests for entry in manifest.fetch_manifest_entry(table.io))
    assert found[DataFileContent.POSITION_DELETES] > 1
    assert 1 < found[DataFileContent.DATA] < lake.commits / 2, "small files should have been merged"
    assert len(manifests) > 1
    assert len(table.metadata.schemas) > 2, "columns were added and widened"


def test_the_lake_is_proven_equal_to_its_source(lake: Served) -> None:
    lake.running.must("verify")


@pytest.mark.parametrize("table", SILVER)
def test_duckdb_reads_what_the_source_has(lake: Served, duck: duckdb.DuckDBPyConnection, table: str) -> None:
    columns = ", ".join(f'"{name}"' for name in (*SILVER[table][1], "_flags"))
    assert rows(read(duck, f"silver.{table}", columns)) == at_source(lake.database, table)


@pytest.mark.parametrize("table", SILVER)
def test_pyiceberg_reads_what_the_source_has(lake: Served, iceberg: PyIcebergCatalog, table: str) -> None:
    columns = (*SILVER[table][1], "_flags")
    scanned = iceberg.load_table(f"silver.{table}").scan(selected_fields=columns).to_arrow()
    assert rows(scanned.select(columns)) == at_source(lake.database, table)


@pytest.mark.parametrize("table", TABLES)
def test_duckdb_and_pyiceberg_read_the_same(duck: duckdb.DuckDBPyConnection, iceberg: PyIcebergCatalog, table: str) -> None:
    by_duck = read(duck, table)
    by_iceberg = iceberg.load_table(table).scan().to_arrow()
    assert by_duck.column_names == by_iceberg.column_names
    assert rows(by_duck) == rows(by_iceberg)


@pytest.mark.parametrize("table", ["everything", "journal"])
def test_a_filter_finds_the_same_rows_whatever_an_engine_skips(
    duck: duckdb.DuckDBPyConnection, iceberg: PyIcebergCatalog, table: str
) -> None:
    (lsn,) = duck.execute(f"SELECT quantile_disc(_commit_lsn, 0.9) FROM lake.silver.{table}").fetchone() or (0,)
    by_duck = read(duck, f"silver.{table} WHERE _commit_lsn > {lsn}")
    by_iceberg = iceberg.load_table(f"silver.{table}").scan(row_filter=f"_commit_lsn > {lsn}").to_arrow()
    assert 0 < by_duck.num_rows < read(duck, f"silver.{table}").num_rows
    assert rows(by_duck) == rows(by_iceberg)


@pytest.fixture(scope="module")
def exported(lake: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every table as Spark reads it, as Parquet in a folder of its name."""
    options = dict(line.split() for line in lake.words("properties").splitlines())
    prefix = "spark.sql.catalog.lake."
    catalog = {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}
    folder = tmp_path_factory.mktemp("spark")
    told = spark(
        {"lake": {**catalog, "warehouse": "lake@latest"}},
        "SET spark.sql.parquet.outputTimestampType = TIMESTAMP_MICROS",
        *(f"INSERT OVERWRITE DIRECTORY '{folder / table}' USING parquet SELECT * FROM lake.{table}" for table in TABLES),
    )
    failed = {table: answer["error"] for table, answer in zip(TABLES, told[1:], strict=True) if isinstance(answer, dict)}
    assert set(failed) == WITH_TIME, failed
    return folder


@needs_spark
@pytest.mark.parametrize("table", [table for table in TABLES if table not in WITH_TIME])
def test_spark_and_duckdb_read_the_same(exported: Path, duck: duckdb.DuckDBPyConnection, table: str) -> None:
    by_spark = pq.read_table(exported / table)
    by_duck = read(duck, table)
    assert by_spark.column_names == by_duck.column_names
    assert rows(by_spark) == rows(by_duck)
