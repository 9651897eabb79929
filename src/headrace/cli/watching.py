"""What a run shows while it goes on: a live table on a terminal, lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headrace.events import CaughtUp, Committed, Copying, Event, Parked, Reading, Retrying, Said
from headrace.schema import TableId


class Watcher(Protocol):
    """A context that takes a run's events, from any of its threads."""

    def __call__(self, event: Event, /) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def watcher(console: Console, *, as_json: bool, quiet: bool) -> Watcher:
    if as_json:
        return JsonLines(console)
    if quiet:
        return Lines(console, only_trouble=True)
    return LiveTable(console) if console.is_terminal else Lines(console)


class _Plain:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class JsonLines(_Plain):
    """One JSON object a line: ``{"event": "committed", "version": 12, …}``."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Event) -> None:
        self._console.out(json.dumps(as_document(event)), highlight=False)


class Lines(_Plain):
    """One line for what happens; commits and progress are summed up every few seconds."""

    EVERY = 5.0

    def __init__(self, console: Console, *, only_trouble: bool = False) -> None:
        self._console = console
        self._only_trouble = only_trouble
        self._rows = 0
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        trouble = isinstance(event, Parked | Retrying)
        if self._only_trouble and not trouble:
            return
        if isinstance(event, Committed):
            self._rows += sum(event.rows.values())
            if time.monotonic() - self._last < self.EVERY:
                return
            text = f"{sentence(event)}; {self._rows:,} changes since the last line"
            self._rows, self._last = 0, time.monotonic()
        elif isinstance(event, Copying) and not event.finished:
            if time.monotonic() - self._last < self.EVERY:
                return
            text, self._last = sentence(event), time.monotonic()
        elif isinstance(event, CaughtUp):
            return
        else:
            text = sentence(event)
        self._console.out(f"{datetime.now(UTC):%H:%M:%S} {text}", highlight=False)


@dataclass
class _Row:
    doing: str = "waiting"
    rows: int = 0
    of: int | None = None
    began: float = 0.0
    recent: float = 0.0


class LiveTable:
    """A table that is redrawn in place: per table what it does, rows, rate; below it position, lag and the last message."""

    def __init__(self, console: Console) -> None:
        self._rows: dict[TableId, _Row] = {}
        self._last: Committed | None = None
        self._caught_up = False
        self._message = ""
        self._reading = ""
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case Copying():
                row = self._rows.setdefault(event.table, _Row(began=now))
                row.doing, row.rows, row.of = ("copied" if event.finished else "copying"), event.rows, event.estimated_rows
            case Committed():
                elapsed = max(now - (self._seen if self._last else now), 1e-3)
                for table, changes in event.rows.items():
                    row = self._rows.setdefault(table, _Row(began=now))
                    if row.doing != "following":
                        row.doing, row.began = "following", now
                    else:
                        row.rows += changes
                    row.recent = changes / elapsed if self._last else 0.0
                self._last, self._seen, self._caught_up = event, now, event.lag_bytes == 0
            case CaughtUp():
                self._caught_up = True
            case Reading():
                self._reading = READERS[event.reader]
            case Parked():
                self._rows.setdefault(event.table, _Row()).doing = "parked"
                self._message = sentence(event)
            case _:
                self._message = sentence(event)

    _seen = 0.0

    def _draw(self) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for heading in ("table", "state", "rows", "changes/s"):
            table.add_column(heading, justify="left" if heading in ("table", "state") else "right")
        for name, row in sorted(self._rows.items()):
            rate = row.rows / max(time.monotonic() - row.began, 1e-3) if row.doing == "copying" else row.recent
            share = f" of ~{row.of:,}" if row.of and row.doing == "copying" else ""
            style = {"parked": "red", "copying": "yellow"}.get(row.doing, "green")
            table.add_row(str(name), Text(row.doing, style=style), f"{row.rows:,}{share}", f"{rate:,.0f}" if rate else "")
        lines: list[RenderableType] = [table]
        if self._last is not None:
            behind = "caught up" if self._caught_up else f"{size(self._last.lag_bytes)} behind{lag_text(self._last)}"
            reading = f" · read {self._reading}" if self._reading else ""
            lines.append(Text(f"version {self._last.version} · position {self._last.position} · {behind}{reading}"))
        if self._message:
            lines.append(Text(self._message, style="yellow"))
        return Group(*lines)


READERS = {"bulk": "in bulk", "stream": "as a stream"}


def lag_text(event: Committed) -> str:
    """``, 3 s`` since the last source transaction in the commit; empty when nothing is behind it."""
    if event.commit_time is None or event.lag_bytes == 0:
        return ""
    return f", {max((datetime.now(UTC) - event.commit_time).total_seconds(), 0):.0f} s"


def size(amount: float) -> str:
    """Bytes as people read them: ``12 kB``, ``3.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError


def sentence(event: Event) -> str:
    match event:
        case Said():
            return event.text
        case Copying(finished=True):
            return f"{event.table}: {event.rows:,} rows copied"
        case Copying():
            return f"{event.table}: {event.rows:,} rows read" + (
                f" of about {event.estimated_rows:,}" if event.estimated_rows else ""
            )
        case Reading():
            return f"reading the log {READERS[event.reader]}: {event.reason}"
        case Committed():
            rows = sum(event.rows.values())
            return f"version {event.version} at {event.position}: {rows:,} changes, {size(event.lag_bytes)} behind"
        case CaughtUp():
            return f"caught up at {event.position}"
        case Parked():
            return f"{event.table} is parked: {event.fault.reason}. {event.fault.remedy}"
        case Retrying():
            return f"{event.reason}; trying again in {event.seconds:g} s"


def as_document(event: Event) -> dict[str, object]:
    """The event as it stands in `run --json`."""
    match event:
        case Said():
            return {"event": "said", "text": event.text}
        case Copying():
            return {
                "event": "copying",
                "table": str(event.table),
                "rows": event.rows,
                "estimated_rows": event.estimated_rows,
                "finished": event.finished,
            }
        case Reading():
            return {"event": "reading", "reader": event.reader, "reason": event.reason}
        case Committed():
            return {
                "event": "committed",
                "version": event.version,
                "position": str(event.position),
                "rows": {str(table): rows for table, rows in event.rows.items()},
                "seconds": round(event.seconds, 4),
                "commit_time": event.commit_time.isoformat() if event.commit_time else None,
                "lag_bytes": event.lag_bytes,
            }
        case CaughtUp():
            return {"event": "caught up", "position": str(event.position)}
        case Parked():
            return {"event": "parked", "table": str(event.table), "reason": event.fault.reason, "remedy": event.fault.remedy}
        case Retrying():
            return {"event": "retrying", "reason": event.reason, "seconds": event.seconds}
