"""Spark reads and merges into tables of the catalog.

Spark is installed by ``tests/spark/install.sh DIR``; ``HEADRACE_SPARK=DIR`` names it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace.catalog import Catalog
from headrace.catalog.serve import Endpoint, serve_in_thread
from headrace.lake.engine import open_engine

HOME = os.environ.get("HEADRACE_SPARK", "")
SCRIPT = Path(__file__).parents[2] / "spark/session.py"

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.skipif(not HOME, reason="spark: HEADRACE_SPARK is not set; run tests/spark/install.sh DIR and set it to DIR"),
]


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.db", tmp_path / "a lake") as catalog:
        catalog.create_namespace("silver")
        yield catalog


@pytest.fixture
def endpoint(catalog: Catalog) -> Iterator[Endpoint]:
    with serve_in_thread(catalog) as endpoint:
        yield endpoint


def spark(catalogs: Mapping[str, Mapping[str, str]], *statements: str) -> list[Any]:
    """Each statement's rows, from one Spark session."""
    asked = {"jars": [str(jar) for jar in Path(HOME, "jars").glob("*.jar")], "catalogs": catalogs, "statements": statements}
    done = subprocess.run(
        [str(Path(HOME, "venv/bin/python")), str(SCRIPT)], input=json.dumps(asked), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def test_spark_reads_merges_compacts_and_keeps_to_its_version(catalog: Catalog, endpoint: Endpoint) -> None:
    with open_engine(endpoint, "lake") as engine:
        engine.execute("create table silver.orders (id bigint, total decimal(12, 2), item struct(name varchar, tags varchar[]))")
        engine.execute("insert into silver.orders select range, range * 1.5, {name: 'x', tags: ['a', 'b']} from range(100)")
        engine.execute("update silver.orders set total = 0 where id < 10")  # position deletes
    version = catalog.latest_version()
    live = {"uri": endpoint.url, "warehouse": "lake", "token": endpoint.token}
    # The past is attached by Spark's other way to authenticate.
    past = {
        "uri": endpoint.url,
        "warehouse": f"lake@{version}",
        "credential": f"any:{endpoint.token}",
        "oauth2-server-uri": f"{endpoint.url}/v1/oauth/tokens",
    }
    steps = {
        "read": "select count(*), cast(sum(total) as string), max(item.tags[1]) from lake.silver.orders",
        "merge": """
            merge into lake.silver.orders as t
            using (select id, cast(7 as decimal(12, 2)) as total from lake.silver.orders where id < 5
                   union all select 1000, cast(7 as decimal(12, 2))) as s
            on t.id = s.id
            when matched then update set t.total = s.total
            when not matched then insert (id, total) values (s.id, s.total)
        """,
        "merged": "select count(*), cast(sum(total) as string) from lake.silver.orders",
        "compact": "call lake.system.rewrite_data_files(table => 'silver.orders', options => map('rewrite-all', 'true'))",
        "pinned": "select count(*), cast(sum(total) as string) from past.silver.orders",
        "refused": "delete from past.silver.orders where id = 1",
        "namespace": "create namespace lake.gold",
        "created": """
            create table lake.gold.daily using iceberg partitioned by (days(made)) as
            select id, timestamp '2026-01-01 10:00:00' as made from lake.silver.orders
        """,
        "evolved": "alter table lake.gold.daily add column note string",
        "counted": "select count(*), count(note) from lake.gold.daily",
        "view": "create view lake.gold.small as select id from lake.silver.orders where id < 3",
        "viewed": "select count(*) from lake.gold.small",
        "views": "show views in lake.gold",
        "renamed": "alter table lake.gold.daily rename to gold.monthly",
        "tables": "show tables in lake.gold",
        "purged": "drop table lake.gold.monthly purge",
    }
    results = dict(zip(steps, spark({"lake": live, "past": past}, *steps.values()), strict=True))
    refused = results.pop("refused")
    assert "attach to lake to write" in refused["error"]
    assert not {step: result for step, result in results.items() if isinstance(result, dict)}
    sum_before = f"{sum(range(10, 100)) * 1.5:.2f}"
    sum_after = f"{sum(range(10, 100)) * 1.5 + 6 * 7:.2f}"
    assert results["read"] == [[100, sum_before, "b"]]
    assert results["merged"] == [[101, sum_after]]
    assert results["pinned"] == [[100, sum_before]]
    assert results["counted"] == [[101, 0]]
    assert results["viewed"] == [[3]]
    assert [row[1] for row in results["views"]] == ["small"]
    assert [row[1] for row in results["tables"]] == ["monthly"]
    with open_engine(endpoint) as engine:
        assert engine.execute("select count(*), sum(total)::varchar from silver.orders").fetchone() == (101, sum_after)
    with open_engine(endpoint, f"lake@{version}") as engine:
        assert engine.execute("select count(*), sum(total)::varchar from silver.orders").fetchone() == (100, sum_before)
