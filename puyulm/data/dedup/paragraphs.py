"""Paragraphs that occur before leave their documents.

- hash: each group of shards; the paragraphs' hashes as sorted runs.
- match: each range of hashes; of each paragraph the copy that stays, and the places of the others.
- filter: each group of shards; documents without those paragraphs.

Of a paragraph's copies one stays: the first in the document that the setting `keep` prefers. Paragraphs are told apart
by 64 bits: among ten billion different ones, about three would be taken for another. `paragraphs.json` lists the most
frequent ones that were cut, for the report: [{copies, id (of the document where one stayed), characters, text}, ...],
most copies first, at most 50, texts of at most 1500 characters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from puyulm.data.dedup.index import ROW_BITS, date_key
from puyulm.data.dedup.inputs import Group, folded, groups_of, numbered_batches, shortened
from puyulm.data.dedup.report import TEXT_CHARACTERS
from puyulm.data.dedup.settings import DedupSettings, ParagraphSettings
from puyulm.data.dedup.shuffle import Run, Runs, RunWriter, first_of_each, partitions, runs_of
from puyulm.data.documents import Document, replacing
from puyulm.data.pipeline.counts import Counts, Outcome
from puyulm.data.pipeline.stage import StageRun, write_outcomes

PARAGRAPHS_FILE = "paragraphs.json"
MOST = 50  # paragraphs for the report
WIDTH = 4  # of a record: hash, item, the paragraph's number, the document's rank

_ENDS = {"paragraph": re.compile(r"\n(?:[^\S\n]*\n)+"), "line": re.compile(r"\n")}
_ROWS = (1 << ROW_BITS) - 1


class Frequent(NamedTuple):
    """A paragraph that was cut, and the place of the copy that stayed; sorts by the number of copies."""

    minus_copies: int
    item: int
    number: int


def run_paragraphs(settings: DedupSettings, stage: StageRun) -> None:
    """Runs all phases.

    Raises:
        DataError: A file is damaged.
    """
    folder, memory = stage.folder, settings.memory
    groups, sizes = groups_of(stage)
    hashed = stage.map("hash", partial(hash_paragraphs, settings=settings, folder=folder), groups, sizes)
    runs = runs_of(folder, hashed)
    records = sum(run.records for run in runs)
    ranges = partitions(records, WIDTH, memory // 2)
    match = partial(
        match_paragraphs, runs=runs, min_copies=settings.paragraphs.min_copies, folder=folder, memory=memory
    )
    matched = stage.map("match", match, list(enumerate(ranges)), [records * WIDTH * 8 // len(ranges)] * len(ranges))
    frequent = sorted(Frequent(*entry) for result in matched for entry in result["frequent"])[:MOST]
    cut = partial(
        cut_group, settings=settings.paragraphs, runs=runs_of(folder, matched), memory=memory, folder=folder,
        suffix=stage.suffix, shown={(entry.item, entry.number) for entry in frequent},
    )  # fmt: skip
    results = stage.map("filter", cut, groups, sizes)
    texts = {tuple(place): text for result in results for place, text in result["shown"]}
    listed = [{"copies": -entry.minus_copies, **texts[entry.item, entry.number]} for entry in frequent]
    with replacing(folder / PARAGRAPHS_FILE) as path:
        path.write_text(json.dumps(listed, ensure_ascii=True, indent=1), encoding="utf-8")


def split_paragraphs(text: str, unit: str) -> list[str]:
    """Paragraphs or lines, each with the line breaks that end it; joined, they are the text."""
    ends = [match.end() for match in _ENDS[unit].finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if start < end]


def hash_paragraphs(group: Group, settings: DedupSettings, folder: Path) -> dict[str, Any]:
    """A task: runs of (hash, item, number in the document, rank of the document) of a group's paragraphs."""
    given = settings.paragraphs
    writer = RunWriter(folder, f"runs/{group.number:05d}", settings.memory)
    for shard, path in enumerate(group.paths, start=group.first):
        for row, batch in numbered_batches(path):
            columns: tuple[list[int], ...] = ([], [], [], [])
            for item, document in enumerate(batch, start=(shard << ROW_BITS) + row):
                rank = {"newest": date_key(document.date), "longest": len(document.text)}.get(settings.keep, 0)
                for number, paragraph in enumerate(split_paragraphs(document.text, given.unit)):
                    if len(paragraph.strip()) >= given.min_characters:
                        for column, value in zip(columns, (_hash(paragraph), item, number, rank), strict=True):
                            column.append(value)
            writer.add(*(np.array(column, dtype=np.uint64) for column in columns))
    return writer.finish()


