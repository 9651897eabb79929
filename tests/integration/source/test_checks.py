"""Every finding that can be provoked is found on a real server, and its cure, where it is SQL, makes it go away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, cast

import psycopg
import pytest

from headrace.errors import SourceNotReady, SourceUnreachable
from headrace.source.postgres import slots
from headrace.source.postgres.checks import BEFORE_A_RUN, Examined, Finding, Names, Report, preflight, require_ready
from headrace.source.postgres.checks.finding import Severity
from headrace.source.postgres.connect import Connector
from headrace.testing.postgres import Postgres, free_port
from tests.acceptance.running import wait_until
from tests.conftest import Database, only_since

NAMES = Names(slot="headrace_shop", publication="headrace_shop", appends_publication="headrace_shop_appends")


def look(url: str, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), names: Names = NAMES) -> Report:
    report = preflight(Connector(url), include=include, exclude=exclude, names=names)
    assert report.failed == ()
    return report


def findings(report: Report, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]


def only(report: Report, check: str, severity: Severity) -> Finding:
    found = findings(report, check)
    assert [finding.severity for finding in found] == [severity], found
    return found[0]


def names_for(database: Database) -> Names:
    """Slots are shared by the server's databases: a name of its own for each test."""
    return Names(slot=f"s_{database.name}", publication="headrace_shop", appends_publication="headrace_shop_appends")


@pytest.fixture
def app(database: Database) -> Iterator[str]:
    """A role without any privilege, as the URL it connects with."""
    role = f"app_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN")
    yield database.url_as(role)
    database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def role_of(url: str) -> str:
    return url.partition("//")[2].partition("@")[0]


# --- the whole ---


def test_a_source_that_is_ready_has_no_blocker(database: Database) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    report = look(database.url, names=names_for(database))
    assert report.ready
    assert [finding.severity for finding in report.findings] == ["note"]  # how long log is kept


def test_blockers_come_first_and_every_finding_says_what_follows(database: Database, app: str) -> None:
    database.execute("CREATE TABLE t (id int, p point)")
    report = look(app, names=names_for(database))
    assert not report.ready
    ranks = [["blocker", "warning", "note"].index(finding.severity) for finding in report.findings]
    assert ranks == sorted(ranks)
    assert {finding.severity for finding in report.findings} == {"blocker", "warning", "note"}
    for finding in report.findings:
        assert finding.object
        assert finding.found
        assert finding.consequence
        assert finding.cure or finding.severity == "note"


def test_following_the_cures_makes_a_role_without_privileges_ready(database: Database, app: str) -> None:
    database.execute(
        "CREATE TABLE users (id int PRIMARY KEY)",
        "CREATE TABLE events (at timestamptz)",
        "CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE SCHEMA sales",
        "CREATE TABLE sales.orders (id int PRIMARY KEY)",
        "ALTER TABLE sales.orders ENABLE ROW LEVEL SECURITY",
    )
    names = names_for(database)
    blockers = look(app, include=["*.*"], names=names).blockers
    assert len(blockers) >= 6
    for finding in blockers:
        statement = finding.cure.partition("superuser: ")[2] or finding.cure.partition(";")[0]
        database.execute(statement)
    report = look(app, include=["*.*"], names=names)
    assert report.blockers == []
    require_ready(report)


def test_a_run_is_refused_with_every_blocker_and_the_first_cure(database: Database) -> None:
    names = names_for(database)
    report = preflight(Connector(database.url), include=["nix"], exclude=[], names=names, checks=BEFORE_A_RUN)
    with pytest.raises(SourceNotReady, match=r"source\.tables: nix: no such table, so a run refuses to begin") as raised:
        require_ready(report)
    assert raised.value.remedy.startswith("Correct source.tables in headrace.yaml.")


