"""From a configuration and a plan to a model that can be trained: the order in which techniques are applied.

Over several processes a model is made without memory (on the meta device) and cut into stages; to each are applied
float8, tensor and context parallelism, recomputation, compilation and FSDP2, in this order. Only then does each rank
get memory, for its own shards, and fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from puyulm.errors import RecipeError
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.stage import Losses, LossSettings, Stage
from puyulm.parallel.world import World

if TYPE_CHECKING:
    from puyulm.parallel.pipeline import Pipeline


FLOAT8_TOKENS = 16
"""Products of 8-bit floats are sums of so many terms at a time; those of a matrix's gradient go over tokens."""


class ParallelModel:
    """A model over all processes of a run, as one of them sees it.

    Attributes:
        config: Of the whole model; `evolve` changes it in every stage (a phase's rope base).
        stages: What of it is on this rank: one stage, or several under an interleaved pipeline.
        pad_to: Tokens of every micro-batch under a pipeline, whose messages have one size; else 0.
        multiple: Every micro-batch's tokens are padded to a multiple of this, to be shared among ranks and to suit the
            kernels.
        pipeline: The schedule last run, kept for the next step.
    """

    def __init__(
        self,
        config: ModelConfig,
        world: World,
        stages: Sequence[Stage],
        settings: LossSettings,
        losses: Losses,
        *,
        pad_to: int = 0,
    ) -> None:
        self.config, self.world, self.stages = config, world, list(stages)
        plan = world.plan
        self.multiple = plan.context * plan.tensor * (FLOAT8_TOKENS if plan.float8 else 1)
        self.pad_to = -(-pad_to // self.multiple) * self.multiple
        self.pipeline: Pipeline | None = None
        self._settings, self._losses = settings, losses

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of this rank by the decoder's own names: `layers.3.mlp.down.weight`."""
        for stage in self.stages:
            yield from stage.decoder.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of this rank."""
        return (parameter for _, parameter in self.named_parameters())

    def evolve(self, **changes: object) -> None:
        """Changes the configuration, as `ModelConfig.evolve` does."""
        self.config = self.config.evolve(**changes)
        for stage in self.stages:
            stage.decoder.config = self.config

    def train(self, mode: bool = True) -> None:
        """As `nn.Module.train`."""
        for stage in self.stages:
            stage.train(mode)

    @property
    def decoder(self) -> Decoder:
        """The whole decoder, where one process has it all."""
        assert self.world.size == 1
        return self.stages[0].decoder

    def forward_backward(
        self, batches: Sequence[MicroBatch], denominator: float | Tensor, z_loss: float = 0.0
    ) -> tuple[Tensor, list[Tensor]]:
        """Adds the gradients of the sum of these micro-batches' losses over `denominator`.

        Every rank that shares a micro-batch (context, tensor, pipeline) is given the same ones.

        Args:
            denominator: Target tokens of the whole step, over all ranks.

        Returns:
            The loss to be summed over the ranks, without the z-loss, a scalar that is 0 where another rank has counted
            it; and the losses of the tokens that this rank has computed, a `[T / context]` tensor a micro-batch, none
            where another rank has counted them.
        """
        self._settings.denominator, self._settings.z_loss = denominator, z_loss
        self._losses.of.clear()
        total = self._forward_backward(batches)
        if z_loss and self._losses.of:  # which steers the gradients, but is no part of how well tokens are predicted
            total = torch.stack([losses.sum() for losses in self._losses.of]).sum() / denominator
        counts = self.world.last_stage and self.world.coordinate("tensor") == 0
        return (total if counts else torch.zeros_like(total)), (list(self._losses.of) if counts else [])

    def _forward_backward(self, batches: Sequence[MicroBatch]) -> Tensor:
        if self.world.plan.pipeline > 1:
            from puyulm.parallel.pipeline import run_pipeline

            return run_pipeline(self, batches)
        (stage,) = self.stages
        total = torch.zeros((), device=self.world.device)
        for number, batch in enumerate(batches):
            if self.world.size > 1:
                from puyulm.parallel.fsdp import last_backward

                last_backward(stage, number == len(batches) - 1)
            loss = stage(None, batch)
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def token_losses(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """The losses of the tokens of each micro-batch, as `forward_backward` returns them, without gradients."""
        self._settings.denominator, self._settings.z_loss = 1.0, 0.0
        self._losses.of.clear()
        if self.world.plan.pipeline > 1:
            from puyulm.parallel.pipeline import run_pipeline

            run_pipeline(self, batches, train=False)
        else:
            for batch in batches:
                self.stages[0](None, batch)
        if self.world.size > 1:
            from puyulm.parallel.fsdp import reshard

            reshard(self.stages)
        counts = self.world.last_stage and self.world.coordinate("tensor") == 0
        return list(self._losses.of) if counts else []


def build_model(
    config: ModelConfig, world: World, *, dtype: torch.dtype = torch.float32, micro_tokens: int = 0
) -> ParallelModel:
    """Makes a model over all ranks; its parameters are allocated in float32 and hold nothing meaningful yet.

    Args:
        dtype: Of the matrix products and activations; parameters, gradients and their sums stay in float32.
        micro_tokens: Tokens of a micro-batch, where a pipeline needs to know it.

    Raises:
        RecipeError: The plan does not fit the model.
    """
    plan = world.plan
    if problems := plan.problems(config):
        raise RecipeError("; ".join(problems))
    settings, losses = LossSettings(), Losses()
    with torch.device("meta" if world.size > 1 else world.device):
        if plan.pipeline > 1:
            from puyulm.parallel.pipeline import cut_stages

            stages = cut_stages(config, world, dtype)
        else:
            stages = [Stage(Decoder(config), dtype=dtype, autocast=world.size == 1 and dtype != torch.float32)]
    for stage in stages:
        stage.loss_settings, stage.token_losses = settings, losses
        apply_plan(stage, world)
        if world.size > 1:
            stage.to_empty(device=world.device)
        stage.train()
    return ParallelModel(config, world, stages, settings, losses, pad_to=micro_tokens if plan.pipeline > 1 else 0)


def apply_plan(stage: Stage, world: World) -> None:
    """Applies a plan's techniques to one stage, from what is innermost in a layer to what is outermost."""
    plan = world.plan
    if plan.float8:  # puts other modules in the place of matrices, which would lose what hangs on them
        from puyulm.parallel.float8 import apply_float8

        apply_float8(stage)
    if plan.tensor > 1:
        from puyulm.parallel.tensor import apply_tensor_parallel

        apply_tensor_parallel(stage, world)
    if plan.context > 1:
        from puyulm.parallel.context import apply_context_parallel

        apply_context_parallel(stage, world)
    if plan.recompute != "none":
        from puyulm.parallel.recompute import apply_recompute

        apply_recompute(stage, plan.recompute, compiled=plan.compile)
    if plan.compile:
        from puyulm.parallel.compile import apply_compile

        apply_compile(stage)
    if world.size > 1:
        from puyulm.parallel.fsdp import apply_fsdp

        apply_fsdp(stage, world)


Fill = Callable[[ParallelModel], None]
"""Gives a built model its first weights."""
