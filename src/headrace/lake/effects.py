"""What a chunk of changes does to the current rows of its table: which keys end with which row, and which end deleted.

Pure, and over whole columns at once. A change is one or two *events* on keys: c, r and u put a row under their key; d deletes its
key; a u whose old key differs deletes that first; t deletes every key. Keys are unique after each change, so a key's last event
decides.

A row may lack columns that the source did not send (unchanged TOAST). They have the value of the row's *predecessor*: the last
put before it under the key that the row had before. Where the predecessor lacks the column too, its predecessor is asked, and so
on; if the chunk has none, the row that silver has under the first key of that line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.lake.keys import KeyCodec, Lanes, joined

Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_C, _D, _T, _U = (ord(letter) for letter in "cdtu")


class Inconsistent(Exception):
    """A chunk that no source sends: the table cannot be followed on it. The text says what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A column of some of the surviving rows whose value comes from elsewhere."""

    column: str
    rows: Index
    """Which of ``Effects.survivors``, by their number there."""
    source: Index
    """For each: the row of the chunk that has the value, or -1 if silver has it."""
    old: Lanes
    """For those with -1, in order: the key under which silver has it."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """``truncated``: before anything else, every row that silver had is gone."""

    truncated: bool
    keys: Lanes
    """k touched keys, sorted and unique."""
    winner: Index
    """int64[k]: the row of the chunk that is the key's row afterwards; -1 for a deleted key."""
    survivors: Index
    """The winners that are rows, ascending: what is to be written, in source order."""
    carried: Sequence[Carried] = ()


def op_codes(op: pa.Array) -> npt.NDArray[np.uint8]:
    """uint8[n]: the letter of each op."""
    if pa.types.is_dictionary(op.type):
        letters: npt.NDArray[np.uint8] = op_codes(op.dictionary.cast(pa.string()))[op.indices.to_numpy(zero_copy_only=False)]
        return letters
    if not len(op):
        return np.zeros(0, np.uint8)
    if op.type != pa.string():
        op = op.cast(pa.string())
    offsets = np.frombuffer(op.buffers()[1], np.int32, count=len(op) + 1, offset=4 * op.offset)
    return np.frombuffer(op.buffers()[2], np.uint8)[offsets[:-1]]


def derive(changes: pa.RecordBatch, key: Sequence[str], codec: KeyCodec) -> Effects:
    """The effects of a chunk in the change layout, in one piece.

    Raises UnusableKey when a key cannot be held by the lake type, Inconsistent when a delete or a key change does not say of
    which row.
    """
    op = op_codes(changes.column("op"))
    cut = np.flatnonzero(op == _T)
    first = int(cut[-1]) + 1 if len(cut) else 0
    rows = np.arange(first, len(op))
    op = op[first:]
    puts = rows[op != _D]
    updates, deletes = rows[op == _U], rows[op == _D]
    before, after = changes.column("before"), changes.column("after")
    if len(deletes) and before.take(pa.array(deletes)).null_count:
        raise Inconsistent("a delete came without its old row's key")

    olds = np.concatenate([updates[_valid(before, updates)], deletes])
    n = len(puts)
    lanes = codec.lanes(
        [_both(after, puts, before, olds, name) for name in key]  # one call: a hash costs a fixed time too
    )
    new_keys, old_keys = lanes.take(slice(0, n)), lanes.take(slice(n, None))

    # Of a u, the old key counts as deleted only where it is another one.
    number = np.zeros(len(op), np.int64)
    number[puts - first] = np.arange(n)
    is_update = np.arange(len(olds)) < len(olds) - len(deletes)
    same = np.zeros(len(olds), np.bool_)
    same[is_update] = old_keys.take(is_update).equal(new_keys.take(number[olds[is_update] - first]))
    removed = olds[~same]
    events = joined([new_keys, old_keys.take(~same)]) if len(removed) else new_keys
    row = np.concatenate([puts, removed])
    is_put = np.arange(len(row)) < n
    if len(removed):
        # In order of time: by row, and in one row the delete first.
        in_time = np.argsort(2 * row + is_put, kind="stable")
        events, row, is_put = events.take(in_time), row[in_time], is_put[in_time]

    order = events.order()
    keys, row, is_put = events.take(order), row[order], is_put[order]
    same_key = keys.same_as_previous()
    last = np.ones(len(row), np.bool_)
    last[:-1] = ~same_key[1:]
    winner = np.where(is_put[last], row[last], -1)
    survivors = np.sort(winner[winner >= 0])
    carried: list[Carried] = []
    if changes.column("unavailable").null_count < changes.num_rows:
        previous = np.full(len(changes), -1, np.int64)
        _note_predecessors(previous, row, is_put, same_key)
        old_key = _old_keys(new_keys, old_keys, puts, olds[is_update], number, first)
        carried = _carried(changes, survivors, previous, old_key, first)
    return Effects(
        truncated=bool(len(cut)),
        keys=keys.take(last),
        winner=winner,
        survivors=survivors,
        carried=carried,
    )


