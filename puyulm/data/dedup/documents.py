"""Duplicate documents leave: the phases of the methods "minhash" and "exact".

- sign: each group of shards; an index of its documents, and their keys as sorted runs.
- match: each range of keys; the pairs of documents that share one.
- verify: each range of documents, for minhash; the pairs whose signatures agree well enough.
- cluster: once; pairs become clusters, and the document of each that stays is chosen.
- filter: each group of shards; documents stay or leave.

Two files tell of it at the end: `index.json` lets a later crawl be compared with this one, `clusters.json` is for the
report (see `report`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from puyulm.data.dedup.clusters import Verdicts, find_clusters, read_verdicts
from puyulm.data.dedup.index import (
    ROW_BITS,
    Crawl,
    DocumentIndex,
    IndexedShard,
    IndexWriter,
    Items,
    Signatures,
    read_earlier,
    shard_stem,
    write_index,
)  # fmt: skip
from puyulm.data.dedup.inputs import Group, folded, groups_of, numbered_batches
from puyulm.data.dedup.minhash import band_keys, sign
from puyulm.data.dedup.pairs import find_equal, find_pairs, verify_pairs
from puyulm.data.dedup.report import member_of, shown_members, write_clusters
from puyulm.data.dedup.settings import DedupSettings
from puyulm.data.dedup.shuffle import Run, RunWriter, partitions, runs_of
from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome
from puyulm.data.pipeline.stage import StageRun, write_outcomes
from puyulm.errors import DataError

IN_EARLIER = "dedup: in the earlier crawl"
REASONS = {"minhash": "dedup: near duplicate", "exact": "dedup: exact duplicate"}


def run_documents(settings: DedupSettings, stage: StageRun) -> None:
    """Runs all phases.

    Raises:
        DataError: A file is damaged, or the earlier crawl cannot be compared with.
    """
    folder = stage.folder
    if settings.against is not None and settings.against.resolve() == folder.resolve():
        raise DataError(f"'against' is {folder}, the folder that this run writes: give that of an earlier run")
    earlier = read_earlier(settings)
    groups, sizes = groups_of(stage)
    signed = stage.map("sign", partial(sign_documents, settings=settings, folder=folder), groups, sizes)
    documents = [count for result in signed for count in result["documents"]]
    shards = tuple(IndexedShard(shard_stem(folder, number), count) for number, count in enumerate(documents))
    runs = runs_of(folder, signed)
    if not sum(documents):
        write_index(settings, folder, documents, runs)
        return
    edges = _find_edges(settings, stage, shards, earlier, runs)
    [figures] = stage.map(
        "cluster",
        partial(
            find_clusters, edges=[tuple(result["edges"]) for result in edges],
            matches=[tuple(result["matches"]) for result in edges], shards=shards, keep=settings.keep,
            with_earlier=bool(earlier.shards), folder=folder, memory=settings.memory,
        ),
        [None],
    )  # fmt: skip
    shown = shown_members(figures)
    results = stage.map(
        "filter",
        partial(
            filter_documents, settings=settings, folder=folder, suffix=stage.suffix, shards=shards, earlier=earlier,
            shown=shown,
        ),
        groups, sizes,
    )  # fmt: skip
    members = {int(ordinal): member for result in results for ordinal, member in result["members"].items()}
    write_clusters(folder, settings, DocumentIndex(shards), figures, members)
    write_index(settings, folder, documents, runs)


def _find_edges(
    settings: DedupSettings, stage: StageRun, shards: Sequence[IndexedShard], earlier: Crawl, runs: Sequence[Run]
) -> list[dict[str, Any]]:
    folder, memory = stage.folder, settings.memory
    everything = [*runs, *earlier.runs]
    records = sum(run.records for run in everything)
    if settings.method == "exact":
        ranges = partitions(records, 3, memory)
        function = partial(find_equal, runs=everything, folder=folder, memory=memory)
        return stage.map("match", function, list(enumerate(ranges)), _shares(records, 3, ranges))
    ranges = partitions(records, 2, memory // 2)
    matched = stage.map(
        "match", partial(find_pairs, runs=everything, folder=folder, memory=memory), list(enumerate(ranges)),
        _shares(records, 2, ranges),
    )  # fmt: skip
    pairs = runs_of(folder, matched)
    records = sum(run.records for run in pairs)
    ranges = _item_ranges(DocumentIndex(shards), len(partitions(records, 2, memory)))
    verify = partial(
        verify_pairs, runs=pairs, shards=shards, earlier=earlier.shards, threshold=settings.minhash.threshold,
        folder=folder, memory=memory,
    )  # fmt: skip
    return stage.map("verify", verify, list(enumerate(ranges)), _shares(records, 2, ranges))


def _shares(records: int, width: int, ranges: Sequence[object]) -> list[int]:
    """About how many bytes of records each range has, for the progress display."""
    return [records * width * 8 // len(ranges)] * len(ranges)


def _item_ranges(index: DocumentIndex, count: int) -> list[tuple[int, int]]:
    """Cuts the documents into ranges of items, bounds inclusive."""
    bounds = [index.documents * number // count for number in range(count)]
    items = [int(item) for item in index.items(np.array(sorted(set(bounds)), dtype=np.int64))]
    return [(low, high - 1) for low, high in zip(items, [*items[1:], 1 << 63], strict=True)]


def sign_documents(group: Group, settings: DedupSettings, folder: Path) -> dict[str, Any]:
    """A task: the index of a group's documents, and runs of their keys."""
    hashes = settings.minhash.hashes if settings.method == "minhash" else 0
    writer = RunWriter(folder, f"runs/{group.number:05d}", settings.memory)
    documents: list[int] = []
    files: dict[str, int] = {}
    for number, path in enumerate(group.paths, start=group.first):
        index = IndexWriter(shard_stem(folder, number), hashes)
        with index:
            for row, batch in numbered_batches(path):
                first = np.uint64((number << ROW_BITS) + row)
                index.append(batch, _add_keys(settings, batch, first + np.arange(len(batch), dtype=np.uint64), writer))
            documents.append(index.documents)
        files |= index.files(folder)
    result = writer.finish()
    return {**result, "documents": documents, "files": {**files, **result["files"]}}


