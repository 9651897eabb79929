"""``headrace query`` and ``headrace sql``: SQL over one version of the lake."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


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
    version: Annotated[str, typer.Option(help="The version to read: latest, a number, or an ISO time.")] = "latest",
    rows: Annotated[int, typer.Option(min=1, help="How many rows a table shows at most; the other formats have them all.")] = 200,
) -> None:
    """Ask the lake a question, over one version of all its tables.

    Tables are bronze.<table> (every change) and silver.<table> (current rows); <schema>__<table> outside schema public.

    Example: headrace query "SELECT status, count(*) FROM silver.orders GROUP BY ALL"
    """
    from headrace.cli.folder import project_of
    from headrace.errors import ProjectError
    from headrace.lake.ask import ask, write_answer
    from headrace.pipeline import open_reader

    with open_reader(project_of(context), version=version) as engine:
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
    version: Annotated[str, typer.Option(help="The version to read: latest, a number, or an ISO time.")] = "latest",
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
