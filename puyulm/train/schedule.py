"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from puyulm.train.settings import Shape, TrainSettings


@dataclass(frozen=True)
class Schedule:
    """One climb and one way down.

    Attributes:
        steps: From the first of the climb to the last of the way down.
        lr, min_lr_ratio, warmup_ratio, shape, decay_ratio: See `TrainSettings`.
    """

    steps: int
    lr: float
    min_lr_ratio: float
    warmup_ratio: float
    shape: Shape
    decay_ratio: float

    @classmethod
    def of(cls, settings: TrainSettings, steps: int, **changes: object) -> Schedule:
        """A run's settings, but for what `changes` says."""
        values = {name: getattr(settings, name) for name in ("lr", "min_lr_ratio", "warmup_ratio", "decay_ratio")}
        values |= {"shape": settings.schedule} | {name: value for name, value in changes.items() if value is not None}
        return cls(steps=steps, **values)

    def __call__(self, step: int) -> float:
        """The learning rate of one step, counted from 0; the last step has `lr * min_lr_ratio` exactly.

        With w = round(steps * warmup_ratio) steps of warm-up, step s < w has `lr * (s + 1) / w`. After that, with
        p = (s - w) / (steps - 1 - w) from 0 to 1, the share of the peak is `m + (1 - m) * f(p)`, where m is
        `min_lr_ratio` and f(p) is `(1 + cos(pi p)) / 2` for "cosine", `1 - p` for "linear", 1 for "constant", and for
        "wsd" 1 until the last `decay_ratio` of all steps, through which it falls linearly.
        """
        warmup = round(self.steps * self.warmup_ratio)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = min((step - warmup) / max(1, self.steps - 1 - warmup), 1.0)
        if self.shape == "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        elif self.shape == "linear":
            share = 1 - progress
        elif self.shape == "wsd":
            decay = max(round(self.steps * self.decay_ratio), 1)
            share = min((self.steps - 1 - step) / decay, 1.0)
        else:
            share = 1.0
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * share)
