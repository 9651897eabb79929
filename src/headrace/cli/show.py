"""How commands write: reports to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from headrace.errors import HeadraceError

STYLES = {"blocker": "bold red", "warning": "yellow", "note": "cyan"}


def json_document(document: Any) -> None:
    """Write one JSON document to standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")


def lines(*texts: str | Text) -> None:
    """Write lines to standard output as they are: nothing in them is markup, and none is broken where it is long."""
    console = Console(highlight=False, soft_wrap=True)
    for text in texts:
        console.print(text, markup=False)


def aside(*texts: str | Text) -> None:
    """Write lines to standard error: progress and advice, which a script does not read."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for text in texts:
        console.print(text, markup=False)


def error(failure: HeadraceError) -> None:
    """An error for its user: what is wrong, and on lines of its own what to do."""
    message = Text.assemble(("Error: ", "bold red"), failure.message)
    aside(message, *([Text.assemble(("To do: ", "bold"), failure.remedy)] if failure.remedy else []))


def found(items: Iterable[tuple[str, str, str]]) -> list[Text]:
    """Findings as blocks: severity and what was found on one line, the cure below it, unbroken so that it can be copied."""
    blocks = []
    for severity, text, cure in items:
        blocks.append(Text.assemble((f"{severity:8}", STYLES.get(severity, "")), text))
        if cure:
            blocks.append(Text(f"        → {cure}", style="green"))
    return blocks
