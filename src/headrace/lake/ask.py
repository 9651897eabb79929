"""SQL over one version of the lake, and its answer as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import duckdb

from headrace.errors import BadQuery, LakeUnavailable

Format = Literal["csv", "json", "parquet"]
_COPY = {
    "csv": "(FORMAT csv, HEADER true)",
    "json": "(FORMAT json, ARRAY true)",
    "parquet": "(FORMAT parquet, COMPRESSION zstd)",
}


_MEND = (
    "Restore it from a backup. Or make its table anew: `headrace rebuild TABLE` makes silver from bronze,"
    " `headrace resync TABLE` copies it from the source."
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The first rows of a result, as DuckDB writes their values. ``more``: there are further ones."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    more: bool


def ask(engine: duckdb.DuckDBPyConnection, sql: str, *, limit: int) -> Answer | None:
    """Run one statement; None when it has no result. Raises BadQuery with DuckDB's own words, LakeUnavailable for a file of the
    lake that is missing or damaged.
    """
    try:
        answer = _relation(engine, sql)
        if answer is None:
            return None
        # As text: Python's own types lack infinities and far years, and times with a zone would need a package of their own.
        # By `execute`, not by the relation's methods: those keep the interpreter's lock, and the catalog's thread needs it.
        rows = engine.execute("SELECT COLUMNS(*)::VARCHAR FROM answer").fetchmany(limit + 1)
        return Answer(columns=list(answer.columns), rows=rows[:limit], more=len(rows) > limit)
    except duckdb.Error as error:
        raise _bad(error) from error


def write_answer(engine: duckdb.DuckDBPyConnection, sql: str, *, form: Format, out: BinaryIO) -> None:
    """Write the whole result of one query, in bounded memory. JSON is an array of objects. Raises as `ask`, and OSError."""
    with tempfile.TemporaryDirectory(prefix="headrace-query-") as folder:
        path = Path(folder) / f"answer.{form}"
        try:
            answer = _relation(engine, sql)
            if answer is None:
                return
            engine.execute(f"COPY (SELECT * FROM answer) TO '{path}' {_COPY[form]}")
        except duckdb.Error as error:
            raise _bad(error) from error
        with path.open("rb") as written:
            while block := written.read(1 << 20):
                out.write(block)


@contextmanager
def reading() -> Iterator[None]:
    """For queries of our own: DuckDB's errors become LakeUnavailable, without a value in them."""
    try:
        yield
    except duckdb.Error as error:
        known = _bad(error)
        if isinstance(known, LakeUnavailable):
            raise known from error
        text = str(error).splitlines()[0] if isinstance(error, duckdb.IOException) else type(error).__name__
        raise LakeUnavailable(f"the lake cannot be read: {text}", remedy=_MEND) from error


def _relation(engine: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation | None:
    """DuckDB gives none for a statement without a result, though its type does not say so."""
    return engine.sql(sql)


_FILE = re.compile(r"[\"'](?:file://)?(/[^\"']*/(?:data|metadata)/[^\"']*\.(?:parquet|avro|json))[\"']")
"""A file of an Iceberg table in one of DuckDB's messages."""
_DAMAGED = ("Avro container file", "Cannot read ", "don't know what type", "TProtocolException")
"""What DuckDB says of a damaged file without its name."""


def _bad(error: duckdb.Error) -> BadQuery | LakeUnavailable:
    text = str(error).strip()
    named = _FILE.search(text) if isinstance(error, duckdb.IOException | duckdb.InvalidInputException) else None
    if named is not None:
        return LakeUnavailable(f"A file of the lake cannot be read: {named[1]}: it is missing or damaged ({text})", remedy=_MEND)
    if any(words in text for words in _DAMAGED):
        return LakeUnavailable(
            f"A file of the lake is damaged, of a table in this query: {text}. DuckDB does not say which.", remedy=_MEND
        )
    return BadQuery(
        f"the query failed: {str(error).strip()}",
        remedy="Tables are bronze.<table> and silver.<table>, <schema>__<table> outside schema public:"
        " `headrace query 'SHOW ALL TABLES'` lists them.",
    )
