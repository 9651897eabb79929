"""The lake as it is at one source position: the newest version not past it, and the changes from there to it folded over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from headrace.catalog import Catalog
from headrace.catalog.serve import serve_in_thread
from headrace.errors import LakeUnavailable
from headrace.lake.engine import attach, connect
from headrace.lake.fold import fold_sql
from headrace.lake.layout import BRONZE, SILVER
from headrace.lake.past import between, with_columns
from headrace.lake.progress import Progress, TableProgress, read_progress
from headrace.lake.storage import Storage
from headrace.lake.timeline import Timeline
from headrace.lake.writer import idle_position
from headrace.position import Position
from headrace.schema import TableId, TableSchema
from headrace.verify.fingerprint import identifier
from headrace.verify.source_state import NotComparable

LATEST, EARLIER = "lake", "earlier"
"""Names under which the two versions are attached."""
MEMORY_LIMIT = "1GB"


class Lake:
    """One pipeline's part of the lake. ``name`` is the warehouse's, under which engines attach it."""

    def __init__(self, *, catalog: Catalog, storage: Storage, pipeline: str, name: str) -> None:
        self.catalog, self.pipeline, self.name = catalog, pipeline, name
        self._storage = storage

    def progress(self, version: int) -> Progress | None:
        return read_progress(self.catalog, self._storage, self.pipeline, version=version)

    def position(self) -> Position | None:
        """Up to where the lake has the source's changes."""
        progress = self.progress(self.catalog.latest_version())
        if progress is None or progress.position is None:
            return None
        idle = idle_position(self.catalog, self.pipeline)
        return progress.position if idle is None else max(progress.position, idle)

    def newest_not_past(self, position: Position, latest: int) -> tuple[int, Progress] | None:
        """The newest kept version up to ``latest`` whose position is not past this one."""
        found = Timeline(self.catalog, self._storage, self.pipeline, last=latest).newest_not_past(position)
        return None if found is None else (found.version.number, found.progress)


class LakeState:
    """All tables of the pipeline at ``position``, as far as the lake has come."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        *,
        position: Position,
        latest: int,
        now: Progress,
        earlier: Progress | None,
    ) -> None:
        self.position, self.version = position, latest
        self._connection = connection
        self._now, self._earlier = now, earlier

    def schema(self, table: TableId) -> TableSchema:
        """Raises NotComparable for a table that is not followed."""
        return self._following(table).schema

    def relation(self, table: TableId) -> str:
        """The table's rows at the position, in silver's layout, as something to select from. Raises NotComparable."""
        now = self._following(table)
        assert self._now.position is not None
        silver, bronze = _name(LATEST, SILVER, table), _name(LATEST, BRONZE, table)
        if self._now.position <= self.position:
            return silver
        before = self._earlier.tables.get(table) if self._earlier is not None else None
        if before is not None and before.state == "following" and before.copy_lsn == now.copy_lsn:
            assert self._earlier is not None and self._earlier.position is not None
            base = with_columns(_name(EARLIER, SILVER, table), before.schema, now.schema)
            return f"({fold_sql(self._between(bronze, self._earlier.position), now.schema, base=base)}) AS folded"
        if now.copy_lsn is None or now.copy_lsn > self.position.lsn:
            raise NotComparable("its copy is younger than this position; verify it again")
        copied = Position(self.position.epoch, now.copy_lsn)
        return f"({fold_sql(self._between(bronze, copied), now.schema)}) AS folded"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query).fetchall()
        except duckdb.Error as error:
            # Its text may quote a value, but for what the file system says.
            text = str(error).splitlines()[0] if isinstance(error, duckdb.IOException) else type(error).__name__
            raise LakeUnavailable(
                f"the lake cannot be read: {text}", remedy="`headrace query` shows whether the table is readable."
            ) from error

    def _following(self, table: TableId) -> TableProgress:
        progress = self._now.tables.get(table)
        if progress is None:
            raise NotComparable("the lake does not have it")
        if progress.state == "copying":
            raise NotComparable("it is yet to be copied")
        if progress.fault is not None:
            raise NotComparable(f"it is parked: {progress.fault.reason}")
        return progress

    def _between(self, bronze: str, first: Position) -> str:
        return f"(SELECT * FROM {bronze} WHERE {between(first, self.position)})"


@contextmanager
def lake_state(lake: Lake, position: Position) -> Iterator[LakeState]:
    """The lake at ``position``, held still. Raises LakeUnavailable when it cannot be read or has nothing yet."""
    latest = lake.catalog.latest_version()
    now = lake.progress(latest)
    if now is None or now.position is None:
        raise LakeUnavailable("the lake has no table yet", remedy="`headrace run` makes the first copy.")
    earlier = lake.newest_not_past(position, latest) if now.position > position else None
    with (
        TemporaryDirectory(prefix="headrace-verify-") as spill,
        serve_in_thread(lake.catalog, name=lake.name) as endpoint,
        connect(memory_limit=MEMORY_LIMIT) as connection,
    ):
        connection.execute(f"SET temp_directory = '{spill}'")
        attach(connection, endpoint, f"{lake.name}@{latest}", name=LATEST)
        if earlier is not None:
            attach(connection, endpoint, f"{lake.name}@{earlier[0]}", name=EARLIER)
        yield LakeState(
            connection, position=position, latest=latest, now=now, earlier=earlier[1] if earlier is not None else None
        )


def _name(database: str, namespace: str, table: TableId) -> str:
    return f"{database}.{namespace}.{identifier(table.lake_name)}"
