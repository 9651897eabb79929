"""One random example: a database, its tables, a project on it; rounds of writing, running and comparing."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from headrace import pipeline
from headrace.errors import SourceNotReady
from headrace.events import Committed, Event, Parked
from headrace.lake.engine import open_engine
from headrace.project import Project
from headrace.run import Run
from headrace.schema import TableSchema
from tests.conftest import Database
from tests.integration.property import kinds
from tests.integration.property.oracle import (
    Shown,
    Witness,
    appended_rows,
    assert_same_changes,
    assert_same_rows,
    expected_change,
    lake_table,
    source_rows,
)
from tests.integration.property.tables import Shape, Table, random_table
from tests.integration.property.workload import EVERYTHING, Mix, Workload

ODD_SETTINGS = {
    "DateStyle": ["SQL, DMY", "German", "ISO, MDY"],
    "TimeZone": ["Asia/Kathmandu", "America/St_Johns", "UTC"],
    "IntervalStyle": ["iso_8601", "sql_standard", "postgres_verbose"],
    "extra_float_digits": ["-5", "0"],
    "bytea_output": ["escape"],
}
"""A database may have any of these; what we read must not depend on them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an example is made of. ``transactions``: per round."""

    shape: Shape
    mix: Mix = EVERYTHING
    tables: tuple[int, int] = (1, 4)
    rounds: int = 3
    transactions: tuple[int, int] = (3, 12)
    beside: float = 0.2
    """How likely a round is written while the pipeline runs."""


class Example:
    def __init__(self, recipe: Recipe, seed: int, database: Database, folder: Path) -> None:
        self._recipe = recipe
        self._random = Random(seed)
        self._database = database
        self._folder = folder
        self.script: list[str] = []
        self.tables: list[Table] = []
        self._copied: dict[str, Counter[Shown]] = {}
        self._number = 0
        self.events: list[Event] = []
        self.project = self._make_project()

    # --- preparing ------------------------------------------------------------------------------------------------------------

    def _make_project(self) -> Project:
        draw = self._random
        capture: dict[str, str] = {}
        if draw.random() < 0.8:
            capture["chunk_bytes"] = draw.choice(["1", "300", "5000", "100000"])
        if draw.random() < 0.4:
            capture["call_bytes"] = draw.choice(["20000", "300000"])
        if draw.random() < 0.5:
            capture["decoding_memory"] = "64KB"
        rows = draw.choice([1, 1, 5, 50, 500_000])
        settings = f"source.capture: {capture}, lake.commit.rows: {rows}"
        self.script.append(f"-- {settings}")
        self._folder.mkdir(parents=True)
        (self._folder / "headrace.yaml").write_text(
            f"pipeline: example\nsource:\n  url: {self._database.url}\n  tables: ['public.*', 'Other Schema.*']\n"
            f"  slot: headrace_{self._database.name}\n"
            f"  capture: {{{', '.join(f'{key}: {value}' for key, value in capture.items())}}}\n"
            f"  copy: {{chunk_bytes: {draw.choice(['100', '100000'])}, connections: {draw.choice([1, 2])}}}\n"
            f"lake: {{commit: {{rows: {rows}}}}}\n"
        )
        return Project.load(self._folder)

    def _prepare(self) -> Witness:
        """The database's types, settings and tables; publications, so that a witness can begin before the run does."""
        database = self._database
        database.execute('CREATE SCHEMA "Other Schema"', *kinds.USER_TYPES)
        for name, values in ODD_SETTINGS.items():
            if self._random.random() < 0.3:
                self._do(f"ALTER DATABASE {database.name} SET {name} = '{self._random.choice(values)}'")
        for name, publish in (
            (self.project.publication, "insert, update, delete, truncate"),
            (self.project.appends_publication, "insert, truncate"),
        ):
            self._do(f"CREATE PUBLICATION {name} WITH (publish = '{publish}', publish_via_partition_root = true)")
        for _ in range(self._random.randint(*self._recipe.tables)):
            self._add_table()
        return Witness(database.url, (self.project.publication, self.project.appends_publication))

    def _add_table(self) -> None:
        table = random_table(self._random, self._number, self._recipe.shape)
        self._number += 1
        self._do(*table.create)
        publication = self.project.publication if table.followed_by_key else self.project.appends_publication
        only = "" if table.partitioned else "ONLY "
        self._do(f"ALTER PUBLICATION {publication} ADD TABLE {only}{table.sql}")
        self.tables.append(table)

    def _do(self, *statements: str) -> None:
        for statement in statements:
            self.script.append(f"{statement};")
        self._database.execute(*statements)

    # --- going through --------------------------------------------------------------------------------------------------------

    def go_through(self) -> None:
        """Raises AssertionError where the lake is not what it must be."""
        draw = self._random
        witness = self._prepare()
        with ExitStack() as stack:
            run: Run | None = None
            for number in range(self._recipe.rounds):
                beside = draw.random() < self._recipe.beside
                if run is None:
                    run = stack.enter_context(pipeline.open_run(self.project, self.events.append))
                if beside:
                    with self._writing():
                        copied = self._run_beside(run)
                    if not copied:
                        stack.close()
                        run = stack.enter_context(pipeline.open_run(self.project, self.events.append))
                else:
                    self._write()
                    self._note_copies()
                self._run(run)
                for table in self.tables:
                    table.grown = table.rewritten = False
                if draw.random() < 0.6 or number == self._recipe.rounds - 1:
                    stack.close()
                    run = None
                    self._between_runs()
                self._compare(witness)
                if draw.random() < 0.2:
                    self._add_table()

    def _write(self) -> None:
        draw = self._random
        workload = Workload(draw, self.tables, self._recipe.mix, self.script, self._database.url)
        for _ in range(draw.choice([1, 2])):
            workload.write(draw.randint(*self._recipe.transactions))
            if draw.random() < 0.4:
                workload.alter()
                workload.write(draw.randint(*self._recipe.transactions))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Write in another thread while the block goes on."""
        failed: list[BaseException] = []

        def write() -> None:
            try:
                self._write()
            except BaseException as error:
                failed.append(error)

        self.script.append("-- while the pipeline runs:")
        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        if failed:
            raise failed[0]

    def _note_copies(self) -> None:
        """Remember the rows of the tables that the next run copies."""
        for table in self.tables:
            if str(table.id) not in self._copied:
                self._copied[str(table.id)] = source_rows(self._database.url, table)

    def _run(self, run: Run) -> None:
        self.script.append("-- headrace run --until-caught-up")
        run.run(until_caught_up=True)
        parked = [event for event in self.events if isinstance(event, Parked)]
        assert not parked, parked
        assert not run.parked(), run.parked()

    def _run_beside(self, run: Run) -> bool:
        """False when tables were truncated again and again as their copy began: then a run is to begin anew."""
        try:
            self._run(run)
        except SourceNotReady as error:
            assert "each time their copy began" in str(error), error
            return False
        return True

    def _between_runs(self) -> None:
        """What may happen while no run goes on."""
        draw = self._random
        what = draw.random()
        if what < 0.3:
            self.script.append("-- the key indexes are deleted")
            shutil.rmtree(self.project.state / "index", ignore_errors=True)
        elif what < 0.4:
            self.script.append("-- .headrace is deleted")
            shutil.rmtree(self.project.state)
        elif what < 0.5:
            table = draw.choice(self.tables)
            self.script.append(f"-- headrace rebuild {table.id}")
            pipeline.rebuild_silver(self.project, str(table.id))

    # --- comparing ------------------------------------------------------------------------------------------------------------

    def _compare(self, witness: Witness) -> None:
        changes = witness.read()
        with (
            pipeline.open_catalog(self.project, create=False) as catalog,
            open_engine(catalog) as engine,
        ):
            progress = pipeline.progress_of(self.project, catalog)
            assert progress is not None
            for table in self.tables:
                state = progress.tables[table.id]
                assert state.copy_lsn is not None and state.state == "following"
                schema: TableSchema = state.schema
                lake = lake_table(engine, table, schema, state.copy_lsn)
                own = [row for row in changes if row.relation == str(table.id) and row.commit_lsn >= state.copy_lsn]
                copied = self._copied.setdefault(str(table.id), lake.copied)
                assert_same_changes(table, lake.changes, [expected_change(table, row) for row in own])
                assert_same_rows("silver and its fold", table, lake.own, lake.folded_own)
                if table.followed_by_key or table.insert_only:
                    assert_same_rows("silver and source", table, lake.silver, source_rows(self._database.url, table))
                if not table.followed_by_key:
                    assert_same_rows("silver and appends", table, lake.silver, appended_rows(table, copied, own))

    @property
    def commits(self) -> int:
        return sum(isinstance(event, Committed) for event in self.events)
