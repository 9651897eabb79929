from __future__ import annotations

from pathlib import Path

from headrace.project import Project
from headrace.project.reference import commented_file, page
from headrace.project.settings import all_settings

ROOT = Path(__file__).parents[3]


def test_the_reference_page_is_current() -> None:
    kept = (ROOT / "docs" / "reference" / "project-file.md").read_text()
    assert kept == page(), "run: python -m headrace.project.reference > docs/reference/project-file.md"


def test_every_setting_is_described() -> None:
    for path, field in all_settings():
        assert field.description or (field.annotation is not None and field.annotation.__doc__), path


def test_the_commented_file_loads_and_its_comments_are_the_defaults(tmp_path: Path) -> None:
    text = commented_file(
        pipeline="shop",
        url="postgresql://app@db.example/shop",
        password="{env: PASSWORD}",
        tables=["public.users", 'odd "name".table'],
    )
    (tmp_path / "headrace.yaml").write_text(text)
    with_comments = Project.load(tmp_path, environ={})
    assert with_comments.source.tables == ("public.users", 'odd "name".table')

    settings = {path.rpartition(".")[2] for path, _ in all_settings()}
    lines = []
    for line in text.splitlines():
        key = line.strip().removeprefix("# ").partition(":")[0]
        lines.append(line.replace("# ", "", 1) if line.strip().startswith("# ") and key in settings else line)
    (tmp_path / "headrace.yaml").write_text("\n".join(lines))
    without_comments = Project.load(tmp_path, environ={})
    assert len([line for line in lines if line.strip() and not line.strip().startswith("#")]) > 20
    assert without_comments.lake == with_comments.lake
    assert without_comments.source.model_dump(exclude={"url", "password"}) == with_comments.source.model_dump(
        exclude={"url", "password"}
    )
