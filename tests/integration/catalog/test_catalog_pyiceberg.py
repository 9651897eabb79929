"""PyIceberg reads and writes through the REST catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    ForbiddenError,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
    UnauthorizedError,
)
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import ListType, LongType, NestedField, StringType, StructType

from headrace.catalog import Catalog
from headrace.catalog.serve import Endpoint, serve_in_thread
from headrace.lake.engine import open_engine

ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "note": ["a", "b", None]})


@pytest.fixture(params=["lake", "a lake"])
def catalog(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db", tmp_path / request.param) as catalog:
        catalog.create_namespace("silver")
        yield catalog


@pytest.fixture
def endpoint(catalog: Catalog) -> Iterator[Endpoint]:
    with serve_in_thread(catalog) as endpoint:
        yield endpoint


def opened(endpoint: Endpoint, warehouse: str = "lake", **more: str) -> RestCatalog:
    given = more or {"token": endpoint.token}
    catalog = load_catalog("lake", type="rest", uri=endpoint.url, warehouse=warehouse, **given)
    assert isinstance(catalog, RestCatalog)
    return catalog


@pytest.fixture
def rest(endpoint: Endpoint) -> Iterator[RestCatalog]:
    catalog = opened(endpoint)
    yield catalog
    catalog.close()


def test_a_table_is_created_appended_and_scanned_by_others_too(rest: RestCatalog, endpoint: Endpoint) -> None:
    table = rest.create_table("silver.orders", schema=ROWS.schema)
    table.append(ROWS)
    table.append(ROWS)
    assert rest.load_table("silver.orders").scan().to_arrow().num_rows == 6
    table.delete("id = 2")
    with open_engine(endpoint) as engine:
        assert engine.execute("select count(*), sum(id) from silver.orders").fetchone() == (4, 8)


def test_nested_columns_get_sound_ids(rest: RestCatalog) -> None:
    schema = Schema(
        NestedField(1, "id", LongType(), required=True),
        NestedField(2, "s", StructType(NestedField(3, "l", ListType(4, StringType()), required=False)), required=False),
        identifier_field_ids=[1],
    )
    table = rest.create_table("silver.nested", schema=schema)
    assert table.metadata.last_column_id == 4
    assert table.schema().identifier_field_ids == [1]


def test_a_schema_spec_and_properties_evolve(rest: RestCatalog, catalog: Catalog) -> None:
    table = rest.create_table("silver.orders", schema=ROWS.schema)
    table.append(ROWS)
    with table.update_schema() as update:
        update.add_column("total", LongType())
        update.rename_column("note", "remark")
    with table.update_spec() as spec:
        spec.add_field("id", IdentityTransform(), "id_part")
    table.append(pa.table({"id": pa.array([4], pa.int64()), "remark": ["d"], "total": pa.array([9], pa.int64())}))
    with table.transaction() as transaction:
        transaction.set_properties({"owner": "me"})
    metadata = catalog.load("silver", "orders").metadata
    assert metadata["last-column-id"] == 3
    assert metadata["default-spec-id"] == 1
    assert metadata["properties"]["owner"] == "me"
    assert table.scan(row_filter="id = 4").to_arrow().to_pylist() == [{"id": 4, "remark": "d", "total": 9}]


def test_a_create_transaction_is_one_commit(rest: RestCatalog, catalog: Catalog) -> None:
    version = catalog.latest_version()
    with rest.create_table_transaction("silver.orders", schema=ROWS.schema) as transaction:
        transaction.append(ROWS)
        assert catalog.latest_version() == version
    assert catalog.latest_version() == version + 1
    assert rest.load_table("silver.orders").scan().to_arrow().num_rows == 3


def test_snapshots_expire_and_tags_stay(rest: RestCatalog) -> None:
    table = rest.create_table("silver.orders", schema=ROWS.schema)
    for _ in range(3):
        table.append(ROWS)
    first, second, _ = [snapshot.snapshot_id for snapshot in table.snapshots()]
    table.manage_snapshots().create_tag(second, "kept").commit()
    table.maintenance.expire_snapshots().by_id(first).commit()
    assert table.snapshots()[0].snapshot_id == second
    assert table.scan(snapshot_id=second).to_arrow().num_rows == 6


def test_a_commit_that_another_overtook_is_refused(rest: RestCatalog) -> None:
    table = rest.create_table("silver.orders", schema=ROWS.schema)
    table.append(ROWS)
    stale = rest.load_table("silver.orders")
    with table.update_schema() as update:
        update.add_column("total", LongType())
    with pytest.raises(CommitFailedException), stale.update_schema() as update:
        update.add_column("other", LongType())


def test_a_pinned_warehouse_holds_still_and_takes_no_writes(rest: RestCatalog, endpoint: Endpoint) -> None:
    table = rest.create_table("silver.orders", schema=ROWS.schema)
    table.append(ROWS)
    pinned = opened(endpoint, "lake@latest")
    table.append(ROWS)
    past = pinned.load_table("silver.orders")
    assert past.scan().to_arrow().num_rows == 3
    with pytest.raises(ForbiddenError):
        past.append(ROWS)
    assert rest.load_table("silver.orders").scan().to_arrow().num_rows == 6
    pinned.close()


def test_tables_and_namespaces_are_listed_renamed_and_dropped(rest: RestCatalog) -> None:
    rest.create_namespace("gold", {"owner": "me"})
    with pytest.raises(NamespaceAlreadyExistsError):
        rest.create_namespace("gold")
    rest.create_table("silver.orders", schema=ROWS.schema)
    with pytest.raises(TableAlreadyExistsError):
        rest.create_table("silver.orders", schema=ROWS.schema)
    rest.rename_table("silver.orders", "gold.orders")
    assert rest.list_tables("gold") == [("gold", "orders")]
    assert rest.table_exists("gold.orders")
    assert not rest.table_exists("silver.orders")
    rest.purge_table("gold.orders")
    with pytest.raises(NoSuchTableError):
        rest.load_table("gold.orders")
    rest.update_namespace_properties("gold", removals={"owner"}, updates={"a": "b"})
    assert rest.load_namespace_properties("gold") == {"a": "b"}
    rest.drop_namespace("gold")
    assert rest.list_namespaces() == [("silver",)]


def test_a_credential_is_exchanged_for_the_token(endpoint: Endpoint) -> None:
    catalog = opened(endpoint, credential=f"any:{endpoint.token}", **{"oauth2-server-uri": f"{endpoint.url}/v1/oauth/tokens"})
    assert catalog.list_namespaces() == [("silver",)]
    catalog.close()


def test_a_wrong_token_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(UnauthorizedError):
        opened(endpoint, token="wrong")
