"""Fresh weights: a function of the seed, the parameter's name and the row, and of nothing else.

So a rank that holds some rows of a matrix makes just these, and a model begins with the same weights however it is cut
over ranks.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from puyulm.model.config import ModelConfig

BLOCK_VALUES = 1 << 20
"""About so many values come from one seed: rows are made in blocks, so that a shard wastes little."""


def initial_values(
    config: ModelConfig, name: str, shape: tuple[int, ...], seed: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Rows `start` to `stop` of a parameter as training from scratch begins with it, float32 on the CPU.

    Matrices come from N(0, initializer_range), those that write to the residual stream scaled by
    1 / sqrt(2 num_layers) (GPT-2), untied embeddings from N(0, 1): were they small, the first updates of the layers
    would drown them. Biases are 0, norms 1; a reward head is 0.

    Args:
        name: As in `Decoder.named_parameters`.
        shape: Of the whole parameter.
    """
    stop = shape[0] if stop is None else stop
    if len(shape) == 1:
        return torch.full((stop - start,), 0.0 if name.endswith("bias") else 1.0)
    std = _standard_deviation(config, name)
    if std == 0.0 or start >= stop:  # a rank may hold no row at all
        return torch.zeros(max(stop - start, 0), *shape[1:])
    rows = max(1, BLOCK_VALUES // math.prod(shape[1:]))
    values = torch.empty(stop - start, *shape[1:])
    for block in range(start // rows, -(-stop // rows)):
        first, last = block * rows, min((block + 1) * rows, shape[0])
        digest = hashlib.sha256(f"{seed}:{name}:{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        made = torch.empty(last - first, *shape[1:]).normal_(0.0, std, generator=generator)
        part = made[max(start - first, 0) : stop - first]
        at = max(first - start, 0)
        values[at : at + len(part)] = part
    return values


def _standard_deviation(config: ModelConfig, name: str) -> float:
    if name == "head.weight" and config.head == "reward":
        return 0.0
    if name == "embed.weight" and not config.tie_embeddings:
        return 1.0
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        return config.initializer_range / math.sqrt(2 * config.num_layers)
    return config.initializer_range
