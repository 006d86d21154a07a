"""Compilation of the layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from puyulm.model.decoder import Block
from puyulm.model.rope import RopeTables
from puyulm.parallel.stage import Stage

Before = Callable[[Tensor, RopeTables], tuple[Tensor, Tensor, Tensor]]


def apply_compile(stage: Stage, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles what each layer does before and behind attention.

    Both are functions of tokens alone, the same for all layers: they are compiled once, and once more when the number
    of tokens in a micro-batch changes. Attention stays outside, since the lengths of documents differ in every batch.
    Nothing is compiled before the first step, which takes a minute longer.

    Apply it after recomputation, which the compiled parts contain or are contained in, and before FSDP2, whose hooks
    are called outside.

    Args:
        backend: Of `torch.compile`.
    """
    compiled: Any = functools.partial(torch.compile, backend=backend)
    for number in stage.layer_numbers:
        layer = stage.layer(number)
        assert isinstance(layer, Block)
        layer.before = compiled(_apart(layer.before))  # type: ignore[method-assign]
        layer.behind = compiled(layer.behind)  # type: ignore[method-assign]
    stage.loss_settings.compiled = True


def _apart(before: Before) -> Before:
    """Queries, keys and values in memory of their own, written by the kernel that rotates them.

    As parts of one tensor, attention would copy the queries, the values would keep the whole product alive until the
    backward, and the compiler refuses results that share memory beside those of tensor parallelism.
    """

    def separated(x: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.clone(memory_format=torch.contiguous_format) for part in before(x, rope))
        return q, k, v

    return separated
