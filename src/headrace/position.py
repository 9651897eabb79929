"""Source positions: where in the source's log a change stands.

A PostgreSQL log sequence number (LSN) is a 64-bit byte offset into the write-ahead log, written ``16/B374D848``. LSNs restart
when the server is another one, so a position also carries an *epoch*, a small integer that Headrace increases whenever the
source's system identifier or timeline changes. Positions are compared as pairs; clocks are never compared.
"""

from __future__ import annotations

from dataclasses import dataclass


def parse_lsn(text: str) -> int:
    """``"16/B374D848"`` → 97500059720. Raises ValueError when the text is not an LSN."""
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not an LSN: {text!r} (expected two hexadecimal numbers, as in 16/B374D848)")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    """97500059720 → ``"16/B374D848"``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


@dataclass(frozen=True, order=True)
class Position:
    """A point between two source transactions: everything that ends at or before ``lsn`` lies before it.

    ``lsn`` is the *end* LSN of a transaction's commit record (or any LSN up to which the log was decoded).
    """

    epoch: int
    lsn: int

    def __str__(self) -> str:
        return format_lsn(self.lsn) if self.epoch == 1 else f"{self.epoch}:{format_lsn(self.lsn)}"
