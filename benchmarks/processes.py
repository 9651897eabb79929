"""What a run of a command costs: wall time, CPU of the command and of the PostgreSQL server, peak memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, and bytes of proportional set size (PSS) summed over the command's processes."""

    wall: float
    cpu: float
    server_cpu: float
    peak_pss: int


def family(pid: int) -> list[int]:
    """The process and everything below it; what ends meanwhile is left out."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            children += map(int, (task / "children").read_text().split())
    return [pid, *(below for child in children for below in family(child))]


def pss(pid: int) -> int:
    total = 0
    for member in family(pid):
        try:
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def server_seconds(postmaster: int) -> float:
    """CPU seconds of the server so far: the postmaster, its living children, and those it has reaped."""
    total = 0
    for member in family(postmaster):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11 : 15 if member == postmaster else 13])
    return total / TICKS


def measure(command: Sequence[str], postmaster: int, *, stdout: int | None = subprocess.DEVNULL) -> Cost:
    """Run the command to its end. Raises RuntimeError with its output when it fails."""
    peak = 0
    server_before = server_seconds(postmaster)
    began = time.monotonic()
    process = subprocess.Popen(list(command), stdout=stdout, stderr=subprocess.PIPE)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            try:
                peak = max(peak, pss(process.pid))
            except OSError:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    done.set()
    watcher.join()
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}: {errors.decode()[-2000:]}")
    time.sleep(0.3)  # the server reaps its sessions
    return Cost(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        server_cpu=server_seconds(postmaster) - server_before,
        peak_pss=peak,
    )
