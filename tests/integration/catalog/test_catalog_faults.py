"""Answers that get lost after the commit took effect: the client can find out, and nothing is destroyed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import duckdb
import httpx
import pytest

from headrace.catalog import Catalog
from headrace.catalog.serve import Endpoint, serve_in_thread
from headrace.lake.engine import open_engine
from headrace.testing.catalog_faults import CatalogFaults, Fault
from tests.catalog_changes import creation, snapshot_updates

FAULTS = get_args(Fault)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db", tmp_path / "lake") as catalog:
        catalog.create_namespace("silver")
        yield catalog


@pytest.fixture
def faults() -> CatalogFaults:
    return CatalogFaults()


@pytest.fixture
def endpoint(catalog: Catalog, faults: CatalogFaults) -> Iterator[Endpoint]:
    with serve_in_thread(catalog, wrap=faults.around) as endpoint:
        yield endpoint


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_finds_its_commit_though_the_answer_was_lost(
    catalog: Catalog, endpoint: Endpoint, faults: CatalogFaults, fault: Fault
) -> None:
    catalog.commit([creation()])
    faults.lose(fault)
    with httpx.Client(base_url=f"{endpoint.url}/v1/lake", headers={"Authorization": f"Bearer {endpoint.token}"}) as client:
        requirement = {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": None}
        change = {
            "identifier": {"namespace": ["silver"], "name": "orders"},
            "requirements": [requirement],
            "updates": snapshot_updates(7, number=1),
        }
        try:
            answer = client.post("/transactions/commit", json={"table-changes": [change]})
            assert str(answer.status_code) == fault
        except httpx.TransportError:
            assert fault == "cut"
        assert faults.lost == 1
        found = client.get("/namespaces/silver/tables/orders").json()["metadata"]
        assert 7 in [snapshot["snapshot-id"] for snapshot in found["snapshots"]]
        again = client.post(
            "/transactions/commit", json={"table-changes": [change]}
        )  # sent blindly, it is refused, not done twice
        assert again.status_code == 409


@pytest.mark.parametrize("fault", FAULTS)
def test_duckdb_loses_no_file_of_a_commit_whose_answer_was_lost(endpoint: Endpoint, faults: CatalogFaults, fault: Fault) -> None:
    with open_engine(endpoint, "lake") as engine:
        engine.execute("create table silver.orders (id bigint)")
        engine.execute("insert into silver.orders values (1)")
        faults.lose(fault)
        with pytest.raises(duckdb.Error):
            engine.execute("insert into silver.orders select range from range(2, 11)")
    assert faults.lost == 1
    with open_engine(endpoint) as engine:
        assert engine.execute("select count(*), sum(id) from silver.orders").fetchone() == (10, 55)
