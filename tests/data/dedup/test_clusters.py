"""Pairs and clusters against slow and simple computations."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.dedup.clusters import connect, find_clusters, read_verdicts, settle
from puyulm.data.dedup.index import (
    EARLIER,
    ROW_BITS,
    DocumentIndex,
    IndexedShard,
    IndexWriter,
    date_key,
    shard_stem,
)  # fmt: skip
from puyulm.data.dedup.pairs import SMALL, equal_pairs, pairs_of, write_edges
from puyulm.data.documents import Document
from puyulm.errors import DataError


def unsigned(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), max_size=60))
def test_all_pairs_of_small_groups(entries: list[tuple[int, int]]) -> None:
    """Each key's items of this crawl with each other and with those of the earlier one."""
    ordered = sorted((key, EARLIER * old + place) for place, (key, old) in enumerate(entries))
    expected = {
        (one, other)
        for (key, one), (other_key, other) in combinations(ordered, 2)
        if key == other_key and one < EARLIER and sum(k == key for k, _ in ordered) <= SMALL
    }
    keys, items = unsigned([key for key, _ in ordered]), unsigned([item for _, item in ordered])
    found = [pair for one, other in pairs_of(keys, items) for pair in zip(one.tolist(), other.tolist(), strict=True)]
    small = {item for key, item in ordered if sum(k == key for k, _ in ordered) <= SMALL}
    assert sorted(pair for pair in found if pair[0] in small) == sorted(expected)


def test_pairs_of_large_groups_are_few_and_connect_all() -> None:
    old = 5
    items = unsigned([*range(1000), *(EARLIER + place for place in range(old))])
    pairs = [pair for one, other in pairs_of(np.full(len(items), 9, dtype=np.uint64), items)
             for pair in zip(one.tolist(), other.tolist(), strict=True)]  # fmt: skip
    assert len(pairs) == 999 * 2 + 1000
    assert {pair for pair in pairs if pair[1] < EARLIER} == {(0, i) for i in range(1, 1000)} | {
        (i - 1, i) for i in range(1, 1000)
    }
    assert {pair for pair in pairs if pair[1] >= EARLIER} == {(i, EARLIER) for i in range(1000)}


def test_equal_pairs_need_both_halves() -> None:
    keys, halves = unsigned([1, 1, 1, 1, 2, 3, 3]), unsigned([5, 5, 6, 6, 5, 7, 7])
    items = unsigned([0, 4, 1, EARLIER + 2, 3, EARLIER, EARLIER + 1])
    found = {pair for one, other in equal_pairs(keys, items, halves)
             for pair in zip(one.tolist(), other.tolist(), strict=True) if pair[0] != pair[1]}  # fmt: skip
    assert found == {(0, 4), (1, EARLIER + 2)}


@settings(deadline=None)
@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))), st.integers(1, 9)
        )
    )
)
def test_components_are_those_of_a_simple_union_find(case: tuple[int, list[tuple[int, int]], int]) -> None:
    nodes, edges, piece = case
    parents = list(range(nodes))

    def root(node: int) -> int:
        while parents[node] != node:
            node = parents[node]
        return node

    for one, other in edges:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    labels = np.arange(nodes)
    pairs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    connect(labels, ((part[:, 0], part[:, 1]) for part in np.array_split(pairs, piece)))
    sizes = settle(labels, np.zeros(nodes, dtype=np.int64), piece)
    assert labels.tolist() == [root(node) for node in range(nodes)]
    members = [labels.tolist().count(node) for node in range(nodes)]
    assert sizes.tolist() == [count if count > 1 else 0 for count in members]


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_long_chains_take_few_steps(order: str) -> None:
    count = 200_000
    edges = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
    edges = {"up": edges, "down": edges[::-1], "random": np.random.default_rng(0).permutation(edges)}[order]
    labels = np.arange(count)
    connect(labels, ((part[:, 0], part[:, 1]) for part in np.array_split(edges, 7)))
    settle(labels, np.zeros(count, dtype=np.int64), 9999)
    assert not labels.any()


DATES = ["2024", "", "2024-03-05", "2024-03-05", "2023-12-31T23:59:59Z", "2024-03", "yesterday", "2024-01-02"]


