"""Whatever is done to a database, bronze is its log, and silver is its tables and the fold of bronze.

`HEADRACE_PROPERTY_SEED` sets the first seed of the long test, which is random and printed otherwise, and
`HEADRACE_PROPERTY_EXAMPLES` how many examples of each recipe it goes through.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import SystemRandom

import pytest

from headrace import pipeline
from headrace.project import Project
from headrace.testing.postgres import Postgres
from tests.conftest import Database, fresh_database
from tests.integration.property.example import Example, Recipe
from tests.integration.property.tables import Shape
from tests.integration.property.workload import KEYS_MOVE

SEED = int(os.environ.get("HEADRACE_PROPERTY_SEED", str(SystemRandom().randrange(10**6))))
EXAMPLES = int(os.environ.get("HEADRACE_PROPERTY_EXAMPLES", "2"))

SHORT = Recipe(shape=Shape(), rounds=2, tables=(2, 3))
RECIPES = {
    "tables of every sort": Recipe(shape=Shape(), tables=(2, 5), transactions=(5, 40)),
    "keys that move and values outside rows": Recipe(
        shape=Shape(columns=(1, 3), keys=5, big=0.9, keyless=0.05), mix=KEYS_MOVE, tables=(1, 3), transactions=(5, 40)
    ),
    "columns of every type": Recipe(shape=Shape(columns=(10, 25), keys=30, big=0.1), tables=(1, 3), transactions=(5, 20)),
}


@pytest.mark.parametrize("seed", range(6))
def test_a_few_known_examples_arrive_exactly(postgres: Postgres, tmp_path: Path, seed: int) -> None:
    _go_through(SHORT, seed, postgres, tmp_path, again=f"this test with seed {seed}")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_random_examples_arrive_exactly(postgres: Postgres, tmp_path: Path, name: str) -> None:
    for seed in range(SEED, SEED + EXAMPLES):
        again = f"HEADRACE_PROPERTY_SEED={seed} HEADRACE_PROPERTY_EXAMPLES=1"
        _go_through(RECIPES[name], seed, postgres, tmp_path / str(seed), again=again)


def _go_through(recipe: Recipe, seed: int, postgres: Postgres, folder: Path, *, again: str) -> None:
    """Print, for a failure, how to repeat the example, and where what was done lies as SQL."""
    with fresh_database(postgres) as database:
        example = Example(recipe, seed, database, folder / "project")
        try:
            example.go_through()
        finally:
            script = folder / "script.sql"
            script.write_text("\n".join(example.script))
            print(f"{again}: {example.commits} commits; all that was done, as SQL: {script}")


def test_silver_with_uuids_is_rebuilt(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE tags (id uuid PRIMARY KEY)", "INSERT INTO tags VALUES (gen_random_uuid())")
    (tmp_path / "headrace.yaml").write_text(f"pipeline: tags\nsource:\n  url: {database.url}\n  tables: ['public.*']\n")
    project = Project.load(tmp_path)
    with pipeline.open_run(project, lambda _: None) as run:
        run.run(until_caught_up=True)
    assert pipeline.rebuild_silver(project, "tags")[1] == 1
    assert pipeline.verify_lake(project).equal
