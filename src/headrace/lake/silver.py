"""Silver: the current row of every key, changed by row deltas: new rows in a data file, superseded ones as position deletes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.catalog import LoadedTable
from headrace.lake.effects import Effects, Inconsistent, derive, op_codes
from headrace.lake.index import KeyIndex, folder_of
from headrace.lake.keys import KeyCodec, Lanes
from headrace.lake.layout import FLAGS, POSITION_COLUMNS, SILVER, UNREPRESENTABLE, TableLayout
from headrace.lake.levels import MergeLimits, Sized, choose_merge
from headrace.lake.live_file import ROW_BITS, LiveFile, Places, by_file
from headrace.lake.manifests import DataFile
from headrace.lake.row_files import conform
from headrace.lake.runs import ABSENT, Run
from headrace.lake.storage import Storage
from headrace.lake.table import LakeTable, layout_in

SPILL_ROWS = 500_000
BUILD_ROWS = 1 << 20
NO_OLD_ROW = "an update left out an unchanged column of a row that silver does not have"

Index = npt.NDArray[np.int64]


class SilverTable:
    """A silver table with its key index. Without a key its rows are only appended.

    What is staged is forgotten by throwing the object away. Not safe for several threads.
    """

    def __init__(self, table: LakeTable, key: Sequence[str], state: Path) -> None:
        self.table = table
        self.key = tuple(key)
        self._folder = folder_of(state, table.uuid)
        self._codec = _codec(table.layout, self.key, table.uuid)
        # None while nothing has asked for it (a table that never changes needs none), and always without a key.
        self._index: KeyIndex | None = None
        self._writing: LiveFile | None = None
        self._superseded: list[Places] = []
        table.bounded = (*self.key, "_commit_lsn", "_commit_time")

    @classmethod
    def create(
        cls, storage: Storage, name: str, layout: TableLayout, key: Sequence[str], state: Path, limits: MergeLimits
    ) -> SilverTable:
        """A table that the next commit creates."""
        return cls(LakeTable(storage, SILVER, name, layout, limits), key, state)

    @classmethod
    def load(cls, storage: Storage, loaded: LoadedTable, key: Sequence[str], state: Path, limits: MergeLimits) -> SilverTable:
        """The table in the catalog, with its index as of the current snapshot where there is one that can be trusted."""
        metadata = loaded.metadata
        codec = _codec(layout_in(metadata), key, metadata["table-uuid"])
        folder = folder_of(state, metadata["table-uuid"])
        main = metadata["refs"].get("main")
        index = None
        if codec is not None and main is not None:
            index = KeyIndex.open(folder, wide=codec.wide, form=codec.form, snapshot_id=main["snapshot-id"])
        table = LakeTable.load(storage, loaded, limits, ids=index.files if index is not None else None)
        silver = cls(table, key, state)
        if index is not None and all(file.location in index.files for file in table.data.values()):
            silver._index = index
        return silver

    # --- staging --------------------------------------------------------------------------------------------------------------

    def evolve(self, layout: TableLayout) -> None:
        """The next commit changes the schema; the key's columns may have been widened."""
        if layout is not self.table.layout:
            if self._codec is not None:
                self._built_index(self._codec)
            self._end_file()
            self.table.evolve(layout)

    def stage(self, changes: pa.RecordBatch, epoch: int) -> None:
        """Stage a chunk of changes in the change layout. Raises UnusableKey, Inconsistent; then the chunk changed nothing."""
        if self._codec is None:
            self._stage_keyless(changes, epoch)
            return
        index = self._built_index(self._codec)
        effects = derive(changes, self.key, self._codec)
        keys, winner = effects.keys, effects.winner
        rows = self._rows(changes, effects, epoch)
        if effects.truncated:
            self.clear()
        places = index.look_up(keys)
        known = places != ABSENT
        if known.any():
            self._supersede(places[known])
        new = np.full(len(keys), ABSENT, np.uint64)
        put = winner >= 0
        if len(effects.survivors):
            file, first = self._append(rows)
            position = first + np.searchsorted(effects.survivors, winner[put])
            new[put] = np.uint64(file.id << ROW_BITS) | position.astype(np.uint64)
        changed = put | known
        if changed.all():
            index.put(keys, new)
        else:  # a key that came and went in this chunk, or a delete of what was never here
            index.put(keys.take(changed), new[changed])

    def clear(self) -> None:
        """Every row there is now is gone."""
        self._writing = None
        self._superseded = []
        self.table.clear()
        if self._index is not None:
            self._index.clear()
            self._index.files.clear()

    def adopt(self, files: Iterable[DataFile]) -> None:
        """Add data files with rows of new keys, written before."""
        for file in files:
            self.table.add(file)
            self._index = None

    def replace(self, chunks: Iterable[pa.Table]) -> int:
        """Every row there is now is replaced by these, in silver's columns, in chunks; how many they are."""
        self.clear()
        count = 0
        for chunk in chunks:
            rows = conform(chunk, self.table.layout.arrow)
            if not rows.num_rows:
                continue
            file, first = self._append(rows)
            count += rows.num_rows
            if self._index is not None:
                keys, positions = self._sorted_keys(rows, np.arange(first, first + rows.num_rows))
                self._index.put(keys, np.uint64(file.id << ROW_BITS) | positions.astype(np.uint64))
        return count

    def _stage_keyless(self, changes: pa.RecordBatch, epoch: int) -> None:
        op = op_codes(changes.column("op"))
        cut = np.flatnonzero(op == ord("t"))
        first = int(cut[-1]) + 1 if len(cut) else 0
        if len(cut):
            self.clear()
        survivors = np.flatnonzero((op == ord("c")) | (op == ord("r")))
        survivors = survivors[survivors >= first]
        if len(survivors):
            self._append(silver_rows(changes, survivors, epoch, self.table.layout.arrow))

    def _rows(self, changes: pa.RecordBatch, effects: Effects, epoch: int) -> pa.Table:
        rows = silver_rows(changes, effects.survivors, epoch, self.table.layout.arrow)
        if not effects.carried:
            return rows
        flags = _Flags(rows.column(FLAGS))
        after = changes.column("after")
        donors = _flag_pairs(changes.column("after_text"))
        for carried in effects.carried:
            name = carried.column
            if effects.truncated and len(carried.old):
                raise Inconsistent(NO_OLD_ROW)
            old = self._old_values(carried.old, [name, FLAGS])
            here = carried.source >= 0
            # One column of: the rows' own values, the chunk's, silver's. Each row takes its value from one of them.
            own = rows.column(name).combine_chunks()
            chunk = _cast_column(after.field(name), own.type)
            pool = pa.concat_arrays([own, chunk, old.column(name).combine_chunks()])
            take = np.arange(len(own))
            take[carried.rows[here]] = len(own) + carried.source[here]
            take[carried.rows[~here]] = len(own) + len(chunk) + np.arange(int((~here).sum()))
            rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), pool.take(pa.array(take)))
            flag = f"{name}:{UNREPRESENTABLE}"
            flagged = np.zeros(len(carried.rows), np.bool_)
            flagged[here] = np.isin(carried.source[here], donors.get(name, np.zeros(0, np.int64)))
            flagged[~here] = _has_flag(old.column(FLAGS), flag)
            flags.add(flag, carried.rows[flagged])
        index = rows.schema.get_field_index(FLAGS)
        return rows.set_column(index, rows.schema.field(FLAGS), flags.column(rows.schema.field(FLAGS).type))

    def _old_values(self, keys: Lanes, columns: Sequence[str]) -> pa.Table:
        """What silver has now in these columns under these keys (any order, repeats allowed), in their order."""
        schema = pa.schema([self.table.layout.arrow.field(name) for name in columns])
        if not len(keys) or self._index is None:
            # Not schema.empty_table(), which can make no list of uuids.
            return pa.table([pa.nulls(0, field.type) for field in schema], schema=schema)
        order = keys.order()
        ordered = keys.take(order)
        places = np.empty(len(keys), np.uint64)
        first = ~ordered.same_as_previous()
        places[order] = self._index.look_up(ordered.take(first))[np.cumsum(first) - 1]
        if (places == ABSENT).any():
            raise Inconsistent(NO_OLD_ROW)
        pieces, at = [], []
        for file_id, positions in by_file(places):
            file = self.table.data[file_id]
            if self._writing is file:
                self._end_file()
            pieces.append(self.table.rows_of(file, columns, at=positions))
            at.append(np.flatnonzero((places >> np.uint64(ROW_BITS)) == file_id))
        # by_file sorts each file's positions; sort the requests in the same way to line them up again.
        where = np.concatenate([rows[np.argsort(places[rows], kind="stable")] for rows in at])
        back = np.empty(len(where), np.int64)
        back[where] = np.arange(len(where))
        return pa.concat_tables(pieces).take(pa.array(back))

    def _append(self, rows: pa.Table) -> tuple[LiveFile, int]:
        if self._writing is None:
            self._writing = self.table.new_file()
            if self._index is not None:
                self._index.name_file(self._writing.location, self._writing.id)
        file = self._writing
        first = self.table.append(file, rows)
        if file.writing is not None and file.writing.full:
            self._end_file()
        return file, first

    def _end_file(self) -> None:
        if self._writing is not None and self._writing.writing is not None:
            self._writing.writing.finish()
        self._writing = None

    def _supersede(self, places: Places) -> None:
        self.table.kill(places)
        self._superseded.append(places)
        if sum(map(len, self._superseded)) >= SPILL_ROWS:
            self.table.write_deletes(np.concatenate(self._superseded))
            self._superseded = []

    # --- committing -----------------------------------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        return self.table.changed or bool(self._superseded)

    def finish(self) -> None:
        """Merge what is due, write the delete file. Call before `LakeTable.change`."""
        self._end_file()
        self.table.finish_files()
        self.table.drop_dead_files()
        self._merge_data()
        self._merge_deletes()
        self.table.finish_files()

    def record(self, snapshot_id: int) -> None:
        if self._index is not None:
            present = {file.location for file in self.table.data.values()}
            for location in self._index.files.keys() - present:
                self._index.forget_file(location)
            self._index.record(snapshot_id)

    def committed(self, loaded: LoadedTable) -> None:
        self.table.committed(loaded)
        if self._index is not None and self.table.snapshot_id is not None:
            self._index.confirm(self.table.snapshot_id)

    def close(self) -> None:
        """Let go of files and connections; what is staged is forgotten."""
        self.table.abort()
        if self._codec is not None:
            self._codec.close()

    def _merge_data(self) -> None:
        table = self.table
        files = [file for file in table.data.values() if file.committed]
        sizes = [Sized(rows=file.live_rows, size=file.size * file.live_rows // max(1, file.rows)) for file in files]
        chosen = [files[index] for index in choose_merge(sizes, table.limits)]
        if not chosen:
            return
        pieces = [table.live_table(file)[0] for file in chosen]
        rows = pa.concat_tables(pieces)
        for file in chosen:
            table.remove(file)
        if not rows.num_rows:
            return
        merged = table.new_file()
        table.append(merged, rows)
        if self._index is not None:
            self._index.name_file(merged.location, merged.id)
            keys, positions = self._sorted_keys(rows, np.arange(rows.num_rows))
            self._index.put(keys, np.uint64(merged.id << ROW_BITS) | positions.astype(np.uint64))

    def _merge_deletes(self) -> None:
        table = self.table
        files = [file for file in table.deletes.values() if file.committed]
        sizes = [Sized(rows=table.aimed(file), size=0) for file in files]
        chosen = [
            files[index] for index in choose_merge(sizes, table.limits, fanout=table.limits.fanout - bool(self._superseded))
        ]
        places = [*self._superseded, *(table.places_named(file) for file in chosen)]
        for file in chosen:
            table.remove(file)
        self._superseded = []
        if places:
            table.write_deletes(np.concatenate(places))

    # --- the index ------------------------------------------------------------------------------------------------------------

    def _built_index(self, codec: KeyCodec) -> KeyIndex:
        """The index; it is built from the table's files where there is none yet."""
        if self._index is None:
            KeyIndex.delete(self._folder)
            index = KeyIndex(self._folder, wide=codec.wide, form=codec.form)
            files = list(self.table.data.values())
            for file in files:
                index.name_file(file.location, file.id)
            index.load(self._runs_of(files))
            if self.table.snapshot_id is not None and not self.table.changed:
                index.record(self.table.snapshot_id)
            self._index = index
        return self._index

    def _runs_of(self, files: Iterable[LiveFile]) -> Iterator[Run]:
        """The live rows of these files as runs of the index, one or more per file."""
        for file in files:
            rows = self.table.rows_of(file, self.key)
            positions = np.arange(rows.num_rows)
            if file.dead is not None:
                positions = np.flatnonzero(file.dead.alive(rows.num_rows))
                rows = rows.take(pa.array(positions))
            for begin in range(0, rows.num_rows, BUILD_ROWS):
                keys, at = self._sorted_keys(rows.slice(begin, BUILD_ROWS), positions[begin : begin + BUILD_ROWS])
                yield Run(keys, np.uint64(file.id << ROW_BITS) | at.astype(np.uint64))

    def _sorted_keys(self, rows: pa.Table, positions: Index) -> tuple[Lanes, Index]:
        """The rows' keys in order, and their positions in the same order."""
        assert self._codec is not None
        keys = self._codec.lanes([_whole(rows.column(name)) for name in self.key])
        order = keys.order()
        return keys.take(order), positions[order]


def _codec(layout: TableLayout, key: Sequence[str], table_uuid: str) -> KeyCodec | None:
    return KeyCodec([layout.kind_of(name) for name in key], salt=table_uuid) if key else None


def _whole(column: Any) -> pa.Array:
    """A chunked column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _cast_column(values: pa.Array, kind: pa.DataType) -> pa.Array:
    return values if values.type.equals(kind) else values.cast(kind)


def silver_rows(changes: pa.RecordBatch, survivors: Index, epoch: int, schema: pa.Schema) -> pa.Table:
    """The after images of these rows in silver's columns. Nothing is copied when all rows survive."""
    if len(survivors) < len(changes):
        changes = changes.select(["commit_lsn", "ordinal", "commit_time", "after", "after_text"]).take(pa.array(survivors))
    after = changes.column("after")
    fields = list(after.type)
    columns = [after.field(index) for index in range(len(fields))]
    positions = {
        "_epoch": pa.repeat(pa.scalar(epoch, pa.int32()), len(survivors)),
        "_commit_lsn": changes.column("commit_lsn"),
        "_ordinal": changes.column("ordinal"),
        "_commit_time": changes.column("commit_time"),
        FLAGS: _flag_lists(changes.column("after_text")),
    }
    assert set(positions) == {*POSITION_COLUMNS, FLAGS}
    names = [field.name for field in fields]
    rows = pa.Table.from_arrays([*columns, *positions.values()], names=[*names, *positions])
    return conform(rows, schema)


def _flag_lists(texts: pa.Array) -> pa.Array:
    """list<string>[n]: a flag for each column whose exact text the row's ``after_text`` has; null for none."""
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), pa.list_(pa.string()))
    flags = _Flags(pa.chunked_array([pa.nulls(len(texts), pa.list_(pa.string()))]))
    for name, rows in _flag_pairs(texts).items():
        flags.add(f"{name}:{UNREPRESENTABLE}", rows)
    return flags.column(pa.list_(pa.string()))


