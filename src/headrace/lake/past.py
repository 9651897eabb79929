"""The lake as of a moment: silver and bronze with exactly the source's transactions up to it, whatever versions are kept.

A moment is a position of the source's log, or a time. The state at a time is that after all transactions, in the log's order, up
to the last one that was committed at or before it, by the source's clock. A table is read from a kept version where nothing of it
lies between that and the moment; else the version's silver, or a copy's rows, and bronze from there on are folded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from headrace.catalog import Catalog
from headrace.catalog.history import microseconds, moment_of
from headrace.catalog.serve import Endpoint, serve_in_thread
from headrace.errors import LakeUnavailable, ProjectError
from headrace.lake.ask import reading
from headrace.lake.engine import LAKE, attach, connect, identifier, quoted
from headrace.lake.fold import OWN_COLUMNS, fold_sql
from headrace.lake.layout import BRONZE, SILVER
from headrace.lake.progress import TableProgress
from headrace.lake.storage import Storage
from headrace.lake.timeline import Kept, Timeline
from headrace.position import Position, parse_lsn
from headrace.schema import TableId, TableSchema

MEMORY_LIMIT = "1GB"

Moment = datetime | Position

_POSITION = re.compile(r"(?:(\d{1,9}):)?([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})")


def moment_named(text: str) -> Moment:
    """``2026-01-31T12:00:00Z`` (UTC without an offset), or a position such as ``16/B374D848``. Raises ProjectError."""
    found = _POSITION.fullmatch(text)
    if found is not None:
        return Position(int(found[1] or 1), parse_lsn(found[2]))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ProjectError(
            f"--at {text}: this is neither a time nor a position of the source's log",
            remedy="Write a time as in 2026-01-31T12:00:00Z, a position as in 16/B374D848.",
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


@dataclass(frozen=True, kw_only=True)
class PastTable:
    """How one table is answered: from ``version`` as it is, or computed, from it or (None) from the table's copy on."""

    table: TableId
    version: int | None
    computed: bool


@dataclass(frozen=True, kw_only=True)
class Past:
    """A session with the lake as of ``position``. ``tables``: those whose silver the statement names."""

    connection: duckdb.DuckDBPyConnection
    position: Position
    tables: Sequence[PastTable]


@contextmanager
def open_past(
    catalog: Catalog, warehouse: Path, *, pipeline: str, name: str, moment: Moment, sql: str, asked: str
) -> Iterator[Past]:
    """A session in which ``silver.<table>`` and ``bronze.<table>``, as far as ``sql`` names them, are as of the moment.

    ``name`` is the warehouse's, ``asked`` the moment as its user wrote it. Raises ProjectError for a moment that cannot be
    answered, with the nearest ones that can, and LakeUnavailable.
    """
    storage = Storage(warehouse)
    try:
        timeline = Timeline(catalog, storage, pipeline)
        if timeline.latest is None:
            raise LakeUnavailable("the lake has no table yet", remedy="`headrace run` makes the first copy.")
        with (
            TemporaryDirectory(prefix="headrace-query-") as spill,
            serve_in_thread(catalog, name=name) as endpoint,
            connect(memory_limit=MEMORY_LIMIT) as connection,
        ):
            connection.execute(f"SET temp_directory = {quoted(spill)}")
            connection.execute(f"ATTACH ':memory:' AS {LAKE}")
            for namespace in (BRONZE, SILVER):
                connection.execute(f"CREATE SCHEMA {LAKE}.{namespace}")
            connection.execute(f"USE {LAKE}.{SILVER}")
            builder = _Builder(timeline, connection, endpoint, name, moment, asked)
            with reading():
                position = builder.position()
                tables = builder.build(position, named_tables(connection, sql, timeline.latest.progress.tables))
            yield Past(connection=connection, position=position, tables=tables)
    finally:
        storage.close()


def named_tables(connection: duckdb.DuckDBPyConnection, sql: str, known: Iterable[TableId] = ()) -> set[tuple[str, str]]:
    """The tables that a statement reads, as (namespace, name) in lower case; silver's where it names none.

    Of a statement that DuckDB does not take apart: every table of ``known`` whose name is in the text.
    """
    rows = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()
    document = json.loads(rows[0][0])
    if document.get("error"):
        words = {table.lake_name.lower() for table in known if table.lake_name.lower() in sql.lower()}
        return {(namespace, word) for namespace in (BRONZE, SILVER) for word in words}
    found = set()
    waiting: list[Any] = [document]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if node.get("type") == "BASE_TABLE" and node["catalog_name"] in ("", LAKE):
                found.add(((node["schema_name"] or SILVER).lower(), str(node["table_name"]).lower()))
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return found


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """``proof`` has in bronze all of the table up to the moment; ``base`` has its silver at some place not past it."""

    proof: Kept
    schema: TableSchema
    copy: Position
    base: Kept | None
    untouched: bool
    """Known without a look: nothing of the table lies between base and the moment."""


