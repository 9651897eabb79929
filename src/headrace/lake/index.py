"""The key index: where each key's live row is. A cache beside the lake, which can be deleted at any time.

It is a log-structured merge tree of its own: small sorted runs in memory, large ones in memory-mapped files, newer before older.
Which runs belong to which snapshot of the table stands in ``index.log``. A record is appended *before* the catalog commit, under
the snapshot id about to be committed. After a crash the record of the table's current snapshot is found, whether or not the
commit took effect, and what follows it is cut off; if there is none, or a checksum is wrong, the index is built anew from the
table's files.

Nothing here is made durable with fsync: whatever a power failure leaves behind is either what its checksums say, or rebuilt.
"""

from __future__ import annotations

import shutil
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from headrace.lake.keys import Lane, Lanes
from headrace.lake.runs import ABSENT, Damaged, Run, checksum_of, map_run, merged, merged_in_pieces, write_run

MEMORY_ROWS = 1 << 16
FANOUT = 6
LOG_BYTES = 8 << 20
RELEASE_ROWS = 1 << 12
_RECORD = struct.Struct("<4sIII")
_MAGIC = b"hri1"


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """What a log, read up to some snapshot, says."""

    end: int
    files: dict[str, int]
    runs: list[dict[str, Any]]
    batches: list[Run]


