"""Checks of where the lake goes: its warehouse and catalog. Nothing is made or changed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.source.postgres.checks import Finding

LITTLE_SPACE = 1 << 30


def lake_findings(project: Project) -> Iterator[Finding]:
    for check in CHECKS:
        yield from check(project)


def warehouse_writable(project: Project) -> Iterator[Finding]:
    """Files can be written in the warehouse's folder, or it can be made; its disk has room."""
    folder = _nearest(project.warehouse)
    if not folder.is_dir():
        yield Finding(
            check="warehouse-writable",
            severity="blocker",
            object=f"warehouse {project.warehouse}",
            found=f"{folder} is not a folder",
            consequence="no table can be written",
            cure="Set lake.warehouse in headrace.yaml to a folder.",
        )
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"headrace")
            file.flush()
    except OSError as error:
        yield Finding(
            check="warehouse-writable",
            severity="blocker",
            object=f"warehouse {project.warehouse}",
            found=f"no file can be written in {folder}: {error.strerror}",
            consequence="no table can be written",
            cure="Give this user the right to write there, make room, or set lake.warehouse in headrace.yaml.",
        )
        return
    free = shutil.disk_usage(folder).free
    if free < LITTLE_SPACE:
        yield Finding(
            check="warehouse-writable",
            severity="warning",
            object=f"warehouse {project.warehouse}",
            found=f"its disk has {free >> 20} MB free",
            consequence="a run stops when the disk is full (and goes on when it is not)",
            cure="Make room, or set lake.warehouse in headrace.yaml.",
        )


def catalog_writable(project: Project) -> Iterator[Finding]:
    """The catalog, if it exists, opens and can be written; its database, if it is PostgreSQL, lets its schema be made."""
    location = project.catalog_location()
    try:
        if isinstance(location, str):
            yield from _database(location)
            return
        from headrace.catalog.store import Catalog
        from headrace.pipeline import require_catalog_of_tables

        require_catalog_of_tables(project)
        if location.exists():
            with Catalog.open(location, project.warehouse, create=False, timeout=5) as catalog:
                catalog.set_note("headrace.check", None)  # a write that changes nothing
    except HeadraceError as error:
        yield Finding(
            check="catalog-writable",
            severity="blocker",
            object="catalog",
            found=error.message.rstrip("."),
            consequence="nothing can be committed",
            cure=error.remedy,
        )


CHECKS: tuple[Callable[[Project], Iterator[Finding]], ...] = (warehouse_writable, catalog_writable)


def _database(url: str) -> Iterator[Finding]:
    from headrace.source.postgres.connect import Connector

    with Connector(
        url, application="headrace/catalog", setting="lake.catalog.store", called="the catalog's database"
    ).connect() as session:
        row = session.execute(
            "SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE'), pg_is_in_recovery()"
        ).fetchone()
    assert row is not None
    user, database, may_create, standby = row
    if standby or not may_create:
        yield Finding(
            check="catalog-writable",
            severity="blocker",
            object=f"catalog's database {database}",
            found="it is a standby" if standby else f"role {user} may not make a schema in it",
            consequence="the catalog cannot be written",
            cure="Give the primary's host in lake.catalog.store."
            if standby
            else f'GRANT CREATE ON DATABASE "{database}" TO "{user}";',
        )


def _nearest(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
