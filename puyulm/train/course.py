"""What a run does at each step: the one thing in which pretraining and fine-tuning differ for the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from puyulm.data.packing import PackedBatch

Skips = tuple[int, ...]
"""What was left out by going back to checkpoints, as the course itself writes it down; empty where nothing was."""


class Course(Protocol):
    """Everything that a step is, found by its number: the same number gives the same step, whatever ran before.

    Attributes:
        steps: Of the whole run.
        sources: Names that `PackedBatch.sources` points into; empty where sources are not told apart.
        bits_per_byte_factor: What a loss is multiplied with to give bits per byte of text; None where that is unknown.
    """

    steps: int
    sources: Sequence[str]
    bits_per_byte_factor: float | None

    def lr(self, step: int) -> float:
        """Learning rate of a step."""
        ...

    def rope_theta(self, step: int) -> float | None:
        """Base of the rotary embedding; None leaves the model's."""
        ...

    def phase(self, step: int) -> str:
        """Name of the phase, for the log; empty where there is but one."""
        ...

    def phase_index(self, step: int) -> int:
        """Number of the phase, from 0."""
        ...

    def seq_len(self, step: int) -> int:
        """Tokens of a row: what PaLM's convention counts attention over."""
        ...

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> list[PackedBatch]:
        """The micro-batches of one of `parts` equal parts of a step's global batch.

        The global batch does not depend on how many parts there are.
        """
        ...

    def skip(self, first: int, last: int, skips: Skips = ()) -> Skips:
        """`skips` after the run went back to step `first`: what steps `first` to `last` (inclusive) have read, by the
        skips so far, is left out, and step `first` goes on behind it."""
        ...

    def epochs(self, step: int, skips: Skips = ()) -> dict[str, float]:
        """Passes over each stream of data before a step, with what was left out."""
        ...
