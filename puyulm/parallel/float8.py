"""Matrix products of the layers in 8 bits."""

from __future__ import annotations

from typing import Any

import torch

from puyulm.errors import TrainError
from puyulm.model.decoder import Block
from puyulm.parallel.stage import Stage

OLDEST = (8, 9)
"""CUDA compute capability (Ada) from which GPUs multiply 8-bit floats."""


def apply_float8(stage: Stage, *, emulate: bool = False) -> None:
    """Turns the layers' matrices into torchao's, with one scale a tensor, found anew in every product.

    Inputs and weights are E4M3, gradients E5M2; parameters stay what they are, under their names. Embedding, head and
    norms are left alone. Without `torch.compile` the scaling costs more than the products save.

    Args:
        emulate: Round as float8 does and multiply in full precision: for machines without such a GPU.

    Raises:
        TrainError: torchao is missing, or the GPU is too old.
    """
    if not emulate:
        _check_device()
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise TrainError("parallel.float8 needs torchao: pip install 'puyulm[float8]', or set it to false") from None
    config = Float8LinearConfig(emulate=emulate)
    for number in stage.layer_numbers:
        layer = stage.layer(number)
        assert isinstance(layer, Block)
        convert_to_float8_training(layer, config=config, module_filter_fn=_fits)


def _check_device() -> None:
    if not torch.cuda.is_available():
        raise TrainError("parallel.float8 needs a GPU with 8-bit floats (Ada, Hopper or newer); set it to false")
    if torch.cuda.get_device_capability() < OLDEST:
        name = torch.cuda.get_device_name()
        raise TrainError(f"parallel.float8: {name} has no 8-bit floats (Ada, Hopper and newer do); set it to false")


def _fits(module: Any, _: str) -> bool:
    """Whether the kernel takes the matrix: both sides must be multiples of 16."""
    return all(size % 16 == 0 for size in module.weight.shape)
