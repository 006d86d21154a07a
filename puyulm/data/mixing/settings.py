"""What the stages `tokenize` and `mix` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from puyulm.data.pipeline.stage import StageRun
from puyulm.data.shards import SHARD_TOKENS
from puyulm.errors import DataError


@dataclass(frozen=True)
class TokenizeSettings:
    """Documents to token shards: a folder of shards for each group of documents and each side of the split.

    Attributes:
        tokenizer: Its folder or file.
        bos: Begin each document with the tokenizer's bos.
        eos: End each document with its eos.
        group_by: What tells groups apart, in the order of the folders' names: ("language", "tier") gives groups such
            as `en/high`. A tier is the document's `metadata["tier"]`, "none" where it has none. Empty: one group,
            "all".
        validation_fraction: Share of the documents held out, by their ids' hashes (`puyulm.data.split`).
        seed: Of that split.
        shard_tokens: A shard holds at most as many tokens, if no single task's part has more.
    """

    tokenizer: Path
    bos: bool = True
    eos: bool = False
    group_by: tuple[Literal["source", "language", "tier"], ...] = ()
    validation_fraction: float = 0.005
    seed: int = 0
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise DataError(f"validation_fraction is {self.validation_fraction}: give 0 or more, and less than 1")
        if self.shard_tokens < 1:
            raise DataError(f"shard_tokens is {self.shard_tokens}: give 1 or more")
        if len(set(self.group_by)) < len(self.group_by):
            raise DataError(f"group_by names one thing twice: {', '.join(self.group_by)}")

    def check(self) -> None:
        """Raises TokenizerError or DataError if the tokenizer cannot be loaded or lacks what is asked of it."""
        from puyulm.data.shard_writer import document_ends
        from puyulm.text.tokenizer import Tokenizer

        document_ends(Tokenizer.load(self.tokenizer), self.bos, self.eos)

    def run(self, stage: StageRun) -> None:
        """Encodes the documents of the stage before. Raises DataError when none of them has text."""
        from puyulm.data.mixing.tokenize import tokenize_stage

        tokenize_stage(self, stage)


@dataclass(frozen=True)
class Phase:
    """One phase of training: how many tokens, and from which groups.

    Attributes:
        name: Of its folder.
        tokens: How many it should have.
        weights: Group pattern ("en*", "code/high") -> share of the tokens; shares are divided by their sum. A group
            belongs to the first pattern that matches it; the groups of a pattern share in proportion to their tokens.
        short_share: Share of the tokens that comes from documents of fewer than `short_tokens` tokens; None takes
            documents of all lengths as they come. InternLM2's phase of 32K context has 0.5 (report, section 3.3).
        sequence_length: The context that the phase is meant for; the plan tells which share of the tokens lies in
            documents that fill it. It changes nothing in what is drawn.
    """

    name: str
    tokens: int
    weights: dict[str, float]
    short_share: float | None = None
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name) or self.name in ("valid", "tasks"):
            raise DataError(f"the phase's name {self.name!r} becomes a folder: letters, digits, - and _, not 'valid'")
        if self.tokens < 1:
            raise DataError(f"phase {self.name}: tokens is {self.tokens}, give 1 or more")
        if not self.weights or min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0:
            raise DataError(f"phase {self.name}: weights need at least one group above 0 and none below")
        if self.short_share is not None and not 0 <= self.short_share <= 1:
            raise DataError(f"phase {self.name}: short_share is {self.short_share}, give 0 to 1")


@dataclass(frozen=True)
class MixSettings:
    """Token groups to mixtures: a folder of token shards for each phase of training.

    Attributes:
        phases: In their order. A document that a phase used comes again only after all others of its group and length.
        max_epochs: Group pattern -> how often a document may be used, over all phases; the first pattern that matches
            counts, and 1 where none does. The default is where repeated text is nearly as good as new (Muennighoff et
            al. 2023, section 5); InternLM2 repeats its best tier of code, and reads the second about once (report,
            section 3.1.2): {"*/high": 4, "*/moderate": 1}.
        short_tokens: Documents of fewer tokens are short.
        shard_tokens: About so many tokens in a shard; a task holds one shard in memory.
        seed: Of the choice and the order of documents.
    """

    phases: tuple[Phase, ...]
    max_epochs: dict[str, float] = field(default_factory=lambda: {"*": 4.0})
    short_tokens: int = 4096
    shard_tokens: int = 1 << 26
    seed: int = 0

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise DataError(f"phases need one or more different names, found: {', '.join(names) or 'none'}")
        if wrong := [pattern for pattern, epochs in self.max_epochs.items() if epochs < 0]:
            raise DataError(f"max_epochs of {wrong[0]!r} is below 0: give 0 or more")
        if self.short_tokens < 1 or self.shard_tokens < 1:
            raise DataError("short_tokens and shard_tokens must be 1 or more")

    def run(self, stage: StageRun) -> None:
        """Mixes the groups of the stage before, which must be `tokenize`."""
        from puyulm.data.mixing.mix import mix_stage

        mix_stage(self, stage)
