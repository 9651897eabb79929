"""Names and numbers that nobody has used: for files, snapshots and Avro's sync markers.

From a generator seeded by the system. Asking the system each time would be a system call that lets go of the interpreter's lock,
and getting it back beside busy writer threads takes longer than the call: several milliseconds a commit.
"""

from __future__ import annotations

import os
import random
import uuid

_random = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def fresh_name() -> str:
    """A random UUID's text."""
    return str(uuid.UUID(int=_random.getrandbits(128), version=4))


def fresh_bytes(count: int) -> bytes:
    return _random.randbytes(count)


def fresh_snapshot_id() -> int:
    """A positive 63-bit number."""
    return _random.getrandbits(62) + 1
