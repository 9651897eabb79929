"""``headrace verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli import show

if TYPE_CHECKING:
    from rich.console import Console

    from headrace.verify import Difference, Report, TableResult


def verify(
    context: typer.Context,
    tables: Annotated[list[str] | None, typer.Argument(help="Tables to compare; all without any.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many differing keys to name for each table.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Compare source and lake by content at one position of the source's log, while both go on.

    Ends with 0 when all tables are equal, with 8 when one differs; names the keys that do. `status` shows the proven position.

    Example: headrace verify public.orders
    """
    from rich.console import Console

    from headrace.cli.folder import project_of
    from headrace.errors import LakeUnavailable, SourceAndLakeDiffer
    from headrace.pipeline import verify_lake

    project = project_of(context)
    with Console(stderr=True).status("comparing source and lake") as status:
        report = verify_lake(project, tables or [], limit=limit, say=status.update)
    if as_json:
        show.json_document(document(report))
    else:
        show_report(Console(), report)
    if report.equal:
        return
    unequal = [result for result in report.tables if not result.equal]
    names = ", ".join(str(result.table) for result in unequal)
    if all(result.problem for result in unequal):
        raise LakeUnavailable(f"could not be compared: {names}", remedy="`headrace status` shows the state of each table.")
    if report.behind_bytes:
        raise SourceAndLakeDiffer(
            f"the lake is {report.behind_bytes:,} bytes of log behind {report.position}, and {names} differ there",
            remedy="Let `headrace run --until-caught-up` bring it up, then verify again: only then is a difference a fault.",
        )
    raise SourceAndLakeDiffer(
        f"source and lake differ at {report.position} in {names}",
        remedy="`headrace rebuild TABLE` makes silver anew from bronze; `headrace resync TABLE` copies the table again.",
    )


def show_report(console: Console, report: Report) -> None:
    """The comparison as a table, and below it the keys that differ."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"source and lake at {report.position}, version {report.version}", title_justify="left")
    for heading in ("table", "rows at source", "rows in lake", "content hash of both", "result"):
        table.add_column(heading, justify="right" if heading.startswith("rows") else "left")
    for result in report.tables:
        source, lake = result.source, result.lake
        table.add_row(
            str(result.table),
            f"{source.rows:,}" if source else "–",
            f"{lake.rows:,}" if lake else "–",
            _digest(result) if result.equal else "",
            _outcome(result),
        )
    console.print(table)
    for result in report.tables:
        if result.problem:
            console.print(Text(f"{result.table}: {result.problem}", style="yellow"))
        if result.note:
            console.print(Text(f"{result.table}: {result.note}"))
        for difference in result.differences:
            console.print(Text(f"{result.table} {_sentence(difference)}"))
        if result.more:
            console.print(Text(f"{result.table}: and further ones; --limit N names more"))


def _outcome(result: TableResult) -> Any:
    from rich.text import Text

    if result.equal:
        return Text("equal", style="bold green")
    return Text("not compared", style="yellow") if result.problem else Text("different", style="bold red")


def _digest(result: TableResult) -> str:
    return str(result.source)


def _sentence(difference: Difference) -> str:
    key = ", ".join(f"{name}={value}" for name, value in difference.key.items())
    match difference.kind:
        case "missing":
            return f"({key}) is missing in the lake"
        case "extra":
            return f"({key}) is in the lake but not in the source"
        case "repeated":
            return f"({key}) is in the lake {difference.lake_rows} times, in the source {difference.source_rows}"
        case _:
            return f"({key}) differs in {', '.join(difference.columns)}"


def document(report: Report) -> dict[str, Any]:
    """The report as it stands in JSON."""
    return {
        "equal": report.equal,
        "position": str(report.position),
        "version": report.version,
        "behind_bytes": report.behind_bytes,
        "tables": [
            {
                "table": str(result.table),
                "equal": result.equal,
                "source_rows": result.source.rows if result.source else None,
                "lake_rows": result.lake.rows if result.lake else None,
                "problem": result.problem or None,
                "differences": [
                    {
                        "kind": one.kind,
                        "key": dict(one.key),
                        "columns": list(one.columns),
                        "source_rows": one.source_rows,
                        "lake_rows": one.lake_rows,
                    }
                    for one in result.differences
                ],
                "more": result.more,
            }
            for result in report.tables
        ],
    }
