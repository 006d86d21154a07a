"""What a training run is told, whatever it trains on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from puyulm.errors import RecipeError

RESUME_FREE = frozenset({
    "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "keep_every", "export_every", "prefetch",
    "device", "tensorboard", "wandb", "peak_tflops", "spikes.patience", "spikes.max_rollbacks",
})  # fmt: skip
"""Settings that do not change what is learned: they may differ between a run and its resumption."""

Shape = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(frozen=True, kw_only=True)
class SpikeSettings:
    """Which steps are not taken, and what happens when there are many of them.

    A step whose loss or gradient norm is not finite is never taken.

    Attributes:
        sigma: A step is not taken, either, when its loss or gradient norm is above the mean of the last `window` taken
            steps by more than so many standard deviations; None: only what is not finite counts.
        window: Taken steps that mean and deviation are of; before there are as many, nothing is a spike.
        patience: After so many steps in a row that were not taken, the run goes back to its last checkpoint and leaves
            out the batches since (as InternLM's lab does on a loss spike).
        max_rollbacks: A run that would go back more often than this stops with an error.
    """

    sigma: float | None = None
    window: int = 128
    patience: int = 5
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        if self.sigma is not None and not self.sigma > 0:
            raise RecipeError(f"sigma must be above 0, not {self.sigma}")
        for name, least in (("window", 2), ("patience", 1), ("max_rollbacks", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of the loop.

    Attributes:
        lr: Peak learning rate.
        min_lr_ratio: The last step's learning rate, as a share of the peak.
        warmup_ratio: Share of the steps in which the learning rate climbs to its peak.
        schedule: Way from the peak down: "cosine", "linear", "constant" (no way down), or "wsd" (the peak, then a
            linear way down in the last `decay_ratio` of the steps).
        decay_ratio: See "wsd".
        optimizer: "adamw", or "muon": Muon for the layers' matrices, AdamW for everything else.
        weight_decay: On matrices only; never on norms and biases.
        state_dtype: Of the optimizer's moments; in bfloat16 `betas` should not be above 0.99.
        muon_lr_ratio: Muon's learning rate as a multiple of `lr`.
        clip_norm: Gradients are scaled so that their global norm is at most this.
        z_loss: Weight of log(Z)^2 in the loss; 0 leaves it out.
        spikes: Steps that are not taken.
        eval_every: Steps between validations; None validates after the last step only.
        checkpoint_every: Steps between checkpoints to resume from.
        keep_checkpoints: How many of the newest stay on disk.
        keep_every: Checkpoints of steps that are multiples of this stay, too.
        export_every: Steps between copies of the model in the published layout (`exports/step-...`); None: only the
            finished model is written.
        log_every: Steps between lines on a screen that is no terminal; every step's line is in the files.
        prefetch: Steps whose batches are read ahead.
        seed: Of the initial weights and of the order of the data.
        device: "auto" takes CUDA where there is one.
        dtype: Of the forward and backward pass; weights and optimizer stay in float32.
        peak_tflops: What MFU is measured against; None takes what is known of the GPU, or measures a CPU.
        tensorboard: Write event files for TensorBoard, to `tensorboard/`; no package is needed for that.
        wandb: Project to log to with Weights & Biases.
    """

    lr: float = 3e-4
    min_lr_ratio: float = 0.1
    warmup_ratio: float = 0.01
    schedule: Shape = "cosine"
    decay_ratio: float = 0.1
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    muon_lr_ratio: float = 1.0
    clip_norm: float = 1.0
    z_loss: float = 0.0
    spikes: SpikeSettings = field(default_factory=SpikeSettings)
    eval_every: int | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    keep_every: int | None = None
    export_every: int | None = None
    log_every: int = 10
    prefetch: int = 2
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    peak_tflops: float | None = None
    tensorboard: bool = True
    wandb: str | None = None

    def __post_init__(self) -> None:
        problems = []
        for name in ("eval_every", "checkpoint_every", "keep_checkpoints", "keep_every", "export_every", "log_every",
                     "lr", "eps", "clip_norm", "muon_lr_ratio", "peak_tflops"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                problems.append(f"{name} must be above 0, not {value}")
        for name in ("min_lr_ratio", "warmup_ratio", "decay_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas must be at least 0 and below 1, not {list(self.betas)}")
        for name in ("weight_decay", "z_loss", "prefetch"):
            if getattr(self, name) < 0:
                problems.append(f"{name} must not be negative, not {getattr(self, name)}")
        if problems:
            raise RecipeError("; ".join(problems))
