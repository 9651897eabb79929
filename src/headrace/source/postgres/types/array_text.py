"""PostgreSQL's text of one-dimensional arrays → Arrow lists of its elements' texts, over all values at once.

``{1,NULL,"a \"b\"","NULL",""}`` has five elements, one of which is null. A value with other bounds (``[2:3]={1,2}``) or more
dimensions (``{{1},{2}}``) has no counterpart in the lake: its list is null.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
QUOTE, BACKSLASH, COMMA, OPEN, CLOSE = b'"\\,{}'


def parse(column: pa.Array) -> pa.Array:
    """list<string>[n] for string, large_string or string_view[n]; null where the text is null or another kind of array."""
    text = column.cast(pa.large_string())
    if text.null_count:
        text = text.fill_null("")  # null slots may have bytes
    _, offset_buffer, data = text.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[text.offset : text.offset + len(text) + 1]
    whole = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return _Texts(whole[offsets[0] : offsets[-1]], offsets - offsets[0]).lists()


class _Texts:
    """The bytes of n texts one after another, and the n + 1 places where they begin and end."""

    def __init__(self, data: Bytes, offsets: Ints) -> None:
        self.data, self.offsets = data, offsets
        backslash = data == BACKSLASH
        self.escapes = _escapes(backslash) if backslash.any() else None
        quote = data == QUOTE
        if self.escapes is not None:
            quote[1:] &= ~self.escapes[:-1]
        inside = (np.cumsum(quote, dtype=np.int32) & 1).astype(np.bool_) if quote.any() else np.zeros(len(data), np.bool_)
        self.opening: Bools = (data == OPEN) & ~inside
        self.limits: Bools = self.opening | (((data == COMMA) | (data == CLOSE)) & ~inside)

    def lists(self) -> pa.Array:
        starts, ends = self.offsets[:-1], self.offsets[1:]
        opened = np.concatenate([[0], np.cumsum(self.opening)])
        filled = np.flatnonzero(ends > starts)
        valid = np.zeros(len(starts), np.bool_)
        valid[filled] = (self.data[starts[filled]] == OPEN) & (opened[ends[filled]] - opened[starts[filled]] == 1)
        # Of each valid text: the opening brace, the commas, the closing brace. Between neighbours lies an element.
        at = np.flatnonzero(self.limits)
        text = np.searchsorted(self.offsets, at, side="right") - 1
        at, text = at[valid[text]], text[valid[text]]
        is_close = self.data[at] == CLOSE
        begin = at[~is_close] + 1
        owner = text[~is_close]
        end = at[~self.opening[at]]
        nothing = (end - begin == 0) & (ends[owner] - starts[owner] == 2)  # {}
        begin, end, owner = begin[~nothing], end[~nothing], owner[~nothing]
        counts = np.bincount(owner, minlength=len(starts))
        list_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        mask = None if valid.all() else pa.array(~valid)
        return pa.ListArray.from_arrays(pa.array(list_offsets), self._elements(begin, end), mask=mask)

    def _elements(self, begin: Ints, end: Ints) -> pa.Array:
        """string[len(begin)]: the unquoted elements between these places."""
        quoted = self.data[begin] == QUOTE if len(begin) else np.zeros(0, np.bool_)
        is_null = self._is_null(begin, end)
        begin, end = begin + quoted, end - quoted
        length = np.where(is_null, 0, end - begin)
        if self.escapes is not None:
            before = np.concatenate([[0], np.cumsum(self.escapes)])
            length -= before[end] - before[begin]
        keep = np.zeros(len(self.data) + 1, np.int8)
        keep[begin[~is_null]] += (
            1  # elements never touch: a limit lies between two of them, and between a quote and the next element
        )
        np.subtract.at(keep, end[~is_null], 1)
        kept = np.cumsum(keep[:-1], dtype=np.int8).astype(np.bool_)
        if self.escapes is not None:
            kept &= ~self.escapes
        data = self.data[kept]
        offsets = np.concatenate([[0], np.cumsum(length)])
        bitmap = pa.py_buffer(np.packbits(~is_null, bitorder="little")) if is_null.any() else None
        if offsets[-1] > np.iinfo(np.int32).max:
            raise OverflowError("the arrays of one batch have more than 2 GB of text")
        return pa.Array.from_buffers(
            pa.string(), len(begin), [bitmap, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
        )

    def _is_null(self, begin: Ints, end: Ints) -> Bools:
        """Unquoted NULL; PostgreSQL quotes a text that looks like it."""
        result: Bools = end - begin == 4
        places = begin[result]
        for n, letter in enumerate(b"NULL"):
            result[result] &= self.data[places + n] == letter
            places = begin[result]
        return result


def _escapes(backslash: Bools) -> Bools:
    """Which backslashes escape the byte after them: the odd ones of each run."""
    index = np.arange(len(backslash))
    last_other = np.maximum.accumulate(np.where(backslash, -1, index))
    odd: Bools = backslash & ((index - last_other) % 2 == 1)
    return odd
