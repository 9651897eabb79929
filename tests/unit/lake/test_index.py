"""The key index against a dictionary, through commits, crashes, damage and deletion."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace.lake.index as index_module
from headrace.lake.index import KeyIndex
from headrace.lake.keys import Lanes
from headrace.lake.runs import ABSENT, Run, merged, merged_in_pieces

WIDE = {"wide": True, "form": "128"}
NARROW = {"wide": False, "form": "64"}


def lanes(keys: list[int], *, wide: bool) -> Lanes:
    """Sorted lanes; wide ones share their upper halves, as hashes hardly ever do."""
    ordered = np.array(sorted(keys), np.uint64)
    return Lanes(ordered // np.uint64(3), ordered) if wide else Lanes(ordered, None)


def put(index: KeyIndex, entries: dict[int, int | None], *, wide: bool) -> None:
    keys = sorted(entries)
    places = np.array([ABSENT if entries[key] is None else entries[key] for key in keys], np.uint64)
    index.put(lanes(keys, wide=wide), places)


def found(index: KeyIndex, keys: range, *, wide: bool) -> dict[int, int]:
    places = index.look_up(lanes(list(keys), wide=wide))
    return {key: int(place) for key, place in zip(keys, places, strict=True) if place != ABSENT}


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MEMORY_ROWS", 40)


batches = st.lists(
    st.dictionaries(st.integers(0, 60), st.one_of(st.none(), st.integers(0, 10**9)), min_size=1, max_size=30),
    max_size=25,
)


@pytest.mark.parametrize("wide", [False, True])
@settings(max_examples=60, deadline=None)
@given(batches=batches, ends=st.lists(st.sampled_from(["commit", "crash", "clear", "reopen", "go on"]), min_size=25, max_size=25))
def test_it_is_a_dictionary_that_survives_crashes(wide: bool, batches: list[dict[int, int | None]], ends: list[str]) -> None:
    folder = Path(tempfile.mkdtemp())
    form = WIDE if wide else NARROW
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "MEMORY_ROWS", 40)
        patch.setattr(index_module, "LOG_BYTES", 2_000)
        index = KeyIndex(folder / "x", **form)
        model: dict[int, int] = {}
        committed: dict[int, int] = {}
        snapshot = 1
        index.record(snapshot)
        for batch, end in zip(batches, ends, strict=False):
            if end == "clear":
                index.clear()
                model = {}
            put(index, batch, wide=wide)
            model |= {key: place for key, place in batch.items() if place is not None}
            model = {key: place for key, place in model.items() if batch.get(key, place) is not None}
            assert found(index, range(61), wide=wide) == model
            if end == "commit":
                snapshot += 1
                index.record(snapshot)
                index.confirm(snapshot)
                committed = dict(model)
            if end in ("crash", "reopen"):
                if end == "crash":  # after the record, before the commit took effect
                    index.record(snapshot + 1_000)
                reopened = KeyIndex.open(folder / "x", **form, snapshot_id=snapshot)
                assert reopened is not None
                index, model = reopened, dict(committed)
                assert found(index, range(61), wide=wide) == model
        shutil.rmtree(folder)


def test_an_index_of_another_snapshot_is_not_used(tmp_path: Path) -> None:
    index = KeyIndex(tmp_path / "x", **NARROW)
    put(index, {1: 10}, wide=False)
    index.record(7)
    assert KeyIndex.open(tmp_path / "x", **NARROW, snapshot_id=8) is None
    assert KeyIndex.open(tmp_path / "x", wide=False, form="other", snapshot_id=7) is None
    assert KeyIndex.open(tmp_path / "elsewhere", **NARROW, snapshot_id=7) is None


@pytest.mark.usefixtures("small_memory")
def test_a_damaged_file_makes_the_index_unusable_rather_than_wrong(tmp_path: Path) -> None:
    index = KeyIndex(tmp_path / "x", **NARROW)
    put(index, {key: key for key in range(100)}, wide=False)
    put(index, {200: 1}, wide=False)
    index.record(1)
    (run,) = (tmp_path / "x").glob("*.run")
    for path in (run, tmp_path / "x" / "index.log"):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        assert KeyIndex.open(tmp_path / "x", **NARROW, snapshot_id=1) is None
        path.write_bytes(content[:-1])
        assert KeyIndex.open(tmp_path / "x", **NARROW, snapshot_id=1) is None
        path.write_bytes(content)
    assert KeyIndex.open(tmp_path / "x", **NARROW, snapshot_id=1) is not None


@pytest.mark.usefixtures("small_memory")
def test_files_that_no_snapshot_needs_are_removed_after_the_commit(tmp_path: Path) -> None:
    index = KeyIndex(tmp_path / "x", **NARROW)
    for snapshot in range(1, 40):
        put(index, dict.fromkeys(range(50), snapshot), wide=False)
        index.record(snapshot)
        before = set((tmp_path / "x").glob("*.run"))
        index.confirm(snapshot)
        assert set((tmp_path / "x").glob("*.run")) <= before
    assert len(list((tmp_path / "x").glob("*.run"))) == index.runs <= 12


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 1000), st.integers(0, 50), max_size=200), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_merging_in_pieces_is_merging(runs: list[dict[int, int]], wide: bool, drop: bool) -> None:
    made = []
    for run in runs:
        places = np.array([run[key] if run[key] > 5 else int(ABSENT) for key in sorted(run)], np.uint64)
        made.append(Run(lanes(list(run), wide=wide), places))
    whole = merged(made, drop_deleted=drop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headrace.lake.runs.MERGE_ROWS", 20)
        pieces = list(merged_in_pieces(made, drop_deleted=drop))
    assert np.concatenate([piece.keys.hi for piece in pieces]).tolist() == whole.keys.hi.tolist()
    assert np.concatenate([piece.places for piece in pieces]).tolist() == whole.places.tolist()
