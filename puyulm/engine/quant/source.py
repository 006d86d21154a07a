"""A float checkpoint, read a layer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from puyulm.model.checkpoint import (
    Rows,
    each_published,
    empty_decoder,
    load_config,
    load_model,
    refuse_quantized,
    stored_dtype,
)
from puyulm.model.decoder import Block, Linear, RMSNorm
from puyulm.model.layouts import Slot

Module = TypeVar("Module", bound=nn.Module)


class FloatSource:
    """The parameters of a checkpoint folder or GGUF file. A GGUF file is dequantised whole; of a folder, only what is
    asked for is read.

    Raises:
        ConfigError, CheckpointError: From the constructor; names and shapes are checked before anything is read.

    Attributes:
        dtype: What the checkpoint is stored in.
    """

    def __init__(self, path: Path) -> None:
        refuse_quantized(path)
        self.path = path
        self.config = load_config(path)
        self.dtype = stored_dtype(self.config)
        self._whole: dict[str, Tensor] = {}
        self._parts: dict[str, list[tuple[Slot, Rows]]] = {}
        self._shapes = {
            name: parameter.shape
            for name, parameter in empty_decoder(self.config, torch.float32, "meta").named_parameters()
        }
        if path.suffix == ".gguf":
            self._whole = dict(load_model(path, self.dtype).named_parameters())
        else:
            for _, slot, rows in each_published(path, self.config):
                self._parts.setdefault(slot.parameter, []).append((slot, rows))

    @torch.no_grad()
    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A parameter, on the CPU, in the type it is stored in or another."""
        if self._whole:
            return self._whole[name].detach().to(dtype or self.dtype)
        parameter = torch.empty(self._shapes[name], dtype=dtype or self.dtype)
        for slot, rows in self._parts[name]:
            slot.store(parameter, rows(0, slot.shape[0]))
        return parameter

    def block(self, index: int, device: torch.device) -> Block:
        """A layer in float32."""
        with torch.device("meta"):
            block = Block(self.config)
        return self._fill(block, f"layers.{index}.", device)

    def final(self, device: torch.device) -> tuple[RMSNorm, Linear]:
        """The final norm and the head in float32."""
        with torch.device("meta"):
            norm = RMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
            rows = self.config.vocab_size if self.config.head == "lm" else 1
            head = Linear(self.config.hidden_size, rows, bias=False)
        prefix = "embed." if self.config.tie_embeddings else "head."
        return self._fill(norm, "norm.", device), self._fill(head, prefix, device)

    def _fill(self, module: Module, prefix: str, device: torch.device) -> Module:
        for name, _ in list(module.named_parameters()):
            owner, _, last = name.rpartition(".")
            value = self.read(prefix + name, torch.float32).to(device)
            setattr(module.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))
        return module
