"""A run: copy what is new, follow the source, commit each batch to the lake, acknowledge what is durable.

It knows only the ports of source and lake. The order that keeps the promises stands here: files and one catalog commit of data
and
progress (`Run._commit`), then the source's slot (`_Acknowledger`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from headrace import failpoint
from headrace.change import ChangeBatch, TableFault
from headrace.errors import HeadraceError, PositionLost
from headrace.events import CaughtUp, Committed, Copying, Parked, Retrying, Watch
from headrace.lake.port import Lake, StagedCopy, TableState
from headrace.position import Position
from headrace.schema import TableId, TableSchema
from headrace.source.port import CopySink, Glimpse, Source, Stopped

RETRY_SECONDS = (0.5, 1, 2, 5, 10, 30)
LOOK_SECONDS = 10.0
"""How often the source is asked for what its log does not tell."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """``commit_rows``: a backlog is committed at the first end of a transaction after so many changes.
    ``acknowledge_seconds``: how often the slot is advanced while the run goes on.
    """

    commit_rows: int = 500_000
    acknowledge_seconds: float = 1.0


class Run:
    """One `headrace run`: holds the source's lock while it lasts.

    ``stop`` may be called from any thread or a signal handler: the commit under way is finished, then `run` returns.
    """

    def __init__(self, *, source: Source, lake: Lake, watch: Watch, settings: RunSettings) -> None:
        self._source = source
        self._lake = lake
        self._watch = watch
        self._settings = settings
        self._stopped = threading.Event()
        self._tries = 0
        self._noted: Position | None = None
        self._noted_at = 0.0
        self._glimpse: Glimpse | None = None
        self._looked_at = 0.0

    def stop(self) -> None:
        self._stopped.set()
        self._source.stop()

    def parked(self) -> Sequence[TableId]:
        """The tables that are parked, of those that the project still names."""
        named = self._source.tables()
        return [table for table, state in self._lake.tables.items() if state.fault is not None and table in named]

    def run(self, *, until_caught_up: bool = False, seconds: float | None = None) -> None:
        """Follow the source until stopped, for ``seconds``, or up to where its log ended when following began.

        A lost connection, or a lake that is locked or full for now, is tried again and again, with growing pauses; before
        the source was opened for the first time it is raised at once.
        """
        timer = threading.Timer(seconds, self.stop) if seconds is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        worked = False
        self._tries = 0
        try:
            while not self._stopped.is_set():
                try:
                    for _ in self._session(until_caught_up):
                        worked = True
                    return
                except Stopped:
                    return
                except _Overtaken:
                    continue
                except HeadraceError as error:
                    self._lake.abandon()
                    if self._stopped.is_set():
                        return
                    if not error.retried or not worked:
                        raise
                    pause = RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS) - 1)]
                    self._tries += 1
                    self._watch(Retrying(reason=error.message, seconds=pause))
                    self._stopped.wait(pause)
        finally:
            if timer is not None:
                timer.cancel()

    def _session(self, until_caught_up: bool) -> Iterator[None]:
        """One connection's life. Yields once when the source is open and after every commit."""
        lake, source = self._lake, self._source
        with self._alone() as start:
            yield
            named = source.tables()
            lake.claim(named)
            self._park_gaps()
            waiting = [table for table in named if lake.tables.get(table) is None or lake.tables[table].waiting]
            copies = self._copy(waiting, start)
            if self._stopped.is_set():
                return
            if copies:
                self._publish(start, copies)
                yield
            with self._acknowledging() as acknowledge:
                # A new lake that named no table, or none that can be copied, has no position of its own yet.
                position = lake.position or start
                acknowledge(position)
                self._look()
                self._tell_unlogged(position)
                until = source.end() if until_caught_up else None
                rows = 0
                # Closed here: an error keeps what it passed through alive, and would keep the reader for the pause after it.
                with closing(self._changes(position, named, until)) as batches:
                    for batch in batches:
                        self._tell_faults(lake.stage(batch))
                        rows += batch.rows
                        if batch.end is None or not (batch.reached or rows >= self._settings.commit_rows):
                            continue
                        durable = self._commit(batch.end)
                        rows = 0
                        if durable is not None:
                            acknowledge(durable)
                        self._tell_unlogged(batch.end)
                        yield
                        if self._stopped.is_set():
                            return

    @contextmanager
    def _alone(self) -> Iterator[Position]:
        """The source, opened where the lake stands. Raises as `Source.open`, and _Overtaken."""
        lake = self._lake
        position = lake.position
        opened = False
        try:
            with self._source.open(position, lake.server) as start:
                opened = True
                lake.abandon()
                if lake.position != position:
                    raise _Overtaken
                lake.note_server(self._source.server())
                yield start
        except PositionLost as error:
            lake.abandon()
            if not opened and lake.position != position:
                raise _Overtaken from error
            raise

    def _park_gaps(self) -> None:
        captured = {table: state.schema for table, state in self._lake.tables.items() if state.captured}
        for table, fault in self._source.gaps(captured).items():
            self._lake.park(table, fault)
            self._watch(Parked(table=table, fault=fault))

    # --- what the log does not tell --------------------------------------------------------------------------------------------

    def _followed(self) -> dict[TableId, TableSchema]:
        named = self._source.tables()
        return {table: state.schema for table, state in self._lake.tables.items() if state.following and table in named}

    def _look(self) -> None:
        """Ask how the source holds its tables' rows; compared is that when the log has been applied up to then."""
        self._glimpse = self._source.glimpse(self._followed())
        self._looked_at = time.monotonic()

    def _tell_unlogged(self, reached: Position) -> None:
        """Park the tables whose rows changed without a word in the log before ``reached``, up to where the lake stands."""
        if self._glimpse is None and time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._look()
        if self._glimpse is None or self._glimpse.lsn > reached.lsn:
            return
        glimpse, self._glimpse = self._glimpse, None
        self._lake.note_known(glimpse.at)
        found = self._source.unlogged(glimpse, self._followed())
        for table, fault in found.items():
            if fault is None:
                self._lake.note_state(table, glimpse.states[table])
            else:
                self._lake.park(table, fault)
                self._watch(Parked(table=table, fault=fault))
        if found:
            self._commit(reached)

    # --- first copy ------------------------------------------------------------------------------------------------------------

    def _copy(self, tables: Sequence[TableId], start: Position) -> Sequence[StagedCopy]:
        """Read the tables that have no finished copy yet from which the log goes on; returns the finished copies of all."""
        named = self._source.tables()
        staged = {
            copy.table
            for copy in self._lake.staged_copies()
            if copy.table in named and copy.source_id == named[copy.table].schema.source_id and copy.lsn >= start.lsn
        }
        missing = [table for table in tables if table not in staged]
        if missing:

            def sink(schema: TableSchema, lsn: int) -> CopySink:
                return self._lake.copy(schema, lsn)

            def progress(table: TableId, rows: int) -> None:
                self._watch(Copying(table=table, rows=rows, estimated_rows=named[table].estimated_rows))

            self._source.copy(missing, sink, progress)
        wanted = set(tables)
        copies = [copy for copy in self._lake.staged_copies() if copy.table in wanted]
        for copy in copies:
            self._watch(Copying(table=copy.table, rows=copy.rows, estimated_rows=copy.rows, finished=True))
        return copies

    def _publish(self, start: Position, copies: Sequence[StagedCopy]) -> None:
        """Make the copies visible, complete and together, in one commit, at a position that all of them have reached.

        Copies of one snapshot in a new lake need nothing else. Otherwise the changes up to the latest snapshot come
        with them: those of
        tables that are followed already, and those between an earlier copy's snapshot and the latest one.
        """
        lake = self._lake
        target = max(copy.lsn for copy in copies)
        lake.adopt(copies)
        captured = any(state.captured for state in lake.tables.values())
        if captured or min(copy.lsn for copy in copies) < target:
            named = self._source.tables()
            with closing(self._changes(start, named, target, adopted={copy.table: copy.lsn for copy in copies})) as batches:
                for batch in batches:
                    self._tell_faults(lake.stage(batch))
            if self._stopped.is_set():
                lake.abandon()
                return
        self._commit(Position(start.epoch, max(target, start.lsn)))

    # --- following -------------------------------------------------------------------------------------------------------------

    def _changes(
        self, start: Position, named: Mapping[TableId, object], until: int | None, adopted: Mapping[TableId, int] | None = None
    ) -> Generator[ChangeBatch, None, None]:
        adopted = adopted or {}
        states: dict[TableId, TableState] = {
            table: state
            for table, state in self._lake.tables.items()
            if table in named and (table in adopted or not state.waiting)
        }
        changes = self._source.changes(
            start,
            tables={table: state.schema for table, state in states.items()},
            from_lsn={table: adopted.get(table, start.lsn) for table in states},
            parked={table: state.fault for table, state in states.items() if state.fault is not None and not state.captured},
            until=until,
        )
        with closing(changes):
            yield from changes

    def _commit(self, end: Position) -> Position | None:
        """Make what is staged visible up to ``end``; where nothing is staged only the idle position is noted, now and then.

        Returns the position that is durable now, None if that is no news.
        """
        lag = self._source.end_seen() - end.lsn
        if not self._lake.staged:
            if lag <= 0:
                self._watch(CaughtUp(position=end))
            # Noting costs an fsync, and the slot is advanced no more often than this anyway.
            if time.monotonic() - self._noted_at >= self._settings.acknowledge_seconds:
                self._lake.note_idle(end)
                self._noted, self._noted_at, self._tries = end, time.monotonic(), 0
            return self._noted
        began = time.monotonic()
        receipt = self._lake.commit(end)
        self._noted, self._tries = None, 0
        self._watch(
            Committed(
                version=receipt.version,
                position=end,
                rows=receipt.rows,
                seconds=time.monotonic() - began,
                commit_time=receipt.commit_time,
                lag_bytes=max(lag, 0),
            )
        )
        return end

    def _tell_faults(self, faults: Mapping[TableId, TableFault]) -> None:
        for table, fault in faults.items():
            self._watch(Parked(table=table, fault=fault))

    # --- acknowledging ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _acknowledging(self) -> Iterator[_Acknowledger]:
        """Advance the source's slot beside the commits, at most once per ``acknowledge_seconds``, and a last time at the end."""
        acknowledger = _Acknowledger(self._source, self._settings.acknowledge_seconds)
        try:
            yield acknowledger
        except BaseException:
            acknowledger.close(last=False)
            raise
        acknowledger.close(last=True)


class _Overtaken(Exception):
    """Another run, which has ended now, moved the lake on after it was read."""


class _Acknowledger:
    """Tells the source what is durable, from a thread of its own: the source may need long for it, and commits go on."""

    def __init__(self, source: Source, every: float) -> None:
        self._source = source
        self._every = every
        self._wanted: Position | None = None
        self._done: Position | None = None
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="headrace-acknowledge", daemon=True)
        self._thread.start()

    def __call__(self, position: Position) -> None:
        """``position`` is durable in the lake. Raises what went wrong with an earlier one."""
        if self._error is not None:
            raise self._error
        self._wanted = position

    def close(self, *, last: bool) -> None:
        self._closing.set()
        self._thread.join()
        if last:
            if self._error is not None:
                raise self._error
            self._tell()

    def _loop(self) -> None:
        while not self._closing.wait(self._every):
            try:
                self._tell()
            except BaseException as error:
                self._error = error
                return

    def _tell(self) -> None:
        wanted = self._wanted
        if wanted is not None and wanted != self._done:
            failpoint.hit("before-slot-advance")
            self._source.acknowledge(wanted)
            self._done = wanted