def test_nothing_is_changed_at_the_source(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    state = (
        "SELECT (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_replication_slots WHERE database ="
        " current_database()), (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_namespace)"
    )
    before = database.rows(state)
    look(database.url)
    assert database.rows(state) == before


def test_a_server_that_is_not_there_is_an_error_and_not_a_finding() -> None:
    with pytest.raises(SourceUnreachable):
        look(f"postgresql://postgres@127.0.0.1:{free_port()}/shop")


def test_a_check_that_cannot_run_is_told_apart_from_findings(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")

    def broken(examined: Examined) -> Iterator[Finding]:
        examined.rows("SELECT no_such_column FROM pg_class")
        yield from ()

    def working(examined: Examined) -> Iterator[Finding]:
        assert examined.row("SELECT 1 AS one")["one"] == 1
        yield Finding(check="working", severity="note", object="it", found="works", consequence="nothing")

    report = preflight(Connector(database.url), include=["*"], exclude=[], names=NAMES, checks=[broken, working])
    assert [failed.check for failed in report.failed] == ["broken"]
    assert "no_such_column" in report.failed[0].reason
    assert [finding.check for finding in report.findings] == ["working"]
    assert not report.ready


def test_findings_of_elsewhere_are_taken_in(database: Database) -> None:
    full = Finding(check="disk", severity="blocker", object="warehouse", found="full", consequence="no room")
    report = preflight(Connector(database.url), include=["*"], exclude=[], names=NAMES, checks=[], elsewhere=[lambda: [full]])
    assert report.findings == (full,)
    assert not report.ready


# --- the server ---


@pytest.fixture(scope="module")
def meagre() -> Iterator[Postgres]:
    """A server with everything that a setting can do wrong."""
    settings = {
        "wal_level": "replica",
        "max_replication_slots": "2",
        "max_wal_senders": "1",
        "max_connections": "8",
        "superuser_reserved_connections": "3",
        "max_slot_wal_keep_size": "64MB",
        "max_prepared_transactions": "3",
    }
    with Postgres(settings=settings) as server:
        server.execute("CREATE TABLE t (id int PRIMARY KEY)")
        yield server


def test_wal_level_must_be_logical(meagre: Postgres) -> None:
    finding = only(look(meagre.url), "wal-level", "blocker")
    assert finding.found == "it is replica"
    assert finding.cure.startswith("ALTER SYSTEM SET wal_level = 'logical'; then restart")


def test_three_slots_must_be_free(meagre: Postgres) -> None:
    finding = only(look(meagre.url), "free-slots", "blocker")
    assert finding.found == "2 of 2 replication slots are free"
    assert "a run needs 3" in finding.consequence
    with meagre.connect() as session:
        session.execute("SELECT pg_create_physical_replication_slot('other')")
        assert only(look(meagre.url), "free-slots", "blocker").found == "1 of 2 replication slots are free"
        session.execute("SELECT pg_drop_replication_slot('other')")


def test_a_wal_sender_must_be_free(meagre: Postgres) -> None:
    meagre.execute("SELECT pg_sleep(2)")  # on a busy machine a sender of an earlier look ends late
    assert findings(look(meagre.url), "free-senders") == []
    with closing(Connector(meagre.url).connect_replication()) as sender, meagre.connect() as session:
        sender.pgconn.exec_(b"IDENTIFY_SYSTEM")
        session.execute("SELECT pg_create_physical_replication_slot('held')")
        streaming = sender.pgconn.exec_(b"START_REPLICATION SLOT held PHYSICAL 0/1000000")
        assert streaming.status == psycopg.pq.ExecStatus.COPY_BOTH
        report = look(meagre.url)
        assert only(report, "free-senders", "blocker").found == "none of 1 WAL senders is free"
        refused = only(report, "replication", "blocker")
        assert "no WAL sender left" in refused.found
    meagre.execute("SELECT pg_drop_replication_slot('held') FROM pg_sleep(3)")


def test_few_free_connections_are_a_warning(meagre: Postgres) -> None:
    finding = only(look(meagre.url), "free-connections", "warning")
    assert finding.object == "setting max_connections"
    assert "a run uses up to 6" in finding.consequence


def test_a_roles_and_a_databases_connection_limit_are_found(database: Database, app: str) -> None:
    database.execute(f"ALTER ROLE {role_of(app)} CONNECTION LIMIT 4", f"ALTER DATABASE {database.name} CONNECTION LIMIT 5")
    found = findings(look(app), "free-connections")
    assert {finding.object.split()[0] for finding in found} == {"role", "database"}
    assert findings(look(database.url), "free-connections") == []  # they do not bind a superuser


def test_limits_of_kept_log_are_a_warning(meagre: Postgres) -> None:
    found = only(look(meagre.url), "kept-log", "warning")
    assert found.object == "setting max_slot_wal_keep_size"
    assert found.found == "it is 64 MB"
    only_since(meagre, 18)
    meagre.execute("ALTER SYSTEM SET idle_replication_slot_timeout = '10min'", "SELECT pg_reload_conf()")
    wait_until(lambda: len(findings(look(meagre.url), "kept-log")) == 2, seconds=10, what="the server to take up its setting")
    found = findings(look(meagre.url), "kept-log")[-1]
    assert (found.object, found.found) == ("setting idle_replication_slot_timeout", "it is 600 s")
    assert found.severity == "warning"


def test_kept_log_without_limit_is_a_note(database: Database) -> None:
    assert only(look(database.url), "kept-log", "note").found == "it is -1: no limit"


def test_a_prepared_transaction_blocks_and_its_cure_works(meagre: Postgres) -> None:
    with meagre.connect(autocommit=False) as session:
        session.execute("INSERT INTO t VALUES (1)")
        session.execute("PREPARE TRANSACTION 'it''s forgotten'")
    finding = only(look(meagre.url), "open-transactions", "blocker")
    assert "it's forgotten" in finding.object
    meagre.execute(finding.cure.partition(" or ")[2])
    assert findings(look(meagre.url), "open-transactions") == []


def test_an_old_transaction_that_has_written_is_named_with_its_process(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with database.connect(autocommit=False) as writer, database.connect(autocommit=False) as reader:
        writer.execute("INSERT INTO t VALUES (1)")
        reader.execute("SELECT * FROM t")
        assert findings(look(database.url), "open-transactions") == []  # young
        monkeypatch.setattr("headrace.source.postgres.checks.server.SECONDS_UNTIL_LONG", -1)
        found = findings(look(database.url), "open-transactions")
        pids = {finding.object.split()[1] for finding in found}
        assert str(writer.info.backend_pid) in pids
        assert str(reader.info.backend_pid) not in pids
        mine = next(finding for finding in found if str(writer.info.backend_pid) in finding.object)
        assert mine.severity == "warning"
        assert mine.cure == f"Let it end, or: SELECT pg_terminate_backend({writer.info.backend_pid});"


def test_an_open_transaction_of_another_user_is_found_without_privileges(database: Database, app: str) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with database.connect(autocommit=False) as writer:
        writer.execute("INSERT INTO t VALUES (1)")
        found = findings(look(app), "open-transactions")
        assert any(f"process {writer.info.backend_pid}" in finding.object for finding in found)


def test_a_standby_is_refused() -> None:
    with Postgres() as server:
        server.stop()
        (server.data / "standby.signal").touch()
        server.start()
        report = look(server.url)
    assert "it is a standby" in only(report, "primary", "blocker").found


def test_a_database_without_encoding_is_refused(postgres: Postgres) -> None:
    postgres.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0")
    url = postgres.url.replace("/postgres", "/bytes").replace("//bytes", "//postgres")
    names = Names(slot="hr", publication="hr", appends_publication="hr_appends")
    try:
        assert only(look(url), "encoding", "blocker")
        before_a_run = preflight(Connector(url), include=["public.*"], exclude=[], names=names, checks=BEFORE_A_RUN)
        with pytest.raises(SourceNotReady, match="its encoding is SQL_ASCII"):
            require_ready(before_a_run)
    finally:
        postgres.execute("DROP DATABASE bytes")


class OneProcessForAll(Connector):
    """What a transaction pooler does to its clients: two sessions, one server process."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.session = super().connect()

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        return cast("psycopg.Connection[Any]", _Kept(self.session))


class _Kept(AbstractContextManager[Any]):
    def __init__(self, session: psycopg.Connection[Any]) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def __exit__(self, *_: object) -> None:
        return None


def test_a_transaction_pooler_is_refused(database: Database) -> None:
    pooled = OneProcessForAll(database.url)
    report = preflight(pooled, include=["*"], exclude=[], names=NAMES)
    pooled.session.close()
    finding = only(report, "pooler", "blocker")
    assert "transaction pooler" in finding.found
    assert "source.url" in finding.cure


def test_a_session_pooler_is_a_warning(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", 1)  # what a pooler tells its clients is a number of its own
    assert only(look(database.url), "pooler", "warning").found.startswith("a pooler answers there")


def test_a_role_without_replication_is_refused_and_the_cure_works(database: Database, app: str) -> None:
    finding = only(look(app), "replication", "blocker")
    assert finding.found == "it has not the attribute REPLICATION"
    database.execute(finding.cure.partition(";")[0])
    assert findings(look(app), "replication") == []


def test_an_old_server_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psycopg.ConnectionInfo, "server_version", 130012)
    report = look(database.url)
    assert [finding.found for finding in report.findings] == ["its version is 13"]
    assert not report.ready


# --- tables ---


def test_a_missing_table_blocks_and_an_empty_pattern_warns(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    found = {
        finding.object: finding.severity for finding in findings(look(database.url, include=["t", "nix", "x*"]), "tables-found")
    }
    assert found == {"source.tables: nix": "blocker", "source.tables: x*": "warning"}


def test_a_project_without_any_table_is_refused(database: Database) -> None:
    found = findings(look(database.url), "tables-found")
    assert [finding.severity for finding in found] == ["blocker", "warning"]
    assert found[0].consequence == "there is nothing to do"


def test_a_table_that_cannot_be_captured_blocks_by_name_and_warns_in_a_pattern(database: Database) -> None:
    database.execute("CREATE UNLOGGED TABLE u (id int PRIMARY KEY)", "CREATE TABLE t (id int PRIMARY KEY)")
    assert only(look(database.url, include=["t", "u"]), "tables-found", "blocker").object == "table public.u"
    assert "it is left out" in only(look(database.url), "tables-found", "warning").consequence


def test_missing_privileges_are_named_and_their_cures_work(database: Database, app: str) -> None:
    database.execute(
        "CREATE SCHEMA sales", 'CREATE TABLE sales."Odd ""name""" (id int PRIMARY KEY)', "CREATE TABLE t (id int PRIMARY KEY)"
    )
    found = findings(look(app, include=["*.*"]), "table-privileges")
    assert {finding.object for finding in found} == {"schema sales", 'table sales.Odd "name"', "table public.t"}
    database.execute(*(finding.cure for finding in found))
    assert findings(look(app, include=["*.*"]), "table-privileges") == []


IDENTITIES = {
    "no key": ("CREATE TABLE t (a int)", "it has no primary key", 'ALTER TABLE "public"."t" ADD PRIMARY KEY (…);', False),
    "unique index": (
        "CREATE TABLE t (a int NOT NULL, b int UNIQUE); CREATE UNIQUE INDEX best ON t (a)",
        "it has no primary key",
        'ALTER TABLE "public"."t" REPLICA IDENTITY USING INDEX "best";',
        True,
    ),
    "nothing": (
        "CREATE TABLE t (a int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING",
        "its replica identity is NOTHING",
        'ALTER TABLE "public"."t" REPLICA IDENTITY DEFAULT;',
        True,
    ),
    "deferrable": (
        "CREATE TABLE t (a int PRIMARY KEY DEFERRABLE)",
        "its primary key is deferrable, which logical replication cannot use",
        'Make the primary key of "public"."t" not deferrable, or give it another unique index over NOT NULL columns.',
        False,
    ),
    "dropped index": (
        "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL); CREATE UNIQUE INDEX u ON t (b);"
        "ALTER TABLE t REPLICA IDENTITY USING INDEX u; DROP INDEX u",
        "the index of its replica identity was dropped",
        'ALTER TABLE "public"."t" REPLICA IDENTITY USING INDEX "t_pkey";',
        True,
    ),
}


@pytest.mark.parametrize(("ddl", "reason", "cure", "is_sql"), IDENTITIES.values(), ids=IDENTITIES)
def test_a_table_without_usable_identity_is_named_with_its_cure(
    database: Database, ddl: str, reason: str, cure: str, is_sql: bool
) -> None:
    database.execute(*ddl.split(";"))
    finding = only(look(database.url), "replica-identity", "warning")
    assert (finding.object, finding.found, finding.cure) == ("table public.t", reason, cure)
    if is_sql:
        database.execute(cure)
        assert findings(look(database.url), "replica-identity") == []


def test_identity_full_is_a_note(database: Database) -> None:
    database.execute("CREATE TABLE t (a int PRIMARY KEY)", "ALTER TABLE t REPLICA IDENTITY FULL")
    assert only(look(database.url), "replica-identity", "note").found == "its replica identity is FULL"


def test_a_partition_whose_identity_differs_blocks_and_the_cure_works(database: Database) -> None:
    database.execute(
        "CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE m_2 PARTITION OF m FOR VALUES FROM (10) TO (20)",
        "ALTER TABLE m_2 REPLICA IDENTITY NOTHING",
    )
    finding = only(look(database.url), "replica-identity", "blocker")
    assert finding.object == "partition public.m_2 of public.m"
    database.execute(finding.cure)
    assert findings(look(database.url), "replica-identity") == []


def test_row_level_security_that_applies_to_this_user_blocks(database: Database, app: str) -> None:
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY)", "ALTER TABLE t ENABLE ROW LEVEL SECURITY", f"GRANT SELECT ON t TO {role_of(app)}"
    )
    finding = only(look(app), "row-level-security", "blocker")
    assert finding.object == "table public.t"
    assert findings(look(database.url), "row-level-security") == []  # a superuser sees every row
    with Connector(app).connect() as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute("SELECT * FROM public.t")  # not silently nothing
    database.execute(finding.cure.partition(";")[0])
    assert findings(look(app), "row-level-security") == []


