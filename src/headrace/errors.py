"""Every error kind, its exit code, and whether ``run`` tries again.

::

    HeadraceError                 1
    ├── ProjectError              2   the project file or the command line is wrong
    ├── SourceUnreachable         3   no connection to the source, or it refused us           (retried by a started run)
    ├── SourceNotReady            4   the source lacks what capture needs
    ├── AlreadyRunning            5   another run holds this slot
    ├── PositionLost              6   the slot is gone, or does not continue where the lake ends
    ├── LakeUnavailable           7   catalog or warehouse cannot be read or written
    │   ├── LakeBlocked           7   for now: locked, full, its database away                (retried by a started run)
    │   └── CommitConflict        7   another writer changed a table first                    (retried)
    ├── SourceAndLakeDiffer       8   verify found differences
    ├── TablesParked              9   the command ended, but tables are parked
    └── BadQuery                 10   the SQL given to `headrace query` failed

A message says what object is meant, what was found, what follows, and what to do. It never contains a secret or a row's value.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class HeadraceError(Exception):
    """Something that its user can act on. ``remedy`` is the next step, shown on a line of its own."""

    exit_code: ClassVar[int] = 1
    retried: ClassVar[bool] = False

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class ProjectError(HeadraceError):
    """The project file or the command line is wrong."""

    exit_code = 2


class SourceUnreachable(HeadraceError):
    """No connection to the source, or it refused us."""

    exit_code = 3
    retried = True


class SourceNotReady(HeadraceError):
    """The source lacks what capture needs."""

    exit_code = 4


class AlreadyRunning(HeadraceError):
    """Another run holds this slot."""

    exit_code = 5


class PositionLost(HeadraceError):
    """The slot is gone, or does not continue where the lake ends."""

    exit_code = 6


class LakeUnavailable(HeadraceError):
    """Catalog or warehouse cannot be read or written."""

    exit_code = 7


class LakeBlocked(LakeUnavailable):
    """Catalog or warehouse cannot be used for now: locked, full, or the catalog's database is away. Nothing needs repair."""

    retried = True


class CommitConflict(LakeUnavailable):
    """Another writer changed a table first: a commit's requirement did not hold, and nothing was changed."""

    retried = True


class SourceAndLakeDiffer(HeadraceError):
    """Verify found differences."""

    exit_code = 8


class TablesParked(HeadraceError):
    """The command ended, but tables are parked."""

    exit_code = 9


class BadQuery(HeadraceError):
    """The SQL given to ``headrace query`` failed."""

    exit_code = 10


PASSING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ESTALE,
    }
)
"""What the system says when there is no room, or a folder on the network is away. A disk's own errors (EIO) do not pass."""


def lake_failure(error: BaseException) -> type[LakeUnavailable]:
    """The kind of an error met in the lake's files: does it pass without a repair of the lake?"""
    return LakeBlocked if isinstance(error, OSError) and error.errno in PASSING else LakeUnavailable
