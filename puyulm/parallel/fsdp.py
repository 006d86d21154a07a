"""Data parallelism (FSDP2): parameters, gradients and optimizer states are sharded over ranks, replicated, or both.

Each layer, the embedding and the head are gathered for as long as they are computed with, the next one meanwhile.
Gradients are sums over ranks, not means: the loss is divided by the target tokens of all ranks already.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from puyulm.parallel.stage import Stage
from puyulm.parallel.world import World


def apply_fsdp(stage: Stage, world: World) -> None:
    """Shards a stage's parameters over the "fsdp" ranks, and replicates the shards over the "replicate" ranks.

    Sharded parameters and gradients are in float32; gathered parameters are in the stage's dtype.
    """
    assert world.mesh is not None
    mesh = world.mesh["replicate", "fsdp"] if world.plan.replicate > 1 else world.mesh["fsdp"]
    half = stage.dtype if stage.dtype != torch.float32 else None
    # Inputs need no cast: what leaves the embedding has the dtype of its gathered weight.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    decoder, tied = stage.decoder, stage.decoder.config.tie_embeddings
    embed = [decoder.embed] if stage.first and not tied else []
    layers = [stage.layer(number) for number in stage.layer_numbers]
    head = [decoder.head] if stage.last and not tied else []
    # A pipeline keeps what the first backward has gathered for the other micro-batches anyway.
    stage.frees = world.plan.reshard and world.plan.pipeline == 1
    for module in (*embed, *layers, *head):
        # The backward begins with the last layer, right after its forward and the loss.
        soon = stage.last and module is layers[-1]
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=stage.frees and not soon)
    # What is left: the final norm, tied embeddings.
    fully_shard(stage, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in (*embed, *head):
        cast(FSDPModule, module).set_unshard_in_backward(False)  # the gradients of neither need its weight
    for module in head:
        register_fsdp_forward_method(module, "loss")
    for part in _sharded(stage):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    _prefetch([*embed, *layers, *head])


def last_backward(stage: Stage, last: bool) -> None:
    """Says whether the next backward is the last of its step.

    The gradients of every micro-batch are summed into the shards; only after the last one over the replicas.
    """
    root = cast(FSDPModule, stage)
    root.set_is_last_backward(last)
    root.set_requires_all_reduce(last)
    root.set_reshard_after_backward(last or stage.frees)


def reshard(stages: Iterable[Stage]) -> None:
    """Frees gathered parameters after a forward that no backward follows."""
    for stage in stages:
        for module in _sharded(stage):
            module.reshard()


def _sharded(stage: Stage) -> list[FSDPModule]:
    return [module for module in stage.modules() if isinstance(module, FSDPModule)]


def _prefetch(modules: Iterable[nn.Module]) -> None:
    """Each module's parameters are on their way while its neighbour is computed, in the forward and in the backward."""
    for one, next_one in pairwise(cast(Iterable[FSDPModule], modules)):
        one.set_modules_to_forward_prefetch([next_one])
        next_one.set_modules_to_backward_prefetch([one])