def _valid(array: pa.Array, rows: Index) -> Mask:
    return array.is_valid().to_numpy(zero_copy_only=False)[rows] if array.null_count else np.ones(len(rows), np.bool_)


def _both(after: pa.StructArray, new_rows: Index, before: pa.StructArray, old_rows: Index, name: str) -> pa.Array:
    """A key column of the new rows, then of the old ones."""
    new, old = after.field(name), before.field(name)
    taken = new if len(new_rows) == len(new) else new.take(pa.array(new_rows))
    if taken.null_count:  # an unchanged key outside its row is not sent again; then the old key is
        valid = pa.array(_valid(before, new_rows))
        taken = pc.coalesce(taken, pc.if_else(valid, old.take(pa.array(new_rows)), pa.scalar(None, old.type)))
    return pa.concat_arrays([taken, old.take(pa.array(old_rows))]) if len(old_rows) else taken


def _note_predecessors(previous: Index, row: Index, is_put: Mask, same_key: Mask) -> None:
    """For each row, the row put last under the key that it had before; -1 for none in this chunk.

    Events are sorted by key, then time. A row's first event is that of its old key: its delete where its key changed, else its
    put.
    """
    before = np.full(len(row), -1, np.int64)
    before[1:] = np.where(same_key[1:] & is_put[:-1], row[:-1], -1)
    previous[row[is_put]] = before[is_put]
    previous[row[~is_put]] = before[~is_put]  # the delete of a changed key overrules the put under the new one


def _old_keys(new_keys: Lanes, old_keys: Lanes, puts: Index, updated: Index, number: Index, first: int) -> Lanes:
    """The key that each put's row had before, in the order of ``puts``."""
    hi, lo = new_keys.hi.copy(), None if new_keys.lo is None else new_keys.lo.copy()
    at = number[updated - first]
    hi[at] = old_keys.hi[: len(updated)]
    if lo is not None and old_keys.lo is not None:
        lo[at] = old_keys.lo[: len(updated)]
    wide = np.zeros(int(puts[-1]) + 1 if len(puts) else 0, np.uint64)
    full = wide.copy()
    wide[puts] = hi
    if lo is None:
        return Lanes(wide, None)
    full[puts] = lo
    return Lanes(wide, full)


def _carried(changes: pa.RecordBatch, survivors: Index, previous: Index, old_key: Lanes, first: int) -> list[Carried]:
    lists = changes.column("unavailable")
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(lists)), lengths)
    names = lists.flatten().dictionary_encode()
    result = []
    for code, name in enumerate(names.dictionary.to_pylist()):
        lacking = np.zeros(len(lists), np.bool_)
        lacking[row[names.indices.to_numpy() == code]] = True
        lacking[:first] = False
        wanted = np.flatnonzero(lacking[survivors])
        if not len(wanted):
            continue
        # Follow the predecessors, twice as far each time, until every row stands at one that has the value or has no predecessor.
        step = np.arange(len(lists))
        onward = lacking & (previous >= 0)
        step[onward] = previous[onward]
        while True:
            further = step[step]
            if bool((further == step).all()):
                break
            step = further
        source = step[survivors[wanted]]
        from_silver = lacking[source]
        result.append(
            Carried(
                column=name,
                rows=wanted,
                source=np.where(from_silver, -1, source),
                old=old_key.take(source[from_silver]),
            )
        )
    return result