def match_paragraphs(
    task: tuple[int, tuple[int, int]], runs: Sequence[Run], min_copies: int, folder: Path, memory: int
) -> dict[str, Any]:
    """A task: the paragraphs of a range of hashes that are to be cut, as runs of (item, number).

    The entry "frequent" of the result has the paragraphs with most copies.
    """
    number, (low, high) = task
    reader = Runs(runs, WIDTH, memory // 2)
    writer = RunWriter(folder, f"cuts/{number:05d}", memory // 2)
    frequent: list[Frequent] = []
    for batch in reader.batches(low, high):
        if batch.large is None:
            found = _surplus(writer, batch.records, min_copies)
        else:
            found = _surplus_of_large(writer, reader, batch.large, min_copies)
        frequent = sorted([*frequent, *found])[:MOST]
    return {**writer.finish(), "frequent": frequent}


def _surplus(writer: RunWriter, records: npt.NDArray[np.uint64], min_copies: int) -> list[Frequent]:
    """Writes the places of all copies but one; gives the paragraphs with most of them."""
    keys, items, numbers, _ = records[:, np.lexsort((~records[3], records[0]))]
    first = first_of_each(keys)
    starts = np.flatnonzero(first)
    sizes = np.diff(starts, append=len(keys))
    several = sizes >= min_copies
    cut = np.repeat(several, sizes) & ~first
    writer.add(items[cut], numbers[cut])
    columns = -sizes[several], items[starts[several]], numbers[starts[several]]
    most = np.lexsort(columns[::-1])[:MOST]
    return [Frequent(*entry) for entry in zip(*(column[most].tolist() for column in columns), strict=True)]


def _surplus_of_large(writer: RunWriter, reader: Runs, key: int, min_copies: int) -> list[Frequent]:
    """The same for a paragraph whose copies do not fit in memory: one pass finds the one that stays."""
    best, copies = (0, -1, -1), 0
    for _, items, numbers, ranks in reader.parts(key):
        place = int(np.argmax(ranks))  # the first of the greatest
        if best[1] < 0 or int(ranks[place]) > best[0]:
            best = int(ranks[place]), int(items[place]), int(numbers[place])
        copies += len(items)
    if copies < min_copies:
        return []
    for _, items, numbers, _ in reader.parts(key):
        cut = (items != best[1]) | (numbers != best[2])
        writer.add(items[cut], numbers[cut])
    return [Frequent(-copies, *best[1:])]


def cut_group(
    group: Group,
    settings: ParagraphSettings,
    runs: Sequence[Run],
    memory: int,
    folder: Path,
    suffix: str,
    shown: set[tuple[int, int]],
) -> dict[str, Any]:
    """A task: the documents of a group without the paragraphs in `runs`.

    Args:
        group: Its shards.
        settings: Of the method.
        runs: Of (item, number of the paragraph) to cut.
        memory: Bytes that they may take.
        folder: The stage's.
        suffix: Of the shards to write.
        shown: Places of paragraphs for the report.

    Returns:
        As `write_outcomes`, and "shown": [place, what the report needs].
    """
    counts = Counts()
    texts: list[Any] = []
    wanted = {item for item, _ in shown}

    def outcomes() -> Iterator[Outcome]:
        for shard, path in enumerate(group.paths, start=group.first):
            cuts = _cuts(Runs(runs, 2, memory), shard)
            upcoming = next(cuts, None)
            for row, batch in numbered_batches(path):
                counts.add_input(sum(document.num_bytes for document in batch), len(batch))
                for item, document in enumerate(batch, start=(shard << ROW_BITS) + row):
                    if item in wanted:
                        texts.extend(_shown(document, item, shown, settings.unit))
                    if upcoming is None or upcoming[0] != item:
                        yield document
                        continue
                    yield cut_paragraphs(document, upcoming[1], settings, counts)
                    upcoming = next(cuts, None)

    return {**write_outcomes(folder, group.number, outcomes(), counts, suffix), "shown": texts}


def cut_paragraphs(document: Document, numbers: set[int], settings: ParagraphSettings, counts: Counts) -> Outcome:
    """A document without some of its paragraphs, or dropped if too little is left."""
    paragraphs = split_paragraphs(document.text, settings.unit)
    text = "".join(part for number, part in enumerate(paragraphs) if number not in numbers)
    if len(paragraphs) - 1 in numbers:
        text = text.rstrip()
    return shortened(document, text, settings, counts, "paragraphs", len(numbers))


def _cuts(reader: Runs, shard: int) -> Iterator[tuple[int, set[int]]]:
    """Documents of a shard that lose paragraphs, in order, and the paragraphs' numbers."""
    item, numbers = -1, set[int]()
    for records in reader.pieces(shard << ROW_BITS, (shard << ROW_BITS) + _ROWS):
        items, first = np.unique(records[0], return_index=True)
        for another, more in zip(items.tolist(), np.split(records[1], first[1:]), strict=True):
            if another != item and numbers:
                yield item, numbers
                numbers = set()
            item = another
            numbers.update(more.tolist())
    if numbers:
        yield item, numbers


def _shown(document: Document, item: int, shown: set[tuple[int, int]], unit: str) -> Iterator[list[Any]]:
    for number, paragraph in enumerate(split_paragraphs(document.text, unit)):
        if (item, number) in shown:
            text = paragraph.strip()
            yield [[item, number], {"id": document.id, "characters": len(text), "text": text[:TEXT_CHARACTERS]}]


def _hash(paragraph: str) -> int:
    raw = folded(paragraph).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