def test_generated_columns_are_noted(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, s int GENERATED ALWAYS AS (id + 1) STORED)")
    assert only(look(database.url), "generated-columns", "note").found == "generated columns: s"
    only_since(database.server, 18)
    database.execute("ALTER TABLE t ADD COLUMN v int GENERATED ALWAYS AS (id + 2) VIRTUAL")
    assert only(look(database.url), "generated-columns", "note").found == "generated columns: s, v"


def test_types_that_become_text_are_noted_unless_they_are_text_to_everybody(database: Database) -> None:
    database.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN exact AS numeric",
        "CREATE TABLE t (id int PRIMARY KEY, a text, b varchar(3), c char(2), d mood, e jsonb, f uuid, g mood[], h numeric(38,2),"
        " n numeric, o numeric(50,2), p point, q interval, r exact, s numeric[], u money)",
    )
    assert only(look(database.url), "types", "note").found == (
        "types without an exact lake type: n (numeric), o (numeric(50,2)), p (point), q (interval), r (public.exact),"
        " s (numeric[]), u (money)"
    )


def test_tables_that_inherit_are_noted(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE TABLE child () INHERITS (t)")
    finding = only(look(database.url, include=["t"]), "inheritance", "note")
    assert finding.found == "other tables inherit from it: public.child"


# --- publications ---


def test_a_role_that_may_not_publish_is_given_the_sql_that_a_superuser_runs(database: Database, app: str) -> None:
    database.execute(
        "CREATE TABLE keyed (id int PRIMARY KEY)",
        "CREATE TABLE parent (id int PRIMARY KEY)",
        "CREATE TABLE child () INHERITS (parent)",
        "CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    )
    found = findings(look(app), "publication-privileges")
    assert [finding.severity for finding in found] == ["blocker", "blocker"]
    database.execute(*(finding.cure.partition("superuser: ")[2] for finding in found))
    report = look(app)
    assert findings(report, "publication-privileges") == []
    assert findings(report, "publication-contents") == []
    assert database.rows("SELECT tablename FROM pg_publication_tables WHERE pubname = 'headrace_shop' ORDER BY 1") == [
        ("keyed",),
        ("m",),
        ("parent",),
    ]
    assert database.rows("SELECT tablename FROM pg_publication_tables WHERE pubname = 'headrace_shop_appends'") == [("child",)]


def test_a_role_that_owns_its_tables_needs_create_on_the_database_only(database: Database, app: str) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)", f"ALTER TABLE t OWNER TO {role_of(app)}")
    found = findings(look(app), "publication-privileges")
    assert len(found) == 2
    database.execute(found[0].cure.partition(";")[0])
    assert findings(look(app), "publication-privileges") == []


def test_tables_missing_in_a_publication_that_others_own_block_and_the_cure_works(database: Database, app: str) -> None:
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE mine (id int PRIMARY KEY)",
        f"ALTER TABLE mine OWNER TO {role_of(app)}",
        "CREATE PUBLICATION headrace_shop FOR TABLE t",
        "CREATE PUBLICATION headrace_shop_appends WITH (publish = 'insert, truncate')",
    )
    finding = only(look(app), "publication-privileges", "blocker")
    assert "it lacks public.mine" in finding.found
    database.execute(finding.cure.partition(": ")[2])
    assert findings(look(app), "publication-privileges") == []


