"""Wiring: from a project to its source, catalog, lake and run. The only module, beside the commands, that chooses
implementations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from headrace.catalog import BadUpdate, Catalog, NoSuchVersion
from headrace.errors import AlreadyRunning, LakeUnavailable, ProjectError
from headrace.events import Reading, Said, Watch
from headrace.lake.progress import Progress, TableProgress, read_progress
from headrace.lake.storage import Storage
from headrace.lake.writer import LakeWriter
from headrace.project import Project
from headrace.run import Run, RunSettings
from headrace.schema import TableId
from headrace.source.postgres import slots
from headrace.source.postgres.capture import CaptureSettings
from headrace.source.postgres.connect import Connector
from headrace.source.postgres.readers import Choice, keep_reader
from headrace.source.postgres.source import PostgresSettings, PostgresSource

if TYPE_CHECKING:
    import duckdb

    from headrace.lake.past import Past
    from headrace.lake.row_history import RowHistory
    from headrace.verify import Report

# What only some commands need is imported where they need it: a run starts sooner without the query engine and the HTTP server.

REBUILD_ROWS = 250_000
"""Rows of a fold that are in memory at a time."""


def connector_of(project: Project) -> Connector:
    """Connections to the project's source. Raises ProjectError."""
    password = project.source.password
    return Connector(
        project.source.url.reveal(),
        password=password.reveal() if password is not None else None,
        application=f"headrace/{project.pipeline}",
    )


@contextmanager
def open_catalog(project: Project, *, create: bool = True) -> Iterator[Catalog]:
    """The project's catalog. Raises LakeUnavailable, also when there is none and ``create`` is false."""
    location = project.catalog_location()
    if not create and not isinstance(location, str) and not location.exists():
        raise LakeUnavailable(
            f"there is no lake yet in {project.warehouse}",
            remedy="`headrace run` makes it.",
        )
    require_catalog_of_tables(project)
    with Catalog.open(location, project.warehouse, create=create) as catalog:
        yield catalog


def require_catalog_of_tables(project: Project) -> None:
    """Raises LakeUnavailable when the warehouse has tables, but the catalog file that knows them is gone."""
    location = project.catalog_location()
    if isinstance(location, str) or (location.exists() and not (location.is_file() and location.stat().st_size == 0)):
        return
    if any(project.warehouse.glob("*/*/metadata")):
        raise LakeUnavailable(
            f"the catalog {location} is missing or empty, but the folder has tables, which a new catalog would not know",
            remedy="Restore the catalog from a backup. Or give the lake up: remove the folder by hand, then say"
            " `headrace drop --slot`, and `headrace run` copies the tables again.",
        )


@contextmanager
def open_reader(project: Project, *, version: str = "latest") -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with one version of the lake attached: ``latest``, a number, or a time. Raises LakeUnavailable, and ProjectError for
    a version that there is not.
    """
    from headrace.catalog.warehouses import version_named
    from headrace.lake.engine import open_engine

    with open_catalog(project, create=False) as catalog:
        try:
            catalog.require_version(version_named(catalog, version))
        except (BadUpdate, NoSuchVersion) as error:
            raise ProjectError(
                f"--version {version}: {error.message}", remedy=error.remedy or "`headrace versions` lists the latest ones."
            ) from error
        with open_engine(catalog, f"{project.lake.name}@{version}") as engine:
            yield engine


@contextmanager
def open_past(project: Project, at: str, sql: str) -> Iterator[Past]:
    """DuckDB with the tables that ``sql`` names as of a moment: a time, or a position of the source's log.

    Raises LakeUnavailable, and ProjectError for a moment that cannot be answered.
    """
    from headrace.lake import past

    moment = past.moment_named(at)
    with (
        open_catalog(project, create=False) as catalog,
        past.open_past(
            catalog, project.warehouse, pipeline=project.pipeline, name=project.lake.name, moment=moment, sql=sql, asked=at
        ) as opened,
    ):
        yield opened


def history_of(
    project: Project, table: str, key: Sequence[str], *, limit: int, columns: Sequence[str] = ()
) -> tuple[TableProgress, RowHistory]:
    """The last versions of the row with this key, and the state of its table. Raises ProjectError, LakeUnavailable."""
    from headrace.lake.row_history import key_of, row_history

    with open_catalog(project, create=False) as catalog:
        progress = progress_of(project, catalog)
    known = progress.tables if progress is not None else {}
    name = table_named(table, known)
    if name not in known or known[name].copy_lsn is None:
        raise _no_table(name, (one for one, state in known.items() if state.copy_lsn is not None))
    schema = known[name].schema
    values = key_of(schema, key)
    with open_reader(project) as engine:
        return known[name], row_history(engine, schema, values, limit=limit, columns=columns)


@contextmanager
def open_run(project: Project, watch: Watch) -> Iterator[Run]:
    """A run of the project's pipeline, ready to begin. Raises ProjectError, LakeUnavailable."""
    source = _source_of(project, watch)
    with _open_writer(project) as lake:
        yield Run(source=source, lake=lake, watch=watch, settings=RunSettings(commit_rows=project.lake.commit.rows))


