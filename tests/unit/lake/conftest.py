"""A real catalog and warehouse in a temporary folder, and eyes to look at what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import StaticTable

from headrace.catalog import Catalog
from headrace.lake.levels import MergeLimits
from headrace.lake.writer import LakeWriter

SMALL = MergeLimits(fanout=3, base_rows=300, base_bytes=1 << 20, most_rows=500)
"""So that merges, base files and their limits all occur within some dozens of small commits."""


class World:
    """One warehouse and its catalog, with a writer that can be closed, killed and opened again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.catalog = Catalog.open(folder / "catalog.db", folder / "lake")
        self._writer: LakeWriter | None = None

    @property
    def lake(self) -> LakeWriter:
        if self._writer is None:
            self._writer = self.another()
        return self._writer

    def another(self, pipeline: str = "shop", state: str = "state") -> LakeWriter:
        return LakeWriter.open(
            catalog=self.catalog,
            warehouse=self.folder / "lake",
            state=self.folder / state,
            pipeline=pipeline,
            limits=SMALL,
            kept_snapshots=5,
        )

    def restart(self) -> LakeWriter:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        return self.lake

    def table(self, namespace: str, name: str) -> StaticTable:
        return StaticTable.from_metadata(self.catalog.load(namespace, name).metadata_location)

    def rows(self, namespace: str, name: str) -> list[dict[str, Any]]:
        """What PyIceberg reads."""
        return list(self.arrow(namespace, name).to_pylist())

    def arrow(self, namespace: str, name: str) -> pa.Table:
        return self.table(namespace, name).scan().to_arrow()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.catalog.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()