def test_a_publication_for_all_tables_lacks_none(database: Database, app: str) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)", "CREATE PUBLICATION headrace_shop FOR ALL TABLES")
    database.execute("CREATE PUBLICATION headrace_shop_appends WITH (publish = 'insert, truncate')")
    report = look(app)
    assert findings(report, "publication-privileges") == []
    assert findings(report, "publication-contents") == []


CONTENTS = {
    "operations": (
        "CREATE PUBLICATION headrace_shop FOR TABLE t WITH (publish = 'insert', publish_via_partition_root)",
        "it publishes insert",
        "delete, truncate, update would be missing in the lake",
    ),
    "appends with updates": (
        "CREATE PUBLICATION headrace_shop_appends FOR TABLE nokey",
        "it publishes insert, update, delete, truncate",
        "updates and deletes of tables without key fail at the source while they are in such a publication",
    ),
    "partitions": (
        "CREATE PUBLICATION headrace_shop FOR TABLE t, m",
        "publish_via_partition_root is off",
        "changes of partitioned tables would arrive as changes of their partitions",
    ),
    "generated": (
        "CREATE PUBLICATION headrace_shop FOR TABLE t WITH (publish_via_partition_root, publish_generated_columns = stored)",
        "publish_generated_columns is on",
        "the log has columns that the copy has not",
    ),
    "row filter": (
        "CREATE PUBLICATION headrace_shop FOR TABLE t WHERE (id > 5) WITH (publish_via_partition_root)",
        "it has a row filter",
        "the lake would have a part of the table and not say so",
    ),
    "column list": (
        "CREATE PUBLICATION headrace_shop FOR TABLE t (id) WITH (publish_via_partition_root)",
        "it has a column list",
        "the lake would have a part of the table and not say so",
    ),
}


