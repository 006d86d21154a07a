"""Recomputation: activations that the backward makes again instead of keeping.

Non-reentrant checkpoints of PyTorch are put around functions of each layer, not around modules: names of parameters
stay, and hooks of FSDP2, which are called outside, gather a layer's parameters before its activations are made again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal

from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from puyulm.model.decoder import Block
from puyulm.parallel.stage import Stage

PRODUCTS = ("aten::mm", "aten::addmm", "aten::_scaled_mm")
"""Matrix products: those of `nn.Linear`, and in 8 bits."""

PRODUCTS_OF_A_LAYER = 4

MIXING = ("aten::_scaled_dot_product_", "torch_attn::_varlen_attn")
"""What names of attention kernels begin with."""


def apply_recompute(stage: Stage, how: Literal["selective", "full"], *, compiled: bool = False) -> None:
    """Lets each layer keep less for its backward; the gradients are the same.

    "full" keeps the input of each layer and makes everything else again. "selective" also keeps the results of
    matrix products and of attention, and makes again what is cheap: norms, rotation, SiLU and sums.

    Args:
        compiled: The parts before and behind attention will be compiled. "selective" is then done part by part, inside
            of what is compiled, and attention, between them, keeps what it does anyway (its inputs and its result,
            of which the kept product of the part before is the source: as many bytes).
    """
    if compiled and how == "selective":
        # It warns of in-place operations in what is made again. Ours, in the rotation, work on fresh tensors.
        logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    for number in stage.layer_numbers:
        layer = stage.layer(number)
        assert isinstance(layer, Block)
        if how == "full":
            layer.forward = _checkpointed(layer.forward)  # type: ignore[method-assign]
        elif compiled:
            layer.before = _checkpointed(layer.before)  # type: ignore[method-assign]
            layer.behind = _checkpointed(layer.behind, _keep_all_products)  # type: ignore[method-assign]
        else:
            layer.forward = _checkpointed(layer.forward, _keep_products)  # type: ignore[method-assign]


def _checkpointed(function: Callable[..., Any], contexts: Callable[[], Any] | None = None) -> Callable[..., Any]:
    options: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
    # There is no dropout: nothing random has to be made again.
    return functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False, **options)


def _keep_products() -> Any:
    """Contexts of one forward of a layer and of its recomputation.

    The last product of a layer is added to the stream and needed no more: recomputation ends before it, so it is not
    kept.
    """
    counts = {False: 0, True: 0}

    def policy(ctx: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        if operation._schema.name in PRODUCTS:
            counts[ctx.is_recompute] += 1
            return _policy(counts[ctx.is_recompute] != PRODUCTS_OF_A_LAYER)
        return _policy(operation._schema.name.startswith(MIXING))

    return create_selective_checkpoint_contexts(policy)


def _keep_all_products() -> Any:
    """As `_keep_products` for a part of a layer that is compiled: what nothing needs, the compiler does not keep."""
    return create_selective_checkpoint_contexts(_is_kept)


def _is_kept(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return _policy(operation._schema.name in PRODUCTS)


def _policy(kept: bool) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
