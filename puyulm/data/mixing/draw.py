"""Drawing documents for a mixture: which documents of a shard go into which phase, decided by seeds alone."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puyulm.data.documents import replacing
from puyulm.data.mixing.plan import LENGTHS, Draw, Length
from puyulm.data.mixing.settings import MixSettings
from puyulm.data.pipeline.counts import Counts
from puyulm.errors import DataError

DRAWS_FOLDER = "draws"
BLOCKS_A_SHARD = 64
_NOT_DRAWN = "mix: not drawn"


@dataclass(frozen=True)
class SourceShard:
    """One shard of a token group.

    Attributes:
        number: Its place among all shards of all groups.
        group, side: Where it belongs.
        folder, name: Where it lies.
        documents, tokens: How much it holds.
    """

    number: int
    group: str
    side: str
    folder: Path
    name: str
    documents: int
    tokens: int

    def index(self) -> np.ndarray:
        """Its `.idx`, `[documents + 1, 3]`. Raises DataError when it is damaged."""
        path = self.folder / f"{self.name}.idx"
        if not path.is_file() or path.stat().st_size != (self.documents + 1) * 24:
            raise DataError(f"{path} is missing or damaged: run the stage tokenize again")
        return np.fromfile(path, dtype="<i8").reshape(-1, 3)


@dataclass(frozen=True)
class Output:
    """A folder to write: a phase's, or the validation side's."""

    name: str
    folder: str
    draws: tuple[Draw, ...]
    side: str
    sequence_length: int | None


def measure_task(shard: SourceShard, short_tokens: int) -> dict[str, Any]:
    """A task: a shard's tokens in short and in long documents."""
    lengths = np.diff(shard.index()[:, 0])
    short = int(lengths[lengths < short_tokens].sum())
    return {"tokens": {"short": short, "long": int(lengths.sum()) - short}}


