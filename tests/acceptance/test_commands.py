"""The commands as a user meets them, one after the other, on one small database."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.acceptance.running import RunningProject
from tests.conftest import Database


@pytest.mark.slow
def test_a_lake_from_first_look_to_removal(database: Database, tmp_path: Path) -> None:
    database.execute(
        "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(8,2))",
        "CREATE TABLE logs (line text)",
        "INSERT INTO items VALUES (1, 'one', 1.50), (2, NULL, 'NaN')",
        "INSERT INTO logs VALUES ('first')",
    )
    shop = RunningProject(tmp_path / "shop", database.url)
    assert "would work" in shop.must("check")
    assert shop.run("query", "SELECT 1").code == 7, "there is no lake yet"
    assert json.loads(shop.must("status", "--json"))["tables"] == []

    events = [json.loads(line) for line in shop.must("run", "--until-caught-up", "--json").splitlines()]
    assert [event["event"] for event in events if event["event"] == "committed"]
    assert {event["table"]: event["rows"] for event in events if event.get("finished")} == {"public.items": 2, "public.logs": 1}

    status = json.loads(shop.must("status", "--json"))
    assert status["running"] is False and status["lag_bytes"] == 0 and status["source"]["slot_exists"]
    assert {table["table"]: (table["state"], table["rows"]) for table in status["tables"]} == {
        "public.items": ("following", 2),
        "public.logs": ("following", 1),
    }

    question = "SELECT id, name, price, _flags FROM silver.items ORDER BY id"
    assert shop.query(question) == [
        {"id": 1, "name": "one", "price": 1.5, "_flags": None},
        {"id": 2, "name": None, "price": None, "_flags": ["price:unrepresentable"]},
    ]
    rows = list(csv.DictReader(io.StringIO(shop.must("query", question, "--format", "csv"))))
    assert rows[0] == {"id": "1", "name": "one", "price": "1.50", "_flags": ""}
    shop.must("query", question, "--format", "parquet", "--output", str(tmp_path / "answer.parquet"))
    assert pq.read_table(tmp_path / "answer.parquet").column("id").to_pylist() == [1, 2]
    assert "one" in shop.must("query", question)
    failed = shop.run("query", "SELECT nonsense FROM silver.items")
    assert failed.code == 10 and "nonsense" in failed.err

    before = json.loads(shop.must("versions", "--json"))[-1]["version"]
    database.execute("UPDATE items SET price = 2 WHERE id = 1", "DELETE FROM items WHERE id = 2")
    shop.must("run", "--until-caught-up", "--quiet")
    assert shop.query("SELECT count(*) AS n FROM silver.items") == [{"n": 1}]
    assert shop.query("SELECT count(*) AS n FROM silver.items", "--version", str(before)) == [{"n": 2}]
    assert shop.query("SELECT op, after.price AS price FROM bronze.items WHERE op <> 'r' ORDER BY commit_lsn, ordinal") == [
        {"op": "u", "price": 2.0},
        {"op": "d", "price": None},
    ]

    report = json.loads(shop.must("verify", "--json"))
    assert report["equal"] and {table["table"] for table in report["tables"]} == {"public.items", "public.logs"}
    assert all(table["verified"] for table in json.loads(shop.must("status", "--json"))["tables"])

    assert "1 rows" in shop.must("rebuild", "items")
    database.execute("ALTER TABLE items DROP COLUMN name", "INSERT INTO items VALUES (3, 7)")
    parked = shop.run("run", "--until-caught-up")
    assert parked.code == 9 and "public.items" in parked.err
    (items,) = [table for table in json.loads(shop.must("status", "--json"))["tables"] if table["table"] == "public.items"]
    assert items["state"] == "parked" and "name was dropped" in items["reason"] and "resync" in items["remedy"]
    assert shop.query("SELECT op, after FROM headrace.quarantine") == [{"op": "c", "after": {"id": "3", "price": "7.00"}}]
    shop.must("resync", "public.items")
    shop.must("run", "--until-caught-up", "--quiet")
    assert shop.query("SELECT id, price FROM silver.items ORDER BY id") == [{"id": 1, "price": 2.0}, {"id": 3, "price": 7.0}]
    shop.must("verify", "items")

    said = shop.must("drop")
    secret = shop.project.make_state() / "source-password"
    secret.write_text("kept")
    assert "slot headrace_shop" in said and "lake" in said and (shop.project.warehouse).is_dir()
    removed = shop.must("drop", "--slot", "--publications", "--lake", "--yes")
    assert removed.count("removed:") == 5
    assert not shop.project.warehouse.exists()
    assert secret.exists(), "the project still needs it"
    assert database.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'headrace_shop'") == 0
    assert shop.must("drop") == "There is nothing to remove.\n"
