"""Reads quantised checkpoint folders: our own, and those that AutoAWQ and AutoGPTQ publish.

Names, types and shapes are compared with what `config.json` asks for before the first weight is read; then one
published matrix at a time is read, unpacked and put into its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from puyulm.engine.quant import published
from puyulm.engine.quant.linear import Activations, AnyWeight, quantized_linear
from puyulm.engine.quant.scheme import QUANT_METHOD, MatrixScheme, Scheme, base_name, head_slots, part_slot, scheme_from_json
from puyulm.errors import CheckpointError
from puyulm.model.checkpoint import (
    all_stored_tensors,
    default_dtype,
    empty_decoder,
    load_config,
    quantization_config,
)
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.layouts import Slot
from puyulm.model.shards import Scratch, StoredTensor
from puyulm.progress import Progress

Stored = Mapping[str, StoredTensor]


class Reader(Protocol):
    """How one kind of folder stores its matrices."""

    activations: Activations

    def scheme(self, parameter: str) -> MatrixScheme:
        """What its matrices are, once read."""
        ...

    def tensors(self, parameter: str, rows: int, columns: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Suffix, type and shape of what stands for a published matrix."""
        ...

    def optional(self, suffix: str) -> bool:
        """Whether a folder may leave a tensor out."""
        ...

    def unpack(self, parameter: str, parts: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The tensors of `scheme` `[rows, ...]` by suffix, in memory of their own."""
        ...