def verify_lake(
    project: Project, tables: Sequence[str] = (), *, limit: int = 20, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Compare these tables, or all, and keep what was found. Raises as `headrace.verify.verify`."""
    from headrace.verify import verify
    from headrace.verify.lake_state import Lake
    from headrace.verify.proven import keep_report

    storage = Storage(project.warehouse)
    try:
        with open_catalog(project, create=False) as catalog:
            progress = read_progress(catalog, storage, project.pipeline)
            known = progress.tables if progress is not None else {}
            report = verify(
                connector=connector_of(project),
                slot=project.slot,
                lake=Lake(catalog=catalog, storage=storage, pipeline=project.pipeline, name=project.lake.name),
                tables=[table_named(text, known) for text in tables],
                limit=limit,
                say=say,
            )
            keep_report(catalog, project.pipeline, report)
            return report
    finally:
        storage.close()


def progress_of(project: Project, catalog: Catalog) -> Progress | None:
    """How far the pipeline has come, from the lake's latest version; None before its first commit."""
    storage = Storage(project.warehouse)
    try:
        return read_progress(catalog, storage, project.pipeline)
    finally:
        storage.close()


def mark_for_resync(project: Project, table: str) -> TableId:
    """Have the next run copy the table again. Raises ProjectError, AlreadyRunning."""
    with _alone(project), _open_writer(project) as lake:
        name = _known_table(lake, table)
        lake.copy_again([name])
        _commit_where_it_stands(lake)
        return name


def rebuild_silver(project: Project, table: str) -> tuple[TableId, int, int]:
    """Make a table's silver anew from bronze; returns the table, its rows and the version. Raises ProjectError,
    AlreadyRunning.
    """
    from headrace.lake.engine import LAKE
    from headrace.lake.fold import fold_sql
    from headrace.lake.layout import BRONZE

    with _alone(project), _open_writer(project) as lake, open_reader(project) as engine:
        name = _known_table(lake, table)
        bronze = f"{LAKE}.{BRONZE}.{_identifier(name.lake_name)}"
        engine.execute("SET arrow_lossless_conversion = true")  # else a UUID comes as text
        folded = engine.execute(fold_sql(bronze, lake.tables[name].schema)).to_arrow_reader(REBUILD_ROWS)
        rows = lake.rebuild(name, (pa.Table.from_batches([batch]) for batch in folded))
        return name, rows, _commit_where_it_stands(lake)


@contextmanager
def _open_writer(project: Project) -> Iterator[LakeWriter]:
    with (
        open_catalog(project) as catalog,
        LakeWriter.open(
            catalog=catalog, warehouse=project.warehouse, state=project.make_state(), pipeline=project.pipeline
        ) as lake,
    ):
        yield lake


def _source_of(project: Project, watch: Watch) -> PostgresSource:
    settings = project.source
    capture = settings.capture
    memory = capture.decoding_memory

    def tell_reader(choice: Choice) -> None:
        keep_reader(project.make_state(), choice)
        watch(Reading(reader=choice.reader, reason=choice.reason))

    return PostgresSource(
        connector=connector_of(project),
        settings=PostgresSettings(
            include=settings.tables,
            exclude=settings.exclude,
            slot=project.slot,
            publication=project.publication,
            appends_publication=project.appends_publication,
            capture=CaptureSettings(
                chunk_bytes=capture.chunk_bytes,
                call_bytes=capture.call_bytes,
                decoding_memory=f"{memory // 1024}kB" if memory is not None else None,
                heartbeat=settings.heartbeat,
                interval=project.lake.commit.interval,
            ),
            copy_connections=settings.copying.connections,
            copy_chunk_bytes=settings.copying.chunk_bytes,
            copy_range_bytes=settings.copying.range_bytes,
        ),
        say=lambda text: watch(Said(text=text)),
        tell_reader=tell_reader,
    )


def _commit_where_it_stands(lake: LakeWriter) -> int:
    """Make what is staged visible without moving on; returns the version."""
    assert lake.position is not None, "a lake with tables has a position"
    return lake.commit(lake.position).version


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _alone(project: Project) -> Iterator[None]:
    """Hold the pipeline's lock: no run goes on meanwhile. Raises AlreadyRunning."""
    with connector_of(project).connect() as control:
        try:
            slots.lock_pipeline(control, project.slot)
        except AlreadyRunning as error:
            raise AlreadyRunning(
                f"a run of pipeline {project.pipeline} is active, which alone may write the lake",
                remedy="Stop it (Ctrl-C or SIGTERM), then say this again.",
            ) from error
        yield


def table_named(text: str, known: Iterable[TableId]) -> TableId:
    """``schema.table``, or a table of schema public: one of ``known`` if the text means one, whatever dots its names have."""
    for table in known:
        if text == str(table) or (table.schema == "public" and text == table.name):
            return table
    schema, dot, name = text.rpartition(".")
    return TableId(schema if dot else "public", name)


def _known_table(lake: LakeWriter, text: str) -> TableId:
    table = table_named(text, lake.tables)
    if table not in lake.tables:
        raise _no_table(table, lake.tables)
    return table


def _no_table(table: TableId, known: Iterable[TableId]) -> ProjectError:
    names = ", ".join(str(one) for one in sorted(known)) or "none yet"
    return ProjectError(f"the lake has no table {table}; it has {names}")
