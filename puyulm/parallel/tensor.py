"""Tensor parallelism: every matrix is split over the ranks of a group, and the tokens between the matrices too.

The matrices that read the residual stream are split by kv groups, those that write to it by the same groups of their
inputs; so a layer needs two exchanges in each direction (Megatron-LM, section 3). Between them each rank has its own
tokens, and norms and residual sums work on these only (sequence parallelism; Korthikanti et al. 2022, section 4.2).
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from puyulm.model.attention import Attention
from puyulm.model.loss import VocabularyPart
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.stage import Split, Stage
from puyulm.parallel.world import World


def apply_tensor_parallel(stage: Stage, world: World) -> None:
    """Splits a stage's parameters over the "tensor" ranks; hidden states become `[T / (context * tensor), H]`.

    The vocabulary is split too: each rank has some rows of the embedding and of the head, and the loss is computed from
    each rank's part of the logits.
    """
    assert world.mesh is not None
    mesh, decoder = world.mesh["tensor"], stage.decoder
    for number in stage.layer_numbers:
        parallelize_module(stage.layer(number), mesh, layer_plan(sequence=True))
    if stage.first:
        rows = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(0))
        parallelize_module(decoder.embed, mesh, rows)
        # FSDP2 wants a tensor of its own for its hooks, and what leaves a DTensor is a view.
        decoder.embed.register_forward_hook(lambda module, args, output: output.clone())
    if stage.last:
        parallelize_module(decoder.norm, mesh, SequenceParallel(sequence_dim=0, use_local_output=True))
        if decoder.config.tie_embeddings:
            decoder.head.weight = decoder.embed.weight
        else:
            _split_weight(decoder.head, mesh, Shard(0) if decoder.config.head == "lm" else Replicate())
    stage.split = TensorSplit(stage.split, mesh)


def layer_plan(sequence: bool) -> dict[str, ParallelStyle]:
    """How the modules of a layer are split, for `parallelize_module`.

    A rank computes its kv groups: attention sees queries, keys and values of these heads only.

    Args:
        sequence: Hidden states between layers are each rank's share of the tokens, `[T / tensor, H]`; otherwise every
            rank has all of them, `[T, H]`, which suits few tokens (decoding) and any number of them.
    """
    hidden = Shard(0) if sequence else Replicate()
    plan: dict[str, ParallelStyle] = {
        "attention.qkv": ColwiseParallel(input_layouts=hidden),
        "attention.out": RowwiseParallel(output_layouts=hidden),
        "mlp.gate_up": ColwiseParallel(input_layouts=hidden),
        "mlp.down": RowwiseParallel(output_layouts=hidden),
    }
    if sequence:
        plan |= {name: SequenceParallel(sequence_dim=0) for name in ("attention_norm", "mlp_norm")}
    return plan


class TensorSplit:
    """Tokens are shared between the matrices only, which is not seen from outside; the head is split by rows."""

    def __init__(self, inner: Split, mesh: DeviceMesh) -> None:
        self.inner, self.mesh = inner, mesh

    def attention(self, batch: MicroBatch) -> Attention:
        return self.inner.attention(batch)

    def tokens(self, values: Tensor) -> Tensor:
        return self.inner.tokens(values)

    def head(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, VocabularyPart | None]:
        assert isinstance(weight, DTensor)
        whole = DTensor.from_local(hidden, self.mesh, [Shard(0)], run_check=False).redistribute(
            placements=[Replicate()]
        )
        if weight.placements[0].is_replicate():  # a reward head: every rank computes the same
            return whole.to_local(), weight.to_local(), None
        # The loss gives each rank the gradient that its rows of the head send back: they are summed over the ranks.
        rows = weight.to_local(grad_placements=[Shard(0)])
        part = HeadRows(self.mesh.get_group(), self.mesh.get_local_rank() * len(rows))
        return whole.to_local(grad_placements=[Partial()]), rows, part


class HeadRows:
    """Rows `start` and following of the head, see `puyulm.model.loss.VocabularyPart`."""

    def __init__(self, group: dist.ProcessGroup, start: int) -> None:
        self.group, self.start = group, start

    def max(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, dist.ReduceOp.MAX, self.group)
        return values

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, dist.ReduceOp.SUM, self.group)
        return values


def _split_weight(module: nn.Linear, mesh: DeviceMesh, placement: Placement) -> None:
    weight = module.weight
    module.weight = nn.Parameter(distribute_tensor(weight, mesh, [placement]), requires_grad=weight.requires_grad)
