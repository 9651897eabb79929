"""Taking a pipeline away again: planned as data, then shown, then done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.errors import AlreadyRunning, HeadraceError, LakeUnavailable, ProjectError
from headrace.pipeline import connector_of
from headrace.project import Project
from headrace.source.postgres import slots

CATALOG_FILE = "catalog.db"
Kind = Literal["slot", "publication", "folder", "state"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to remove: a slot's or publication's name, a folder, or what the folder of local state has of the lake."""

    kind: Kind
    name: str
    text: str
    option: str


def plan(project: Project, *, slot: bool, publications: bool, lake: bool) -> Sequence[Step]:
    """What exists of the parts asked for; of all parts when none is. Changes nothing. Raises SourceUnreachable when it must
    ask the source.
    """
    everything = not (slot or publications or lake)
    steps: list[Step] = []
    if slot or publications or everything:
        try:
            with connector_of(project).connect() as control:
                found = slots.find_slot(control, project.slot) if slot or everything else None
                if found is not None:
                    text = f"slot {found.name} at the source, which keeps {found.retained_bytes:,} bytes of log"
                    steps.append(Step(kind="slot", name=found.name, text=text, option="--slot"))
                if publications or everything:
                    rows = control.execute(
                        "SELECT pubname FROM pg_publication WHERE pubname = ANY(%s) ORDER BY 1",
                        [[project.publication, project.appends_publication]],
                    ).fetchall()
                    steps += [
                        Step(kind="publication", name=name, text=f"publication {name} at the source", option="--publications")
                        for (name,) in rows
                    ]
        except HeadraceError:
            if not everything:
                raise
    in_database = isinstance(project.catalog_location(), str)
    if lake or (everything and not in_database):
        if in_database:
            raise ProjectError(
                "the catalog is in a PostgreSQL database (lake.catalog.store), which this command does not empty",
                remedy="Drop that database or its tables by hand, then remove the warehouse folder.",
            )
        of_lake: Sequence[tuple[Kind, Path, str]] = (
            ("folder", project.warehouse, "the lake"),
            ("state", project.state, "the local state"),
        )
        for kind, folder, what in of_lake:
            if any(_of_lake(kind, folder)):
                count, size = _extent(kind, folder)
                text = f"{what} in {folder}: {count:,} files, {size:,} bytes"
                steps.append(Step(kind=kind, name=str(folder), text=text, option="--lake"))
    return steps


def apply(project: Project, steps: Sequence[Step]) -> Iterator[Step]:
    """Do the steps, in order; yields each one done. Raises AlreadyRunning when a run is active."""
    at_source = [step for step in steps if step.kind in ("slot", "publication")]
    folders = [step for step in steps if step not in at_source]
    if at_source:
        with connector_of(project).connect() as control:
            slots.lock_pipeline(control, project.slot)
            for step in at_source:
                if step.kind == "slot":
                    slots.drop_slot(control, step.name)
                else:
                    slots.drop_publications(control, [step.name])
                yield step
    if folders:
        _require_idle(project)
        for step in folders:
            _remove_folder(step.kind, Path(step.name), project)
            yield step


def _require_idle(project: Project) -> None:
    """Refuse while a run is active; a source that does not answer cannot have one going on for long."""
    try:
        with connector_of(project).connect() as control:
            running = slots.is_running(control, project.slot)
    except HeadraceError:
        return
    if running:
        raise AlreadyRunning(
            "a run of this pipeline is active, so its lake was not removed", remedy="Stop it, then say this again."
        )


def _of_lake(kind: Kind, folder: Path) -> Iterator[Path]:
    """What goes with the lake: the folder; of the local state its subfolders, since the files beside them are secrets that the
    project still needs.
    """
    if folder.is_dir():
        yield from [folder] if kind == "folder" else [one for one in folder.iterdir() if one.is_dir()]


def _remove_folder(kind: Kind, folder: Path, project: Project) -> None:
    if folder == project.warehouse and not (folder / CATALOG_FILE).exists():
        raise LakeUnavailable(
            f"{folder} has no {CATALOG_FILE}, so it is perhaps not a lake of Headrace; it was not removed",
            remedy="Check lake.warehouse in headrace.yaml; remove the folder by hand if it is.",
        )
    try:
        for one in list(_of_lake(kind, folder)):
            shutil.rmtree(one)
    except OSError as error:
        raise LakeUnavailable(f"{folder} could not be removed whole: {error.strerror}") from error


def _extent(kind: Kind, folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for one in _of_lake(kind, folder) for path in one.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)