def make_index(folder: Path, dates: list[str], shards: int) -> tuple[IndexedShard, ...]:
    written = []
    for number, part in enumerate(np.array_split(np.arange(len(dates)), shards)):
        documents = [Document(f"id{i}é", "x" * ((i * 7 + 3) % 5), "en", "t", date=dates[i]) for i in part.tolist()]
        with IndexWriter(shard_stem(folder, number), 0) as writer:
            writer.append(documents, None)
        written.append(IndexedShard(shard_stem(folder, number), writer.documents))
    return tuple(written)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("newest", [2, 1, 2, 2, 2, 2, 2, 7]), ("first", [0, 1, 0, 0, 0, 0, 0, 7]), ("longest", [3, 1, 3, 3, 3, 3, 3, 7])],
)
@pytest.mark.parametrize(("shards", "memory"), [(1, 1 << 20), (3, 256)])
def test_the_right_copy_stays(tmp_path: Path, keep: str, expected: list[int], shards: int, memory: int) -> None:
    index = make_index(tmp_path, DATES, shards)
    items = DocumentIndex(index).items(np.arange(8))
    pairs = [(0, 2), (3, 5), (4, 6), (2, 3), (0, 4)]
    found = [(items[[a]], items[[b]], np.array([128])) for a, b in pairs]
    result = write_edges(tmp_path, 0, found)
    figures = find_clusters(
        None, edges=[tuple(result["edges"])], matches=[tuple(result["matches"])], shards=index, keep=keep,
        with_earlier=False, folder=tmp_path, memory=memory,
    )  # fmt: skip
    verdicts = read_verdicts(tmp_path, 8, False)
    assert verdicts.kept.tolist() == expected
    assert verdicts.numbers.tolist() == [0, -1, 0, 0, 0, 0, 0, -1]
    assert figures["clusters"] == 1 and figures["duplicates"] == 5 and figures["sizes"] == [[5, 8, 1, 6]]
    others = [i for i in (0, 2, 3, 4, 5, 6) if i != expected[0]]
    assert figures["largest"] == [{"number": 0, "size": 6, "kept": expected[0], "members": [expected[0], *others]}]
    assert sorted(path.name for path in (tmp_path / "clusters").iterdir()) == ["kept.npy", "numbers.npy"]


def test_documents_are_looked_up_in_their_shards(tmp_path: Path) -> None:
    shards = make_index(tmp_path, DATES, 3)
    index = DocumentIndex(shards, make_index(tmp_path / "earlier", ["2020"] * 4, 2))
    items = index.items(np.arange(8))
    assert [item >> ROW_BITS for item in items.tolist()] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert index.ordinals(items).tolist() == list(range(8))
    assert [index.id(item) for item in items.tolist()] == [f"id{i}é" for i in range(8)]
    assert index.id(EARLIER + (1 << ROW_BITS) + 1) == "id3é"
    assert index.facts_of(2, 7)[:, 1].tolist() == [2, 4, 1, 3, 0]
    (tmp_path / "index" / "00002.ids").write_bytes(b"id")
    with pytest.raises(DataError, match=r"00002.ids is damaged"):
        DocumentIndex(shards).id(int(items[7]))


def test_dates_of_any_precision_are_ordered() -> None:
    ordered = ["", "0999-12-31", "2019-12", "2020-02-29", "20200301", "2020-03-01T08:00+08:30", "2020-03-01 00",
               "2020-03-01T00:00:01Z", "2020-03-01T00:00:02.5Z", "2020-03-01T01:00:00+0059", "2021-07"]  # fmt: skip
    keys = [date_key(date) for date in ordered]
    # Half past eight east of Greenwich at 8:00 is the day before, 23:30.
    assert keys[:4] + keys[5:6] + keys[4:5] + keys[7:] == sorted(set(keys))
    assert keys[4] == keys[6]
    assert date_key("2020") == date_key("2020-01") == date_key("2020-01-01") == date_key("2020-01-01T00:00:00Z")
    assert {date_key(date) for date in ("", "unknown", "2023-02-30", "2023-13", "12 May")} == {0}


def test_temporary_files_are_closed_with_their_stack(tmp_path: Path) -> None:
    from puyulm.data.dedup.clusters import Scratch

    with ExitStack() as stack:
        scratch = Scratch(tmp_path, 3, stack)
        scratch.array("a", np.int64)[1] = 5
        scratch.array("b", np.int64, temporary=True)[1] = 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert np.load(tmp_path / "a.npy").tolist() == [0, 5, 0]