@pytest.mark.parametrize(("ddl", "found", "consequence"), CONTENTS.values(), ids=CONTENTS)
def test_a_publication_that_publishes_the_wrong_thing_blocks_and_the_cure_works(
    database: Database, ddl: str, found: str, consequence: str
) -> None:
    only_since(database.server, 18 if "publish_generated_columns" in ddl else 15)
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        "CREATE TABLE nokey (id int)",
        "CREATE TABLE m (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        ddl,
    )
    report = look(database.url)
    blockers = [finding for finding in findings(report, "publication-contents") if finding.severity == "blocker"]
    assert [(finding.found, finding.consequence) for finding in blockers] == [(found, consequence)]
    for statement in blockers[0].cure.split("; "):
        database.execute(statement)
    assert [finding for finding in findings(look(database.url), "publication-contents") if finding.severity == "blocker"] == []


def test_keyless_tables_in_a_publication_with_updates_are_a_warning(database: Database) -> None:
    database.execute("CREATE TABLE nokey (id int)", "CREATE PUBLICATION headrace_shop FOR TABLE nokey")
    finding = only(look(database.url), "publication-contents", "warning")
    assert finding.consequence == "their updates and deletes fail at the source"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        database.execute("INSERT INTO nokey VALUES (1)", "UPDATE nokey SET id = 2")
    database.execute(*filter(None, finding.cure.split(";")))
    assert findings(look(database.url), "publication-contents") == []


