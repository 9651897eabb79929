"""Silver as the fold of bronze: one SQL query over any relation in bronze's layout.

This is the definition of silver, independent of how the writer merges batches: `headrace rebuild`, `verify` and the tests rely
on it. Rows are ordered by (epoch, commit LSN, ordinal) only.

- The last truncate or copy (its ``r`` rows, and the ``t`` before them) ends everything before it, the base too.
- A row's state is what the last change of its key set. A change of the key itself ends the old key and begins the new one.
- A value that was unavailable (unchanged TOAST) is the last one sent in the row's line, which goes on when its key changes.
- A table without a key is all its rows since the last truncate or copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyiceberg.types import BinaryType, DecimalType, ListType, StringType

from headrace.schema import TableSchema

TOASTABLE = (StringType, BinaryType, DecimalType, ListType)
"""Only values of variable length can lie outside their row and so be unavailable."""
OWN_COLUMNS = ("_epoch", "_commit_lsn", "_ordinal", "_commit_time")
_ORDINAL_BITS = 42  # either side of 0; a position and one bit more are to fit 127 bits: 20 of epoch + 63 + 43 + 1

Cte = tuple[str, str]


def fold_sql(bronze: str, schema: TableSchema, *, base: str | None = None) -> str:
    """A DuckDB query for silver's rows, in no order: the schema's columns, ``_epoch`` … ``_commit_time``, ``_flags``.

    ``bronze`` and ``base`` are SQL relations: a table's name, or a query in parentheses. ``base`` has silver's columns as they
    were at an earlier position; ``bronze`` then has only the changes after it.
    """
    ctes = [*_changes(bronze, schema, base), *(_keyed(schema) if schema.key else _appended(schema))]
    with_ = ", ".join(f"{head} ({query})" for head, query in ctes)
    names = [*(_name(column.name) for column in schema.columns), *OWN_COLUMNS, "_flags"]
    return f"WITH RECURSIVE {with_} SELECT {', '.join(names)} FROM folded"


def _changes(bronze: str, schema: TableSchema, base: str | None) -> Iterator[Cte]:
    """``changes``: the changes that count, without values; ``states``: the rows that they set, with values."""
    # A copy's rows lie after the truncate that stands at its snapshot's LSN; where none was written they have its effect.
    of_barrier = _position("epoch", "commit_lsn", f"CASE op WHEN 'r' THEN {-1 << _ORDINAL_BITS} ELSE ordinal END")
    yield (
        "bounds AS MATERIALIZED",
        f"SELECT coalesce(max({of_barrier}), -1) AS barrier FROM {bronze} AS b WHERE op IN ('r', 't')",
    )
    position = _position("epoch", "commit_lsn", "ordinal")
    key = [_name(name) for name in schema.key]
    news = [_new_key(schema, name) for name in schema.key]
    new = [f"{value} AS k{n}" for n, value in enumerate(news)]
    old = [f"before.{name} AS old_k{n}" for n, name in enumerate(key)]
    differs = " OR ".join(f"before.{name} IS DISTINCT FROM {value}" for name, value in zip(key, news, strict=True)) or "false"
    moved = f"op = 'u' AND before IS NOT NULL AND ({differs}) AS moved"
    changes = (
        f"SELECT {', '.join([f'{position} AS position', 'op', moved, *new, *old])}"
        f" FROM {bronze} AS b, bounds WHERE op <> 't' AND {position} > bounds.barrier"
    )
    flags = "list_transform(map_keys(after_text), lambda name: name || ':unrepresentable')"
    states = (
        f"SELECT {position} AS position, {_row(schema, 'after.')} AS row, unavailable, nullif({flags}, []) AS _flags,"
        " epoch AS _epoch, commit_lsn AS _commit_lsn, ordinal AS _ordinal, commit_time AS _commit_time"
        f" FROM {bronze} AS b, bounds WHERE op IN ('c', 'u', 'r') AND {position} > bounds.barrier"
    )
    if base is not None:
        position = _position("_epoch", "_commit_lsn", "_ordinal")
        kept = f"FROM {base} AS b, bounds WHERE bounds.barrier < 0"
        unmoved = ["'r'", "false", *(f"b.{name}" for name in key), *("NULL" for _ in key)]
        changes += f" UNION ALL SELECT {', '.join([position, *unmoved])} {kept}"
        states += f" UNION ALL SELECT {position}, {_row(schema, 'b.')}, NULL, _flags, {', '.join(OWN_COLUMNS)} {kept}"
    yield "changes AS", changes
    yield "states AS", states


def _appended(schema: TableSchema) -> Iterator[Cte]:
    columns = [f"row.{_name(column.name)}" for column in schema.columns]
    yield "folded AS", f"SELECT {', '.join([*columns, *OWN_COLUMNS, '_flags'])} FROM states"


def _keyed(schema: TableSchema) -> Iterator[Cte]:
    keys = [f"k{n}" for n in range(len(schema.key))]
    key = ", ".join(keys)
    old_key = ", ".join(f"old_{name}" for name in keys)
    # What each change does to a key: sets its row, or removes it. A change of the key does both, to two keys.
    yield (
        "touches AS MATERIALIZED",
        f"SELECT position, {key}, true AS sets, op, moved FROM changes WHERE op <> 'd'"
        f" UNION ALL SELECT position, {old_key}, false, op, moved FROM changes WHERE op = 'd' OR moved",
    )
    yield (
        "last_sets AS MATERIALIZED",
        f"SELECT touch // 2 AS position FROM (SELECT max(position * 2 + sets::INT) AS touch FROM touches GROUP BY {key})"
        " WHERE touch % 2 = 1",
    )
    yield "final AS MATERIALIZED", "SELECT s.* FROM states AS s SEMI JOIN last_sets USING (position)"
    toastable = [column.name for column in schema.columns if isinstance(column.type, TOASTABLE)]
    columns = {column.name: f"f.row.{_name(column.name)}" for column in schema.columns}
    flags, source = "f._flags", "final AS f"
    if toastable:
        yield from _carried(keys, toastable)
        source += " LEFT JOIN carried AS c USING (position)"
        for n, name in enumerate(toastable):
            columns[name] = f"CASE WHEN {_lacks('f', name)} THEN c.v{n}.value ELSE {columns[name]} END"
        carried_flags = ", ".join(
            f"CASE WHEN {_lacks('f', name)} AND c.v{n}.flagged THEN {_flag(name)} END" for n, name in enumerate(toastable)
        )
        carried_flags = f"list_filter([{carried_flags}], lambda flag: flag IS NOT NULL)"
        flags = f"CASE WHEN f.unavailable IS NULL THEN f._flags ELSE nullif(list_concat(f._flags, {carried_flags}), []) END"
    selected = [f"{expression} AS {_name(name)}" for name, expression in columns.items()]
    yield "folded AS", f"SELECT {', '.join([*selected, *OWN_COLUMNS])}, {flags} AS _flags FROM {source}"


def _carried(keys: Sequence[str], toastable: Sequence[str]) -> Iterator[Cte]:
    """``carried``: for each final row with unavailable values, each column's last value in the row's line, and if it was flagged.

    A key's life from insert, copy or change of key to its end is a segment. A line is a segment and, where that began with a
    change of key, the old key's segment that it ended, and so on. Only keys that matter are looked at: those of rows that lack a
    value, and those whose rows were ever moved.
    """
    key = ", ".join(keys)
    same_key = " AND ".join(f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in keys)
    yield "lacking AS MATERIALIZED", "SELECT position FROM final WHERE unavailable IS NOT NULL"
    yield (
        "hot_keys AS MATERIALIZED",
        f"SELECT DISTINCT {key} FROM touches WHERE (sets AND position IN (SELECT position FROM lacking))"
        " OR (moved AND EXISTS (SELECT 1 FROM lacking))",
    )
    yield (
        "hot AS MATERIALIZED",
        "SELECT *, sets AND (op IN ('c', 'r') OR moved OR NOT coalesce(lag(sets) OVER life, false)) AS begins FROM ("
        f"SELECT a.* FROM touches AS a SEMI JOIN hot_keys AS b ON {same_key})"
        f" WINDOW life AS (PARTITION BY {key} ORDER BY position)",
    )
    yield (
        "segments AS MATERIALIZED",
        f"SELECT *, dense_rank() OVER (ORDER BY {key}, number) AS segment FROM ("
        f"SELECT *, sum(begins::INT) OVER (PARTITION BY {key} ORDER BY position) AS number FROM hot)",
    )
    yield (
        "links AS MATERIALIZED",
        "SELECT begun.segment AS child, ended.segment AS parent FROM segments AS begun JOIN segments AS ended USING (position)"
        " WHERE begun.sets AND begun.moved AND NOT ended.sets",
    )
    yield (
        "lines AS",
        "SELECT position AS final, segment FROM segments WHERE sets AND position IN (SELECT position FROM lacking)"
        " UNION ALL SELECT lines.final, links.parent FROM lines JOIN links ON links.child = lines.segment",
    )
    values = []
    for n, name in enumerate(toastable):
        flagged = f"coalesce(list_contains(s._flags, {_flag(name)}), false)"
        value = f"{{'value': s.row.{_name(name)}, 'flagged': {flagged}}}"
        values.append(f"arg_max({value}, s.position) FILTER (WHERE NOT {_lacks('s', name)}) AS v{n}")
    yield (
        "carried AS",
        f"SELECT l.final AS position, {', '.join(values)} FROM lines AS l JOIN segments AS g ON g.segment = l.segment AND g.sets"
        " JOIN states AS s ON s.position = g.position GROUP BY l.final",
    )


def _position(epoch: str, lsn: str, ordinal: str) -> str:
    """A change's place as one number, since numbers compare faster than structs."""
    bounded = f"greatest({ordinal}, {-1 << _ORDINAL_BITS}) + {1 << _ORDINAL_BITS}"
    return f"(({epoch}::HUGEINT * {1 << 63} + {lsn}) * {1 << (_ORDINAL_BITS + 1)} + {bounded})"


def _new_key(schema: TableSchema, name: str) -> str:
    """A key column's value after the change. One that lies outside its row is not sent again; then the old row has it."""
    after, before = f"after.{_name(name)}", f"before.{_name(name)}"
    return f"coalesce({after}, {before})" if isinstance(schema.column(name).type, TOASTABLE) else after


def _row(schema: TableSchema, source: str) -> str:
    return f"struct_pack({', '.join(f'{_name(column.name)} := {source}{_name(column.name)}' for column in schema.columns)})"


def _lacks(row: str, column: str) -> str:
    return f"coalesce(list_contains({row}.unavailable, {_text(column)}), false)"


def _flag(column: str) -> str:
    return _text(f"{column}:unrepresentable")


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