def _flag_pairs(texts: pa.Array) -> dict[str, Index]:
    """Column name → rows whose text map has it."""
    if texts.null_count == len(texts):
        return {}
    lists = _as_list(texts)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(texts)), lengths)
    names = lists.flatten().field(0).dictionary_encode()
    codes = names.indices.to_numpy()
    return {name: row[codes == code] for code, name in enumerate(names.dictionary.to_pylist())}


def _as_list(texts: pa.Array) -> pa.Array:
    """A map array as the list array that it is underneath."""
    entries = pa.struct([texts.type.key_field, texts.type.item_field])
    return texts.view(pa.list_(pa.field("entries", entries, nullable=False)))


class _Flags:
    """The flags of n rows, gathered as pairs of row and flag."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = _whole(column)
        self._rows = len(array)
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        self._row = [np.repeat(np.arange(len(array)), lengths)]
        self._flag = [array.flatten().cast(pa.string())]

    def add(self, flag: str, rows: Index) -> None:
        self._row.append(rows)
        self._flag.append(pa.repeat(pa.scalar(flag), len(rows)))

    def column(self, kind: pa.DataType) -> pa.Array:
        """list<string>[n], null for a row without flags."""
        row = np.concatenate(self._row)
        order = np.argsort(row, kind="stable")
        counts = np.bincount(row, minlength=self._rows)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        values = pa.concat_arrays(self._flag).take(pa.array(order))
        mask = pa.array(counts == 0)
        return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask).cast(kind)


def _has_flag(flags: pa.ChunkedArray, flag: str) -> npt.NDArray[np.bool_]:
    array = _whole(flags)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(array)), lengths)
    found = np.zeros(len(array), np.bool_)
    found[row[pc.equal(array.flatten(), flag).to_numpy(zero_copy_only=False)]] = True
    return found
