"""What the page on bronze and silver shows is what a lake answers: its statements are run, its answers compared."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg

from tests.acceptance.running import RunningProject
from tests.conftest import Database

PAGE = Path(__file__).parents[2] / "docs/explanation/layers.md"
BLOCK = re.compile(r"^```sql\n(?P<sql>.*?)^```\n(?:^```csv\n(?P<answer>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def test_every_answer_on_the_page_is_true(database: Database, tmp_path: Path) -> None:
    running = RunningProject(tmp_path / "zoo", database.url)
    answers = 0
    for block in BLOCK.finditer(PAGE.read_text()):
        if block["sql"].startswith("-- at the source"):
            with psycopg.connect(database.url, autocommit=True) as connection:
                for statement in block["sql"].split(";\n"):
                    connection.execute(statement.encode())
            assert running.run("run", "--until-caught-up").code in (0, 9)
            continue
        assert running.must("query", block["sql"], "--format", "csv") == block["answer"], block["sql"]
        answers += 1
    assert answers > 5
