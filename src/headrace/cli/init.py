"""``headrace init``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import show
from headrace.errors import ProjectError, SourceNotReady

PASSWORD_FILE = "source-password"
DEFAULT_SOURCE = "DATABASE_URL"


def init(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The project's folder, made if missing; by default -C's.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="URL", help="postgresql://user@host:port/database, or '${VARIABLE}', by default ${DATABASE_URL}."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The pipeline's name; by default the database's.")] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="A table or pattern to follow; can be repeated. By default every table there is now.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of text.")] = False,
) -> None:
    """Look into a database, write a commented headrace.yaml with its tables, say what has to be changed there.

    A password in the URL goes to .headrace/source-password, readable by you only, never into headrace.yaml. Nothing is changed at
    the source, and an existing headrace.yaml is never overwritten.

    Example: headrace init --source postgresql://me@db.example/shop shop
    """
    from headrace.cli.check import as_text, document, examine
    from headrace.project import FILE_NAME, STATE_FOLDER, Project
    from headrace.project.reference import commented_file, quoted
    from headrace.source.postgres.connect import Connector, database_of, split_password

    home = (folder if folder is not None else Path(context.obj)).absolute()
    path = home / FILE_NAME
    if path.exists():
        raise ProjectError(f"{path} exists already; it was not changed", remedy="Edit it, or name another folder.")
    if source is None:
        if not os.environ.get(DEFAULT_SOURCE):
            raise ProjectError("no source was given", remedy="headrace init --source postgresql://user@host:port/database")
        source = f"${{{DEFAULT_SOURCE}}}"
    url = _resolved(source)
    connector = Connector(url, application="headrace/init")
    tables = table or _tables_of(connector)
    shown_url, password = (source, None) if "${" in source else split_password(source)
    text = commented_file(
        pipeline=name or _pipeline_name(database_of(url)),
        url=quoted(source if "${" in source else shown_url.replace("$", "$$")),
        password=f"{{file: {STATE_FOLDER}/{PASSWORD_FILE}}}" if password is not None else None,
        tables=[entry.replace("$", "$$") for entry in tables],
    )
    kept = home / STATE_FOLDER / PASSWORD_FILE
    _create(path, text, secret=(kept, password) if password is not None else None)
    project = Project.load(home)
    report = examine(project, connector)
    if as_json:
        show.json_document({"file": str(path), "pipeline": project.pipeline, "tables": list(tables), **document(report)})
        return
    show.lines(f"{path} was written: pipeline {project.pipeline}, {len(tables)} table{'' if len(tables) == 1 else 's'}.")
    if password is not None:
        show.lines(f"Its password is in {kept}, readable by you only; source.password can name a variable instead.")
    to_change = as_text(report, notes=False)
    if to_change:
        show.lines("", "At the source:", *to_change)
    where = "" if home == Path.cwd() else f" -C {_shown(home)}"
    show.lines("", f"Next: `headrace{where} {'run' if report.ready else 'check'}`")


def _resolved(source: str) -> str:
    """The URL with its ``${VARIABLE}`` references put in. Raises ProjectError for one that is not set."""
    from headrace.project.secrets import missing_variable

    def value(reference: re.Match[str]) -> str:
        found = os.environ.get(reference[1])
        if not found:
            raise missing_variable(reference[1], where="--source")
        return found

    return re.sub(r"\$\{(\w+)\}", value, source)


def _tables_of(connector: object) -> list[str]:
    """Every table that can be captured, by name. Raises SourceNotReady when there is none."""
    from headrace.source.postgres.connect import Connector
    from headrace.source.postgres.relations import survey

    assert isinstance(connector, Connector)
    with connector.connect() as connection:
        found = survey(connection, ["*.*"])
    if not found.relations:
        left_out = "".join(f"; {table}: {reason}" for table, reason in found.left_out.items())
        raise SourceNotReady(
            f"the source ({connector.target}) has no table that can be captured{left_out}",
            remedy="Check that --source names the right database, or say what to follow once it is there: --table 'public.*'",
        )
    return [str(relation.table) for relation in found.relations]


def _pipeline_name(database: str) -> str:
    name = re.sub(r"[^a-z0-9_]+", "_", database.lower()).strip("_")[:40]
    return name if re.match(r"[a-z_]", name) else f"p_{name}"[:40] if name else "pipeline"


def _create(path: Path, text: str, *, secret: tuple[Path, str] | None) -> None:
    from headrace.project.secrets import write_secret

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if secret is not None:
            write_secret(*secret)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ProjectError(f"{path} exists already; it was not changed", remedy="Edit it, or name another folder.") from None
    except OSError as error:
        raise ProjectError(f"{path} cannot be written: {error.strerror}", remedy="Name a folder that you may write in.") from None


def _shown(home: Path) -> str:
    """The folder as its user would write it."""
    try:
        return str(home.relative_to(Path.cwd()))
    except ValueError:
        return str(home)
