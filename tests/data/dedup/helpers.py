"""Runs the stage on documents, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puyulm.data.dedup.settings import DedupSettings
from puyulm.data.documents import Document, read_documents, write_documents
from puyulm.data.pipeline.counts import Counts
from puyulm.data.pipeline.executor import SerialExecutor
from puyulm.data.pipeline.stage import StageRun, shards_in

CONSONANTS, VOWELS = "bcdfghjklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Result:
    """What a stage left."""

    stage: StageRun
    kept: list[Document]
    dropped: list[Document]
    counts: Counts

    @property
    def kept_ids(self) -> list[str]:
        return [document.id for document in self.kept]

    @property
    def reasons(self) -> dict[str, str]:
        return {document.id: document.metadata["dropped"] for document in self.dropped}

    @property
    def copies(self) -> dict[str, str]:
        """Id of a document that left -> id of the one that stayed."""
        return {document.id: document.metadata["duplicate_of"] for document in self.dropped}

    def json(self, name: str) -> Any:
        return json.loads((self.stage.folder / name).read_text())

    def files(self) -> dict[str, bytes]:
        """All files but the tasks' marks, which hold times."""
        folder = self.stage.folder
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent != folder / "tasks"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def prepare(
    folder: Path, documents: Sequence[Document], shards: int = 3, task_bytes: int = 1, suffix: str = "jsonl.zst"
) -> StageRun:
    """Writes the documents in shards; by default each is a task."""
    before = folder / "before"
    for number in range(shards):
        part = documents[len(documents) * number // shards : len(documents) * (number + 1) // shards]
        write_documents(before / f"{number:05d}.{suffix}", part)
    return StageRun("dedup", folder / "dedup", shards_in(before), before, SerialExecutor(), suffix, task_bytes)


def run(settings: DedupSettings, stage: StageRun) -> Result:
    """Runs the stage, or goes on with it."""
    settings.run(stage)
    parts = [json.loads(path.read_text()) for path in sorted((stage.folder / "tasks").glob("*.json"))]
    kept = [document for path in shards_in(stage.folder) for document in read_documents(path)]
    dropped = [document for path in shards_in(stage.folder / "dropped") for document in read_documents(path)]
    return Result(stage, kept, dropped, Counts.merged(part["counts"] for part in parts if "counts" in part))


def word(number: int) -> str:
    """A word for each number."""
    syllables = []
    for _ in range(3):
        number, consonant = divmod(number, len(CONSONANTS))
        number, vowel = divmod(number, len(VOWELS))
        syllables.append(CONSONANTS[consonant] + VOWELS[vowel])
    return "".join(syllables)


def words(random: Any, count: int) -> list[str]:
    """Random words."""
    return [word(random.randrange(600_000)) for _ in range(count)]


def prose(random: Any, count: int) -> str:
    """Random words in sentences and lines."""
    parts = words(random, count)
    return "".join(
        f"{text}{'. ' if place % 9 == 8 else chr(10) if place % 31 == 30 else ' '}" for place, text in enumerate(parts)
    )
