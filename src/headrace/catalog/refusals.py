"""Why the catalog refuses a request. All are kinds of LakeUnavailable, so a caller that only asks "did it work" needs one clause.

::

    LakeUnavailable
    ├── CommitConflict          a requirement does not hold: somebody else was first (nothing was changed)
    ├── CommitOutcomeUnknown    the database was lost while it committed: read again before deciding
    ├── NoSuchTable, NoSuchView, NoSuchNamespace, NoSuchVersion
    ├── AlreadyExists           a table, view or namespace has that name
    ├── NamespaceNotEmpty
    └── BadUpdate               the update, requirement or name makes no sense
"""

from __future__ import annotations

from headrace.errors import LakeUnavailable


class CommitOutcomeUnknown(LakeUnavailable):
    """The database was lost while it committed. Whoever asked must read the state again before deciding; never replay blindly."""

    retried = True


class NoSuchTable(LakeUnavailable):
    """No table of that name at that version."""


class NoSuchView(LakeUnavailable):
    """No view of that name at that version."""


class NoSuchNamespace(LakeUnavailable):
    """No namespace of that name at that version."""


class NoSuchVersion(LakeUnavailable):
    """The catalog does not have that version: not yet, or not any more. The message names the nearest that it has."""


class AlreadyExists(LakeUnavailable):
    """A table, view or namespace has that name already."""


class NamespaceNotEmpty(LakeUnavailable):
    """The namespace still has tables, views or namespaces in it."""


class BadUpdate(LakeUnavailable):
    """The update, requirement or name is malformed, or cannot be applied to this table whoever sends it."""
