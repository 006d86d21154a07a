"""How a model is spread over ranks, and what is traded for memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from puyulm.errors import RecipeError
from puyulm.model.config import ModelConfig

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """Sizes of the device mesh, from the slowest links to the fastest: pipeline, replicate, shard, context, tensor.

    Attributes:
        replicate: Groups of ranks with a whole copy of the parameters each (HSDP); alone, data parallelism.
        shard: Ranks over which parameters, gradients and optimizer states are sharded (FSDP2); None takes all ranks
            that the other sizes leave.
        context: Ranks over which the tokens of a micro-batch are split; attention exchanges tokens for heads.
        tensor: Ranks over which every matrix is split, by kv groups, and the tokens between them (sequence parallel).
        pipeline: Ranks over which the layers are split.
        schedule: Of the pipeline: one forward, one backward, with one stage a rank, or `stages_per_rank`.
        stages_per_rank: Of the interleaved schedule.
        reshard: Free a layer's gathered parameters after its forward and gather them again for its backward (ZeRO-3);
            off, they are gathered once a step and stay to its last backward (ZeRO-2): less communication, more memory.
            A pipeline always has them stay.
        recompute: Activations made again in the backward: "none"; "selective", all but the results of matrix products
            and of attention; "full", all but each layer's input.
        compile: torch.compile the two parts of each layer.
        float8: Matrix products of the layers in 8 bits, through torchao; for Hopper GPUs and newer.
    """

    replicate: int = 1
    shard: int | None = None
    context: int = 1
    tensor: int = 1
    pipeline: int = 1
    schedule: Literal["1f1b", "interleaved"] = "1f1b"
    stages_per_rank: int = 2
    reshard: bool = True
    recompute: Recompute = "none"
    compile: bool = False
    float8: bool = False

    def __post_init__(self) -> None:
        sizes = ("replicate", "shard", "context", "tensor", "pipeline", "stages_per_rank")
        wrong = [name for name in sizes if (value := getattr(self, name)) is not None and value < 1]
        if wrong:
            raise RecipeError("; ".join(f"{name} must be at least 1, not {getattr(self, name)}" for name in wrong))
        if self.schedule == "interleaved" and self.pipeline == 1:
            raise RecipeError("schedule: interleaved needs pipeline above 1")

    @property
    def data_size(self) -> int:
        """Ranks that read different data: `replicate * shard`. Of a resolved plan."""
        return self.replicate * self._shard

    @property
    def world_size(self) -> int:
        """Ranks in all, of a resolved plan."""
        return self.data_size * self.context * self.tensor * self.pipeline

    @property
    def stages(self) -> int:
        """Parts into which the layers are cut."""
        return self.pipeline * (self.stages_per_rank if self.schedule == "interleaved" else 1)

    @property
    def _shard(self) -> int:
        if self.shard is None:
            raise ValueError("the plan is not resolved: call resolved(world_size)")
        return self.shard

    def resolved(self, world_size: int) -> ParallelPlan:
        """The plan with `shard` filled in.

        Raises:
            RecipeError: The sizes do not multiply to the number of ranks.
        """
        others = self.replicate * self.context * self.tensor * self.pipeline
        plan = replace(self, shard=max(world_size // others, 1)) if self.shard is None else self
        if plan.world_size != world_size:
            sizes = " x ".join(
                f"{name} {getattr(plan, name)}" for name in ("pipeline", "replicate", "shard", "context", "tensor")
            )
            raise RecipeError(
                f"parallel: {sizes} = {plan.world_size} ranks, but there are {world_size}; "
                f"start as many (torchrun --nproc-per-node ...), or change the sizes"
            )
        return plan

    def problems(self, config: ModelConfig) -> list[str]:
        """What of this plan does not fit a model, a line each."""
        found = []
        if config.mlp_groups % self.tensor:
            found.append(
                f"parallel.tensor {self.tensor} does not divide the {config.mlp_groups} kv groups of the model; "
                f"choose a divisor of {config.mlp_groups}"
            )
        if config.vocab_size % self.tensor:
            found.append(f"parallel.tensor {self.tensor} does not divide the vocabulary of {config.vocab_size:,}")
        heads = config.num_heads // math.gcd(self.tensor, config.num_heads)
        if heads % self.context:
            found.append(f"parallel.context {self.context} does not divide the {heads} query heads of a tensor rank")
        if self.stages > config.num_layers:
            found.append(f"parallel.pipeline cuts {config.num_layers} layers into {self.stages} stages; use fewer")
        if self.pipeline > 1 and config.tie_embeddings:
            found.append("parallel.pipeline: the model ties its head to the embedding, which sit in different stages")
        return found

    def layers_of_stages(self, config: ModelConfig) -> list[int]:
        """How many layers each stage of the pipeline has, so that the slowest has as little work as possible.

        Work is the FLOPs of matrix products by parameters, in which the head counts for the layers that it is worth
        (two of 7B, about). The embedding has none; where the work is the same, stages with fewer parameters get more
        layers, and of these the later ones, which keep the activations of fewer micro-batches.
        """
        hidden, heads, last = config.hidden_size, config.num_heads * config.head_dim, self.stages - 1
        layer = hidden * (config.qkv_size + heads + 3 * config.intermediate_size)
        embedding, head = config.vocab_size * hidden, (config.vocab_size if config.head == "lm" else 1) * hidden
        counts = [1] * self.stages

        def with_one_more(stage: int) -> tuple[int, int, int]:
            work = (counts[stage] + 1) * layer + head * (stage == last)
            return work, work + embedding * (stage == 0), -stage

        for _ in range(config.num_layers - self.stages):
            counts[min(range(self.stages), key=with_one_more)] += 1
        return counts

    def micro_batches_problem(self, count: int) -> str | None:
        """Why so many micro-batches a step and rank do not fit the pipeline; None if they do."""
        if count >= self.pipeline and (self.schedule != "interleaved" or count % self.pipeline == 0):
            return None
        needed = "at least" if count < self.pipeline else "a multiple of"
        return (
            f"a pipeline of {self.pipeline} ranks ({self.schedule}) needs {needed} {self.pipeline} micro-batches "
            f"a step, but there are {count}: lower micro_tokens, or raise batch_tokens, which "
            f"{self.data_size} groups of ranks share"
        )


def micro_rows(rows: int, most: int) -> int:
    """Rows of a micro-batch: the largest divisor of a rank's rows that is not above what fits, so that all of a step
    are of one size."""
    return max(size for size in range(1, max(min(most, rows), 1) + 1) if rows % size == 0)
