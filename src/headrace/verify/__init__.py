"""Proof that the lake has what the source has: both as they are at one source position, compared by content."""

from headrace.verify.comparison import Difference, TableResult
from headrace.verify.proof import Report, verify

__all__ = ["Difference", "Report", "TableResult", "verify"]
