from __future__ import annotations

import stat
from pathlib import Path

import pytest

from headrace.errors import ProjectError
from headrace.project import Project

SMALLEST = """\
pipeline: shop
source:
  url: postgresql://app@db.example/shop
  tables: [users]
"""


def load(folder: Path, text: str, **environ: str) -> Project:
    (folder / "headrace.yaml").write_text(text)
    return Project.load(folder, environ=environ)


def refusal(folder: Path, text: str, **environ: str) -> ProjectError:
    with pytest.raises(ProjectError) as raised:
        load(folder, text, **environ)
    return raised.value


# --- values ------------------------------------------------------------------------------------------------------------------


def test_the_smallest_file_gives_a_whole_project(tmp_path: Path) -> None:
    project = load(tmp_path, SMALLEST)
    assert project.pipeline == "shop"
    assert project.source.tables == ("users",)
    assert project.source.heartbeat == 10.0
    assert project.source.capture.chunk_bytes == 32 << 20
    assert project.source.copying.connections == 2
    assert project.lake.commit.rows == 500_000
    assert (project.slot, project.publication) == ("headrace_shop", "headrace_shop")
    assert project.appends_publication == "headrace_shop_appends"
    assert project.warehouse == tmp_path / "lake"
    assert project.state == tmp_path / ".headrace"


def test_durations_and_sizes_are_written_as_people_do(tmp_path: Path) -> None:
    project = load(tmp_path, SMALLEST + "  heartbeat: 1m30s\n  capture: {call_bytes: 1GB}\n  copy: {chunk_bytes: 8MB}\n")
    assert project.source.heartbeat == 90.0
    assert project.source.capture.call_bytes == 1 << 30
    assert project.source.copying.chunk_bytes == 8 << 20


def test_an_absolute_warehouse_stays_where_it_is(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST + "lake: {warehouse: /data/lake}\n").warehouse == Path("/data/lake")


def test_a_project_cannot_be_changed(tmp_path: Path) -> None:
    project = load(tmp_path, SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        project.lake.commit.rows = 1


def test_an_empty_section_has_its_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST + "lake:\n  # nothing yet\n").lake.commit.rows == 500_000


def test_a_single_table_needs_no_list(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST.replace("[users]", "sales.*, users")).source.tables == ("sales.*", "users")


# --- references and overrides --------------------------------------------------------------------------------------------------


def test_a_variable_of_the_environment_is_put_in(tmp_path: Path) -> None:
    text = SMALLEST.replace("shop\nsource", "${NAME}\nsource").replace("[users]", '["${T:-orders}", "$${T}"]')
    project = load(tmp_path, text, NAME="bakery")
    assert project.pipeline == "bakery"
    assert project.source.tables == ("orders", "${T}")


def test_a_missing_variable_is_named_with_its_line(tmp_path: Path) -> None:
    error = refusal(tmp_path, SMALLEST + "  heartbeat: ${BEAT}\n")
    assert (
        f"{tmp_path}/headrace.yaml:5: source.heartbeat refers to the environment variable BEAT, which is not set" == error.message
    )
    assert "export BEAT" in error.remedy


def test_a_secrets_missing_variable_is_an_error_only_when_it_is_needed(tmp_path: Path) -> None:
    project = load(tmp_path, SMALLEST.replace("postgresql://app@db.example/shop", "${DATABASE_URL}"))
    with pytest.raises(ProjectError, match="environment variable DATABASE_URL, which is not set"):
        project.source.url.reveal()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    project = load(
        tmp_path,
        SMALLEST,
        HEADRACE__PIPELINE="bakery",
        HEADRACE__LAKE__COMMIT__ROWS="7",
        HEADRACE__SOURCE__TABLES="a, b.*",
        HEADRACE__SOURCE__COPY__CONNECTIONS="3",
        HEADRACE__SOURCE__PASSWORD="0123",
    )
    assert project.pipeline == "bakery"
    assert project.lake.commit.rows == 7
    assert project.source.tables == ("a", "b.*")
    assert project.source.copying.connections == 3
    assert project.source.password is not None
    assert project.source.password.reveal() == "0123"


def test_an_override_of_no_setting_names_the_variable(tmp_path: Path) -> None:
    error = refusal(tmp_path, SMALLEST, HEADRACE__LAKE__COMIT__ROWS="7")
    assert error.message == "environment variable HEADRACE__LAKE__COMIT__ROWS: lake.comit is not a setting; did you mean commit?"


def test_an_override_with_a_wrong_value_names_the_variable_and_not_the_value(tmp_path: Path) -> None:
    error = refusal(tmp_path, SMALLEST, HEADRACE__LAKE__COMMIT__ROWS="hunter2")
    assert error.message.startswith(
        "environment variable HEADRACE__LAKE__COMMIT__ROWS: lake.commit.rows is a text; expected a whole"
    )
    assert "hunter2" not in str(error)


# --- secrets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    ["${PASS}", "{env: PASS}", "{file: secret.txt}", "hunter2", '"hunter2"'],
    ids=["${}", "env", "file", "text", "quoted"],
)
def test_a_secret_comes_from_where_the_file_says_and_is_never_shown(tmp_path: Path, reference: str) -> None:
    (tmp_path / "secret.txt").write_text("hunter2\n")
    project = load(tmp_path, SMALLEST + f"  password: {reference}\n", PASS="hunter2")
    assert project.source.password is not None
    assert project.source.password.reveal() == "hunter2"
    assert "hunter2" not in repr(project)
    assert "hunter2" not in f"{project} {project.source.password} {project.source.password!r} {project.source.model_dump()}"


@pytest.mark.parametrize("wrong", ["[hunter2]", "{enw: hunter2}", "5", "{env: A, file: hunter2}", "''", "{env: 5}"])
def test_a_secret_in_a_wrong_form_is_refused_without_showing_it(tmp_path: Path, wrong: str) -> None:
    error = refusal(tmp_path, SMALLEST + f"  password: {wrong}\n")
    assert "headrace.yaml:5: source.password is " in error.message
    assert "expected text, {env: VARIABLE} or {file: PATH}" in error.message
    assert "hunter2" not in str(error)


def test_a_missing_secret_file_is_named_when_it_is_needed(tmp_path: Path) -> None:
    project = load(tmp_path, SMALLEST + "  password: {file: nothing.txt}\n")
    assert project.source.password is not None
    with pytest.raises(ProjectError, match=r"nothing\.txt cannot be read: No such file"):
        project.source.password.reveal()


def test_the_catalogs_token_is_made_once_and_only_this_user_can_read_it(tmp_path: Path) -> None:
    project = load(tmp_path, SMALLEST)
    token = project.catalog_token().reveal()
    assert len(token) >= 32
    assert load(tmp_path, SMALLEST).catalog_token().reveal() == token
    kept = tmp_path / ".headrace" / "catalog-token"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in kept.parent.iterdir()) == [".gitignore", "catalog-token"]


def test_a_token_of_the_project_is_used_as_it_is(tmp_path: Path) -> None:
    project = load(tmp_path, SMALLEST + "lake: {catalog: {token: {env: TOKEN}}}\n", TOKEN="abc")
    assert project.catalog_token().reveal() == "abc"
    assert not project.state.exists()


# --- mistakes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("  tabels: []\n", "5: source.tabels is not a setting; did you mean tables?"),
        ("  rows: 5\n", "5: source.rows is not a setting; did you mean lake.commit.rows?"),
        ("  heartbeat: 10\n", "5: source.heartbeat is 10; expected a duration such as 10s, 500ms or 1h30m"),
        ("  heartbeat: 3 parsecs\n", "5: source.heartbeat is '3 parsecs'; expected a duration"),
        ("  capture:\n    call_bytes: lots\n", "6: source.capture.call_bytes is 'lots'; expected a size such as 256MB"),
        (
            "  capture:\n    call_bytes: 0\n",
            "6: source.capture.call_bytes is 0; expected a size such as 256MB or 1GB, more than 0B",
        ),
        ("  heartbeat: 0\n", "5: source.heartbeat is 0; expected a duration such as 10s, 500ms or 1h30m, more than 0"),
        ("  copy: {connections: 0}\n", "5: source.copy.connections is 0; expected a whole number, at least 1, at most 32"),
        ("  copy: {connections: true}\n", "5: source.copy.connections is true; expected a whole number"),
        ("  copy: {connections: 2.5}\n", "5: source.copy.connections is 2.5; expected a whole number"),
        ("  copy: 5\n", "5: source.copy is 5; expected a section"),
        ("  slot: Shop-1\n", "5: source.slot is 'Shop-1'; expected a name of lower-case letters"),
        ("  exclude: {a: b}\n", "5: source.exclude is a section; expected a list of names"),
        ("  exclude: [a, 5]\n", "5: source.exclude.1 is 5; expected a list of names"),
        (
            "lake:\n  catalog:\n    port: high\n",
            "7: lake.catalog.port is 'high'; expected a whole number, at least 1, at most 65535",
        ),
        ("lake:\n  warehouse: []\n", "6: lake.warehouse is an empty list; expected a path"),
        ("lake:\n  name: My Lake\n", "6: lake.name is 'My Lake'; expected a name of lower-case letters"),
    ],
)
def test_a_mistake_is_reported_with_its_line_what_was_found_and_what_was_expected(
    tmp_path: Path, added: str, message: str
) -> None:
    error = refusal(tmp_path, SMALLEST + added)
    assert error.message.startswith(f"{tmp_path}/headrace.yaml:{message}")


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    error = refusal(tmp_path, "pipeline: Shop\nsource:\n  tables: []\nlaek: {}\n")
    assert error.message.splitlines() == [
        f"{tmp_path}/headrace.yaml:1: pipeline is 'Shop'; expected a name of lower-case letters, digits and underscores, "
        "at most 40 characters",
        f"{tmp_path}/headrace.yaml:2: source.url is missing; expected text, {{env: VARIABLE}} or {{file: PATH}}",
        f"{tmp_path}/headrace.yaml:3: source.tables is an empty list; expected a list of names",
        f"{tmp_path}/headrace.yaml:4: laek is not a setting; did you mean lake?",
    ]
    assert "Known here: lake, pipeline, source" in error.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipeline: [", "not valid YAML"),
        ("pipeline: a\npipeline: b\n", "headrace.yaml:2: not valid YAML: found duplicate key"),
        ("just text", "expected keys and values (pipeline, source, lake), found 'just text'"),
        ("", "expected keys and values (pipeline, source, lake), found empty"),
        ("- a\n", "found a list"),
        ("pipeline: a\n\tsource: b\n", "headrace.yaml:2: not valid YAML"),
        ("pipeline: &a a\nsource: *b\n", "headrace.yaml:2: not valid YAML: found undefined alias"),
        ("pipeline: a\n\0", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_project_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text).message


def test_a_broken_line_with_a_secret_is_not_quoted(tmp_path: Path) -> None:
    error = refusal(tmp_path, "source:\n  password: 'hunter2\n  password: hunter2: x\n")
    assert "hunter2" not in str(error)


def test_a_missing_project_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ProjectError) as raised:
        Project.load(tmp_path)
    assert "headrace init" in raised.value.remedy


def test_a_tagged_value_makes_no_object(tmp_path: Path) -> None:
    error = refusal(tmp_path, SMALLEST + "  slot: !!python/object/apply:os.system [echo]\n")
    assert "headrace.yaml:5: source.slot has the YAML tag" in error.message
