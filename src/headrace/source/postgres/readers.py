"""What both readers of a slot hand on, and which of them should read now.

In bulk, PostgreSQL decodes a piece of log by one call of a function, which is fast but costs every time what lies between the
slot's restart position and the piece. As a stream it decodes each record once, and sends it at once, message by message.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import pyarrow as pa

from headrace.source.postgres.connect import Connector, quoted

Reader = Literal["bulk", "stream"]

BULK_ABOVE = 64 << 20
"""A stream that is less behind than this is left to catch up."""
STREAM_BELOW = 16 << 20
CATCH_UP_SECONDS = 5.0
"""What a stream may take to catch up, at its own rate, before reading in bulk is worth it."""
PATIENCE_SECONDS = 2.0
RATE_SECONDS = 5.0
REPEATED = 4
"""Reading in bulk is not worth it where a call has to decode so many times what it gives: an open transaction holds the slot's
restart position back.
"""


@dataclass(frozen=True, kw_only=True)
class SlotReading:
    """What a reader reads: the messages of some publications from a slot, from the LSN ``position`` on.

    ``decoding_memory``: the source's ``logical_decoding_work_mem`` for the reader's session; None leaves the server's.
    """

    connector: Connector
    slot: str
    publications: tuple[str, ...]
    position: int
    chunk_bytes: int
    decoding_memory: str | None

    @property
    def publication_names(self) -> str:
        """pgoutput's option of that name, as a literal."""
        return quoted(",".join('"' + name.replace('"', '""') + '"' for name in self.publications))


@dataclass(frozen=True)
class Chunk:
    """Consecutive messages: columns ``lsn`` (``pg_lsn`` or int64) and ``data`` (binary)."""

    messages: pa.RecordBatch


@dataclass(frozen=True)
class Reached:
    """Every transaction that committed before ``lsn`` has been handed on."""

    lsn: int


@dataclass(frozen=True, kw_only=True)
class LogState:
    """LSNs: how far the log has been handed on, where it ends, and from where the slot has to decode."""

    position: int
    end: int
    restart: int

    @property
    def lag(self) -> int:
        """Bytes."""
        return max(0, self.end - self.position)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """``reason`` in words, for `status`."""

    reader: Reader
    reason: str


class ReaderChoice:
    """Says which reader should read, from what it is shown of the log now and then. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self.now: Choice | None = None
        self._seen: deque[tuple[float, int]] = deque()
        self._behind_since: float | None = None

    def choose(self, log: LogState, at: float) -> Choice:
        """The choice for now; the same object as long as it stays."""
        if self.now is None:
            self._start(log, at)
        elif self.now.reader == "stream":
            self._watch_stream(log, at)
        elif log.lag < STREAM_BELOW:
            self._set("stream", f"caught up to within {_size(log.lag)}", at, log)
        elif not _worth_bulk(log):
            self._set("stream", "an open transaction would make every call in bulk decode the log again", at, log)
        assert self.now is not None
        return self.now

    def _start(self, log: LogState, at: float) -> None:
        if log.lag > BULK_ABOVE and _worth_bulk(log):
            self._set("bulk", f"{_size(log.lag)} behind", at, log)
        else:
            self._set("stream", f"close to the end of the log: {_size(log.lag)} behind", at, log)

    def _watch_stream(self, log: LogState, at: float) -> None:
        self._seen.append((at, log.position))
        while self._seen[0][0] < at - RATE_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        rate = (log.position - first) / (at - began) if at > began else 0.0
        slow = log.lag > max(BULK_ABOVE, rate * CATCH_UP_SECONDS) and _worth_bulk(log)
        if not slow:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = at
        elif at - self._behind_since >= PATIENCE_SECONDS:
            self._set("bulk", f"{_size(log.lag)} behind, and the stream gives {_size(rate)} a second", at, log)

    def _set(self, reader: Reader, reason: str, at: float, log: LogState) -> None:
        self.now = Choice(reader=reader, reason=reason)
        self._seen = deque([(at, log.position)])
        self._behind_since = None


def keep_reader(state: Path, choice: Choice) -> None:
    """Write the choice into the project's state folder, where other processes find it."""
    new = state / "reader.json.new"
    new.write_bytes(orjson.dumps({"reader": choice.reader, "reason": choice.reason}))
    new.replace(state / "reader.json")


def kept_reader(state: Path) -> Choice | None:
    """What `keep_reader` wrote last; None if it is not there or cannot be read."""
    try:
        found = orjson.loads((state / "reader.json").read_bytes())
        return Choice(reader=found["reader"], reason=found["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _worth_bulk(log: LogState) -> bool:
    return log.lag * REPEATED > log.end - log.restart


def _size(amount: float) -> str:
    return f"{amount / 1e6:,.0f} MB" if amount >= 1e6 else f"{amount / 1e3:,.0f} kB"