class KeyIndex:
    """Key lanes → places (file id << 32 | row), as of the table's last commit plus what was put since.

    Keys handed in are sorted and unique. One writer; not safe for several threads. Raises OSError when its folder cannot be used.
    """

    def __init__(self, folder: Path, *, wide: bool, form: str) -> None:
        self.folder = folder
        self.files: dict[str, int] = {}
        """Data files by location: the file ids that places are made of."""
        self._wide = wide
        self._form = form
        self._memory: list[Run] = []
        self._mapped: list[Run] = []
        # Since the last record: entries put (for the log), and whether the log's earlier entries are void.
        self._put: list[Run] = []
        self._named: dict[str, int] = {}
        self._fresh = True
        self._obsolete: list[Path] = []
        self._touched = 0

    def __len__(self) -> int:
        """Entries, counting each version of a key."""
        return sum(map(len, self._memory)) + sum(map(len, self._mapped))

    @property
    def runs(self) -> int:
        return len(self._memory) + len(self._mapped)

    def name_file(self, location: str, number: int) -> None:
        """Places with this file id are in the data file there."""
        self.files[location] = self._named[location] = number

    def forget_file(self, location: str) -> None:
        """The table no longer has this data file."""
        self.files.pop(location, None)

    # --- looking up and putting -----------------------------------------------------------------------------------------------

    def look_up(self, keys: Lanes) -> Lane:
        """uint64[n]: the place of each key's row, or ABSENT."""
        found = np.full(len(keys), ABSENT, np.uint64)
        unknown = np.ones(len(keys), np.bool_)
        for run in [*reversed(self._memory), *reversed(self._mapped)]:
            run.look_up(keys, found, unknown)
        self._touched += len(keys)
        if self._touched > RELEASE_ROWS:
            # A large batch has touched most pages of the mapped runs.
            self._touched = 0
            for run in self._mapped:
                run.release()
        return found

    def put(self, keys: Lanes, places: Lane) -> None:
        """Set the keys' places; ABSENT deletes a key."""
        if not len(keys):
            return
        run = Run(keys, places)
        if len(run) >= MEMORY_ROWS:
            self._flush()
            self._add_mapped(iter([run]))
            return
        self._put.append(run)
        self._memory.append(run)
        if sum(map(len, self._memory)) >= MEMORY_ROWS:
            self._flush()
        else:
            begin = _to_merge([len(one) for one in self._memory])
            if begin is not None:
                oldest = begin == 0 and not self._mapped
                self._memory[begin:] = [merged(self._memory[begin:], drop_deleted=oldest)]

    def clear(self) -> None:
        """Forget every key."""
        self._obsolete += [run.path for run in self._mapped if run.path is not None]
        self._memory, self._mapped, self._put = [], [], []
        self._fresh = True

    def load(self, pieces: Iterator[Run]) -> None:
        """Replace everything by these runs, oldest first: how the index is built anew."""
        self.clear()
        for piece in pieces:
            if len(piece) >= MEMORY_ROWS:
                self._flush()
                self._add_mapped(iter([piece]))
            else:
                self.put(piece.keys, piece.places)

    def _flush(self) -> None:
        """Turn the runs in memory into a mapped one."""
        if self._memory:
            run = merged(self._memory, drop_deleted=not self._mapped)
            self._memory, self._put, self._fresh = [], [], True
            self._add_mapped(iter([run]))

    def _add_mapped(self, pieces: Iterator[Run]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mapped.append(self._write(pieces))
        begin = _to_merge([len(one) for one in self._mapped])
        if begin is not None:
            old = self._mapped[begin:]
            self._mapped[begin:] = [self._write(merged_in_pieces(old, drop_deleted=begin == 0))]
            self._obsolete += [run.path for run in old if run.path is not None]
        for run in self._mapped:
            run.release()

    def _write(self, pieces: Iterator[Run]) -> Run:
        return write_run(self.folder / f"{uuid.uuid4()}.run", pieces, wide=self._wide)

    # --- the log --------------------------------------------------------------------------------------------------------------

    def record(self, snapshot_id: int) -> None:
        """Write down that this is the index of the snapshot that is about to be committed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "index.log").open("ab") as log:
            log.write(self._encode(snapshot_id, self._memory if self._fresh else self._put, fresh=self._fresh))
        self._put, self._named, self._fresh = [], {}, False

    def confirm(self, snapshot_id: int) -> None:
        """The snapshot was committed: files that only earlier ones needed may go."""
        for path in self._obsolete:
            path.unlink(missing_ok=True)
        self._obsolete = []
        log = self.folder / "index.log"
        if log.stat().st_size > LOG_BYTES:
            new = self.folder / "index.log.new"
            new.write_bytes(self._encode(snapshot_id, self._memory, fresh=True))
            new.replace(log)

    def _encode(self, snapshot_id: int, batches: Sequence[Run], *, fresh: bool) -> bytes:
        header = {
            "snapshot": snapshot_id,
            "form": self._form,
            "fresh": fresh,
            "files": self.files if fresh else self._named,
            "runs": [
                {"name": run.path.name, "rows": len(run), "checksum": run.checksum}
                for run in self._mapped
                if run.path is not None
            ],
            "batches": [len(batch) for batch in batches],
        }
        text = orjson.dumps(header)
        arrays = [
            array
            for batch in batches
            for array in (batch.keys.hi, batch.keys.lo, batch.places)
            if array is not None and len(array)
        ]
        body = text + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        return _RECORD.pack(_MAGIC, len(text), len(body), zlib.crc32(body)) + body

    @classmethod
    def open(cls, folder: Path, *, wide: bool, form: str, snapshot_id: int) -> KeyIndex | None:
        """The index as of this snapshot of the table; None if there is none, or none that can be trusted."""
        index = cls(folder, wide=wide, form=form)
        log = folder / "index.log"
        try:
            contents = _read(log.read_bytes(), snapshot_id, form, wide)
            if contents is None:
                return None
            for run in contents.runs:
                path = folder / run["name"]
                if checksum_of(path) != run["checksum"]:
                    return None
                index._mapped.append(map_run(path, run["rows"], run["checksum"], wide=wide))
        except (OSError, Damaged):
            return None
        with log.open("r+b") as file:
            file.truncate(contents.end)
        kept = {run["name"] for run in contents.runs} | {"index.log"}
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)
        index.files = contents.files
        index._memory = [merged(contents.batches, drop_deleted=False)] if contents.batches else []
        index._fresh = False
        return index

    @staticmethod
    def delete(folder: Path) -> None:
        """Remove an index; nothing happens if there is none."""
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _read(content: bytes, snapshot_id: int, form: str, wide: bool) -> _Contents | None:
    """What the log says up to the record of this snapshot; None if there is none before the first damaged record."""
    at = 0
    batches: list[Run] = []
    files: dict[str, int] = {}
    while at + _RECORD.size <= len(content):
        magic, text_length, length, checksum = _RECORD.unpack_from(content, at)
        body = content[at + _RECORD.size : at + _RECORD.size + length]
        if magic != _MAGIC or len(body) != length or zlib.crc32(body) != checksum:
            return None
        at += _RECORD.size + length
        header = orjson.loads(body[:text_length])
        if header["form"] != form:
            return None
        if header["fresh"]:
            batches, files = [], {}
        files |= header["files"]
        batches += _batches(body[text_length:], header["batches"], wide)
        if header["snapshot"] == snapshot_id:
            return _Contents(end=at, files=files, runs=header["runs"], batches=batches)
    return None


def _batches(body: bytes, lengths: Sequence[int], wide: bool) -> Iterator[Run]:
    values = np.frombuffer(body, np.uint64)
    lanes = 3 if wide else 2
    at = 0
    for length in lengths:
        columns = values[at : at + lanes * length].reshape(lanes, length)
        at += lanes * length
        yield Run(Lanes(columns[0], columns[1] if wide else None), columns[-1])


def _to_merge(sizes: Sequence[int]) -> int | None:
    """From which run on (oldest first) all are merged into one; None for none.

    Only neighbours in age may be merged. The newest ones are, once there are ``FANOUT`` that together are as large as the
    largest of them: so each run is rewritten about log₂(n) times at most, and few runs remain.
    """
    total = largest = 0
    for count, size in enumerate(reversed(sizes), start=1):
        total += size
        largest = max(largest, size)
        if count >= FANOUT and total - largest >= largest:
            return len(sizes) - count
    return None


def folder_of(state: Path, table_uuid: str) -> Path:
    """Where the index of the table with this UUID is, below the pipeline's state folder."""
    return state / "index" / table_uuid
