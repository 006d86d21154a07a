"""The stage `repositories`: a shuffle that brings each repository's files together, and the documents made of them.

In the first phase every task sends the files that it reads to partitions, by the hash of their repository's name;
documents of no repository are written at once. What a task sends is sorted in runs of bounded size and lies in one file
a task. In the second phase a task merges the runs of a partition, so that it holds one repository at a time.
"""

from __future__ import annotations

import heapq
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

from puyulm.data.code.gather import gather
from puyulm.data.code.languages import path_of
from puyulm.data.code.licences import is_licence_file
from puyulm.data.code.settings import RepositorySettings
from puyulm.data.documents import Document, document_from_record, read_documents, replacing
from puyulm.data.extras import needs
from puyulm.data.pipeline.counts import Counts, Outcome
from puyulm.data.pipeline.stage import StageRun, group_by_size, write_outcomes
from puyulm.errors import DataError

RUN_CHARACTERS = 32_000_000  # of text in a sorted run: what a task of the first phase holds
PARTS = "parts"

Repository = tuple[str, str]
"""Source and name: two sources may have repositories of one name."""

Segment = tuple[str, int, int]
"""A partition's part of a run: file below the stage's folder, first byte, length."""


def run_repositories(settings: RepositorySettings, stage: StageRun) -> None:
    """Runs both phases."""
    groups = group_by_size(stage.inputs, stage.task_bytes)
    sizes = [sum(path.stat().st_size for path in group) for group in groups]
    partitions = max(1, round(sum(sizes) / stage.task_bytes))
    scatter = partial(_scatter, folder=stage.folder, suffix=stage.suffix, partitions=partitions)
    scattered = stage.map("scatter", scatter, list(enumerate(groups)), sizes)
    segments: list[list[Segment]] = [[] for _ in range(partitions)]
    for result in scattered:
        for partition, first, length in result["segments"]:
            segments[partition].append((result["parts"], first, length))
    tasks = [(len(groups) + number, each) for number, each in enumerate(segments)]
    merge = partial(_merge, folder=stage.folder, suffix=stage.suffix, settings=settings)
    stage.map("join", merge, tasks, [sum(length for _, _, length in each) for each in segments])
    shutil.rmtree(stage.folder / PARTS, ignore_errors=True)


def repository_of(document: Document) -> Repository | None:
    """The repository that a document belongs to, None if to none."""
    name = document.metadata.get("repository")
    return (document.source, name) if isinstance(name, str) and name else None


def _scatter(task: tuple[int, list[Path]], folder: Path, suffix: str, partitions: int) -> dict[str, Any]:
    """Writes documents of no repository to a shard, and all others to one file of sorted runs."""
    number, paths = task
    counts = Counts()
    name = f"{PARTS}/{number:05d}.bin"
    with replacing(folder / name) as path, path.open("wb") as file:
        runs = _Runs(file, partitions)

        def alone() -> Iterator[Outcome]:
            for shard in paths:
                for document in read_documents(shard):
                    counts.add_input(document.num_bytes)
                    if repository_of(document):
                        runs.add(document)
                    else:
                        yield document

        result = write_outcomes(folder, number, alone(), counts, suffix)
        runs.flush()
    result["files"][name] = (folder / name).stat().st_size
    return {**result, "parts": name, "segments": runs.segments}


class _Runs:
    """Collects documents, and writes them sorted, a compressed frame for each partition, whenever many are there."""

    def __init__(self, file: Any, partitions: int) -> None:
        self.segments: list[tuple[int, int, int]] = []  # partition, first byte, length
        self._file, self._partitions = file, partitions
        self._held: list[tuple[int, tuple[Repository, bool, str, str], Document]] = []
        self._characters = 0
        self._compressor = needs("zstandard", "zstandard").ZstdCompressor(level=3)

    def add(self, document: Document) -> None:
        name = "\0".join(repository_of(document) or ())
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        partition = int.from_bytes(digest, "big") % self._partitions
        self._held.append((partition, _sort_key(document), document))
        self._characters += len(document.text)
        if self._characters >= RUN_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        self._held.sort(key=lambda held: held[:2])
        for partition, held in groupby(self._held, key=lambda held: held[0]):
            first = self._file.tell()
            frame = self._compressor.compressobj()
            for _, _, document in held:
                self._file.write(frame.compress(_to_line(document)))
            self._file.write(frame.flush())
            self.segments.append((partition, first, self._file.tell() - first))
        self._held, self._characters = [], 0


def _merge(
    task: tuple[int, Sequence[Segment]], folder: Path, suffix: str, settings: RepositorySettings
) -> dict[str, Any]:
    """Writes the repositories of one partition, in the order of their names."""
    number, segments = task
    counts = Counts()

    def outcomes() -> Iterator[Outcome]:
        runs = [_read_segment(folder / name, first, length) for name, first, length in segments]
        merged = heapq.merge(*runs, key=_sort_key)
        for repository, documents in groupby(merged, key=repository_of):
            if repository is not None:
                yield from gather(*repository, documents, settings, counts)

    return write_outcomes(folder, number, outcomes(), counts, suffix)


def _read_segment(path: Path, first: int, length: int) -> Iterator[Document]:
    """The documents of one frame, read in small pieces; between them the file is closed, since there may be many."""
    decompressor = needs("zstandard", "zstandard").ZstdDecompressor().decompressobj()
    held: list[bytes] = []  # pieces of a line that goes on
    end = first + length
    while first < end:
        with path.open("rb") as file:
            file.seek(first)
            piece = file.read(min(end - first, 1 << 16))
        if not piece:
            raise DataError(f"{path} ends early: run the same command again")
        first += len(piece)
        *lines, rest = decompressor.decompress(piece).split(b"\n")
        for line in lines:
            yield _from_line(b"".join([*held, line]))
            held = []
        held.append(rest)


def _sort_key(document: Document) -> tuple[Repository, bool, str, str]:
    path = path_of(document)
    return repository_of(document) or ("", ""), not is_licence_file(path), path, document.id


def _to_line(document: Document) -> bytes:
    record: Mapping[str, Any] = asdict(document)
    return (json.dumps(record, ensure_ascii=True) + "\n").encode()


def _from_line(line: bytes) -> Document:
    return document_from_record(json.loads(line), "a run of the stage repositories")
