"""Pieces of input files: what a task reads. How files are cut into them depends on their sizes alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

SPLITTABLE = ("warc", "jsonl", "parquet", "internevo", "git")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one input file: the items in it that begin at `start` or later and before `stop`.

    Attributes:
        path: The file; of `git`, the repository.
        name: Its path below the folder that the input names: the same wherever that folder is.
        source: Name of the corpus.
        kind: Of the reader.
        input: Index of the input in the settings.
        start, stop: Bytes of the file; of `git`, of its files one after another, and one more for each.
        detail: What else the reader must know: the revision of a repository, the repository of a source file, or why
            the file is skipped.
    """

    path: Path
    name: str
    source: str
    kind: str
    input: int
    start: int
    stop: int
    detail: str = ""

    @property
    def size(self) -> int:
        """Bytes that it spans."""
        return self.stop - self.start


def cut(piece: Piece, task_bytes: int) -> Iterator[Piece]:
    """Cuts a whole file into equal ranges of at most `task_bytes`, where its kind allows it."""
    compressed_lines = piece.kind == "jsonl" and piece.name.lower().endswith((".gz", ".zst"))
    if piece.kind not in SPLITTABLE or compressed_lines or piece.size <= task_bytes:
        yield piece
        return
    parts = -(-piece.size // task_bytes)
    ends = [piece.size * i // parts for i in range(parts + 1)]
    for start, stop in pairwise(ends):
        yield replace(piece, start=start, stop=stop)


def group(pieces: Iterable[Piece], task_bytes: int) -> list[tuple[Piece, ...]]:
    """Puts pieces together, in order, into tasks of at most `task_bytes`; a larger piece stands alone."""
    tasks: list[list[Piece]] = []
    size = task_bytes
    for piece in pieces:
        if not tasks or size + piece.size > task_bytes:
            tasks.append([])
            size = 0
        tasks[-1].append(piece)
        size += piece.size
    return [tuple(task) for task in tasks]
