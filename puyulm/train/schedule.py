"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from puyulm.train.settings import TrainSettings


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """The learning rate of one step: a linear climb, then a way down that ends at `lr * min_lr_ratio` exactly.

    With w = round(steps * warmup_ratio) steps of warm-up, step s < w has `lr * (s + 1) / w`. After that, with
    p = (s - w) / (steps - 1 - w) from 0 to 1, the share of the peak is `m + (1 - m) * f(p)`, where m is `min_lr_ratio`
    and f(p) is `(1 + cos(pi p)) / 2` for "cosine", `1 - p` for "linear" and 1 for "constant".

    Args:
        step: Counted from 0.
        steps: Of the whole run.
    """
    warmup = round(steps * settings.warmup_ratio)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = min((step - warmup) / max(1, steps - 1 - warmup), 1.0)
    if settings.schedule == "cosine":
        share = (1 + math.cos(math.pi * progress)) / 2
    elif settings.schedule == "linear":
        share = 1 - progress
    else:
        share = 1.0
    return settings.lr * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * share)
