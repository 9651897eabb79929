from __future__ import annotations

import pytest

from headrace.errors import SourceNotReady
from headrace.schema import TableId
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.relations import (
    Relation,
    Survey,
    find_relations,
    mappings_of,
    read_publications,
    read_relation,
    schema_of,
    survey,
)
from tests.conftest import Database, only_since


def look(database: Database, include: list[str], exclude: list[str] | None = None) -> Survey:
    with Connector(database.url).connect() as session:
        return survey(session, include, exclude or [])


def names(found: Survey) -> list[str]:
    return [str(relation.table) for relation in found.relations]


def only(database: Database, pattern: str) -> Relation:
    found = look(database, [pattern])
    assert len(found.relations) == 1, found
    return found.relations[0]


# --- which tables ---


def test_patterns_choose_tables_by_schema_and_name(database: Database) -> None:
    database.execute(
        "CREATE SCHEMA sales",
        "CREATE TABLE users (id int PRIMARY KEY)",
        "CREATE TABLE user_logins (id int PRIMARY KEY)",
        "CREATE TABLE sales.orders (id int PRIMARY KEY)",
        "CREATE TABLE sales.lines (id int PRIMARY KEY)",
        'CREATE TABLE sales."Odd.name" (id int PRIMARY KEY)',
        "CREATE VIEW everyone AS SELECT * FROM users",
    )
    assert names(look(database, ["users"])) == ["public.users"]
    assert names(look(database, ["*"])) == ["public.user_logins", "public.users"]
    assert names(look(database, ["user?", "sales.*"])) == ["public.users", "sales.Odd.name", "sales.lines", "sales.orders"]
    assert names(look(database, ["*.*"], ["sales.l*", "users"])) == ["public.user_logins", "sales.Odd.name", "sales.orders"]
    assert names(look(database, ["sales.Odd.name"])) == ["sales.Odd.name"]
    assert names(look(database, ["USERS"])) == []
    assert look(database, ["users", "userz", "x.*"]).unmatched == ("userz", "x.*")


def test_system_tables_are_never_meant(database: Database) -> None:
    assert names(look(database, ["*.*", "pg_catalog.*", "pg_catalog.pg_class", "information_schema.*"])) == []


