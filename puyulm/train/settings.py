"""What a training run is told, whatever it trains on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from puyulm.errors import RecipeError

RESUME_FREE = frozenset({"log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "device"})
"""Settings that do not change what is learned: they may differ between a run and its resumption."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of the loop.

    Attributes:
        steps: Optimizer steps. Give this or `tokens` (fine-tuning may give epochs instead).
        tokens: Tokens to train on; rounded up to whole steps.
        accumulation: Micro-batches of one step.
        lr: Peak learning rate.
        min_lr_ratio: The last step's learning rate, as a share of the peak.
        warmup_ratio: Share of the steps in which the learning rate climbs to its peak.
        schedule: Way from the peak down: "cosine", "linear", or "constant" (no way down).
        weight_decay: On matrices only; never on norms and biases.
        clip_norm: Gradients are scaled so that their global norm is at most this.
        eval_every: Steps between validations; None validates after the last step only.
        checkpoint_every: Steps between checkpoints to resume from.
        keep_checkpoints: How many of them stay on disk.
        log_every: Steps between looks at the losses: each look waits for the device and writes the steps' metrics.
        seed: Of the initial weights and of the order of the data.
        device: "auto" takes CUDA where there is one.
        dtype: Of the forward and backward pass; weights and optimizer stay in float32.
    """

    steps: int | None = None
    tokens: int | None = None
    accumulation: int = 1
    lr: float = 3e-4
    min_lr_ratio: float = 0.1
    warmup_ratio: float = 0.01
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    eval_every: int | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        problems = []
        if self.steps is not None and self.tokens is not None:
            problems.append("give steps or tokens, not both")
        for name in ("steps", "tokens", "accumulation", "eval_every", "checkpoint_every", "keep_checkpoints",
                     "log_every", "lr", "eps", "clip_norm"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                problems.append(f"{name} must be above 0, not {value}")
        for name in ("min_lr_ratio", "warmup_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas must be at least 0 and below 1, not {list(self.betas)}")
        if self.weight_decay < 0:
            problems.append(f"weight_decay must not be negative, not {self.weight_decay}")
        if problems:
            raise RecipeError("; ".join(problems))

    def total_steps(self, tokens_per_batch: int) -> int:
        """Optimizer steps of the run, for batches of `tokens_per_batch` tokens.

        Raises:
            RecipeError: Neither steps nor tokens are given.
        """
        if self.steps is not None:
            return self.steps
        if self.tokens is None:
            raise RecipeError("settings: how long to train is missing; give settings.steps or settings.tokens")
        return math.ceil(self.tokens / (tokens_per_batch * self.accumulation))