class _Builder:
    def __init__(
        self,
        timeline: Timeline,
        connection: duckdb.DuckDBPyConnection,
        endpoint: Endpoint,
        warehouse: str,
        moment: Moment,
        asked: str,
    ) -> None:
        self._timeline, self._connection, self._endpoint = timeline, connection, endpoint
        self._warehouse, self._moment, self._asked = warehouse, moment, asked
        self._attached: set[int] = set()
        self._next: dict[Position, Position] = {}

    # --- which position -------------------------------------------------------------------------------------------------------

    def position(self) -> Position:
        """The moment's position. Raises ProjectError where the lake has not come to it, or had not begun."""
        latest, reached = self._timeline.latest, self._timeline.reached
        assert latest is not None and reached is not None
        if isinstance(self._moment, Position):
            if self._moment > reached:
                raise self._refused(f"the lake has the source's log up to {reached} only", [reached])
            return self._moment
        self._require_reached(self._moment, latest)
        bound = self._timeline.a_version_by(self._moment)
        found = bound.position if bound is not None else None
        until = f"commit_time <= {_time(self._moment)} AND (ordinal >= 0 OR op = 'r')"
        scans = [
            f"SELECT max({{'epoch': epoch, 'lsn': commit_lsn + (ordinal >= 0)::INT}}) AS place"
            f" FROM {self._table(latest, BRONZE, name)} WHERE {until}{_from(bound)}"
            for name, table in latest.progress.tables.items()
            if table.copy_lsn is not None and (bound is None or table.position is None or table.position > bound.position)
        ]
        if scans:
            place = self._value(f"SELECT max(place) FROM ({' UNION ALL '.join(scans)})")
            if place is not None:
                last = Position(place["epoch"], place["lsn"])
                found = last if found is None else max(found, last)
        if found is None:
            copies = [time for name in latest.progress.tables if (time := self._first_copied_at(name)) is not None]
            raise self._refused("the lake begins later", [min(copies)] if copies else [])
        return found

    def _require_reached(self, moment: datetime, latest: Kept) -> None:
        """A transaction that the lake does not have yet may have been committed by then."""
        known = [time for time in (latest.progress.commit_time, self._timeline.known_time) if time is not None]
        if any(moment <= time for time in known):
            return
        for name, table in latest.progress.tables.items():
            if table.copy_lsn is not None:
                known.append(self._copied_at(latest, name, Position(latest.position.epoch, table.copy_lsn)))
        if not any(moment <= time for time in known):
            raise self._refused(
                f"the lake has what was committed at the source by {_said(max(known))}, and later transactions may be missing",
                [max(known)],
            )

    def _first_copied_at(self, name: TableId) -> datetime | None:
        kept = self._timeline.next_copy(name, Position(0, 0))
        if kept is None:
            return None
        lsn = kept.progress.tables[name].copy_lsn
        assert lsn is not None
        return self._copied_at(kept, name, Position(kept.position.epoch, lsn))

    def _copied_at(self, kept: Kept, name: TableId, copy: Position) -> datetime:
        """When the snapshot of this copy was taken; of one without rows, when a version first had it."""
        moment = self._value(
            f"SELECT epoch_us(commit_time) FROM {self._table(kept, BRONZE, name)}"
            f" WHERE op = 'r' AND epoch = {copy.epoch} AND commit_lsn = {copy.lsn} LIMIT 1"
        )
        if moment is not None:
            return moment_of(moment)
        first = self._timeline.first_with_copy(name, copy)
        return (first or kept).version.committed_at

    # --- how each table is answered -------------------------------------------------------------------------------------------

    def build(self, position: Position, named: set[tuple[str, str]]) -> list[PastTable]:
        """Make the views. Raises ProjectError for a named table that cannot be shown at this position."""
        latest = self._timeline.latest
        assert latest is not None
        plans = {
            name: self._plan(name, position)
            for name in sorted(latest.progress.tables)
            if {(BRONZE, name.lake_name.lower()), (SILVER, name.lake_name.lower())} & named
        }
        tables = [self._show(name, plan, position) for name, plan in plans.items()]
        return [table for table in tables if (SILVER, table.table.lake_name.lower()) in named]

    def _proof(self, name: TableId, position: Position) -> Kept | None:
        """A version whose bronze has every change of the table up to the moment, from a copy on."""
        proofs = list(self._timeline.proofs(name, position))
        latest = self._timeline.latest
        assert latest is not None
        now = latest.progress.tables[name]
        followed = now.state == "following" and now.copy_lsn is not None
        if (followed and Position(latest.position.epoch, now.copy_lsn or 0) <= position) or isinstance(self._moment, Position):
            return proofs[0][0] if proofs else None
        # The position is that of the last transaction that bronze has. This table may have missed some after that one which were
        # committed before the moment, unless it is complete up to the next one, or up to one that was committed then or later.
        following = self._next_transaction(position)
        for kept, table, until in (*self._timeline.proofs(name, following), *proofs):
            copied = table.copy_lsn is not None and Position(kept.position.epoch, table.copy_lsn) <= position
            if copied and (following <= until or self._moment <= self._time_until(kept, name, table, until)):
                return kept
        return None

    def _next_transaction(self, position: Position) -> Position:
        """Where bronze's next transaction after this position begins its commit; where the lake ends if there is none."""
        latest, reached = self._timeline.latest, self._timeline.reached
        assert latest is not None and reached is not None and isinstance(self._moment, datetime)
        later = self._timeline.a_version_after(self._moment)
        end = later.position if later is not None and later.position > position else reached
        if position not in self._next:
            scans = [
                f"SELECT min({{'epoch': epoch, 'lsn': commit_lsn}}) AS place FROM {self._table(latest, BRONZE, name)}"
                f" WHERE ordinal >= 0 AND {between(position, end)}"
                for name, table in latest.progress.tables.items()
                if table.copy_lsn is not None and (table.position is None or table.position > position)
            ]
            place = self._value(f"SELECT min(place) FROM ({' UNION ALL '.join(scans)})") if scans else None
            self._next[position] = Position(place["epoch"], place["lsn"]) if place is not None else end
        return self._next[position]

    def _time_until(self, kept: Kept, name: TableId, table: TableProgress, until: Position) -> datetime:
        """The commit time of a transaction up to which the version has the table complete; at least its copy's."""
        assert table.copy_lsn is not None
        if table.state == "following":
            time = kept.progress.commit_time
        elif table.position is not None and table.position <= until:
            time = table.commit_time
        else:  # parked in the middle of a commit
            copy = Position(until.epoch, table.copy_lsn)
            found = self._value(
                f"SELECT epoch_us(max(commit_time)) FROM {self._table(kept, BRONZE, name)} WHERE {between(copy, until)}"
            )
            time = moment_of(found) if found is not None else None
        copied = self._copied_at(kept, name, Position(until.epoch, table.copy_lsn))
        return copied if time is None else max(time, copied)

    def _plan(self, name: TableId, position: Position) -> _Plan:
        proof = self._proof(name, position)
        if proof is None:
            raise self._not_complete(name, position)
        table = proof.progress.tables[name]
        assert table.copy_lsn is not None
        copy = Position(proof.position.epoch, table.copy_lsn)
        if isinstance(self._moment, datetime) and (taken := self._copied_at(proof, name, copy)) > self._moment:
            # No transaction is known between the moment and the copy; but this table's were not known before the copy.
            raise self._refused(
                f"table {name} was copied later", [*self._before(name, Position(copy.epoch, copy.lsn - 1)), taken]
            )
        base = self._timeline.newest_not_past(position)
        before = base.progress.tables.get(name) if base is not None else None
        if base is None or before is None or before.state != "following" or before.copy_lsn != table.copy_lsn:
            return _Plan(proof=proof, schema=table.schema, copy=copy, base=None, untouched=False)
        untouched = base.position == position or (table.position is not None and table.position <= base.position)
        return _Plan(proof=proof, schema=table.schema, copy=copy, base=base, untouched=untouched)

    def _not_complete(self, name: TableId, position: Position) -> ProjectError:
        earlier = self._before(name, position)
        later = self._timeline.next_copy(name, position)
        nearest = list(earlier)
        if later is not None:
            lsn = later.progress.tables[name].copy_lsn
            assert lsn is not None
            copy = Position(later.position.epoch, lsn)
            nearest.append(copy if isinstance(self._moment, Position) else self._copied_at(later, name, copy))
        if not earlier:
            return self._refused(f"table {name} was copied later", nearest)
        return self._refused(f"bronze lacks changes of table {name} from before that: it was parked, or copied again", nearest)

    def _before(self, name: TableId, position: Position) -> list[Moment]:
        """The last moment up to this position at which the table can be shown, if there is one."""
        proofs = list(self._timeline.proofs(name, position))
        known = proofs[-1] if proofs else self._timeline.before(name, position)
        if known is None:
            return []
        kept, table, until = known
        if isinstance(self._moment, Position):
            return [min(until, position)]
        return [min(self._time_until(kept, name, table, until), self._moment)]

    def _show(self, name: TableId, plan: _Plan, position: Position) -> PastTable:
        bronze = self._table(plan.proof, BRONZE, name)
        self._view(BRONZE, name, f"SELECT * FROM {bronze} WHERE {between(None, position)}")
        untouched = plan.untouched
        if plan.base is not None and not untouched:
            changed = between(plan.base.position, position)
            untouched = self._value(f"SELECT 1 FROM {bronze} WHERE {changed} LIMIT 1") is None
        if plan.base is not None and untouched:
            self._view(SILVER, name, f"SELECT * FROM {self._table(plan.base, SILVER, name)}")
            return PastTable(table=name, version=plan.base.version.number, computed=False)
        base = None
        if plan.base is not None:
            had = plan.base.progress.tables[name].schema
            base = with_columns(self._table(plan.base, SILVER, name), had, plan.schema)
        first = plan.base.position if plan.base is not None else plan.copy
        self._view(SILVER, name, fold_sql(f"(SELECT * FROM {bronze} WHERE {between(first, position)})", plan.schema, base=base))
        return PastTable(table=name, version=plan.base.version.number if plan.base is not None else None, computed=True)

    # --- the session ----------------------------------------------------------------------------------------------------------

    def _table(self, kept: Kept, namespace: str, name: TableId) -> str:
        number = kept.version.number
        if number not in self._attached:
            attach(self._connection, self._endpoint, f"{self._warehouse}@{number}", name=f"version_{number}")
            self._attached.add(number)
        return f"version_{number}.{namespace}.{identifier(name.lake_name)}"

    def _view(self, namespace: str, name: TableId, query: str) -> None:
        self._connection.execute(f"CREATE VIEW {LAKE}.{namespace}.{identifier(name.lake_name)} AS {query}")

    def _value(self, query: str) -> Any:
        rows = self._connection.execute(query).fetchall()
        return rows[0][0] if rows else None

    def _refused(self, why: str, nearest: Sequence[Moment]) -> ProjectError:
        words = " and ".join(_said(moment) for moment in nearest)
        plural = "s" * (len(nearest) != 1)
        return ProjectError(
            f"--at {self._asked}: {why}",
            remedy=f"The nearest moment{plural} that can be answered: {words}." if nearest else "",
        )


