"""What a plan sends: bytes that a rank receives in a step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from puyulm.parallel.estimate import Job, Load, elements, rank_part
from puyulm.parallel.plan import ParallelPlan


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one rank receives in a step, by what for.

    Attributes:
        gather: Weights of FSDP, in the dtype of the products.
        reduce: Gradients of FSDP, float32.
        replicate: Sums of gradients over replicas, float32.
        tensor: Tokens gathered before, and scattered behind, each pair of split products.
        context: Heads exchanged for tokens around attention.
        pipeline: Activations and their gradients between stages.
    """

    gather: float
    reduce: float
    replicate: float
    tensor: float
    context: float
    pipeline: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def rank_traffic(job: Job, plan: ParallelPlan, load: Load, rank: int = 0) -> Traffic:
    """What a pipeline's rank receives in a step.

    With a group of n ranks, gathering or scattering V bytes moves `V (n - 1) / n`, and summing `2 V (n - 1) / n`.
    FSDP gathers weights for each forward, and where they are freed (`reshard`) for each backward again, and scatters
    the gradients of each micro-batch; a pipeline scatters their sum.
    """
    config, part, width = job.config, rank_part(job.config, plan, rank), job.width
    fsdp, count = (plan.shard or 1) * plan.context, load.micro_batches
    weights, layers = elements(part.tensors(config), plan.tensor), sum(part.layers)
    tokens = load.micro_tokens / plan.context
    passes = 1 if not plan.reshard else count if plan.pipeline > 1 else 2 * count
    sends = 1 if plan.pipeline > 1 else count
    forwards = 3 if plan.recompute == "full" else 2  # with the backward, which sends as much as a forward
    stream = width * tokens * config.hidden_size
    exchanged = width * tokens * (config.qkv_size + config.num_heads * config.head_dim) / plan.tensor
    messages = 2 * len(part.layers) - part.first - part.last  # stages before and behind this rank's
    return Traffic(
        gather=passes * width * weights * _share(fsdp),
        reduce=sends * 4 * weights * _share(fsdp),
        replicate=2 * 4 * weights / fsdp * _share(plan.replicate),
        tensor=count * layers * forwards * 4 * stream * _share(plan.tensor),
        context=count * layers * forwards * exchanged * _share(plan.context),
        pipeline=count * messages * stream / plan.tensor,
    )


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks
