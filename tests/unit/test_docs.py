"""The documentation holds together: links lead somewhere, every page is reached, and what it names exists in the code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from headrace import errors, failpoint
from headrace.cli.app import app, main
from headrace.cli.reference import commands
from headrace.lake import silver
from headrace.project.settings import all_settings
from headrace.source.postgres import evolution

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
WrongUsage = typer.BadParameter.__bases__[0]
OPTIONS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    | {"--help", "-h", "-C"}
    for name, command in commands()
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def slugs(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    for target, anchor in LINK.findall(prose(page)):
        yield ((page.parent / target).resolve() if target else page), anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{target} is linked, and is not there"
        assert not anchor or anchor in slugs(target), f"{name_of(target)} has no heading #{anchor}"


def test_every_page_is_reached_from_the_readme() -> None:
    found, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        found.add(page)
        new |= {target for target, _ in links(page) if target.suffix == ".md"} - found
    assert set(PAGES) - found == set()


def test_the_readme_begins_with_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:20])
    assert re.search(r"^\./run\.sh demo\b", first_screen, re.MULTILINE)
    assert re.search(r"^\./run\.sh test\b", first_screen, re.MULTILINE)


def shown_commands(page: Path) -> Iterator[tuple[str, bool]]:
    """What a page tells its reader to type, `headrace …`; and whether it is a whole line, else it may only name the command."""
    text = page.read_text()
    for _, language, block in FENCE.findall(text):
        if language in ("", "console", "ini"):
            lines = re.findall(r"^(?:\$ |\.\/run\.sh |ExecStart=/\S*/)?(headrace(?: .*)?)$", block, re.MULTILINE)
            yield from ((re.split(r"\s+(?:#|&&|\|)\s?", line)[0], True) for line in lines)
    yield from ((shown, False) for shown in re.findall(r"`(headrace [^`…]+)`", prose(page).replace("\n", " ")))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_shown_parses(page: Path) -> None:
    for shown, whole in shown_commands(page):
        command, words = typer.main.get_command(app), shlex.split(shown)[1:]
        try:
            context = command.make_context("headrace", words)
            while isinstance(command, typer.core.TyperGroup) and (words := [*context._protected_args, *context.args]):
                name, found, words = command.resolve_command(context, words)
                assert found is not None, f"{shown}: no such command"
                command = found
                context = command.make_context(name, words, parent=context)
        except typer.Exit:
            continue  # --version, which ends by itself
        except WrongUsage as error:
            missing = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError")
            assert missing and not whole, f"{shown}: {error}"


def test_every_command_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in OPTIONS:
        with pytest.raises(SystemExit) as ended:
            main([*name.split()[1:], "--help"])
        assert ended.value.code == 0
        assert "Usage: " in capsys.readouterr().out


def test_every_option_is_on_the_page_of_commands() -> None:
    page = (ROOT / "docs/reference/commands.md").read_text()
    sections = dict(zip(*[iter(re.split(r"^## `(.*)`$", page, flags=re.MULTILINE)[1:])] * 2, strict=True))
    for name, options in OPTIONS.items():
        for option in options - {"--help", "-h", "-C"}:
            if option.startswith("-"):
                assert re.search(rf"`(?:[^`]*, )?{option}(?:, [^`]*)?`", sections[name]), f"{name} {option}"


def test_every_setting_is_on_its_page() -> None:
    page = (ROOT / "docs/reference/project-file.md").read_text()
    for path, _ in all_settings():
        section, _, key = path.rpartition(".")
        heading = f"## `{section}`" if section else "## The file"
        assert f"| `{key}` |" in page.split(f"\n{heading}\n")[1].split("\n## ")[0], path


def test_every_error_kind_is_explained_with_its_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HeadraceError)]
    page = (ROOT / "docs/reference/exit-codes.md").read_text()
    overview = next(command.help for name, command in commands() if name == "headrace")
    for kind in kinds:
        assert re.search(rf"^\| {kind.exit_code} \|[^|]*`{kind.__name__}`", page, re.MULTILINE)
        assert re.search(rf"\b{kind.exit_code} \w", overview), f"headrace --help does not say what {kind.exit_code} means"


def test_every_failpoint_is_explained() -> None:
    page = (ROOT / "docs/explanation/testing.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \|", page.split("## Failpoints")[1].split("\n## ")[0], re.MULTILINE) == list(
        failpoint.NAMES
    )


def test_every_environment_variable_of_the_tests_is_explained() -> None:
    page = (ROOT / "docs/explanation/testing.md").read_text()
    sources = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("src/headrace/testing/*.py"), ROOT / "src/headrace/failpoint.py"]
    read = {name for path in sources for name in re.findall(r"environ(?:\.get\(|\[)\"(HEADRACE_\w+)\"", path.read_text())} | set(
        re.findall(r"\$\{(HEADRACE_\w+)", (ROOT / "run.sh").read_text())
    )
    assert "HEADRACE_KILLS" in read
    for name in read:
        assert f"`{name}`" in page, name


def test_every_page_is_on_the_page_of_pages() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {target for target, _ in links(index)}
    assert {page for page in PAGES if page.parent != ROOT} - listed == {index}


def keys_of(value: object, above: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield f"{above}{key}"
            if set(map(str, below if isinstance(below, dict) else ())) not in ({"env"}, {"file"}):
                yield from keys_of(below, f"{above}{key}.")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_named_exists(page: Path) -> None:
    text = page.read_text()
    settings = {path for path, _ in all_settings()}
    known = settings | {path.rpartition(".")[0] for path in settings}
    named = set(re.findall(r"`((?:source|lake)(?:\.[a-z_]+)+)`", text))
    named |= {name.lower().replace("__", ".") for name in re.findall(r"\bHEADRACE__([A-Z_]+)=", text)}
    for _, language, block in FENCE.findall(text):
        if language == "yaml":
            named |= set(keys_of(YAML(typ="safe").load(block)))
    fields = re.findall(r'"(\w+)":', (ROOT / "src/headrace/status.py").read_text())  # of `status --json`
    assert named - {"section.key", *(f"source.{field}" for field in fields)} <= known


def messages_shown() -> Iterator[str]:
    """The first column of the tables of messages: what errors say, where `…` stands for what differs."""
    page = (ROOT / "docs/howto/troubleshooting.md").read_text()
    for table in re.findall(r"^\| (?:message|reason)\b.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE):
        for row in table.splitlines():
            yield from re.findall(r"`([^`]+)`", row.split(" | ")[0])


def test_every_message_on_the_page_of_troubles_is_one_of_the_code() -> None:
    code = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    joined = re.sub(r"\"\s*f?\"", "", code)  # a text that is written in several parts
    shown = list(messages_shown())
    assert len(shown) > 80
    for message in shown:
        for piece in filter(None, re.split("…", message)):
            assert piece.strip() in joined, message


def test_every_error_kind_has_its_part_of_the_page_of_troubles() -> None:
    headings = re.findall(r"^## .*\((\d+)\)$", (ROOT / "docs/howto/troubleshooting.md").read_text(), re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HeadraceError)]
    assert {int(code) for code in headings} == {kind.exit_code for kind in kinds}


def test_every_reason_to_park_a_table_is_on_the_page_of_troubles() -> None:
    shown = "\n".join(messages_shown())
    assert evolution.RECREATED in shown
    assert silver.NO_OLD_ROW in shown


def test_the_changelog_names_every_command() -> None:
    text = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    for name in OPTIONS.keys() - {"headrace", "headrace catalog"}:
        assert re.search(rf"`(?:headrace )?{name.removeprefix('headrace ')}`", text), name


FOLDERS = ("docs", "src", "tests", "benchmarks", "requirements", ".ci")
HOSTS = {
    "host",
    "127.0.0.1",
    "localhost",
    "db.example.com",
    "db.example",
    "semver.org",
    "hypothesis.readthedocs.io",
    "maven.apache.org",
}
"""The hosts that a page, a requirement or a script may name; a mirror of packages is none."""


def kept_files() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".sh"))
    for folder in FOLDERS:
        suffixes = (".md", ".py", ".sh", ".sql", ".toml", ".txt", ".xml", ".yaml", "")
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in suffixes)


def test_no_file_names_a_place_of_one_machine() -> None:
    place = re.compile(r"(?<![\w.}])/(?:root|work|home|Users)/\w")
    for path in kept_files():
        assert not place.search(path.read_text()), f"{name_of(path)} names a folder of one machine"


def test_no_file_names_a_host_that_is_not_ours_to_name() -> None:
    for path in [*PAGES, *(path for path in kept_files() if path.suffix in (".toml", ".txt", ".xml", ".sh"))]:
        hosts = set(re.findall(r"\b\w+://(?:[^\s/@\"`]*@)?([A-Za-z0-9.-]*[A-Za-z0-9])", path.read_text()))
        assert hosts <= HOSTS, f"{name_of(path)} names {hosts - HOSTS}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_are_written_for_users(page: Path) -> None:
    text = page.read_text()
    work = (
        r"\bissues? #?\d|(?<![\w&(])#\d+\b|\b(?:this|last|next|previous|working) session\b|\b(?:sub)?agents?\b|\bTODO\b|\bFIXME\b"
    )
    found = re.search(work, text, re.IGNORECASE)
    assert not found, f"{found and found[0]!r} is about how it was made"