def test_tables_of_an_extension_are_meant_only_by_their_names(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE owned (id int PRIMARY KEY)")
    database.execute("ALTER EXTENSION plpgsql ADD TABLE owned")
    assert names(look(database, ["*"])) == ["public.t"]
    assert names(look(database, ["*", "owned"])) == ["public.owned", "public.t"]


def test_a_partitioned_table_stands_for_its_partitions(database: Database) -> None:
    database.execute(
        "CREATE TABLE m (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
        "CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (at)",
        "CREATE TABLE m_1_1 PARTITION OF m_1 FOR VALUES FROM (0) TO (5)",
        "CREATE TABLE m_2 PARTITION OF m FOR VALUES FROM (10) TO (20)",
    )
    assert names(look(database, ["*"])) == ["public.m"]
    assert names(look(database, ["m", "m_2"])) == ["public.m"]
    assert names(look(database, ["m_1*"])) == ["public.m_1"]
    assert names(look(database, ["m_2"])) == ["public.m_2"]
    relation = only(database, "m")
    assert relation.partitioned
    assert [part.table.name for part in relation.partitions] == ["m_1_1", "m_2"]
    assert relation.key == ("id", "at")


def test_a_named_table_that_does_not_exist_is_an_error_and_an_empty_pattern_is_not(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with Connector(database.url).connect() as session:
        with pytest.raises(SourceNotReady, match=r"the source has no table sales.orders, which source\.tables names"):
            find_relations(session, ["t", "sales.orders"])
        with pytest.raises(SourceNotReady, match=r"no table at the source matches source\.tables \(sales\.\*\)"):
            find_relations(session, ["sales.*"])
        assert [relation.table.name for relation in find_relations(session, ["t", "sales.*"])] == ["t"]


UNCAPTURABLE = {
    "unlogged": ("CREATE UNLOGGED TABLE x (id int PRIMARY KEY)", "it is unlogged"),
    "case": ('CREATE TABLE x (id int PRIMARY KEY, "Name" text, name text)', "its columns Name and name differ only in case"),
    "reserved": ("CREATE TABLE x (id int PRIMARY KEY, _flags int)", "its column _flags has a name that silver gives"),
    "no columns": ("CREATE TABLE x ()", "it has no columns that the source publishes"),
    "foreign": (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE x (id int) SERVER s",
        "it is a foreign table",
    ),
    "foreign partition": (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE TABLE x (id int) PARTITION BY RANGE (id);"
        "CREATE FOREIGN TABLE away PARTITION OF x FOR VALUES FROM (0) TO (9) SERVER s",
        "its partition public.away is a foreign table",
    ),
    "generated key": (
        "CREATE TABLE x (a int, id int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY)",
        "its key has the generated column id",
    ),
}


@pytest.mark.parametrize(("ddl", "reason"), UNCAPTURABLE.values(), ids=UNCAPTURABLE)
def test_a_table_that_cannot_be_captured_is_refused_by_name_and_left_out_of_a_glob(
    database: Database, ddl: str, reason: str
) -> None:
    database.execute(*ddl.split(";"))
    assert only(database, "x").refusal.startswith(reason)
    left_out = look(database, ["x*"])
    assert left_out.relations == ()
    assert left_out.left_out[TableId("public", "x")].startswith(reason)


def test_a_generated_column_beside_identity_full_is_refused_where_it_would_stop_the_sources_own_updates(
    database: Database,
) -> None:
    only_since(database.server, 18)
    database.execute(
        "CREATE TABLE x (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
        "ALTER TABLE x REPLICA IDENTITY FULL",
    )
    assert only(database, "x").refusal.startswith("its replica identity is FULL and its column twice is generated")
    database.execute(
        "CREATE TABLE y (a int, twice int GENERATED ALWAYS AS (a * 2) STORED)", "ALTER TABLE y REPLICA IDENTITY FULL"
    )
    assert only(database, "y").refusal == ""  # without key only its inserts are published


def test_a_view_is_refused_by_name_and_not_meant_by_a_glob(database: Database) -> None:
    database.execute("CREATE VIEW x AS SELECT 1 AS one", "CREATE MATERIALIZED VIEW y AS SELECT 1 AS one")
    assert only(database, "x").refusal == "it is a view, whose changes are not in the source's log"
    assert only(database, "y").refusal.startswith("it is a materialised view")
    assert look(database, ["*"]) == Survey(relations=(), left_out={}, unmatched=("*",))


def test_tables_with_one_name_in_the_lake_are_refused(database: Database) -> None:
    database.execute(
        "CREATE SCHEMA a",
        "CREATE TABLE a.b (id int)",
        "CREATE TABLE a__b (id int)",
        'CREATE TABLE "A__B" (id int)',
        "CREATE TABLE c (id int)",
    )
    found = look(database, ["a.b", "a__b", "A__B", "c"])
    assert {str(relation.table): bool(relation.refusal) for relation in found.relations} == {
        "a.b": True,
        "public.a__b": True,
        "public.A__B": True,
        "public.c": False,
    }


# --- what they are ---


def test_columns_and_their_types_are_as_the_catalog_has_them(database: Database) -> None:
    database.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN price AS numeric(5,2)",
        "CREATE DOMAIN prices AS price[]",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TABLE t (id bigint PRIMARY KEY, gone int, n numeric(10,2), m mood, ms mood[], p price, ps prices, q pair,"
        " c char(3)[], v int2vector, twice bigint GENERATED ALWAYS AS (id * 2) STORED, note text NOT NULL)",
        "ALTER TABLE t DROP COLUMN gone",
    )
    schema = schema_of(only(database, "t"))
    assert [(column.name, column.source_type, str(column.type)) for column in schema.columns] == [
        ("id", "bigint", "long"),
        ("n", "numeric(10,2)", "decimal(10, 2)"),
        ("m", "public.mood", "string"),
        ("ms", "public.mood[]", "list<string>"),
        ("p", "public.price", "decimal(5, 2)"),
        ("ps", "public.prices", "list<decimal(5, 2)>"),
        ("q", "public.pair", "string"),
        ("c", "character(3)[]", "list<string>"),
        ("v", "int2vector", "string"),
        ("note", "text", "string"),
    ]
    assert [column.source_id for column in schema.columns] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 12]
    assert [column.name for column in schema.columns if not column.nullable] == ["id", "note"]
    assert len(mappings_of(only(database, "t"))) == len(schema.columns)


KEYS = {
    "primary key": ("CREATE TABLE t (b int, a int, PRIMARY KEY (b, a))", ("b", "a"), "default"),
    "with included columns": ("CREATE TABLE t (a int, b int, PRIMARY KEY (a) INCLUDE (b))", ("a",), "default"),
    "no key": ("CREATE TABLE t (a int)", (), "default"),
    "deferrable": ("CREATE TABLE t (a int PRIMARY KEY DEFERRABLE)", (), "default"),
    "nothing": ("CREATE TABLE t (a int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", (), "nothing"),
    "full": ("CREATE TABLE t (a int PRIMARY KEY, b int); ALTER TABLE t REPLICA IDENTITY FULL", ("a",), "full"),
    "full without key": ("CREATE TABLE t (a int, b int); ALTER TABLE t REPLICA IDENTITY FULL", (), "full"),
    "index": (
        "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL, c int NOT NULL); CREATE UNIQUE INDEX u ON t (c, b);"
        "ALTER TABLE t REPLICA IDENTITY USING INDEX u",
        ("c", "b"),
        "index",
    ),
    "dropped index": (
        "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL); CREATE UNIQUE INDEX u ON t (b);"
        "ALTER TABLE t REPLICA IDENTITY USING INDEX u; DROP INDEX u",
        (),
        "index",
    ),
}


@pytest.mark.parametrize(("ddl", "key", "identity"), KEYS.values(), ids=KEYS)
def test_the_key_is_what_the_source_logs_of_an_old_row(database: Database, ddl: str, key: tuple[str, ...], identity: str) -> None:
    database.execute(*ddl.split(";"))
    relation = only(database, "t")
    assert (relation.key, relation.identity) == (key, identity)


def test_a_column_added_with_a_default_is_known(database: Database) -> None:
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "INSERT INTO t VALUES (1)",
        "ALTER TABLE t ADD COLUMN a int, ADD COLUMN b int DEFAULT 5",
        "CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM (0) TO (10)",
        "ALTER TABLE m ADD COLUMN b int DEFAULT 5",
    )
    assert {column.name: column.has_missing_default for column in only(database, "t").columns} == {
        "id": False,
        "a": False,
        "b": True,
    }
    assert {column.name: column.has_missing_default for column in only(database, "m").columns} == {"id": False, "b": True}