def between(first: Position | None, end: Position) -> str:
    """A condition on bronze's rows: of transactions from ``first`` on and before ``end``; and of a copy made exactly there."""
    if first is not None and first.epoch != end.epoch:
        begun = f"(epoch > {first.epoch} OR (epoch = {first.epoch} AND commit_lsn >= {first.lsn}))"
        return f"{begun} AND (epoch < {end.epoch} OR {between(None, end)})"
    # Apart, so that files and row groups are left out by their bounds.
    begun = f" AND commit_lsn >= {first.lsn}" if first is not None else ""
    within = f"(epoch = {end.epoch}{begun} AND commit_lsn <= {end.lsn} AND (commit_lsn < {end.lsn} OR ordinal < 0))"
    return within if first is not None or end.epoch == 1 else f"(epoch < {end.epoch} OR {within})"


def with_columns(silver: str, has: TableSchema, wants: TableSchema) -> str:
    """Silver with nulls for the columns that were added later."""
    present = {column.name for column in has.columns}
    columns = [identifier(c.name) if c.name in present else f"NULL AS {identifier(c.name)}" for c in wants.columns]
    return f"(SELECT {', '.join([*columns, *OWN_COLUMNS, '_flags'])} FROM {silver})"


def _from(bound: Kept | None) -> str:
    if bound is None:
        return ""
    at = bound.position
    return f" AND epoch >= {at.epoch} AND (epoch > {at.epoch} OR commit_lsn >= {at.lsn})"


def _time(moment: datetime) -> str:
    return f"make_timestamptz({microseconds(moment)})"


def _said(moment: Moment) -> str:
    if isinstance(moment, Position):
        return str(moment)
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