def draw_task(
    shard: SourceShard,
    outputs: Sequence[Output],
    tokens: Mapping[tuple[str, str], Mapping[Length, int]],
    settings: MixSettings,
    folder: Path,
    metas: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Chooses the documents that a shard gives to each output, in laps in which no document comes twice."""
    index = shard.index()
    lengths, sizes = np.diff(index[:, 0]), np.diff(index[:, 1])
    sequences = {length: _Sequence(shard, length, lengths, settings) for length in LENGTHS}
    block_tokens = max(settings.shard_tokens // BLOCKS_A_SHARD, 1)
    chosen: list[np.ndarray] = []
    blocks: list[tuple[int, int, int, int]] = []
    drawn: dict[str, Any] = {}
    start = 0
    for place, output in enumerate(outputs):
        laps: dict[int, list[np.ndarray]] = {}
        for draw in output.draws if output.side == shard.side else ():
            if draw.group == shard.group:
                for lap, documents in sequences[draw.length].documents(draw, tokens[shard.group, shard.side]):
                    laps.setdefault(lap, []).append(documents)
        of_output = [np.sort(np.concatenate(parts)) for _, parts in sorted(laps.items())]
        for documents in of_output:
            for begin, end in _cut(lengths[documents], block_tokens):
                blocks.append((place, start + begin, start + end, int(lengths[documents[begin:end]].sum())))
            start += len(documents)
        chosen += of_output
        drawn[output.name] = _facts(_concatenated(of_output), index, shard, output, settings, metas)
    documents = _concatenated(chosen)
    files = {}
    for name, array in (("documents", documents), ("blocks", np.array(blocks, dtype=np.int64).reshape(-1, 4))):
        path = folder / DRAWS_FOLDER / f"{shard.number:05d}.{name}.npy"
        with replacing(path) as partial_path, open(partial_path, "wb") as file:
            np.save(file, array.astype("<i8"))
        files[str(path.relative_to(folder))] = path.stat().st_size
    return {"drawn": drawn, "files": files, "counts": asdict(_counts(lengths, sizes, documents, drawn))}


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(0, dtype=np.int64)])


def _cut(lengths: np.ndarray, block_tokens: int) -> Iterator[tuple[int, int]]:
    """Cuts documents into runs of about `block_tokens`."""
    block = (np.cumsum(lengths) - lengths) // block_tokens
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(lengths)]
    yield from ((a, b) for a, b in itertools.pairwise(edges) if b > a)


def _facts(
    documents: np.ndarray, index: np.ndarray, shard: SourceShard, output: Output, settings: MixSettings,
    metas: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """What a shard gives to an output: counts in all, by length, and by source and language."""
    lengths, sizes = (np.diff(index[:, column])[documents] for column in (0, 1))
    sources = index[documents, 2]
    by_source = []
    for number, source in enumerate(metas[str(shard.folder)]["sources"]):
        mine = sources == number
        if mine.any():
            by_source.append([source["source"], source["language"], int(mine.sum()), int(lengths[mine].sum()),
                              int(sizes[mine].sum())])  # fmt: skip
    fills = lengths >= (output.sequence_length or 0)
    return {"documents": len(documents), "tokens": int(lengths.sum()), "bytes": int(sizes.sum()),
            "short_tokens": int(lengths[lengths < settings.short_tokens].sum()),
            "filling_tokens": int(lengths[fills].sum()), "sources": by_source}  # fmt: skip


def _counts(lengths: np.ndarray, sizes: np.ndarray, documents: np.ndarray, drawn: Mapping[str, Any]) -> Counts:
    used = np.zeros(len(lengths), dtype=bool)
    used[documents] = True
    counts = Counts(documents_in=len(lengths), bytes_in=int(sizes.sum()), documents_out=len(documents),
                    bytes_out=int(sizes[documents].sum()))  # fmt: skip
    if not used.all():
        counts.dropped[_NOT_DRAWN] = [int((~used).sum()), int(sizes[~used].sum())]
    for name, facts in drawn.items():
        counts.note(f"tokens: {name}", facts["tokens"])
        for source, language, number, _, size in facts["sources"]:
            pair = counts.groups.setdefault(source, {}).setdefault(language, [0, 0])
            pair[0] += number
            pair[1] += size
    return counts


class _Sequence:
    """The endless sequence of a shard's short or long documents: a random order of them, again and again.

    It begins at a random place. So the part of a draw that falls to a shard of few documents, rounded to whole ones, is
    right on the average over shards.
    """

    def __init__(self, shard: SourceShard, length: Length, lengths: np.ndarray, settings: MixSettings) -> None:
        name = f"{shard.group}/{shard.side}/{shard.name}/{length}"
        generator = np.random.default_rng([settings.seed, zlib.crc32(name.encode())])
        short = lengths < settings.short_tokens
        self._order = generator.permutation(np.flatnonzero(short if length == "short" else ~short))
        self._ends = np.concatenate([[0], np.cumsum(lengths[self._order])])
        self._tokens, self._length = int(self._ends[-1]), length
        self._begin = int(generator.integers(max(self._tokens, 1)))

    def documents(self, draw: Draw, tokens: Mapping[Length, int]) -> Iterator[tuple[int, np.ndarray]]:
        """(lap, documents) of this shard's part of a draw from all shards of the group and length.

        The part ends at the documents' ends nearest to where the draw does; drawing on begins there. A lap has no
        document twice.
        """
        if not self._tokens:
            return
        total, count = tokens[self._length], len(self._order)
        first, last = (self._place(self._begin + position * self._tokens // total)
                       for position in (draw.start, draw.stop))  # fmt: skip
        for lap in range(first // count, -(-last // count)):
            yield lap, self._order[max(first - lap * count, 0) : last - lap * count]

    def _place(self, position: int) -> int:
        """How many documents of the sequence end before the end of a document that is nearest to a position."""
        laps, position = divmod(position, self._tokens)
        after = int(np.searchsorted(self._ends, position))
        if after and position - self._ends[after - 1] <= self._ends[after] - position:
            after -= 1
        return laps * len(self._order) + after
