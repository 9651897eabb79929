"""One suite for every database that can hold the catalog."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from headrace.catalog import (
    AlreadyExists,
    BadUpdate,
    Catalog,
    CommitOutcomeUnknown,
    NamespaceNotEmpty,
    NoSuchNamespace,
    NoSuchTable,
    NoSuchVersion,
    NoSuchView,
    TableChange,
)
from headrace.catalog.database import Session
from headrace.catalog.files import path_of
from headrace.errors import CommitConflict, LakeUnavailable
from tests.catalog_changes import CREATE, creation, properties, schema, snapshot

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **time: float) -> None:
        self.now += timedelta(**time)


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    if request.param == "sqlite":
        return tmp_path / "catalog.db"
    return str(request.getfixturevalue("database").url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(location: Path | str, tmp_path: Path, clock: Clock) -> Iterator[Catalog]:
    with Catalog.open(location, tmp_path / "lake", clock=clock) as catalog:
        catalog.create_namespace("silver")
        yield catalog


def test_a_new_catalog_is_at_version_0_and_empty(location: Path | str, tmp_path: Path) -> None:
    with Catalog.open(location, tmp_path / "lake") as catalog:
        assert catalog.latest_version() == 0
        assert catalog.namespaces() == []
        assert [version.number for version in catalog.versions()] == [0]


def test_a_table_is_created_and_loaded(catalog: Catalog, tmp_path: Path) -> None:
    committed = catalog.commit([creation("orders")])
    loaded = catalog.load("silver", "orders")
    assert committed.tables["silver", "orders"] == loaded
    assert catalog.latest_version() == committed.version == 2
    assert catalog.tables("silver") == ["orders"]
    assert loaded.metadata["location"] == f"file://{tmp_path}/lake/silver/orders"
    path = path_of(loaded.metadata_location)
    assert path.parent == tmp_path / "lake/silver/orders/metadata"
    assert path.name.startswith("00000-")
    assert orjson.loads(path.read_bytes()) == loaded.metadata == orjson.loads(loaded.content)


def test_metadata_files_are_numbered_and_never_overwritten(catalog: Catalog) -> None:
    locations = [catalog.commit([creation()]).tables["silver", "orders"].metadata_location]
    for value in "ab":
        locations.append(catalog.commit([properties(value=value)]).tables["silver", "orders"].metadata_location)
    assert [path_of(location).name[:6] for location in locations] == ["00000-", "00001-", "00002-"]
    assert all(path_of(location).exists() for location in locations)
    assert [entry["metadata-file"] for entry in catalog.load("silver", "orders").metadata["metadata-log"]] == locations[:2]


def test_a_commit_to_three_tables_is_one_version(catalog: Catalog) -> None:
    before = catalog.latest_version()
    committed = catalog.commit([creation("a"), creation("b"), creation("c")])
    assert committed.version == before + 1
    assert set(catalog.state()) == {("silver", name) for name in "abc"}


def test_every_version_keeps_the_state_of_all_tables(catalog: Catalog) -> None:
    first = catalog.commit([creation("a"), creation("b")]).version
    second = catalog.commit([properties("a", at="second")]).version
    third = catalog.commit([properties("a", at="third"), properties("b", at="third")]).version
    fourth = catalog.drop_table("silver", "b")

    def at(version: int) -> dict[str, Any]:
        return {name: catalog.load("silver", name, version).metadata["properties"] for name in catalog.tables("silver", version)}

    assert at(first) == {"a": {}, "b": {}}
    assert at(second) == {"a": {"at": "second"}, "b": {}}
    assert at(third) == {"a": {"at": "third"}, "b": {"at": "third"}}
    assert at(fourth) == {"a": {"at": "third"}}
    assert set(catalog.state(third)) == {("silver", "a"), ("silver", "b")}
    with pytest.raises(NoSuchTable):
        catalog.load("silver", "a", first - 1)
    with pytest.raises(NoSuchVersion):
        catalog.state(fourth + 1)


def test_a_failed_requirement_changes_nothing_in_any_table(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit([creation("a"), creation("b")])
    before = catalog.state(), catalog.latest_version(), sorted((tmp_path / "lake").rglob("*"))
    stale = properties("b", requirements=[{"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": 5}], x="1")
    with pytest.raises(CommitConflict, match=r"silver\.b"):
        catalog.commit([properties("a", x="1"), stale])
    assert (catalog.state(), catalog.latest_version(), sorted((tmp_path / "lake").rglob("*"))) == before


def test_a_table_is_created_once(catalog: Catalog) -> None:
    catalog.commit([creation()])
    with pytest.raises(CommitConflict, match="exists already"):
        catalog.commit([creation()])


def test_a_change_of_a_missing_table_is_refused(catalog: Catalog) -> None:
    with pytest.raises(NoSuchTable, match=r"silver\.orders"):
        catalog.commit([properties()])


def test_a_table_needs_its_namespace(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(NoSuchNamespace, match="gold"):
        catalog.commit([creation(namespace="gold")])
    assert not list((tmp_path / "lake").rglob("*.json"))


def test_a_commit_names_a_table_once(catalog: Catalog) -> None:
    catalog.commit([creation()])
    with pytest.raises(BadUpdate, match="twice"):
        catalog.commit([properties(a="1"), properties(b="1")])


def test_a_commit_of_nothing_makes_no_version(catalog: Catalog) -> None:
    assert catalog.commit([]).version == catalog.latest_version() == 1


def test_a_preview_writes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    shown = catalog.preview(creation())
    assert shown.metadata["schemas"][0]["fields"][0]["name"] == "id"
    assert catalog.tables("silver") == []
    assert not list((tmp_path / "lake").rglob("*.json"))


def test_a_location_outside_the_warehouse_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    for location in (f"file://{tmp_path}/other", "s3://bucket/x", f"file://{tmp_path}/lake/../other", "relative"):
        change = creation()
        moved = TableChange(
            namespace="silver",
            name="orders",
            requirements=change.requirements,
            updates=[*change.updates, {"action": "set-location", "location": location}],
        )
        with pytest.raises(BadUpdate):
            catalog.commit([moved])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["Ärger & Co", "a/b", "..", "a b", "x" * 200, "日本", "a.b", "a%20b"])
def test_any_name_has_a_plain_folder_of_its_own(catalog: Catalog, tmp_path: Path, name: str) -> None:
    loaded = catalog.commit([creation(name)]).tables["silver", name]
    folder = path_of(loaded.metadata["location"])
    assert folder.parent == tmp_path / "lake/silver"
    assert folder.name.isascii()
    assert catalog.tables("silver") == [name]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 256])
def test_a_name_that_cannot_be_is_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(BadUpdate):
        catalog.commit([creation(name)])


def test_a_table_is_renamed_and_its_past_keeps_the_old_name(catalog: Catalog) -> None:
    before = catalog.commit([creation("old")]).version
    loaded = catalog.load("silver", "old")
    catalog.create_namespace("gold")
    after = catalog.rename(("silver", "old"), ("gold", "new"))
    assert catalog.load("gold", "new").metadata_location == loaded.metadata_location
    assert catalog.tables("silver", after) == []
    assert catalog.tables("silver", before) == ["old"]
    with pytest.raises(NoSuchTable):
        catalog.rename(("silver", "old"), ("gold", "other"))
    with pytest.raises(NoSuchNamespace):
        catalog.rename(("gold", "new"), ("nowhere", "new"))
    catalog.commit([creation("second")])
    with pytest.raises(AlreadyExists):
        catalog.rename(("silver", "second"), ("gold", "new"))


def test_a_dropped_table_can_be_created_again(catalog: Catalog) -> None:
    first = catalog.commit([creation()]).tables["silver", "orders"]
    dropped = catalog.drop_table("silver", "orders")
    with pytest.raises(NoSuchTable):
        catalog.drop_table("silver", "orders")
    again = catalog.commit([creation()]).tables["silver", "orders"]
    assert again.metadata["table-uuid"] != first.metadata["table-uuid"]
    assert catalog.load("silver", "orders", dropped - 1) == first


def test_a_table_is_registered_by_its_metadata_file(catalog: Catalog) -> None:
    location = catalog.commit([creation()]).tables["silver", "orders"].metadata_location
    catalog.drop_table("silver", "orders")
    assert catalog.register("silver", "again", location).metadata_location == location
    catalog.commit([properties("again", x="1")])
    with pytest.raises(AlreadyExists):
        catalog.register("silver", "again", location)
    with pytest.raises(BadUpdate):
        catalog.register("silver", "other", "file:///etc/passwd")


def test_namespaces_are_created_nested_listed_and_dropped(catalog: Catalog) -> None:
    with pytest.raises(AlreadyExists):
        catalog.create_namespace("silver")
    version = catalog.latest_version()
    assert catalog.create_namespace("silver", exist_ok=True) == version
    with pytest.raises(NoSuchNamespace):
        catalog.create_namespace("gold\x1fdaily")
    catalog.create_namespace("gold", {"owner": "me"})
    catalog.create_namespace("gold\x1fdaily")
    assert catalog.namespaces() == ["gold", "gold\x1fdaily", "silver"]
    assert catalog.namespaces(version) == ["silver"]
    assert catalog.namespace("gold") == {"owner": "me"}
    with pytest.raises(NamespaceNotEmpty, match=r"gold\.daily"):
        catalog.drop_namespace("gold")
    catalog.drop_namespace("gold\x1fdaily")
    catalog.drop_namespace("gold")
    with pytest.raises(NoSuchNamespace):
        catalog.drop_namespace("gold")
    catalog.commit([creation()])
    with pytest.raises(NamespaceNotEmpty, match="orders"):
        catalog.drop_namespace("silver")
    with pytest.raises(NoSuchNamespace):
        catalog.tables("gold")


def test_namespace_properties_change_and_the_past_keeps_its_own(catalog: Catalog) -> None:
    before = catalog.latest_version()
    assert catalog.set_namespace_properties("silver", {"a": "1", "b": "2"}) == {}
    assert catalog.set_namespace_properties("silver", {"b": "3"}, ["a"]) == {"a": "1", "b": "2"}
    assert catalog.namespace("silver") == {"b": "3"}
    assert catalog.namespace("silver", before) == {}
    with pytest.raises(NoSuchNamespace):
        catalog.set_namespace_properties("gold", {})


def test_a_view_shares_the_names_of_tables_but_is_none(catalog: Catalog) -> None:
    version = {
        "version-id": 1,
        "schema-id": -1,
        "timestamp-ms": 1,
        "summary": {},
        "default-namespace": ["silver"],
        "representations": [{"type": "sql", "sql": "select 1", "dialect": "spark"}],
    }
    view = TableChange(
        namespace="silver",
        name="v",
        kind="view",
        requirements=[CREATE],
        updates=[
            {"action": "add-schema", "schema": schema("id")},
            {"action": "add-view-version", "view-version": version},
            {"action": "set-current-view-version", "view-version-id": -1},
        ],
    )
    catalog.commit([view])
    assert catalog.tables("silver") == []
    assert catalog.tables("silver", kind="view") == ["v"]
    assert catalog.load("silver", "v", kind="view").metadata["current-version-id"] == 1
    with pytest.raises(NoSuchTable):
        catalog.load("silver", "v")
    with pytest.raises(AlreadyExists):
        catalog.commit([creation("v")])
    catalog.rename(("silver", "v"), ("silver", "w"), kind="view")
    catalog.drop_table("silver", "w", kind="view")
    with pytest.raises(NoSuchView):
        catalog.load("silver", "w", kind="view")


def test_a_moment_means_the_last_version_until_then(catalog: Catalog, clock: Clock) -> None:
    clock.forward(seconds=10)
    first = catalog.commit([creation()]).version
    clock.forward(seconds=10)
    second = catalog.commit([properties(x="1")]).version
    at = {version.number: version.committed_at for version in catalog.versions()}
    assert at[first] == START + timedelta(seconds=10)
    assert catalog.version_at(at[first]) == first
    assert catalog.version_at(at[second] - timedelta(microseconds=1)) == first
    assert catalog.version_at(at[second] + timedelta(days=1)) == second
    with pytest.raises(NoSuchVersion, match="as early as"):
        catalog.version_at(START - timedelta(microseconds=1))
    with pytest.raises(ValueError, match="time zone"):
        catalog.version_at(datetime(2026, 1, 1))


def test_versions_never_go_back_in_time_though_the_clock_does(catalog: Catalog, clock: Clock) -> None:
    clock.forward(hours=-5)
    catalog.commit([creation()])
    times = [version.committed_at for version in catalog.versions()]
    assert times == sorted(times)
    assert [version.number for version in catalog.versions(first=1, last=1)] == [1]


def test_a_lease_lasts_is_renewed_and_released(catalog: Catalog, clock: Clock) -> None:
    version = catalog.latest_version()
    lease = catalog.lease(version, 60)
    assert [(one.id, one.version, one.expires_at) for one in catalog.live_leases()] == [
        (lease, version, START + timedelta(seconds=60))
    ]
    clock.forward(seconds=50)
    catalog.renew(lease, version, 60)
    clock.forward(seconds=50)
    assert len(catalog.live_leases()) == 1
    clock.forward(seconds=11)
    assert catalog.live_leases() == []
    catalog.renew(lease, version, 60)  # ran out, but its version is still there
    assert len(catalog.live_leases()) == 1
    catalog.release(lease)
    catalog.release(lease)
    assert catalog.live_leases() == []


def test_a_lease_on_a_version_that_is_not_there_names_the_nearest(catalog: Catalog) -> None:
    with pytest.raises(NoSuchVersion, match="nearest that it has: 1"):
        catalog.lease(99, 60)
    with pytest.raises(NoSuchVersion):
        catalog.renew("0" * 32, 99, 60)


def test_notes_are_kept_outside_versions(catalog: Catalog) -> None:
    version = catalog.latest_version()
    assert catalog.note("idle") is None
    catalog.set_note("idle", "16/B374D848")
    catalog.set_note("idle", "16/B374D900")
    assert catalog.note("idle") == "16/B374D900"
    catalog.set_note("idle", None)
    assert catalog.note("idle") is None
    assert catalog.latest_version() == version


def test_everything_is_there_after_opening_again(catalog: Catalog, location: Path | str, tmp_path: Path) -> None:
    loaded = catalog.commit([creation()]).tables["silver", "orders"]
    catalog.set_note("a", "b")
    with Catalog.open(location, tmp_path / "lake", create=False) as again:
        assert again.load("silver", "orders") == loaded
        assert again.note("a") == "b"


def test_threads_commit_to_one_table_and_none_is_lost(catalog: Catalog) -> None:
    catalog.commit([creation()])

    def write(thread: int) -> None:
        for turn in range(20):
            catalog.commit([properties(**{f"p{thread}-{turn}": "x"})])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(catalog.load("silver", "orders").metadata["properties"]) == 80
    assert catalog.latest_version() == 82


def test_of_two_commits_built_on_one_state_one_is_refused(catalog: Catalog) -> None:
    catalog.commit([creation()])
    barrier, outcomes = threading.Barrier(2), []

    def write(number: int) -> None:
        barrier.wait()
        try:
            catalog.commit([snapshot("orders", number, number=1, parent=None)])
            outcomes.append("committed")
        except CommitConflict:
            outcomes.append("refused")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (1, 2)))
    assert sorted(outcomes) == ["committed", "refused"]
    assert len(catalog.load("silver", "orders").metadata["snapshots"]) == 1


def test_readers_see_all_of_a_commit_or_nothing(catalog: Catalog) -> None:
    catalog.commit([creation("a"), creation("b")])
    stop = threading.Event()

    def write() -> None:
        for turn in range(50):
            catalog.commit([properties("a", turn=str(turn)), properties("b", turn=str(turn))])
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not stop.is_set() and not writing.done():
            version = catalog.latest_version()
            turns = {catalog.load("silver", name, version).metadata["properties"].get("turn") for name in "ab"}
            assert len(turns) == 1
        writing.result()


def test_a_commit_whose_answer_the_database_lost_is_found_again(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    real = catalog._database.write

    @contextmanager
    def losing() -> Iterator[Session]:
        with real() as session:
            yield session
        raise CommitOutcomeUnknown("lost")

    monkeypatch.setattr(catalog._database, "write", losing)
    committed = catalog.commit([creation()])
    assert catalog.load("silver", "orders") == committed.tables["silver", "orders"]
    assert catalog.latest_version() == committed.version


def test_a_commit_of_which_nobody_knows_keeps_its_files(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = catalog._database.write

    @contextmanager
    def failing() -> Iterator[Session]:
        class Undo(Exception):
            pass

        with suppress(Undo), real() as session:
            yield session
            raise Undo
        raise CommitOutcomeUnknown("lost")

    monkeypatch.setattr(catalog._database, "write", failing)
    with pytest.raises(CommitOutcomeUnknown):
        catalog.commit([creation()])
    assert catalog.tables("silver") == []
    assert len(list((tmp_path / "lake").rglob("*.json"))) == 1


def test_a_missing_metadata_file_is_named(catalog: Catalog, location: Path | str, tmp_path: Path) -> None:
    path = path_of(catalog.commit([creation()]).tables["silver", "orders"].metadata_location)
    path.unlink()
    with Catalog.open(location, tmp_path / "lake") as fresh, pytest.raises(LakeUnavailable, match=path.name):
        fresh.load("silver", "orders")


def test_a_warehouse_that_cannot_be_written_commits_nothing(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit([creation("a")])
    (tmp_path / "lake/silver/b").write_text("a file where the table's folder should be")
    version = catalog.latest_version()
    with pytest.raises(LakeUnavailable, match="warehouse"):
        catalog.commit([properties("a", x="1"), creation("b")])
    assert catalog.latest_version() == version
    assert catalog.load("silver", "a").metadata["properties"] == {}


# --- forgetting versions --------------------------------------------------------------------------------------------------------


def test_a_version_that_is_forgotten_is_gone_and_the_others_answer_as_before(catalog: Catalog) -> None:
    catalog.commit([creation("orders")])
    catalog.commit([creation("users")])
    for number in range(10):
        catalog.commit([properties(at=str(number))])
    catalog.drop_table("silver", "users")
    before = {version.number: catalog.state(version.number) for version in catalog.versions()}
    latest = catalog.latest_version()
    assert catalog.thin([2, 4, 5, 6, 9, latest]) == 5, "the latest version stays"
    kept = [version.number for version in catalog.versions()]
    assert kept == [number for number in range(latest + 1) if number not in (2, 4, 5, 6, 9)]
    for number in kept:
        assert catalog.state(number) == before[number]
        for namespace, name in before[number]:
            catalog.load(namespace, name, number)
    with pytest.raises(NoSuchVersion, match="no version 5"):
        catalog.state(5)
    assert catalog.version_at(START) == latest


def test_a_version_that_somebody_reads_is_not_forgotten(catalog: Catalog, clock: Clock) -> None:
    catalog.commit([creation("orders")])
    read = catalog.latest_version()
    catalog.lease(read, 60)
    catalog.commit([properties(at="later")])
    assert catalog.thin([read]) == 0
    clock.forward(minutes=2)
    assert catalog.thin([read]) == 1


def test_metadata_files_of_versions_that_are_kept_are_named(catalog: Catalog) -> None:
    made = [catalog.commit([creation("orders")]).tables["silver", "orders"].metadata_location]
    for number in range(4):
        change = properties(at=str(number))
        made.append(catalog.commit([change]).tables["silver", "orders"].metadata_location)
    latest = catalog.latest_version()
    assert catalog.metadata_locations([latest - 3, latest]) == {made[-4]: False, made[-1]: True}
    assert catalog.metadata_locations([]) == {made[-1]: True}


def test_more_versions_than_one_transaction_takes_are_forgotten(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.catalog.history.THINNED_AT_ONCE", 3)
    catalog.commit([creation("orders")])
    for number in range(10):
        catalog.commit([properties(at=str(number))])
    everything = [version.number for version in catalog.versions()]
    assert catalog.thin(everything) == len(everything) - 1
    assert [version.number for version in catalog.versions()] == everything[-1:]
    assert list(catalog.metadata_locations(everything[-1:]).values()) == [True]