def test_other_tables_in_a_publication_are_noted(database: Database) -> None:
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE more (id int PRIMARY KEY)",
        "CREATE PUBLICATION headrace_shop FOR TABLE t, more",
    )
    assert only(look(database.url, include=["t"]), "publication-contents", "note").found == "it also has public.more"


# --- the slot ---


def test_a_good_slot_is_no_finding(database: Database) -> None:
    names = names_for(database)
    database.execute(f"SELECT pg_create_logical_replication_slot('{names.slot}', 'pgoutput')")
    assert findings(look(database.url, names=names), "slot-state") == []


SLOTS = {
    "plugin": (
        "SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')",
        "it is a logical slot with plugin test_decoding",
    ),
    "physical": ("SELECT pg_create_physical_replication_slot('{slot}')", "it is a physical slot"),
    "two phase": ("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)", "it has two_phase"),
}


@pytest.mark.parametrize(("statement", "found"), SLOTS.values(), ids=SLOTS)
def test_a_slot_that_cannot_be_used_blocks(database: Database, statement: str, found: str) -> None:
    names = names_for(database)
    database.execute(statement.format(slot=names.slot))
    try:
        assert only(look(database.url, names=names), "slot-state", "blocker").found == found
    finally:
        database.execute(f"SELECT pg_drop_replication_slot('{names.slot}')")


