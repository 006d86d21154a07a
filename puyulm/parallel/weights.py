"""A model's first weights, rank by rank: fresh ones, or those of a published checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from puyulm.model.checkpoint import fill_decoder, save_model
from puyulm.model.init import initial_values
from puyulm.parallel.build import ParallelModel


@torch.no_grad()
def init_weights(model: ParallelModel, seed: int) -> None:
    """Fills the parameters to train from scratch: the same values however the model is cut over ranks."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_values(model.config, name, tuple(parameter.shape), seed))


def load_weights(model: ParallelModel, folder: Path) -> None:
    """Fills the parameters from a published checkpoint; no rank ever holds more than one whole parameter.

    Raises:
        ConfigError, CheckpointError: With the tensor, the shapes and the file that do not fit.
    """
    fill_decoder(model.decoder, folder)


def save_weights(
    model: ParallelModel, folder: Path, *, write_extra: Callable[[Path], None] | None = None
) -> None:
    """Writes the published layout, replacing what is there; no rank ever holds the whole model.

    Raises:
        CheckpointError: The folder cannot be written.
        ConfigError: The layout cannot express the model.
    """
    save_model(model.decoder, folder, overwrite=True, write_extra=write_extra)
