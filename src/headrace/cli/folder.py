"""The project folder that ``-C`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from headrace.project import Project


def project_of(context: typer.Context) -> Project:
    """The project that the command works on. Raises ProjectError."""
    from headrace.project import Project

    return Project.load(context.obj)
