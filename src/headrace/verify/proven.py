"""The position up to which each table was last proven equal, kept in the catalog's notes, where `status` and others find it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from headrace.catalog import Catalog
from headrace.position import Position
from headrace.schema import TableId
from headrace.verify.proof import Report


@dataclass(frozen=True, kw_only=True)
class Proven:
    """What the last comparison of a table found at ``position``."""

    position: Position
    at: datetime
    equal: bool


def proven_tables(catalog: Catalog, pipeline: str) -> dict[TableId, Proven]:
    """The last result of each table of the pipeline. Raises LakeUnavailable."""
    return {
        TableId(one["schema"], one["name"]): Proven(
            position=Position(one["epoch"], one["lsn"]), at=datetime.fromisoformat(one["at"]), equal=one["equal"]
        )
        for one in json.loads(catalog.note(_key(pipeline)) or "[]")
    }


def keep_report(catalog: Catalog, pipeline: str, report: Report) -> None:
    """Note what a report found; tables that it could not compare keep their earlier result. Raises LakeUnavailable."""
    now = datetime.now(UTC)
    kept: Mapping[TableId, Proven] = {
        **proven_tables(catalog, pipeline),
        **{
            result.table: Proven(position=report.position, at=now, equal=result.equal)
            for result in report.tables
            if not result.problem
        },
    }
    rows = [
        {
            "schema": table.schema,
            "name": table.name,
            "epoch": one.position.epoch,
            "lsn": one.position.lsn,
            "at": one.at.isoformat(),
            "equal": one.equal,
        }
        for table, one in sorted(kept.items())
    ]
    catalog.set_note(_key(pipeline), json.dumps(rows))


def _key(pipeline: str) -> str:
    return f"headrace.verified.{pipeline}"
