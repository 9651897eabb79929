"""Named points at which a test can stop this process, as a crash would.

``HEADRACE_FAILPOINTS="catalog-committed=kill:3,fetch=pause:1:0.5"`` kills the process (SIGKILL) at the third passing of
*catalog-committed* and sleeps half a second at the first passing of *fetch*. Without the variable a failpoint costs one
dictionary look-up.
"""

from __future__ import annotations

import os
import signal
import threading
import time

NAMES = (
    "copy",  # rows of a first copy are being read
    "copy-staged",  # a table's first copy is staged, its record is not written yet
    "fetch",  # a chunk of log messages has arrived
    "decode",  # the chunk is decoded, not yet handed on
    "files-written",  # data, delete and manifest files of a commit are written
    "before-catalog-commit",
    "catalog-committed",  # the catalog has committed, nobody has been told
    "before-slot-advance",
)


class _Point:
    def __init__(self, action: str, at: int, seconds: float) -> None:
        self.action, self.at, self.seconds, self.passed = action, at, seconds, 0
        self.lock = threading.Lock()


def _parse(text: str) -> dict[str, _Point]:
    points = {}
    for part in filter(None, text.split(",")):
        name, _, what = part.partition("=")
        if name not in NAMES:
            raise ValueError(f"HEADRACE_FAILPOINTS names {name!r}, which is no failpoint (known: {', '.join(NAMES)})")
        action, at, seconds = ([*what.split(":"), "", ""])[:3]
        points[name] = _Point(action, int(at or 1), float(seconds or 0))
    return points


_points = _parse(os.environ.get("HEADRACE_FAILPOINTS", ""))


def hit(name: str) -> None:
    """Pass the failpoint ``name``."""
    point = _points.get(name)
    if point is None:
        return
    with point.lock:
        point.passed += 1
        if point.passed != point.at:
            return
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "pause":
        time.sleep(point.seconds)
