"""The Iceberg catalog: which metadata file each table has at each version of the lake."""

from headrace.catalog.history import Lease, Version
from headrace.catalog.refusals import (
    AlreadyExists,
    BadUpdate,
    CommitOutcomeUnknown,
    NamespaceNotEmpty,
    NoSuchNamespace,
    NoSuchTable,
    NoSuchVersion,
    NoSuchView,
)
from headrace.catalog.store import Catalog, Committed, LoadedTable, TableChange

__all__ = [
    "AlreadyExists",
    "BadUpdate",
    "Catalog",
    "CommitOutcomeUnknown",
    "Committed",
    "Lease",
    "LoadedTable",
    "NamespaceNotEmpty",
    "NoSuchNamespace",
    "NoSuchTable",
    "NoSuchVersion",
    "NoSuchView",
    "TableChange",
    "Version",
]
