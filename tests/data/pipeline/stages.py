"""Stages small enough to see through, in a module of their own: worker processes import them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome
from puyulm.data.pipeline.stage import StageRun, Transform, write_outcomes
from puyulm.errors import DataError


@dataclass(frozen=True)
class Make:
    """Makes `tasks` shards of `documents` each."""

    tasks: int = 4
    documents: int = 30
    characters: int = 40

    def run(self, stage: StageRun) -> None:
        function = partial(_make, settings=self, folder=stage.folder, suffix=stage.suffix)
        stage.map(stage.label, function, range(self.tasks), [1000] * self.tasks)


def _make(number: int, settings: Make, folder: Path, suffix: str) -> dict[str, Any]:
    counts = Counts()

    def documents() -> Iterator[Document]:
        for i in range(settings.documents):
            text = f"{number} {i} ".ljust(settings.characters, "x")
            counts.add_input(len(text))
            yield Document(f"d{number}-{i}", text, "en" if i % 2 else "zh", f"s{i % 3}")

    return write_outcomes(folder, number, documents(), counts, suffix)


@dataclass(frozen=True)
class Thirds:
    """Drops every third document and marks the others.

    Attributes:
        die_at: Kill the worker at this document, unless `alive` exists.
        alive: A file that keeps it alive.
        log: A folder that receives an empty file for every task that begins.
    """

    mark: str = "!"
    die_at: str = ""
    alive: str = ""
    log: str = ""
    words: Path | None = None

    def transform(self) -> Transform:
        if self.mark == "broken":
            raise DataError("the model cannot be loaded")
        if self.log:
            number = len(os.listdir(self.log))
            (Path(self.log) / f"{number}-{os.getpid()}").touch()
        return self._look

    def _look(self, documents: Sequence[Document]) -> Iterable[Outcome]:
        for document in documents:
            if document.id == self.die_at and not Path(self.alive).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if int(document.id.partition("-")[2]) % 3 == 0:
                yield Dropped(document, "thirds: divisible")
            else:
                yield replace(document, text=document.text + self.mark)
