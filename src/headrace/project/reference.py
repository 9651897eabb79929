"""The project file's reference page and the commented file that `headrace init` writes, both from the model.

``python -m headrace.project.reference > docs/reference/project-file.md``
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from headrace.project.model import ProjectFile, Section
from headrace.project.settings import default_text, expectation, keys_of, section_of

INTRODUCTION = """\
# The project file

`headrace.yaml` in the project's folder. Only `pipeline`, `source.url` and `source.tables` must be given; `headrace
init` writes a file with every setting and its default. A key that is not listed here is an error, as is a value of
another type; the message has file, line and key, what was found and what was expected. (This page is generated: `python
-m headrace.project.reference`.)

```yaml
pipeline: shop
source:
  url: ${DATABASE_URL}
  tables: [users, orders, "sales.*"]
```

**References.** `${NAME}` anywhere in a text is replaced by that environment variable; `${NAME:-default}` gives a
default, and `$$` is a dollar sign. A variable that is not set is an error that names it; for a secret only when it is
needed, so that `headrace query` works without the source's password.

**Secrets** (`url`, `password`, `store`, `token`) are texts, or `{env: NAME}`, or `{file: PATH}` (relative to the
project file; the newline at its end does not count). No command, log line or error shows them. A secret should not
stand in the file itself.

**Overrides.** The environment variable `HEADRACE__SECTION__KEY` replaces a value, as in
`HEADRACE__SOURCE__HEARTBEAT=30s` or `HEADRACE__LAKE__COMMIT__ROWS=100000`; a list is written with commas.

**Durations** are written `500ms`, `10s`, `1h30m` (units ms, s, m, h, d, w). **Sizes** are written `64kB`, `256MB`,
`1GB`; as in PostgreSQL the units are powers of 1024.

**Patterns** in `tables` and `exclude` are `schema.table`, exact or with `*`, `?` and `[…]`; without a dot they mean a
table of schema `public`. A partitioned table stands for its partitions. Tables of extensions, views and temporary
tables are matched by their exact names only. A table that a pattern with `*` matches but that cannot be captured is
left out; `headrace check` names it.

Beside the file is the folder `.headrace`, where Headrace keeps what belongs to this machine: it can hold secrets, is
readable by its owner only and should not be shared; it carries a `.gitignore`.
"""


def page() -> str:
    """The reference page, in Markdown."""
    parts = [INTRODUCTION]
    parts += _sections(ProjectFile, ())
    return "\n".join(parts)


def _sections(section: type[Section], path: tuple[str, ...]) -> list[str]:
    name = f"`{'.'.join(path)}`" if path else "The file"
    lines = [
        f"## {name}",
        "",
        *([_summary(section), ""] if path else []),
        "| key | default | may be | meaning |",
        "|---|---|---|---|",
    ]
    inner: list[str] = []
    for key, field in keys_of(section).items():
        below = section_of(field)
        if below is not None:
            meaning, may_be, default = _summary(below), f"[section](#{''.join((*path, key))})", ""
            inner += _sections(below, (*path, key))
        else:
            meaning, may_be = field.description or "", expectation(field)
            default = "*required*" if field.is_required() else f"`{default_text(field)}`"
        lines.append(f"| `{key}` | {default} | {may_be} | {meaning} |")
    return [*lines, "", *inner]


def _summary(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def commented_file(*, pipeline: str, url: str, password: str | None, tables: Sequence[str], exclude: Sequence[str] = ()) -> str:
    """A project file with these values, and every other setting in comments with its default.

    ``url`` and ``password`` are as they stand in YAML: references, never secrets.
    """
    given = {
        "pipeline": [f"pipeline: {pipeline}"],
        "source.url": [f"url: {url}"],
        "source.password": [f"password: {password}"] if password else [],
        "source.tables": ["tables:", *(f"  - {quoted(table)}" for table in tables)],
        "source.exclude": ["exclude:", *(f"  - {quoted(table)}" for table in exclude)] if exclude else [],
    }
    head = [
        "# A Headrace project. `headrace check` says whether the source is ready, `headrace run` copies it and follows it.",
        "# Lines in comments are settings with their defaults: take away the # to change one (docs/reference/project-file.md).",
        "",
    ]
    return "\n".join([*head, *_commented(ProjectFile, (), given)]) + "\n"


def _commented(section: type[Section], path: tuple[str, ...], given: dict[str, list[str]]) -> list[str]:
    lines = []
    indent = "  " * len(path)
    for key, field in keys_of(section).items():
        below = section_of(field)
        here = (*path, key)
        if below is not None:
            lines += ["" if not path else f"{indent}#", f"{indent}# {_summary(below)}", f"{indent}{key}:"]
            lines += _commented(below, here, given)
            continue
        lines += [f"{indent}# {line}" for line in textwrap.wrap(field.description or "", 120 - len(indent))]
        values = given.get(".".join(here)) or [f"# {key}: {default_text(field)}"]
        lines += [f"{indent}{line}" for line in values]
    return lines


def quoted(text: str) -> str:
    """A text as a YAML scalar in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def main() -> None:
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
