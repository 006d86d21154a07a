"""The search for a plan: all that fit some GPUs, by how long a run would take.

In the spirit of adaptive sharding (AMSP, arXiv 2311.00257, section 4; InternLM2 report, section 2.1): sizes of the
mesh, sharding, recomputation and micro-batches are chosen together, under the memory of a GPU, for the least time. What
time is made of:

- Arithmetic: FLOPs (PaLM's convention) over `peak * mfu`, which few tokens at a time do not reach; recomputation adds
  the layers' forward ("full"), or a tenth of it ("selective", all that is no matrix product).
- A pipeline waits for `(pipeline - 1) / stages a rank` micro-batches, and goes as fast as its slowest rank.
- FSDP's weights and gradients travel while layers are computed: what does not fit in that time is waited for, and the
  first layer's weights and the last layer's gradients always are. Sums over replicas hide behind the last backward.
  What hides costs a tenth of its time all the same: it takes memory bandwidth and processors from the arithmetic.
- Tensor parallelism's tokens and context parallelism's heads are waited for.
- A group within a node has `node_bandwidth`; one across nodes has that of the links of all its members in a node.
- The optimizer reads and writes its states once.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from puyulm.model.config import ModelConfig
from puyulm.parallel.estimate import (
    BYTES,
    Job,
    Load,
    Memory,
    elements,
    flops_per_token,
    head_flops,
    layer_flops,
    rank_memory,
    rank_part,
    worst_rank,
)
from puyulm.parallel.plan import ParallelPlan, Recompute, micro_rows
from puyulm.parallel.traffic import rank_traffic

RECOMPUTE: dict[Recompute, float] = {"none": 0.0, "selective": 0.1, "full": 1.0}
"""What of a layer's forward is computed again."""

SMALL_TOKENS = 256
"""Tokens of which matrix products reach half of their speed; n tokens reach n / (n + this)."""

HIDDEN_COST = 0.1
"""Of the time of what travels behind the arithmetic, what is lost all the same."""

