"""Durations and sizes as people write them: ``10s``, ``1h30m``, ``256MB``."""

from __future__ import annotations

import re

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
BYTES = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_DURATION_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """``"10s"`` → 10.0 (seconds), ``"1h30m"`` → 5400.0. Units: ms, s, m (or min), h, d, w. Raises ValueError."""
    if text.strip() == "0":
        return 0.0
    seconds, position = 0.0, 0
    while part := _DURATION_PART.match(text, position):
        number, unit = part.groups()
        if unit.lower() not in SECONDS:
            raise ValueError(f"unknown unit of time {unit!r}")
        seconds += float(number) * SECONDS[unit.lower()]
        position = part.end()
    if position == 0 or text[position:].strip():
        raise ValueError("not a duration")
    return seconds


def parse_size(text: str) -> int:
    """``"256MB"`` → 268435456 (bytes). Units as in PostgreSQL: kB, MB, GB, TB are powers of 1024; also MiB. Raises ValueError."""
    size = _SIZE.fullmatch(text.strip())
    if size is None:
        raise ValueError("not a size")
    number, unit = size.groups()
    factor = BYTES.get(unit.upper().replace("IB", "B"))
    if factor is None:
        raise ValueError(f"unknown unit of size {unit!r}")
    return round(float(number) * factor)


def format_duration(seconds: float) -> str:
    """10.0 → ``"10s"``, 0.05 → ``"50ms"``: the largest unit that gives a whole number."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
            return f"{int(seconds / SECONDS[unit])}{unit}"
    return "0" if seconds == 0 else f"{round(seconds * 1000, 3):g}ms"


def format_size(size: int) -> str:
    """268435456 → ``"256MB"``: the largest unit that gives a whole number."""
    for unit in ("TB", "GB", "MB", "KB"):
        if size >= BYTES[unit] and size % BYTES[unit] == 0:
            return f"{size // BYTES[unit]}{'kB' if unit == 'KB' else unit}"
    return f"{size}B"
