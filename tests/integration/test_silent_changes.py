"""Rows that change at the source without a word in its log: their table is parked, and nothing that keeps the rows parks one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Database
from tests.integration.test_gaps import Shop, parked, wait_until

CHANGES = {
    "same type": ("ALTER TABLE items ALTER price TYPE int USING price + 1", "rewritten since column price was altered"),
    "default": ("ALTER TABLE items ADD extra int DEFAULT 7", "column extra was added with a default"),
    "default that went": (
        "ALTER TABLE items ADD extra int DEFAULT random() * 10; ALTER TABLE items ALTER extra DROP DEFAULT",
        "rewritten since column extra was added",
    ),
    "drop": ("ALTER TABLE items DROP price", "column price was dropped or renamed"),
    "enum": ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "value sad of an enum was renamed to blue"),
    "composite": ("ALTER TYPE pair ADD ATTRIBUTE c int", "a composite type got or lost an attribute"),
    "partition truncated": ("TRUNCATE sales_1", "a partition was truncated by itself"),
    "partition truncated and filled": (
        "TRUNCATE sales_1; INSERT INTO sales VALUES (3, 'x'); ANALYZE sales_1",
        "a partition was truncated by itself",
    ),
    "partition attached": (
        "CREATE TABLE sales_3 (id int PRIMARY KEY, what text); INSERT INTO sales_3 VALUES (205, 'x');"
        " ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES FROM (200) TO (300)",
        "a partition was attached that had rows already",
    ),
    "partition made, filled and attached at once": (
        "BEGIN; CREATE TABLE sales_3 (id int PRIMARY KEY, what text); INSERT INTO sales_3 VALUES (205, 'x');"
        " ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES FROM (200) TO (300); COMMIT",
        "a partition was attached that had rows already",
    ),
    "partition detached": ("ALTER TABLE sales DETACH PARTITION sales_1", "a partition was detached or dropped"),
    "partition dropped": ("DROP TABLE sales_1", "a partition was detached or dropped"),
}

HARMLESS = {
    "vacuum full": "VACUUM FULL items",
    "vacuum full of partitions": "VACUUM FULL sales",
    "cluster": "CLUSTER items USING items_pkey",
    "attributes": "ALTER TABLE items ALTER price SET NOT NULL, ALTER price SET STATISTICS 7",
    "column": "ALTER TABLE items ADD extra int",
    "column and rows": "ALTER TABLE items ADD extra int; INSERT INTO items VALUES (9, 90, 'sad', (1, 2), 5)",
    "widening": "ALTER TABLE items ALTER price TYPE bigint",
    "column and widening": "ALTER TABLE items ADD extra int; ALTER TABLE items ALTER price TYPE bigint",
    "truncate": "TRUNCATE items",
    "truncate of all partitions": "TRUNCATE sales",
    "enum": "ALTER TYPE mood ADD VALUE 'fine'",
    "partition": "CREATE TABLE sales_3 PARTITION OF sales FOR VALUES FROM (200) TO (300)",
    "partition and rows": "CREATE TABLE sales_3 PARTITION OF sales FOR VALUES FROM (200) TO (300);"
    " INSERT INTO sales VALUES (205, 'x')",
    "partition and rows at once": "BEGIN; CREATE TABLE sales_3 PARTITION OF sales FOR VALUES FROM (200) TO (300);"
    " INSERT INTO sales VALUES (205, 'x'); COMMIT",
    "partition attached empty": "CREATE TABLE sales_3 (id int PRIMARY KEY, what text);"
    " ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES FROM (200) TO (300); INSERT INTO sales VALUES (205, 'x')",
    "privileges": "GRANT SELECT ON items TO public",
}


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Shop:
    shop = Shop(database, tmp_path)
    shop.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE TYPE pair AS (a int, b int)",
        "ALTER TABLE items ADD mood mood, ADD pair pair",
        "UPDATE items SET mood = 'sad', pair = (1, 2)",
        "CREATE TABLE sales (id int PRIMARY KEY, what text) PARTITION BY RANGE (id)",
        "CREATE TABLE sales_1 PARTITION OF sales FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE sales_2 PARTITION OF sales FOR VALUES FROM (100) TO (200)",
        "INSERT INTO sales VALUES (1, 'a'), (101, 'b')",
    )
    shop.catch_up()
    return shop


def each(statements: str) -> list[str]:
    """One transaction each, but for those between BEGIN and COMMIT."""
    return [statements] if statements.startswith("BEGIN") else statements.split("; ")


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_log_does_not_tell_parks_the_table_at_the_next_start(shop: Shop, change: str) -> None:
    statements, reason = CHANGES[change]
    shop.execute(*each(statements))

    found = parked(shop.catch_up())

    table = "sales" if "sales" in statements else "items"
    assert set(found) == {table}
    assert reason in found[table]
    shop.copy_again(table)
    assert shop.equal(table)
    assert not parked(shop.catch_up())


@pytest.mark.parametrize("change", HARMLESS)
def test_what_leaves_the_rows_as_they_are_parks_nothing(shop: Shop, change: str) -> None:
    shop.execute(*each(HARMLESS[change]))

    assert not parked(shop.catch_up())
    assert shop.equal("items") and shop.equal("sales")
    assert not parked(shop.catch_up())


@pytest.mark.parametrize("rows", [(), ("INSERT INTO sums VALUES (2, 2)",)], ids=["alone", "with a change"])
def test_a_number_that_the_lake_could_only_keep_as_text_parks_the_table(shop: Shop, rows: tuple[str, ...]) -> None:
    shop.execute("CREATE TABLE sums (id int PRIMARY KEY, sum numeric(10,2))", "INSERT INTO sums VALUES (1, 1)")
    shop.catch_up()
    shop.execute("ALTER TABLE sums ALTER sum TYPE numeric(40,2)", *rows)

    assert parked(shop.catch_up()) == {"sums": "column sum changed its type from numeric(10,2) to numeric(40,2)"}
    shop.copy_again("sums")
    assert shop.equal("sums")


def test_it_is_noticed_while_a_run_goes_on_after_the_changes_before_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.run.LOOK_SECONDS", 0.2)
    with shop.following() as events:
        shop.execute("INSERT INTO items VALUES (2, 20)")
        shop.execute("ALTER TABLE items ALTER price TYPE int USING -price")
        shop.execute("INSERT INTO orders VALUES (2)")
        wait_until(lambda: bool(parked(events)))
        shop.execute("INSERT INTO items VALUES (3, 30)", "INSERT INTO orders VALUES (3)")
        wait_until(lambda: shop.equal("orders"))

    assert set(parked(events)) == {"items"}
    assert shop.rows("SELECT after.id FROM bronze.items WHERE op = 'c'") == [(2,)]
    assert shop.rows("SELECT after['id'] FROM headrace.quarantine") == [("3",)]


def test_a_locked_partition_is_judged_later_and_nobody_waits_for_it(
    shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.run.LOOK_SECONDS", 0.2)
    with shop.following() as events, database.connect(autocommit=False) as other:
        wait_until(lambda: bool(events))
        other.execute("TRUNCATE sales_1")
        other.execute("INSERT INTO orders VALUES (2)")
        other.commit()
        other.execute("LOCK TABLE sales_1 IN ACCESS EXCLUSIVE MODE")
        shop.execute("INSERT INTO orders VALUES (3)")
        wait_until(lambda: (3,) in shop.rows("SELECT id FROM silver.orders"))
        assert not parked(events)
        other.rollback()
        shop.execute("INSERT INTO orders VALUES (4)")
        wait_until(lambda: set(parked(events)) == {"sales"})