ALIKE = 0.01
"""Plans whose times differ by less are told apart by how simple they are."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a run has.

    Attributes:
        memory: Of a GPU, in bytes.
        reserve: Share of it left for the allocator and libraries.
        peak: FLOPs a second of a GPU, in the dtype of the products.
        mfu: Share of the peak that arithmetic alone reaches.
        node_bandwidth: Bytes a second that a GPU receives from others of its node.
        bandwidth: Bytes a second that a GPU receives from other nodes.
        memory_bandwidth: Bytes a second of a GPU's own memory.
        latency: Seconds of a message.
    """

    gpus: int
    gpus_per_node: int = 8
    memory: int = 80 * 2**30
    reserve: float = 0.1
    peak: float = 989e12
    mfu: float = 0.4
    node_bandwidth: float = 300e9
    bandwidth: float = 40e9
    memory_bandwidth: float = 3e12
    latency: float = 1e-5

    @property
    def usable(self) -> float:
        """Bytes of a GPU that a plan may take."""
        return self.memory * (1 - self.reserve)

    def group_bandwidth(self, size: int, stride: int) -> float:
        """Bytes a second that each of `size` ranks, `stride` apart, receives in a collective."""
        if size * stride <= self.gpus_per_node:
            return self.node_bandwidth
        return min(self.node_bandwidth, self.bandwidth * max(self.gpus_per_node // stride, 1))


@dataclass(frozen=True, kw_only=True)
class Work:
    """Steps alike: `rows` rows of `seq_len` tokens each, over all ranks."""

    seq_len: int
    rows: int
    steps: int

    def load(self, plan: ParallelPlan, micro_tokens: int) -> Load:
        """What each rank of a plan gets; `micro_tokens` is the most that a micro-batch may have.

        A micro-batch has as many rows as divide the rank's evenly. A pipeline pads all to one size.
        """
        share = self.rows // plan.data_size
        rows = micro_rows(share, micro_tokens // self.seq_len)
        tokens = max(micro_tokens, self.seq_len) if plan.pipeline > 1 else rows * self.seq_len
        return Load(seq_len=self.seq_len, micro_tokens=tokens, micro_batches=share // rows)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A plan that fits, and what it is expected to cost.

    Attributes:
        micro_tokens: Tokens of a micro-batch, at most.
        memory: Of the rank and the kind of step that takes most.
        step_seconds: Of each kind of step.
        run_seconds: Of all steps.
        traffic: Bytes that a rank receives in a step of the first kind.
    """

    plan: ParallelPlan
    micro_tokens: int
    memory: Memory
    step_seconds: tuple[float, ...]
    run_seconds: float
    traffic: float

    @property
    def rank(self) -> tuple[float, ...]:
        """What candidates are ordered by: time in steps of a hundredth, then fewer techniques, then time itself."""
        plan = self.plan
        techniques = sum(size > 1 for size in (plan.pipeline, plan.context, plan.tensor))
        techniques += (plan.recompute != "none") + (plan.replicate > 1 and (plan.shard or 1) * plan.context > 1)
        return (_alike(self.run_seconds), techniques, self.run_seconds, self.memory.total, -self.micro_tokens)

    def mfu(self, job: Job, hardware: Hardware, works: Sequence[Work]) -> float:
        """Share of the peak over the whole run, by PaLM's convention."""
        flops = sum(work.steps * work.rows * work.seq_len * flops_per_token(job.config, work.seq_len) for work in works)
        return flops / (self.run_seconds * hardware.gpus * hardware.peak)


def search(
    job: Job, works: Sequence[Work], hardware: Hardware, *, base: ParallelPlan | None = None, best: int = 5
) -> list[Candidate]:
    """The best plans that fit, best first: one for each plan, with the micro-batches that suit it.

    Args:
        works: All kinds of steps of a run: one plan serves them all.
        base: What is not searched (compile, float8) is taken from it.

    Returns:
        Nothing where no plan fits.
    """
    found: list[Candidate] = []
    for mesh in mesh_sizes(job.config, works, hardware):
        bound = found[-1].rank[0] if len(found) == best else math.inf
        found += _of_mesh(job, works, hardware, mesh, base or ParallelPlan(), bound)
        found = heapq.nsmallest(best, found, key=lambda candidate: candidate.rank)
    return found


def mesh_sizes(config: ModelConfig, works: Sequence[Work], hardware: Hardware) -> Iterator[ParallelPlan]:
    """All meshes over the GPUs that fit the model and the batches, as plans that say nothing but sizes.

    Tensor parallelism stays in a node. Groups of shards fill nodes, or divide them.
    """
    node = min(hardware.gpus_per_node, hardware.gpus)
    for pipeline in divisors(hardware.gpus):
        for tensor in divisors(hardware.gpus // pipeline):
            for context in divisors(hardware.gpus // pipeline // tensor):
                data = hardware.gpus // pipeline // tensor // context
                for shard in divisors(data):
                    group = shard * context * tensor
                    if tensor > node or (group % node and node % group) or any(work.rows % data for work in works):
                        continue
                    plan = ParallelPlan(
                        pipeline=pipeline, replicate=data // shard, shard=shard, context=context, tensor=tensor
                    )
                    if not plan.problems(config):
                        yield plan


def plans_of_mesh(mesh: ParallelPlan, config: ModelConfig, base: ParallelPlan) -> Iterator[list[ParallelPlan]]:
    """All plans of a mesh; those that differ in recomputation alone together, the fastest first."""
    mesh = replace(mesh, compile=base.compile, float8=base.float8)
    schedules = [mesh]
    if mesh.pipeline > 1 and mesh.pipeline * 2 <= config.num_layers:
        schedules.append(replace(mesh, schedule="interleaved", stages_per_rank=2))
    sharded = (mesh.shard or 1) * mesh.context > 1
    for reshard, plan in itertools.product((False, True) if sharded else (True,), schedules):
        yield [replace(plan, reshard=reshard, recompute=recompute) for recompute in RECOMPUTE]


def _of_mesh(
    job: Job, works: Sequence[Work], hardware: Hardware, mesh: ParallelPlan, base: ParallelPlan, bound: float
) -> Iterator[Candidate]:
    """The best candidate of each plan of a mesh, but for those that cannot be among the best."""
    for plans in plans_of_mesh(mesh, job.config, base):
        options = micro_options(works, plans[0])
        for plan in plans:
            if not options or _alike(_least_seconds(job, works, hardware, plan, options)) > bound:
                break
            fitting = _fitting(job, works, hardware, plan, options)
            candidates = [candidate(job, works, hardware, plan, tokens, memory) for tokens, memory in fitting]
            if candidates:
                one = min(candidates, key=lambda candidate: candidate.rank)
                if one.rank[0] <= bound:
                    yield one
            if len(fitting) == len(options):
                break  # recomputing more would only take longer


def _least_seconds(
    job: Job, works: Sequence[Work], hardware: Hardware, plan: ParallelPlan, options: Sequence[int]
) -> float:
    """No less time can all steps take: their arithmetic with the largest micro-batches, and with the most of them."""
    total = 0.0
    for work in works:
        largest, smallest = work.load(plan, options[-1]), work.load(plan, options[0])
        tokens = work.rows // plan.data_size * work.seq_len
        one = max(
            sum(arithmetic_seconds(job, hardware, plan, largest, rank)) for rank in {0, plan.pipeline - 1}
        ) / largest.micro_tokens  # fmt: skip
        waiting = (plan.pipeline - 1) * plan.pipeline / plan.stages
        total += work.steps * one * (tokens + waiting * smallest.micro_tokens)
    return total


def _fitting(
    job: Job, works: Sequence[Work], hardware: Hardware, plan: ParallelPlan, options: Iterable[int]
) -> list[tuple[int, Memory]]:
    """The sizes of micro-batches that fit the memory; when one does not, no larger one does."""
    fitting = []
    for micro_tokens in options:
        memory = peak_memory(job, works, plan, micro_tokens)
        if memory.total > hardware.usable:
            break
        fitting.append((micro_tokens, memory))
    return fitting


def peak_memory(job: Job, works: Sequence[Work], plan: ParallelPlan, micro_tokens: int) -> Memory:
    """The memory of the rank and the kind of step that takes most."""
    loads = {work.load(plan, micro_tokens) for work in works}
    found = (rank_memory(job, plan, load, worst_rank(job, plan, load)) for load in loads)
    return max(found, key=lambda memory: memory.total)


def micro_options(works: Sequence[Work], plan: ParallelPlan) -> list[int]:
    """Sizes of micro-batches to try, ascending: those that hold a divisor of a rank's rows, and suit a pipeline."""
    sizes = {work.seq_len * rows for work in works for rows in divisors(work.rows // plan.data_size)}
    longest = max(work.seq_len for work in works)
    return [
        size
        for size in sorted(sizes | {longest})
        if size >= longest
        and all(plan.micro_batches_problem(work.load(plan, size).micro_batches) is None for work in works)
        and (plan.pipeline == 1 or all(size % work.seq_len == 0 for work in works))
    ]


def candidate(
    job: Job, works: Sequence[Work], hardware: Hardware, plan: ParallelPlan, micro_tokens: int,
    memory: Memory | None = None,
) -> Candidate:  # fmt: skip
    """What a plan is expected to cost, whether it fits or not."""
    loads = [work.load(plan, micro_tokens) for work in works]
    seconds = tuple(step_seconds(job, hardware, plan, load) for load in loads)
    traffic = max(rank_traffic(job, plan, loads[0], rank).total for rank in range(plan.pipeline))
    return Candidate(
        plan=plan, micro_tokens=micro_tokens, memory=memory or peak_memory(job, works, plan, micro_tokens),
        step_seconds=seconds, run_seconds=sum(s * work.steps for s, work in zip(seconds, works, strict=True)),
        traffic=traffic,
    )  # fmt: skip


def _alike(seconds: float) -> int:
    return round(math.log(seconds) / math.log1p(ALIKE))


def step_seconds(job: Job, hardware: Hardware, plan: ParallelPlan, load: Load) -> float:
    """The expected time of one step, see the top of this module."""
    ranks = [_rank_seconds(job, hardware, plan, load, rank) for rank in range(plan.pipeline)]
    micro, once = max(micro for micro, _ in ranks), max(once for _, once in ranks)
    waiting = (plan.pipeline - 1) * plan.pipeline / plan.stages
    return (load.micro_batches + waiting) * micro + once


def _rank_seconds(job: Job, hardware: Hardware, plan: ParallelPlan, load: Load, rank: int) -> tuple[float, float]:
    """Seconds of a pipeline's rank for each micro-batch, and once a step."""
    config, part, count = job.config, rank_part(job.config, plan, rank), load.micro_batches
    fsdp, layers = (plan.shard or 1) * plan.context, sum(part.layers)
    forward, backward = arithmetic_seconds(job, hardware, plan, load, rank)
    traffic = rank_traffic(job, plan, load, rank)
    inner = plan.tensor * plan.context * (plan.shard or 1)
    waited = traffic.tensor / count / hardware.group_bandwidth(plan.tensor, 1)
    waited += traffic.context / count / hardware.group_bandwidth(plan.context, plan.tensor)
    waited += traffic.pipeline / count / hardware.group_bandwidth(plan.pipeline, plan.replicate * inner)
    messages = layers * (16 * (plan.tensor > 1) + 4 * (plan.context > 1)) + 2 * (plan.pipeline > 1)
    micro = forward + backward + waited + hardware.latency * messages

    sums = traffic.replicate / hardware.group_bandwidth(plan.replicate, inner)
    sums += hardware.latency * (plan.replicate - 1)
    mine = elements(part.tensors(config), plan.tensor, fsdp)
    once = mine * (12 + 4 * BYTES[job.state_dtype]) / hardware.memory_bandwidth + _exposed(sums, backward)
    if fsdp == 1:
        return micro, once
    link, steps = hardware.group_bandwidth(fsdp, plan.tensor), layers * hardware.latency * (fsdp - 1)
    weights = elements(part.tensors(config), plan.tensor) * (fsdp - 1) / fsdp
    gather, reduce = job.width * weights / link + steps, 4 * weights / link + steps
    first = (gather + reduce) / layers
    if plan.pipeline > 1:  # each backward gathers, and one scatters, with nothing left to hide behind
        return micro + (_exposed(gather, forward) if plan.reshard else 0.0), once + gather + reduce
    if plan.reshard:
        return micro + _exposed(gather, forward) + _exposed(gather + reduce, backward) + first, once
    return micro + _exposed(reduce, backward) + first, once + _exposed(gather, forward)


def arithmetic_seconds(
    job: Job, hardware: Hardware, plan: ParallelPlan, load: Load, rank: int = 0
) -> tuple[float, float]:
    """Seconds of one micro-batch's forward, and of its backward with what is computed again."""
    part, tokens = rank_part(job.config, plan, rank), load.micro_tokens / (plan.context * plan.tensor)
    seconds = (tokens + SMALL_TOKENS) / (hardware.peak * hardware.mfu)
    layers = sum(part.layers) * layer_flops(job.config, load.seq_len) / 3 * seconds
    forward = layers + (head_flops(job.config) / 3 * seconds if part.last else 0.0)
    return forward, 2 * forward + RECOMPUTE[plan.recompute] * layers


def _exposed(travelling: float, computing: float) -> float:
    """What of the time of a transfer is lost, beside arithmetic that does not wait for it."""
    return max(travelling - computing, HIDDEN_COST * travelling)


def divisors(number: int) -> list[int]:
    """All, ascending."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})
