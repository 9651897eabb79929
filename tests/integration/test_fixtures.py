from __future__ import annotations

from tests.conftest import Database


def test_a_database_is_fresh_and_can_capture(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    assert database.value("SHOW wal_level") == "logical"
    assert database.value("SELECT count(*) FROM t") == 1


def test_a_database_that_has_slots_is_dropped(database: Database) -> None:
    database.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")


def test_the_slot_of_the_test_before_is_gone(database: Database) -> None:
    assert database.rows("SELECT slot_name FROM pg_replication_slots WHERE slot_name = 'left_behind'") == []