def _add_keys(settings: DedupSettings, batch: Sequence[Document], items: Items, writer: RunWriter) -> Signatures | None:
    """Gives the keys of documents to the writer; returns their signatures, if the method has some."""
    if settings.method == "minhash":
        given = settings.minhash
        signatures = sign(batch, given.n, given.hashes)
        keys = band_keys(signatures, given.bands, given.rows)
        writer.add(keys.ravel(), np.repeat(items, keys.shape[1]))
        return signatures
    exact = settings.exact
    texts = (folded(document.text, exact.ignore_case, exact.ignore_space) for document in batch)
    digests = b"".join(hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest() for t in texts)
    halves = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    writer.add(halves[:, 0], items, halves[:, 1])
    return None


def filter_documents(
    group: Group,
    settings: DedupSettings,
    folder: Path,
    suffix: str,
    shards: Sequence[IndexedShard],
    earlier: Crawl,
    shown: Mapping[int, bool],
) -> dict[str, Any]:
    """A task: the documents of a group stay or leave.

    Args:
        group: Its shards.
        settings: Of the stage.
        folder: The stage's.
        suffix: Of the shards to write.
        shards: Of the whole input.
        earlier: Crawls before.
        shown: Ordinals of documents for the report, and whether their texts are wanted.

    Returns:
        As `write_outcomes`, and "members": what the report needs, by ordinal.
    """
    counts = Counts()
    index = DocumentIndex(shards, earlier.shards)
    verdicts = read_verdicts(folder, index.documents, bool(earlier.shards))
    members: dict[str, Any] = {}

    def outcomes() -> Iterator[Outcome]:
        for number, path in enumerate(group.paths, start=group.first):
            row = 0
            for row, batch in numbered_batches(path):
                counts.add_input(sum(document.num_bytes for document in batch), len(batch))
                if row + len(batch) > shards[number].documents:
                    break
                start = int(index.starts[number]) + row
                for ordinal, document in enumerate(batch, start=start):
                    if ordinal in shown:
                        members[str(ordinal)] = member_of(document, shown[ordinal])
                yield from _outcomes(settings, batch, start, verdicts, index)
                row += len(batch)
            if row != shards[number].documents:
                raise DataError(f"{path} changed while the stage ran: run the same command again")

    return {**write_outcomes(folder, group.number, outcomes(), counts, suffix), "members": members}


def _outcomes(
    settings: DedupSettings, batch: Sequence[Document], start: int, verdicts: Verdicts, index: DocumentIndex
) -> Iterator[Outcome]:
    own = np.arange(start, start + len(batch))
    items = index.items(own)
    kept = index.items(verdicts.kept[start : start + len(batch)])
    in_earlier = np.zeros(len(batch), dtype=bool)
    if verdicts.earlier is not None:
        found = verdicts.earlier[start : start + len(batch), 0]
        in_earlier = found != 0
        kept = np.where(in_earlier, found, kept)
    leaving = np.flatnonzero(kept != items)
    estimates = index.similarities(items[leaving], kept[leaving], settings.method)
    similar = dict(zip(leaving.tolist(), estimates, strict=True))
    for row, document in enumerate(batch):
        if row not in similar:
            yield document
            continue
        facts: dict[str, Any] = {"duplicate_of": index.id(int(kept[row])), "similarity": similar[row]}
        if in_earlier[row]:
            reason = IN_EARLIER
        else:
            reason = REASONS[settings.method]
            facts["cluster"] = int(verdicts.numbers[start + row])
        yield Dropped(replace(document, metadata={**document.metadata, **facts}), reason)
