"""Headrace: every committed change of an operational database in a governed Iceberg lakehouse."""

__version__ = "0.1.0"