def test_a_rewrite_gives_another_relfilenode(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    before = only(database, "t")
    database.execute("TRUNCATE t")
    assert only(database, "t").relfilenode != before.relfilenode
    assert only(database, "t").oid == before.oid


def test_row_security_and_estimates_are_read(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)", "ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    assert only(database, "t").estimated_rows is None
    database.execute("INSERT INTO t SELECT generate_series(1, 1000)", "ANALYZE t")
    relation = only(database, "t")
    assert relation.row_security
    assert not relation.force_row_security
    assert relation.estimated_rows == 1000
    assert relation.estimated_bytes >= 8192


def test_a_relation_is_found_again_by_its_oid(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    relation = only(database, "t")
    database.execute("ALTER TABLE t RENAME TO renamed")
    with Connector(database.url).connect() as session:
        found = read_relation(session, relation.oid)
        assert found is not None
        assert found.table == TableId("public", "renamed")
        assert read_relation(session, 1) is None


def test_many_tables_are_read_at_once(database: Database) -> None:
    database.execute(
        "DO $$ BEGIN FOR n IN 1..300 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', n); END LOOP; END $$"
    )
    found = look(database, ["t*"])
    assert len(found.relations) == 300
    assert {schema_of(relation).key for relation in found.relations} == {("id",)}


# --- publications ---


def test_a_publication_is_described(database: Database) -> None:
    database.execute(
        "CREATE SCHEMA sales",
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        "CREATE TABLE u (id int PRIMARY KEY)",
        "CREATE TABLE sales.o (id int PRIMARY KEY)",
        "CREATE PUBLICATION p FOR TABLE t (id) WHERE (id > 3), u WITH (publish = 'insert, truncate')",
        "CREATE PUBLICATION s FOR TABLES IN SCHEMA sales WITH (publish_via_partition_root = true)",
        "CREATE PUBLICATION everything FOR ALL TABLES",
    )
    with Connector(database.url).connect() as session:
        found = read_publications(session, ["p", "s", "everything", "none"])
    assert set(found) == {"p", "s", "everything"}
    p, s, everything = found["p"], found["s"], found["everything"]
    assert (p.publish, p.via_root, p.all_tables, p.owner, p.owned) == ("insert, truncate", False, False, "postgres", True)
    assert [(table.table.name, table.row_filter, table.column_list) for table in p.tables] == [
        ("t", True, True),
        ("u", False, False),
    ]
    assert (s.via_root, s.generated_columns, s.tables) == (True, False, ())
    assert s.published == {TableId("sales", "o")}
    assert everything.all_tables
    assert everything.published == {TableId("public", "t"), TableId("public", "u"), TableId("sales", "o")}
    only_since(database.server, 18)
    database.execute("ALTER PUBLICATION s SET (publish_generated_columns = stored)")
    with Connector(database.url).connect() as session:
        assert read_publications(session, ["s"])["s"].generated_columns
