"""What to run: the stages of a pipeline, as a recipe."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from puyulm.data.clean.settings import CleanSettings
from puyulm.data.code.settings import CodeSettings, RepositorySettings
from puyulm.data.decontaminate.settings import DecontaminateSettings
from puyulm.data.dedup.settings import DedupSettings
from puyulm.data.format.settings import FormatSettings
from puyulm.data.longtext.settings import LongTextSettings
from puyulm.data.mixing.settings import MixSettings, TokenizeSettings
from puyulm.data.safe.settings import SafeSettings
from puyulm.data.score.settings import QualitySettings
from puyulm.errors import RecipeError


@dataclass(frozen=True)
class Step:
    """One stage: exactly one of the kinds, with its settings (`- clean: {}` takes all defaults).

    Attributes:
        name: Of the stage's folder, where one kind is used twice; the kind itself if empty.
    """

    name: str = ""
    format: FormatSettings | None = None
    clean: CleanSettings | None = None
    dedup: DedupSettings | None = None
    safe: SafeSettings | None = None
    quality: QualitySettings | None = None
    code: CodeSettings | None = None
    repositories: RepositorySettings | None = None
    long_context: LongTextSettings | None = None
    decontaminate: DecontaminateSettings | None = None
    tokenize: TokenizeSettings | None = None
    mix: MixSettings | None = None

    def __post_init__(self) -> None:
        given = self._given()
        if len(given) != 1:
            kinds = ", ".join(f.name for f in fields(self) if f.name != "name")
            found = f"{len(given)} ({', '.join(given)})" if given else "none (write {} for all defaults: `- clean: {}`)"
            raise RecipeError(f"a stage has exactly one kind of {kinds}; found {found}")
        if not all(c.isalnum() or c in "-_" for c in self.name):
            raise RecipeError(f"the stage's name {self.name!r} becomes a folder: letters, digits, - and _ only")

    @property
    def kind(self) -> str:
        """Which of the stages it is."""
        return self._given()[0]

    @property
    def settings(self) -> Any:
        """The settings of that stage."""
        return getattr(self, self.kind)

    @property
    def label(self) -> str:
        """What the stage is called in folders and displays."""
        return self.name or self.kind

    def _given(self) -> list[str]:
        return [f.name for f in fields(self) if f.name != "name" and getattr(self, f.name) is not None]


@dataclass(frozen=True)
class DataRecipe:
    """A corpus: where it goes, and the stages that make it.

    Attributes:
        out: Folder of the run; each stage has a folder in it.
        stages: In order; each reads what the one before wrote.
        workers: Processes at a time; all cores if None. It changes nothing in what is written.
        backend: "local" (processes on this machine) or "ray" (`puyulm[ray]`).
        ray_address: Of a cluster whose machines see the same files; None starts Ray on this machine.
        shards: Format of the documents' shards.
        task_mb: Input of one task in MB; a shard comes out of each.
    """

    out: Path
    stages: tuple[Step, ...]
    workers: int | None = None
    backend: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    shards: Literal["jsonl.zst", "parquet"] = "jsonl.zst"
    task_mb: float = 64.0

    def __post_init__(self) -> None:
        if not self.stages:
            raise RecipeError("a pipeline needs at least one stage under 'stages'")
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"workers is {self.workers}: give 1 or more, or leave it out for all cores")
        if self.task_mb <= 0:
            raise RecipeError(f"task_mb is {self.task_mb}: give megabytes, more than 0")
        if self.stages[0].kind != "format":
            raise RecipeError(f"the first stage must be 'format', which reads the input; found {self.stages[0].kind!r}")
        for before, step in pairwise(self.stages):
            if step.kind == "mix" and before.kind != "tokenize":
                raise RecipeError(
                    f"the stage {step.label!r} mixes tokens: put it behind 'tokenize', not {before.label!r}"
                )
            if before.kind in ("tokenize", "mix") and step.kind != "mix":
                raise RecipeError(f"the stage {step.label!r} reads documents, and {before.label!r} before it writes "
                                  "tokens: put it before 'tokenize'")  # fmt: skip
        labels = [step.label for step in self.stages]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise RecipeError(f"two stages are called {twice!r}: give one of them another 'name'")
