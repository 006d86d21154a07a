"""Pipeline parallelism: each rank has some consecutive layers, and micro-batches go from rank to rank.

The schedules, one forward one backward and interleaved, are those of `torch.distributed.pipelining`. Between stages
travel hidden states, `[T / (context * tensor), H]` in the stage's dtype, and their gradients; tokens, targets and
documents do not: every rank reads the micro-batches itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from puyulm.errors import TrainError
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.build import ParallelModel
from puyulm.parallel.stage import Stage
from puyulm.parallel.world import World


def cut_stages(config: ModelConfig, world: World, dtype: torch.dtype) -> list[Stage]:
    """This rank's stages of a decoder: one, or every `pipeline`-th one of an interleaved schedule.

    Called where new tensors are made on the meta device: nothing is ever allocated for layers of other ranks.
    """
    plan, stages = world.plan, []
    counts = plan.layers_of_stages(config)
    for number in range(world.coordinate("pipeline"), plan.stages, plan.pipeline):
        start = sum(counts[:number])
        stages.append(Stage(Decoder(config), start, start + counts[number], dtype=dtype))
    return stages


def run_pipeline(model: ParallelModel, batches: Sequence[MicroBatch], train: bool = True) -> Tensor:
    """Takes micro-batches through all stages, forward and (with `train`) backward.

    Args:
        batches: The same ones on every rank of the pipeline, all of `model.pad_to` tokens.

    Returns:
        Sum of the losses on the rank with the last stage, 0 on the others.

    Raises:
        TrainError: There are too few micro-batches, or they have different sizes.
    """
    sizes = sorted({len(batch.tokens) for batch in batches} - {model.pad_to})
    if sizes:
        raise TrainError(
            f"a micro-batch has {sizes[-1]} tokens, but those of this pipeline have {model.pad_to}: "
            f"raise micro_tokens to at least the longest row"
        )
    if not train:
        return _forward(model, batches)
    if (problem := model.world.plan.micro_batches_problem(len(batches))) is not None:
        raise TrainError(problem)
    if model.pipeline is None or model.pipeline.sizes != (len(batches), model.pad_to):
        model.pipeline = Pipeline(model, len(batches))
    return model.pipeline.run(batches)


class Pipeline:
    """The schedule of this rank for a number of micro-batches, and `model.pad_to` tokens in each."""

    def __init__(self, model: ParallelModel, num_batches: int) -> None:
        world, self.sizes = model.world, (num_batches, model.pad_to)
        self.stages = [_PipelineStage(model, index) for index in range(len(model.stages))]
        self.device = world.device
        options: dict[str, Any] = {"loss_fn": lambda output, target: output, "scale_grads": False}
        self.schedule: Any
        if world.plan.schedule == "interleaved":
            self.schedule = ScheduleInterleaved1F1B(list(self.stages), num_batches, **options)
        else:
            self.schedule = Schedule1F1B(self.stages[0], num_batches, **options)

    def run(self, batches: Sequence[MicroBatch]) -> Tensor:
        """One forward and backward; see `run_pipeline`."""
        for stage in self.stages:
            stage.batches = batches
        losses: list[Tensor] = []
        # Stages take their loss themselves; the schedule wants a target for each micro-batch all the same.
        targets = torch.zeros(len(batches), device=self.device)
        try:
            self.schedule.step(target=targets, losses=losses, return_outputs=False)
        finally:
            for stage in self.stages:
                stage.batches = ()
        return torch.stack([loss.detach() for loss in losses]).sum() if losses else torch.zeros((), device=self.device)


class _PipelineStage(PipelineStage):
    """A stage that finds its micro-batch by number, instead of a part of a tensor that the schedule has cut.

    Memory for what is received is made when it is, and freed after the backward; the base class keeps it for all
    micro-batches of a step: 4 GiB for 64 of 4,096 tokens at a hidden size of 4,096 in half precision.
    """

    def __init__(self, model: ParallelModel, index: int) -> None:
        world, stage = model.world, model.stages[index]
        assert world.mesh is not None
        # Sizes are told, or they would be found by a forward of the model.
        self.hidden = _hidden(model, "meta").requires_grad_()
        super().__init__(
            stage,
            world.coordinate("pipeline") + index * world.plan.pipeline,
            world.plan.stages,
            world.device,
            input_args=() if stage.first else self.hidden,
            output_args=torch.empty((), device="meta", requires_grad=True) if stage.last else self.hidden,
            group=world.mesh["pipeline"].get_group(),
        )
        self.batches: Sequence[MicroBatch] = ()

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        if fwd_chunk_id == 0:
            self._free(self.args_recv_info)
        for info in self.args_recv_info[fwd_chunk_id]:
            info.buffer = torch.empty_like(self.hidden, device=self.device).requires_grad_()
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        for info in self.grad_recv_info[bwd_chunk_id]:
            info.buffer = torch.empty_like(self.hidden, device=self.device)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def forward_one_chunk(self, fwd_chunk_id: int, args: Any, kwargs: Any = None, *rest: Any, **options: Any) -> Tensor:
        if self.is_first:
            args = (None,)
            if fwd_chunk_id == 0:
                self._free(self.args_recv_info)
        output = super().forward_one_chunk(fwd_chunk_id, args, {"batch": self.batches[fwd_chunk_id]}, *rest, **options)
        # What does not fit the receiver's memory could be received all the same, and be something else.
        assert self.is_last or (output.shape, output.dtype) == (self.hidden.shape, self.hidden.dtype)
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *rest: Any, **options: Any) -> None:
        super().backward_one_chunk(bwd_chunk_id, *rest, **options)
        self._free([bwd_chunk_id])

    def _free(self, chunks: Iterable[int]) -> None:
        for chunk in chunks:
            for info in (*self.args_recv_info[chunk], *self.grad_recv_info[chunk]):
                info.buffer = torch.empty(0, device=self.device)


def _hidden(model: ParallelModel, device: torch.device | str) -> Tensor:
    """Memory for what travels between two stages."""
    plan = model.world.plan
    shape = (model.pad_to // (plan.context * plan.tensor), model.config.hidden_size)
    return torch.empty(shape, dtype=model.stages[0].dtype, device=device)


@torch.no_grad()
def _forward(model: ParallelModel, batches: Sequence[MicroBatch]) -> Tensor:
    world, total, sent = model.world, torch.zeros((), device=model.world.device), []
    assert world.mesh is not None
    group, place, size = world.mesh["pipeline"].get_group(), world.coordinate("pipeline"), world.plan.pipeline
    # Each micro-batch is taken through all stages of this rank before the next one: messages between two ranks are
    # then sent and received in the same order, which NCCL needs.
    for batch in batches:
        for stage in model.stages:
            x = None
            if not stage.first:
                x = _hidden(model, world.device)
                dist.recv(x, group=group, group_src=(place - 1) % size)
            x = stage(x, batch)
            if stage.last:
                total += x
            else:
                sent.append((dist.isend(x, group=group, group_dst=(place + 1) % size), x))
    for work, _ in sent:
        if work is not None:
            work.wait()
    return total
