"""The REST catalog against the Iceberg REST specification, over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.catalog import Catalog
from headrace.catalog.serve import Endpoint, serve_in_thread
from headrace.errors import LakeUnavailable
from tests.catalog_changes import CREATE, creation, properties, schema, snapshot_updates

Json = dict[str, Any]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db", tmp_path / "lake") as catalog:
        yield catalog


@pytest.fixture
def endpoint(catalog: Catalog) -> Iterator[Endpoint]:
    with serve_in_thread(catalog) as endpoint:
        yield endpoint


@pytest.fixture
def rest(endpoint: Endpoint) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{endpoint.url}/v1", headers={"Authorization": f"Bearer {endpoint.token}"}) as client:
        yield client


@pytest.fixture
def live(rest: httpx.Client) -> Iterator[httpx.Client]:
    """A client below the live prefix, with namespace silver."""
    with httpx.Client(base_url=f"{rest.base_url}lake", headers=rest.headers) as client:
        assert client.post("/namespaces", json={"namespace": ["silver"]}).status_code == 200
        yield client


def create(client: httpx.Client, name: str = "orders", **more: Any) -> Json:
    answer = client.post("/namespaces/silver/tables", json={"name": name, "schema": schema("id", "total"), **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == (kind, status)
    return str(error["message"])


# Who may ask


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic eDp5", ""])
def test_every_request_needs_the_token(endpoint: Endpoint, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for path in ("config", "lake/namespaces", "namespaces"):
        answer = httpx.get(f"{endpoint.url}/v1/{path}", headers=headers)
        refused(answer, 401, "NotAuthorizedException")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_token_is_also_an_oauth_client_secret(endpoint: Endpoint) -> None:
    url = f"{endpoint.url}/v1/oauth/tokens"
    form = {"grant_type": "client_credentials", "client_id": "any", "client_secret": endpoint.token}
    assert httpx.post(url, data=form).json()["access_token"] == endpoint.token
    basic = httpx.post(url, data={"grant_type": "client_credentials"}, auth=("any", endpoint.token))
    assert basic.json()["token_type"] == "bearer"
    exchange = {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": endpoint.token}
    assert httpx.post(url, data=exchange).status_code == 200


def test_a_wrong_oauth_secret_or_grant_is_refused(endpoint: Endpoint) -> None:
    url = f"{endpoint.url}/v1/oauth/tokens"
    wrong = httpx.post(url, data={"grant_type": "client_credentials", "client_id": "any", "client_secret": "wrong"})
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")
    grant = httpx.post(url, data={"grant_type": "password", "client_secret": endpoint.token})
    assert (grant.status_code, grant.json()["error"]) == (400, "unsupported_grant_type")


def test_the_token_shows_in_no_representation(endpoint: Endpoint) -> None:
    assert endpoint.token not in repr(endpoint)


def test_a_taken_port_is_named(catalog: Catalog) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LakeUnavailable, match=f"127.0.0.1:{port}"), serve_in_thread(catalog, port=port):
            pass


# Configuration


def test_config_gives_the_live_prefix_and_the_endpoints(rest: httpx.Client) -> None:
    for query in ({}, {"warehouse": ""}, {"warehouse": "lake"}):
        config = rest.get("/config", params=query).json()
        assert config["overrides"] == {"prefix": "lake"}
    assert "POST /v1/{prefix}/transactions/commit" in config["endpoints"]
    assert "HEAD /v1/{prefix}/namespaces/{namespace}/tables/{table}" in config["endpoints"]
    assert "POST /v1/{prefix}/namespaces/{namespace}/views/{view}" in config["endpoints"]


def test_an_unknown_warehouse_or_prefix_is_not_found(rest: httpx.Client) -> None:
    refused(rest.get("/config", params={"warehouse": "pond"}), 404, "NoSuchWarehouseException")
    refused(rest.get("/config", params={"warehouse": "lake@"}), 404, "NoSuchWarehouseException")
    refused(rest.get("/pond/namespaces"), 404, "NoSuchWarehouseException")
    refused(rest.get("/config", params={"warehouse": "lake@soon"}), 400, "BadRequestException")


def test_a_client_without_prefix_sees_the_live_lake(rest: httpx.Client, live: httpx.Client) -> None:
    assert rest.get("/namespaces").json()["namespaces"] == [["silver"]]
    assert create(rest)["metadata"]["location"].endswith("/silver/orders")


# Namespaces


def test_namespaces(live: httpx.Client) -> None:
    created = live.post("/namespaces", json={"namespace": ["gold"], "properties": {"owner": "me"}})
    assert created.json() == {"namespace": ["gold"], "properties": {"owner": "me"}}
    assert live.post("/namespaces", json={"namespace": ["gold", "daily"]}).status_code == 200
    assert live.get("/namespaces").json()["namespaces"] == [["gold"], ["silver"]]
    assert live.get("/namespaces", params={"parent": "gold"}).json()["namespaces"] == [["gold", "daily"]]
    assert live.get("/namespaces/gold").json() == {"namespace": ["gold"], "properties": {"owner": "me"}}
    assert live.get("/namespaces/gold%1Fdaily").json()["namespace"] == ["gold", "daily"]
    assert live.head("/namespaces/gold").status_code == 204
    refused(live.post("/namespaces", json={"namespace": ["gold"]}), 409, "AlreadyExistsException")
    refused(live.delete("/namespaces/gold"), 409, "NamespaceNotEmptyException")
    assert live.delete("/namespaces/gold%1Fdaily").status_code == 204
    assert live.delete("/namespaces/gold").status_code == 204
    assert live.head("/namespaces/gold").status_code == 404
    refused(live.get("/namespaces/gold"), 404, "NoSuchNamespaceException")
    refused(live.get("/namespaces", params={"parent": "gold"}), 404, "NoSuchNamespaceException")
    refused(live.get("/namespaces/gold/tables"), 404, "NoSuchNamespaceException")


def test_namespace_properties(live: httpx.Client) -> None:
    url = "/namespaces/silver/properties"
    live.post(url, json={"updates": {"a": "1", "b": "2"}})
    changed = live.post(url, json={"updates": {"b": "3"}, "removals": ["a", "c"]})
    assert changed.json() == {"updated": ["b"], "removed": ["a"], "missing": ["c"]}
    assert live.get("/namespaces/silver").json()["properties"] == {"b": "3"}
    refused(live.post(url, json={"updates": {"a": "1"}, "removals": ["a"]}), 422, "UnprocessableEntityException")
    refused(live.post(url, json={"updates": {"a": 1}}), 400, "BadRequestException")


def test_lists_come_in_pages(live: httpx.Client) -> None:
    for name in "abcde":
        create(live, name)
    url = "/namespaces/silver/tables"
    assert len(live.get(url).json()["identifiers"]) == 5
    seen, token = [], ""
    while token is not None:
        page = live.get(url, params={"pageToken": token, "pageSize": 2}).json()
        assert len(page["identifiers"]) <= 2
        seen += [one["name"] for one in page["identifiers"]]
        token = page["next-page-token"]
    assert seen == list("abcde")
    refused(live.get(url, params={"pageToken": "?", "pageSize": "2"}), 400, "BadRequestException")
    refused(live.get(url, params={"pageToken": "", "pageSize": "none"}), 400, "BadRequestException")
    assert live.get("/namespaces", params={"pageToken": ""}).json() == {"namespaces": [["silver"]], "next-page-token": None}


# Tables


def test_a_table_is_created_loaded_and_dropped(live: httpx.Client, tmp_path: Path) -> None:
    created = create(live, properties={"owner": "me"})
    url = "/namespaces/silver/tables/orders"
    loaded = live.get(url)
    assert loaded.json() == created
    assert created["metadata"]["properties"] == {"owner": "me"}
    assert created["metadata-location"].startswith(f"file://{tmp_path}/lake/silver/orders/metadata/00000-")
    assert live.get(url, headers={"If-None-Match": loaded.headers["ETag"]}).status_code == 304
    assert live.head(url).status_code == 204
    assert live.get("/namespaces/silver/tables").json()["identifiers"] == [{"namespace": ["silver"], "name": "orders"}]
    taken = live.post("/namespaces/silver/tables", json={"name": "orders", "schema": schema("id")})
    refused(taken, 409, "AlreadyExistsException")
    assert live.delete(url, params={"purgeRequested": "true"}).status_code == 204
    assert live.head(url).status_code == 404
    refused(live.get(url), 404, "NoSuchTableException")
    refused(live.delete(url), 404, "NoSuchTableException")
    assert Path(created["metadata-location"].removeprefix("file://")).exists()  # earlier versions need it


def test_a_table_needs_its_namespace_a_name_and_a_schema(live: httpx.Client) -> None:
    refused(live.post("/namespaces/gold/tables", json={"name": "t", "schema": schema("id")}), 404, "NoSuchNamespaceException")
    refused(live.post("/namespaces/silver/tables", json={"schema": schema("id")}), 400, "BadRequestException")
    refused(live.post("/namespaces/silver/tables", json={"name": "t"}), 400, "BadRequestException")
    refused(live.post("/namespaces/silver/tables", content=b"{"), 400, "BadRequestException")
    refused(live.post("/namespaces/silver/tables", json=[]), 400, "BadRequestException")


def test_a_staged_table_exists_once_it_is_committed(live: httpx.Client) -> None:
    staged = create(live, **{"stage-create": True})
    assert "metadata-location" not in staged
    url = "/namespaces/silver/tables/orders"
    assert live.head(url).status_code == 404
    updates = [
        {"action": "assign-uuid", "uuid": staged["metadata"]["table-uuid"]},
        {"action": "add-schema", "schema": staged["metadata"]["schemas"][0]},
        {"action": "set-current-schema", "schema-id": -1},
    ]
    committed = live.post(url, json={"requirements": [CREATE], "updates": updates})
    assert committed.status_code == 200
    assert committed.json()["metadata"]["table-uuid"] == staged["metadata"]["table-uuid"]
    refused(live.post(url, json={"requirements": [CREATE], "updates": updates}), 409, "CommitFailedException")
    refused(
        live.post("/namespaces/silver/tables", json={"name": "orders", "schema": schema("id"), "stage-create": True}),
        409,
        "AlreadyExistsException",
    )


def test_a_commit_answers_with_the_new_metadata(live: httpx.Client) -> None:
    create(live)
    url = "/namespaces/silver/tables/orders"
    answer = live.post(url, json={"requirements": [], "updates": snapshot_updates(7, number=1)})
    assert answer.json()["metadata"]["current-snapshot-id"] == 7
    assert answer.json()["metadata-location"] == live.get(url).json()["metadata-location"]
    stale = {
        "requirements": [{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": None}],
        "updates": snapshot_updates(8, number=2),
    }
    refused(live.post(url, json=stale), 409, "CommitFailedException")


@pytest.mark.parametrize(
    "body",
    [
        {"requirements": [], "updates": [{"action": "dance"}]},
        {"requirements": [{"type": "assert-luck"}], "updates": []},
        {"requirements": []},
        {"requirements": [], "updates": ["x"]},
        {"requirements": {}, "updates": []},
        {"identifier": {"namespace": ["silver"], "name": "other"}, "requirements": [], "updates": []},
    ],
)
def test_a_commit_that_makes_no_sense_is_a_bad_request(live: httpx.Client, body: Json) -> None:
    create(live)
    refused(live.post("/namespaces/silver/tables/orders", json=body), 400, "BadRequestException")


def test_only_referenced_snapshots_are_sent_when_asked(live: httpx.Client) -> None:
    create(live)
    url = "/namespaces/silver/tables/orders"
    live.post(url, json={"requirements": [], "updates": snapshot_updates(7, number=1)})
    live.post(url, json={"requirements": [], "updates": snapshot_updates(8, number=2, parent=7)})
    assert [one["snapshot-id"] for one in live.get(url, params={"snapshots": "refs"}).json()["metadata"]["snapshots"]] == [8]
    assert len(live.get(url).json()["metadata"]["snapshots"]) == 2


def test_a_transaction_is_all_or_nothing(live: httpx.Client, catalog: Catalog) -> None:
    create(live, "a"), create(live, "b")

    def change(name: str, requirements: list[Json]) -> Json:
        updates = [{"action": "set-properties", "updates": {"x": "1"}}]
        return {"identifier": {"namespace": ["silver"], "name": name}, "requirements": requirements, "updates": updates}

    stale = [{"type": "assert-current-schema-id", "current-schema-id": 5}]
    answer = live.post("/transactions/commit", json={"table-changes": [change("a", []), change("b", stale)]})
    refused(answer, 409, "CommitFailedException")
    assert catalog.load("silver", "a").metadata["properties"] == {}
    version = catalog.latest_version()
    assert live.post("/transactions/commit", json={"table-changes": [change("a", []), change("b", [])]}).status_code == 204
    assert catalog.latest_version() == version + 1
    missing = live.post("/transactions/commit", json={"table-changes": [change("a", []), change("c", [])]})
    refused(missing, 404, "NoSuchTableException")
    refused(live.post("/transactions/commit", json={"table-changes": [{"updates": []}]}), 400, "BadRequestException")
    refused(live.post("/transactions/commit", json={}), 400, "BadRequestException")


def test_a_table_is_renamed_and_registered(live: httpx.Client) -> None:
    location = create(live)["metadata-location"]

    def rename(source: str, target: str) -> httpx.Response:
        named = [{"namespace": ["silver"], "name": name} for name in (source, target)]
        return live.post("/tables/rename", json={"source": named[0], "destination": named[1]})

    assert rename("orders", "renamed").status_code == 204
    refused(rename("orders", "again"), 404, "NoSuchTableException")
    create(live, "other")
    refused(rename("other", "renamed"), 409, "AlreadyExistsException")
    live.delete("/namespaces/silver/tables/renamed")
    register = {"name": "orders", "metadata-location": location}
    assert live.post("/namespaces/silver/register", json=register).json()["metadata-location"] == location
    refused(live.post("/namespaces/silver/register", json=register), 409, "AlreadyExistsException")
    refused(live.post("/namespaces/silver/register", json={**register, "overwrite": True}), 406, "UnsupportedOperationException")
    outside = {"name": "x", "metadata-location": "file:///etc/passwd"}
    refused(live.post("/namespaces/silver/register", json=outside), 400, "BadRequestException")


@pytest.mark.parametrize("name", ["a/b", "a b", "ä%2F", "a.b", "日本"])
def test_a_name_may_hold_any_letter(live: httpx.Client, name: str) -> None:
    from urllib.parse import quote

    create(live, name)
    assert live.get(f"/namespaces/silver/tables/{quote(name, safe='')}").status_code == 200
    assert live.get("/namespaces/silver/tables").json()["identifiers"][0]["name"] == name


def test_metrics_are_accepted_and_other_paths_are_not_found(live: httpx.Client) -> None:
    create(live)
    assert live.post("/namespaces/silver/tables/orders/metrics", json={}).status_code == 204
    refused(live.get("/functions"), 404, "NotFoundException")
    refused(live.put("/namespaces"), 405, "UnsupportedOperationException")


# Views


def view_version(sql: str, number: int = 1) -> Json:
    return {
        "version-id": number,
        "schema-id": 0,
        "timestamp-ms": 1,
        "summary": {"engine-name": "test"},
        "default-namespace": ["silver"],
        "representations": [{"type": "sql", "sql": sql, "dialect": "spark"}],
    }


def test_views(live: httpx.Client) -> None:
    request = {"name": "v", "schema": schema("id"), "view-version": view_version("select 1"), "properties": {"a": "b"}}
    created = live.post("/namespaces/silver/views", json=request)
    assert created.status_code == 200, created.text
    url = "/namespaces/silver/views/v"
    assert live.get(url).json() == created.json()
    assert live.head(url).status_code == 204
    refused(live.post("/namespaces/silver/views", json=request), 409, "AlreadyExistsException")
    refused(live.post("/namespaces/silver/tables", json={"name": "v", "schema": schema("id")}), 409, "AlreadyExistsException")
    updates = [
        {"action": "add-view-version", "view-version": view_version("select 2", 2)},
        {"action": "set-current-view-version", "view-version-id": 2},
    ]
    uuid = created.json()["metadata"]["view-uuid"]
    replaced = live.post(url, json={"requirements": [{"type": "assert-view-uuid", "uuid": uuid}], "updates": updates})
    assert replaced.json()["metadata"]["current-version-id"] == 2
    refused(
        live.post(url, json={"requirements": [{"type": "assert-view-uuid", "uuid": "x"}], "updates": updates}),
        409,
        "CommitFailedException",
    )
    assert live.get("/namespaces/silver/views").json()["identifiers"] == [{"namespace": ["silver"], "name": "v"}]
    named = [{"namespace": ["silver"], "name": name} for name in "vw"]
    assert live.post("/views/rename", json={"source": named[0], "destination": named[1]}).status_code == 204
    refused(live.get(url), 404, "NoSuchViewException")
    assert live.delete("/namespaces/silver/views/w").status_code == 204
    refused(live.delete("/namespaces/silver/views/w"), 404, "NoSuchViewException")
    refused(live.post(url, json={"updates": updates}), 404, "NoSuchViewException")


# Versions


def prefix(rest: httpx.Client, warehouse: str) -> str:
    answer = rest.get("/config", params={"warehouse": warehouse})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["overrides"]["prefix"])


def test_a_pinned_prefix_holds_still_while_the_lake_moves(rest: httpx.Client, live: httpx.Client, catalog: Catalog) -> None:
    create(live)
    version = catalog.latest_version()
    pinned = prefix(rest, "lake@latest")
    catalog.commit([properties(x="1"), creation("later")])
    catalog.create_namespace("gold")
    assert rest.get(f"/{pinned}/namespaces/silver/tables/orders").json()["metadata"]["properties"] == {}
    assert [one["name"] for one in rest.get(f"/{pinned}/namespaces/silver/tables").json()["identifiers"]] == ["orders"]
    assert rest.get(f"/{pinned}/namespaces").json()["namespaces"] == [["silver"]]
    assert rest.head(f"/{pinned}/namespaces/gold").status_code == 404
    assert [lease.version for lease in catalog.live_leases()] == [version]
    catalog.drop_table("silver", "orders")
    assert rest.head(f"/{pinned}/namespaces/silver/tables/orders").status_code == 204


def test_the_past_is_attached_by_number_and_by_time(rest: httpx.Client, live: httpx.Client, catalog: Catalog) -> None:
    create(live)
    number = catalog.latest_version()
    at = catalog.versions()[-1].committed_at
    catalog.commit([properties(x="1")])
    later = at + timedelta(hours=5)
    names = [
        f"lake@{number}",
        f"lake@{at.isoformat()}",
        f"lake@{at.replace(tzinfo=None).isoformat()}",
        f"lake@{at.isoformat().replace('+00:00', 'Z')}",
    ]
    for name in names:
        pinned = prefix(rest, name)
        assert rest.get(f"/{pinned}/namespaces/silver/tables/orders").json()["metadata"]["properties"] == {}
    newest = prefix(rest, f"lake@{later.isoformat()}")
    assert rest.get(f"/{newest}/namespaces/silver/tables/orders").json()["metadata"]["properties"] == {"x": "1"}
    unescaped = rest.get(f"/config?warehouse=lake@{later.strftime('%Y-%m-%dT%H:%M:%S')}+00:00")
    assert unescaped.status_code == 200


def test_writing_through_a_pinned_prefix_is_refused(rest: httpx.Client, live: httpx.Client) -> None:
    create(live)
    pinned = prefix(rest, "lake@latest")
    table = f"/{pinned}/namespaces/silver/tables/orders"
    attempts = [
        rest.post(f"/{pinned}/namespaces", json={"namespace": ["gold"]}),
        rest.post(f"/{pinned}/namespaces/silver/tables", json={"name": "t", "schema": schema("id")}),
        rest.post(table, json={"requirements": [], "updates": []}),
        rest.delete(table),
        rest.post(f"/{pinned}/transactions/commit", json={"table-changes": []}),
        rest.post(f"/{pinned}/tables/rename", json={}),
        rest.post(f"/{pinned}/namespaces/silver/views", json={}),
    ]
    for answer in attempts:
        assert "attach to lake to write" in refused(answer, 403, "ForbiddenException")
    assert rest.post(f"{table}/metrics", json={}).status_code == 204


def test_a_version_that_is_not_there_names_the_nearest(rest: httpx.Client, live: httpx.Client) -> None:
    assert "nearest that it has: 1" in refused(rest.get("/config", params={"warehouse": "lake@99"}), 404, "NotFoundException")
    early = datetime(2001, 1, 1, tzinfo=UTC).isoformat()
    assert "earliest is version 0" in refused(
        rest.get("/config", params={"warehouse": f"lake@{early}"}), 404, "NotFoundException"
    )
    gone = f"/lake-v99-{'0' * 32}/namespaces"
    assert "nearest that it has: 1" in refused(rest.get(gone), 404, "NotFoundException")


def test_leases_end_with_the_server(catalog: Catalog) -> None:
    catalog.create_namespace("silver")
    with serve_in_thread(catalog) as endpoint:
        headers = {"Authorization": f"Bearer {endpoint.token}"}
        pinned = httpx.get(f"{endpoint.url}/v1/config", params={"warehouse": "lake@latest"}, headers=headers).json()["overrides"][
            "prefix"
        ]
        assert len(catalog.live_leases()) == 1
    assert catalog.live_leases() == []
    with serve_in_thread(catalog, token=endpoint.token) as again:  # a client that knows nothing of the restart goes on
        assert httpx.get(f"{again.url}/v1/{pinned}/namespaces", headers=headers).json()["namespaces"] == [["silver"]]
        assert len(catalog.live_leases()) == 1


def test_a_locked_catalog_answers_503(tmp_path: Path) -> None:
    import sqlite3

    with Catalog.open(tmp_path / "c.db", tmp_path / "lake", timeout=0.1) as catalog, serve_in_thread(catalog) as endpoint:
        holder = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
        holder.execute("begin immediate")
        headers = {"Authorization": f"Bearer {endpoint.token}"}
        answer = httpx.post(f"{endpoint.url}/v1/namespaces", json={"namespace": ["silver"]}, headers=headers)
        assert "locked" in refused(answer, 503, "ServiceUnavailableException")
        assert "Retry-After" in answer.headers
        holder.close()