def test_a_slot_of_another_database_blocks(database: Database, postgres: Postgres) -> None:
    names = names_for(database)
    database.execute(f"SELECT pg_create_logical_replication_slot('{names.slot}', 'pgoutput')")
    finding = only(look(postgres.url, names=names), "slot-state", "blocker")
    assert finding.found == f"it belongs to database {database.name}"


def test_a_slot_in_use_by_somebody_else_blocks_and_names_the_process(database: Database) -> None:
    names = names_for(database)
    database.execute(f"SELECT pg_create_logical_replication_slot('{names.slot}', 'pgoutput')", "CREATE PUBLICATION p")
    with closing(Connector(database.url).connect_replication()) as consumer:
        command = f"START_REPLICATION SLOT {names.slot} LOGICAL 0/0 (proto_version '1', publication_names 'p')"
        assert consumer.pgconn.exec_(command.encode()).status == psycopg.pq.ExecStatus.COPY_BOTH
        finding = only(look(database.url, names=names), "slot-state", "blocker")
        assert finding.found == f"process {consumer.info.backend_pid} of the source uses it"


def test_a_run_of_this_pipeline_is_noted_and_uses_up_no_slots(database: Database) -> None:
    names = names_for(database)
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY)", f"SELECT pg_create_logical_replication_slot('{names.slot}', 'pgoutput')"
    )
    with database.connect() as run:
        slots.lock_pipeline(run, names.slot)
        report = look(database.url, names=names)
    assert only(report, "slot-state", "note").found == "a run of this pipeline follows it now"
    assert report.ready


def test_a_slot_that_lost_its_log_blocks() -> None:
    with Postgres(settings={"max_slot_wal_keep_size": "16MB", "wal_keep_size": "0"}) as server:
        server.execute(
            "CREATE TABLE t (id int PRIMARY KEY)", "SELECT pg_create_logical_replication_slot('headrace_shop', 'pgoutput')"
        )
        for _ in range(4):
            server.execute("SELECT pg_logical_emit_message(false, 'x', 'y')", "SELECT pg_switch_wal()")
        assert "further behind" in only(look(server.url), "slot-state", "warning").found
        server.execute("CHECKPOINT")
        finding = only(look(server.url), "slot-state", "blocker")
        assert "invalidated" in finding.found
        assert "headrace drop" in finding.cure
