"""The shuffle against sorting in memory, and its defences against damaged files."""

from __future__ import annotations

import os
import resource
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.dedup.arrays import ArrayWriter, map_array
from puyulm.data.dedup.shuffle import KEYS, Run, Runs, RunWriter, partitions
from puyulm.errors import DataError

ALL = (0, KEYS - 1)


def write(
    folder: Path, keys: np.ndarray, items: np.ndarray, parts: int, memory: int, distinct: bool = False
) -> list[Run]:
    """Records given to several writers, one after the other, a few at a time."""
    runs = []
    for number, (some_keys, some_items) in enumerate(
        zip(np.array_split(keys, parts), np.array_split(items, parts), strict=True)
    ):
        writer = RunWriter(folder, f"runs/{number}", memory, distinct)
        for start in range(0, len(some_keys), 100):
            writer.add(some_keys[start : start + 100], some_items[start : start + 100])
        result = writer.finish()
        assert {name for name, _ in result["runs"]} == set(result["files"])
        runs += [Run(folder / name, records) for name, records in result["runs"]]
    return runs


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, KEYS - 1) | st.sampled_from([0, 1, 5, KEYS - 1]), max_size=400),
    st.integers(1, 4), st.sampled_from([600, 5_000, 1_000_000]), st.sampled_from([200, 3_000, 1_000_000]),
)  # fmt: skip
def test_all_records_come_out_in_order(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], parts: int, write_memory: int, read_memory: int
) -> None:
    given_keys, items = np.array(keys, dtype=np.uint64), np.arange(len(keys), dtype=np.uint64)
    runs = write(tmp_path_factory.mktemp("shuffle"), given_keys, items, parts, write_memory)
    reader = Runs(runs, 2, read_memory)
    found = []
    for low, high in partitions(len(keys), 2, read_memory):
        for batch in reader.batches(low, high):
            if batch.large is None:
                found += list(zip(*batch.records.tolist(), strict=True))
            else:
                found += [(batch.large, item) for part in reader.parts(batch.large) for item in part[1].tolist()]
    assert found == sorted(zip(keys, range(len(keys)), strict=True))
    pieces = [np.zeros((2, 0), dtype=np.uint64), *reader.pieces(*ALL)]
    assert np.concatenate(pieces, axis=1)[1].tolist() == [item for _, item in found]


def test_a_batch_is_bounded_also_for_one_key(tmp_path: Path) -> None:
    keys = np.concatenate([np.full(5000, 7), np.arange(1000)]).astype(np.uint64)
    reader = Runs(write(tmp_path, keys, np.arange(6000, dtype=np.uint64), 2, 1 << 20), 2, 96 * 100)
    batches = list(reader.batches(*ALL))
    assert max(batch.records.shape[1] for batch in batches) <= 100
    assert [batch.large for batch in batches if batch.large is not None] == [7]
    parts = list(reader.parts(7))
    assert max(part.shape[1] for part in parts) <= 100
    assert np.concatenate([part[1] for part in parts]).tolist() == [*range(5000), 5007]


def test_partitions_cover_all_keys_and_fit() -> None:
    ranges = partitions(1_000_000, 2, 4_000_000)
    assert ranges[0][0] == 0 and ranges[-1][1] == KEYS - 1
    assert all(low == before + 1 for (_, before), (low, _) in pairwise(ranges))
    assert 1_000_000 / len(ranges) * 16 * 6 <= 4_000_000
    assert partitions(0, 2, 1000) == [ALL]


def test_distinct_records_are_written_once_in_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    keys, items = random.integers(0, 9, (2, 900), dtype=np.uint64)
    [run] = write(tmp_path, keys, items, 1, 1 << 20, distinct=True)
    found = Runs([run], 2, 1 << 20).read(*ALL)
    assert list(zip(*found.tolist(), strict=True)) == sorted(set(zip(keys.tolist(), items.tolist(), strict=True)))


def test_items_of_an_earlier_crawl_are_shifted(tmp_path: Path) -> None:
    [run] = write(tmp_path, np.array([4, 2], dtype=np.uint64), np.array([0, 1], dtype=np.uint64), 1, 1 << 20)
    reader = Runs([run, Run(run.path, 2, (1 << 63) + 10)], 2, 1 << 20)
    assert reader.read(*ALL)[1].tolist() == [1, (1 << 63) + 11, 0, (1 << 63) + 10]
    assert reader.shifted(4) == (1 << 63) + 10 and reader.shifted(3) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "other"])
def test_damaged_runs_are_refused(tmp_path: Path, damage: str) -> None:
    items = np.arange(3000, dtype=np.uint64)
    [run] = write(tmp_path, items * np.uint64(1 << 50), items, 1, 1 << 30)
    raw = bytearray(run.path.read_bytes())
    raw[-9000] ^= 4
    changed = {"flip": raw, "cut": raw[:-8], "empty": b"", "gone": None, "other": b"no array"}[damage]
    if changed is None:
        run.path.unlink()
    else:
        run.path.write_bytes(changed)
    with pytest.raises(DataError, match=r"runs/0-000.npy is damaged \(.+\): remove it and run the same command again"):
        Runs([run], 2, 1 << 20).read(*ALL)


def test_a_run_of_another_length_is_refused(tmp_path: Path) -> None:
    items = np.arange(10, dtype=np.uint64)
    [run] = write(tmp_path, items, items, 1, 1 << 20)
    with pytest.raises(DataError, match="expected"):
        Runs([Run(run.path, 11)], 2, 1 << 20).read(*ALL)


def test_arrays_grow_row_by_row(tmp_path: Path) -> None:
    with ArrayWriter(tmp_path / "a.npy", np.int64, (2,)) as writer:
        for number in range(12):
            writer.append(np.full((number, 2), number))
    array = map_array(tmp_path / "a.npy", 66)
    assert array.shape == (66, 2) and array.sum() == 2 * sum(number**2 for number in range(12))
    with ArrayWriter(tmp_path / "b.npy", np.int64):
        pass
    assert map_array(tmp_path / "b.npy", 0).shape == (0,)
    with pytest.raises(DataError, match="66 rows, expected 65"):
        map_array(tmp_path / "a.npy", 65)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts the open files in /proc")
def test_open_files_stay_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    keys = np.arange(60, dtype=np.uint64)
    runs = write(tmp_path, keys, keys, 60, 1_000_000)
    before = len(os.listdir("/proc/self/fd"))
    reader = Runs(runs, 2, 1_000_000)
    assert reader.read(*ALL)[1].tolist() == list(range(60))
    assert len(os.listdir("/proc/self/fd")) - before <= 10
