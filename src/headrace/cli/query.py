"""``headrace query`` and ``headrace sql``: SQL over one version of the lake."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import duckdb

    from headrace.project import Project

VERSION = "The version to read: latest, a number, or an ISO time by the lake's clock."


class Form(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def query(
    context: typer.Context,
    sql: Annotated[str, typer.Argument(help="One SQL statement, in DuckDB's dialect.")],
    form: Annotated[
        Form, typer.Option("--format", "-f", help="How to write the answer; json is an array of objects.")
    ] = Form.TABLE,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead of standard output.")] = None,
    version: Annotated[str, typer.Option(help=VERSION)] = "latest",
    at: Annotated[
        str | None,
        typer.Option(
            metavar="MOMENT",
            help="Read the tables as of a moment of the source instead: an ISO time by its clock, or a position of its log.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows a table shows at most; the other formats have them all.")] = 200,
) -> None:
    """Ask the lake a question, over one version of all its tables.

    Tables are bronze.<table> (every change) and silver.<table> (current rows); <schema>__<table> outside schema public.

    --version is the lake as a reader saw it then. --at is the source as it was then: exactly the transactions that had committed,
    whenever they came into the lake; what no version has is computed from bronze, which is said.

    Example: headrace query "SELECT status, count(*) FROM silver.orders GROUP BY ALL"
    """
    from headrace.cli.folder import project_of
    from headrace.errors import ProjectError
    from headrace.lake.ask import ask, write_answer

    with _opened(project_of(context), sql, version=version, at=at) as engine:
        if form is Form.TABLE and output is None:
            answer = ask(engine, sql, limit=rows)
            if answer is not None:
                _show(answer.columns, answer.rows, more=answer.more)
            return
        form = Form.CSV if form is Form.TABLE else form
        if output is not None:
            try:
                with output.open("wb") as file:
                    write_answer(engine, sql, form=form.value, out=file)  # type: ignore[arg-type]
            except OSError as error:
                raise ProjectError(
                    f"the answer cannot be written to {output}: {error.strerror or error}",
                    remedy="Give --output a file in a folder that exists, may be written to, and has room.",
                ) from error
        else:
            write_answer(engine, sql, form=form.value, out=sys.stdout.buffer)  # type: ignore[arg-type]


@contextmanager
def _opened(project: Project, sql: str, *, version: str, at: str | None) -> Iterator[duckdb.DuckDBPyConnection]:
    from headrace.cli import show
    from headrace.errors import ProjectError
    from headrace.pipeline import open_past, open_reader

    if at is None:
        with open_reader(project, version=version) as engine:
            yield engine
        return
    if version != "latest":
        raise ProjectError("--at and --version are both given, and each says what to read", remedy="Give one of them.")
    with open_past(project, at, sql) as past:
        computed = [f"silver.{table.table.lake_name}" for table in past.tables if table.computed]
        if computed:
            show.aside(f"Computed from bronze, since no version is kept of exactly that moment: {', '.join(computed)}")
        yield past.connection


def _show(columns: object, rows: object, *, more: bool) -> None:
    console = Console()
    table = Table()
    for name in columns:  # type: ignore[attr-defined]
        table.add_column(str(name), overflow="fold")
    for row in rows:  # type: ignore[attr-defined]
        table.add_row(*["[dim]null[/]" if value is None else _text(value) for value in row])
    console.print(table)
    if more:
        console.print("[dim]… more rows: --rows N shows further ones, --format csv all.[/]")


def _text(value: object) -> str:
    from rich.markup import escape

    return escape(str(value))


def sql(
    context: typer.Context,
    version: Annotated[str, typer.Option(help=VERSION)] = "latest",
) -> None:
    """An interactive SQL shell over one version of the lake. `.refresh` moves on to the latest version, `.quit` leaves.

    Example: headrace sql
    """
    from headrace.cli.folder import project_of
    from headrace.errors import BadQuery, LakeUnavailable
    from headrace.lake.ask import ask
    from headrace.pipeline import open_reader

    project = project_of(context)
    console = Console()
    try:
        import readline  # noqa: F401  (editing and history of input(); not on every platform)
    except ImportError:
        console.print("[dim]no line editing on this platform[/]")
    console.print("SQL over silver.<table> and bronze.<table>; end a statement with ; — .tables, .refresh, .quit")
    while True:
        with open_reader(project, version=version) as engine:
            while (statement := _statement()) not in (".quit", ".refresh"):
                if statement == ".tables":
                    statement = "SELECT schema AS layer, name FROM (SHOW ALL TABLES) ORDER BY ALL"
                try:
                    answer = ask(engine, statement, limit=200)
                except (BadQuery, LakeUnavailable) as error:
                    console.print(f"[red]{_text(error.message)}[/]")
                    continue
                if answer is not None:
                    _show(answer.columns, answer.rows, more=answer.more)
            if statement == ".quit":
                return


def _statement() -> str:
    """The next statement or dot command; ``.quit`` at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = input("headrace> " if not lines else "     ...> ")
        except EOFError:
            return ".quit"
        except KeyboardInterrupt:
            lines = []
            continue
        if not lines and line.strip().startswith("."):
            return line.strip()
        lines.append(line)
        text = "\n".join(lines).strip()
        if text.endswith(";"):
            return text.rstrip(";")
