"""``headrace history``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli import show

if TYPE_CHECKING:
    from rich.text import Text

    from headrace.lake.row_history import RowVersion

STYLES = {"create": "green", "copy": "cyan", "delete": "red", "truncate": "red", "copied again": "yellow"}


def history(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help="The table, with its schema outside public.")],
    key: Annotated[list[str], typer.Argument(help="The row's key: a value for each of its columns, in order, or column=value.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many versions to list: the last ones.")] = 100,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="A,B", help="Show only these columns, separated by commas.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array, oldest first.")] = False,
) -> None:
    """List every version of a row, oldest first: what was done to it, when it was committed, and by which transaction.

    It is read from bronze, so it begins with the table's first copy, whose rows are listed as copy.

    Example: headrace history sales.order_lines order_id=42 line=1
    """
    from headrace.cli.folder import project_of
    from headrace.errors import ProjectError
    from headrace.pipeline import history_of

    chosen = [name.strip() for name in columns.split(",") if name.strip()] if columns is not None else []
    state, found = history_of(project_of(context), table, key, limit=limit, columns=chosen)
    name = state.schema.table
    if not found.versions:
        raise ProjectError(
            f"bronze has no change of a row with this key in table {name}",
            remedy="Look whether the key is written as in the source; bronze begins with the table's first copy.",
        )
    if as_json:
        show.json_document([_document(version) for version in found.versions])
    else:
        _show(found.versions)
    if found.more:
        show.aside(f"There are earlier versions: --limit N lists more than {limit}.")
    if state.fault is not None and not state.fault.bronze_goes_on:
        show.aside(f"Table {name} is parked: its later changes are in headrace.quarantine. `headrace status` says why.")


def _document(version: RowVersion) -> dict[str, Any]:
    from headrace.position import Position

    return {
        "operation": version.operation,
        "before": version.before,
        "after": version.after,
        "unavailable": list(version.unavailable),
        "exact_text": list(version.exact),
        "key_changed": {"from": version.renamed[0], "to": version.renamed[1]} if version.renamed else None,
        "commit_time": version.commit_time.isoformat(timespec="microseconds"),
        "position": str(Position(version.epoch, version.commit_lsn)),
        "ordinal": version.ordinal,
        "transaction": version.xid or None,
    }


def _show(versions: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from headrace.position import Position

    table = Table(show_lines=True)
    for heading in ("committed at (UTC)", "operation", "row", "position", "transaction"):
        table.add_column(
            heading,
            justify="right" if heading == "transaction" else "left",
            overflow="fold",
            no_wrap=heading not in ("row", "operation"),
        )
    last: dict[str, Any] = {}
    for version in versions:
        table.add_row(
            f"{version.commit_time:%Y-%m-%d %H:%M:%S.%f}",
            Text(version.operation, style=STYLES.get(version.operation, "")),
            _changed(version, last),
            str(Position(version.epoch, version.commit_lsn)),
            str(version.xid or "–"),
        )
        last = {**last, **version.after} if version.after is not None else {}
    Console().print(table)


def _changed(version: RowVersion, last: dict[str, Any]) -> Text:
    """What is new in this version: all of the row where it begins, else the columns that differ from the version before."""
    from rich.text import Text

    lines = []
    if version.renamed is not None:
        old, new = (", ".join(f"{name}={value}" for name, value in key.items()) for key in version.renamed)
        lines.append(Text(f"key: {old} → {new}", style="bold"))
    if version.after is not None:
        earlier = {**last, **(version.before or {})} if version.operation == "update" else {}
        for name, value in version.after.items():
            if version.renamed is not None and name in version.renamed[0]:
                continue
            if name not in earlier:
                lines.append(Text(f"{name}: {_value(value)}"))
            elif earlier[name] != value:
                lines.append(Text(f"{name}: {_value(earlier[name])} → {_value(value)}"))
        for name in version.unavailable:
            if name not in earlier:
                lines.append(Text(f"{name}: unavailable (unchanged, so the source did not send it)", style="dim"))
        if not lines:
            lines.append(Text("nothing changed in these columns", style="dim"))
    elif version.before is not None:
        lines = [Text(f"{name}: {_value(value)}", style="dim") for name, value in version.before.items()]
    return Text("\n").join(lines)


def _value(value: Any) -> str:
    return "null" if value is None else str(value)
