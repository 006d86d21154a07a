"""Passages that occur before leave their documents: exact substrings, found with a suffix array.

- measure: each group of shards; the lengths of its documents.
- cut: each block of documents that fits in memory; the documents without passages that occur before in the block.

Lee et al. 2022 (arXiv 2107.06499, section 4.1) sort all suffixes of the whole corpus, so that equal passages stand
beside each other. Here that is done within blocks: A PASSAGE IN TWO BLOCKS STAYS IN BOTH. The whole input is one block
if `memory_mb` is at least 32 times its text in MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puyulm.data.dedup.arrays import ArrayWriter, map_array
from puyulm.data.dedup.inputs import Group, groups_of, numbered_batches, shortened
from puyulm.data.dedup.settings import DedupSettings, SubstringSettings
from puyulm.data.documents import Document, read_documents, replacing
from puyulm.data.extras import needs
from puyulm.data.pipeline.counts import Counts, Outcome
from puyulm.data.pipeline.stage import StageRun, write_outcomes

SEPARATOR = 0xFF  # no byte of UTF-8; stands after each document
MEMORY = 32  # bytes that a byte of text takes, at most

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """Documents that are looked at together.

    Attributes:
        number: Of the task.
        spans: (shard, first row, last row + 1) of each part.
        bytes: Of text, with a separator for each document.
    """

    number: int
    spans: tuple[tuple[Path, int, int], ...]
    bytes: int


def run_substring(settings: DedupSettings, stage: StageRun) -> None:
    """Runs both phases.

    Raises:
        DataError: pydivsufsort is not installed, or a file is damaged.
    """
    needs("pydivsufsort", "pydivsufsort", extra="")
    folder = stage.folder
    groups, sizes = groups_of(stage)
    measured = stage.map("measure", partial(measure, folder=folder), groups, sizes)
    names = [(folder / name, rows) for result in measured for name, rows in result["lengths"]]
    limit = min(settings.memory // MEMORY, 2**31 - 2)
    blocks = plan_blocks(list(stage.inputs), [map_array(*name) for name in names], limit)
    cut = partial(cut_block, settings=settings.substring, limit=limit, folder=folder, suffix=stage.suffix)
    stage.map("cut", cut, blocks, [block.bytes for block in blocks])


def measure(group: Group, folder: Path) -> dict[str, Any]:
    """A task: bytes of each document of a group and its separator, an array a shard."""
    lengths, files = [], {}
    for number, path in enumerate(group.paths, start=group.first):
        target = folder / "lengths" / f"{number:05d}.npy"
        with replacing(target) as partial_path, ArrayWriter(partial_path, np.int64) as writer:
            for _, batch in numbered_batches(path):
                writer.append(np.array([document.num_bytes + 1 for document in batch], dtype=np.int64))
        name = str(target.relative_to(folder))
        lengths.append([name, writer.rows])
        files[name] = target.stat().st_size
    return {"lengths": lengths, "files": files}


def plan_blocks(paths: Sequence[Path], lengths: Sequence[npt.NDArray[np.int64]], limit: int) -> list[Block]:
    """Cuts the documents, in order, into blocks of at most `limit` bytes; a longer document stands alone."""
    blocks: list[Block] = []
    spans: list[tuple[Path, int, int]] = []
    used = 0

    def close() -> None:
        nonlocal used
        if spans:
            blocks.append(Block(len(blocks), tuple(spans), used))
        spans.clear()
        used = 0

    for path, sizes in zip(paths, lengths, strict=True):
        ends = np.cumsum(sizes)
        row = before = 0
        while row < len(sizes):
            end = int(np.searchsorted(ends, before + limit - used, side="right"))
            if end <= row and used:
                close()
                continue
            end = max(end, row + 1)
            spans.append((path, row, end))
            used += int(ends[end - 1]) - before
            row, before = end, int(ends[end - 1])
    close()
    return blocks


def cut_block(block: Block, settings: SubstringSettings, limit: int, folder: Path, suffix: str) -> dict[str, Any]:
    """A task: the documents of a block without the passages that occur before in it."""
    counts = Counts()
    gone: Flags | None = None
    if block.bytes <= limit:
        raw = bytearray()
        for document in _documents(block):
            raw += document.text.encode("utf-8", "surrogatepass")
            raw.append(SEPARATOR)
        gone = repeated(np.frombuffer(raw, dtype=np.uint8), settings.min_bytes)
        del raw
    else:
        counts.note("documents longer than a block")

    def outcomes() -> Iterator[Outcome]:
        start = 0
        for document in _documents(block):
            size = document.num_bytes
            counts.add_input(size)
            yield document if gone is None else cut_passages(document, gone[start : start + size], settings, counts)
            start += size + 1

    return write_outcomes(folder, block.number, outcomes(), counts, suffix)


def repeated(text: Bytes, length: int) -> Flags:
    """Which bytes are in a passage of `length` bytes that occurs before, and not in the place where it is first.

    Args:
        text: Documents, each followed by a separator; writable.
        length: Of the shortest passage.

    Returns:
        `[len(text)]`. Of a passage that overlaps with itself (a row of dashes) the first `length` bytes stay.
    """
    library = needs("pydivsufsort", "pydivsufsort", extra="")
    suffixes = library.divsufsort(text)
    same = np.zeros(len(text) + 1, dtype=bool)  # whether a suffix begins as the one before it
    if len(text) > 1:
        same[1:-1] = (library.kasai(text, suffixes) >= length)[: len(text) - 1]
    suffixes = suffixes[same[:-1] | same[1:]]  # those that do not stand alone
    starts = np.flatnonzero(~same[:-1][same[:-1] | same[1:]])
    marks = np.zeros(len(text) + 1, dtype=np.int32)
    if len(starts):
        first = np.minimum.reduceat(suffixes, starts)
        stops = np.append(np.flatnonzero(text == SEPARATOR), len(text)).astype(np.int32)
        inside = stops[np.searchsorted(stops, first)] >= first + length  # no passage goes on in the next document
        sizes = np.diff(starts, append=len(suffixes))
        first = np.repeat(np.where(inside, first, -1), sizes)
        again = (first >= 0) & (suffixes != first)
        begin, first = suffixes[again], first[again]
        np.add.at(marks, np.where(begin < first + length, first + length, begin), 1)
        np.add.at(marks, begin + length, -1)
    return np.cumsum(marks[:-1], dtype=np.int32) > 0


def cut_passages(document: Document, gone: Flags, settings: SubstringSettings, counts: Counts) -> Outcome:
    """A document without some of its bytes (`[bytes]`); of a character at an end of a passage that is cut, all stay."""
    if not gone.any():
        return document
    raw = document.text.encode("utf-8", "surrogatepass")
    edges = np.flatnonzero(np.diff(gone.astype(np.int8), prepend=0, append=0)).tolist()
    parts: list[bytes] = []
    kept = passages = 0
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        while start < end and raw[start] & 0xC0 == 0x80:  # inside a character
            start += 1
        while start < end < len(raw) and raw[end] & 0xC0 == 0x80:
            end -= 1
        if start < end:
            parts.append(raw[kept:start])
            kept = end
            passages += 1
    text = b"".join([*parts, raw[kept:]]).decode("utf-8", "surrogatepass")
    return shortened(document, text, settings, counts, "passages", passages)


def _documents(block: Block) -> Iterator[Document]:
    for path, first, end in block.spans:
        for row, document in enumerate(read_documents(path)):
            if row >= end:
                break
            if row >= first:
                yield document
