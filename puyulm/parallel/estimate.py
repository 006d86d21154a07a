"""What a plan costs before anything is allocated: bytes on each rank, and floating-point operations.

Everything here is arithmetic on shapes. States (parameters, gradients, optimizer) are exact; activations count what
autograd keeps of each operation of the decoder, which was compared with measured bytes; what a device's allocator and
libraries take for themselves is not known here, so leave some of the memory free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

from puyulm.model.config import ModelConfig
from puyulm.model.kernels import ATTENTION_LENGTHS, QUERY_BLOCK
from puyulm.model.loss import chunk_tokens
from puyulm.parallel.plan import ParallelPlan

BYTES = {"float32": 4, "bfloat16": 2}
DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, as far as its cost depends on it.

    Attributes:
        dtype: Of the forward and backward pass; parameters, gradients and their sums stay in float32.
        state_dtype: Of AdamW's two moments.
        optimizer: Muon keeps one moment of the layers' matrices.
        device: Some kernels keep other things on a GPU.
    """

    config: ModelConfig
    dtype: DType = "bfloat16"
    state_dtype: DType = "float32"
    optimizer: Literal["adamw", "muon"] = "adamw"
    device: Literal["cpu", "cuda"] = "cuda"

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one rank is given in a step: `micro_batches` of `micro_tokens` tokens, in rows of `seq_len`."""

    seq_len: int
    micro_tokens: int
    micro_batches: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at the peak of a step, which is the beginning of the backward pass.

    Attributes:
        parameters: float32, this rank's shards.
        gradients: float32, shards; whole where they are summed over micro-batches before they are sent.
        optimizer: Moments of the shards.
        gathered: Weights in the dtype of the products: those that FSDP has gathered, or autocast's copies.
        activations: What the forward keeps for the backward, of all micro-batches under way.
        loss: Of the head: its gradient, that of the hidden states, and the logits of one chunk of tokens.
        layer: One layer's backward: what recomputation makes again, and the gradients on their way.
        communication: Buffers of gathering, scattering and exchanging.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    loss: int
    layer: int
    communication: int

    @property
    def total(self) -> int:
        """The loss and a layer's backward are never there at once: the larger counts."""
        every = sum(getattr(self, field.name) for field in fields(self))
        return every - min(self.loss, self.layer)

    @property
    def states(self) -> int:
        """What is there between steps."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class Tensors:
    """Parameters of one shape.

    Attributes:
        shape: Of the whole parameter.
        split: Dimension that tensor parallelism splits; None where every tensor rank has all of it.
        count: How many there are.
        layer: Whether they are a layer's, not the embedding's, the last norm's or the head's.
    """

    shape: tuple[int, ...]
    split: int | None
    count: int
    layer: bool = True

    def local(self, tensor: int) -> tuple[int, ...]:
        """The shape on one tensor rank."""
        return tuple(size // tensor if dim == self.split else size for dim, size in enumerate(self.shape))

    def shard(self, tensor: int, fsdp: int) -> int:
        """Elements on one rank: FSDP2 cuts the first dimension, and pads where it does not divide."""
        rows, *rest = self.local(tensor)
        return -(-rows // fsdp) * math.prod(rest)


@cache
def layer_tensors(config: ModelConfig, layers: int = 1) -> tuple[Tensors, ...]:
    """The parameters of some layers."""
    hidden, mlp, mixed = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    found = [
        Tensors((hidden,), None, 2 * layers),
        Tensors((config.qkv_size, hidden), 0, layers),
        Tensors((hidden, mixed), 1, layers),
        Tensors((2 * mlp, hidden), 0, layers),
        Tensors((hidden, mlp), 1, layers),
    ]
    if config.qkv_bias:
        found.append(Tensors((config.qkv_size,), 0, layers))
    if config.out_bias:
        found.append(Tensors((hidden,), None, layers))
    if config.mlp_bias:
        found += [Tensors((2 * mlp,), 0, layers), Tensors((hidden,), None, layers)]
    return tuple(found)


def embedding_tensors(config: ModelConfig) -> tuple[Tensors, ...]:
    """The embedding."""
    return (Tensors((config.vocab_size, config.hidden_size), 0, 1, layer=False),)


def head_tensors(config: ModelConfig) -> tuple[Tensors, ...]:
    """The last norm and the head, which may be the embedding."""
    norm = Tensors((config.hidden_size,), None, 1, layer=False)
    rows = config.vocab_size if config.head == "lm" else 1
    return (norm,) if config.tie_embeddings else (norm, Tensors((rows, config.hidden_size), 0, 1, layer=False))


@cache
def elements(tensors: tuple[Tensors, ...], tensor: int = 1, fsdp: int = 1) -> int:
    """Elements of all of them on one rank."""
    return sum(kind.count * kind.shard(tensor, fsdp) for kind in tensors)


@dataclass(frozen=True)
class RankPart:
    """What of the decoder a pipeline rank has: layers of each of its stages, and whether it begins or ends there."""

    layers: tuple[int, ...]
    first: bool
    last: bool

    def tensors(self, config: ModelConfig) -> tuple[Tensors, ...]:
        """Its parameters."""
        found = layer_tensors(config, sum(self.layers))
        found += embedding_tensors(config) if self.first else ()
        return found + (head_tensors(config) if self.last else ())


@cache
def rank_part(config: ModelConfig, plan: ParallelPlan, rank: int) -> RankPart:
    """The part of the decoder on the pipeline's rank `rank`: stages `rank`, `rank + pipeline`, ..."""
    layers = plan.layers_of_stages(config)
    return RankPart(tuple(layers[rank :: plan.pipeline]), rank == 0, rank == plan.pipeline - 1)


def in_flight(plan: ParallelPlan, rank: int, micro_batches: int) -> int:
    """Passes through one stage whose activations a pipeline rank holds at its peak.

    With one stage a rank (1F1B, PipeDream-Flush): `pipeline - rank`. Interleaved over v stages a rank (Narayanan et
    al. 2021, section 2.2): `2 (pipeline - rank - 1) + (v - 1) pipeline + 1`.
    """
    if plan.stages == plan.pipeline:
        return min(plan.pipeline - rank, micro_batches)
    ahead = 2 * (plan.pipeline - rank - 1) + (plan.stages_per_rank - 1) * plan.pipeline
    return min(ahead + 1, micro_batches * plan.stages_per_rank)


def rank_memory(job: Job, plan: ParallelPlan, load: Load, rank: int = 0) -> Memory:
    """The memory of a rank.

    Args:
        plan: Resolved.
        rank: Of the pipeline; ranks along the other dimensions are alike.
    """
    config, part = job.config, rank_part(job.config, plan, rank)
    fsdp, tensor = (plan.shard or 1) * plan.context, plan.tensor
    tensors = part.tensors(config)
    mine, whole = elements(tensors, tensor, fsdp), elements(tensors, tensor)
    distributed = plan.world_size > 1
    tokens = load.micro_tokens // plan.context
    layer = elements(layer_tensors(config), tensor)
    kept = _kept(job, plan, tokens, load.seq_len)
    passes = in_flight(plan, rank, load.micro_batches)
    activations = passes * max(part.layers) * kept.layer
    activations += (passes if plan.stages == plan.pipeline else load.micro_batches) * kept.ends(part)
    sums_whole = distributed and plan.pipeline > 1  # a pipeline sums the gradients of its micro-batches where they are
    return Memory(
        parameters=4 * mine,
        gradients=4 * (whole if sums_whole else mine),
        optimizer=_moments(job, tensors, tensor, fsdp),
        gathered=_gathered(job, plan, part, whole, layer),
        activations=activations,
        loss=_loss(job, plan, tokens, alone=not distributed) if part.last else 0,
        layer=kept.again + (job.width + 4) * layer * distributed,
        communication=_buffers(job, plan, part, tokens, layer) if distributed else 0,
    )


def worst_rank(job: Job, plan: ParallelPlan, load: Load) -> int:
    """The pipeline's rank with the most memory."""
    return max(range(plan.pipeline), key=lambda rank: rank_memory(job, plan, load, rank).total)


def _moments(job: Job, tensors: tuple[Tensors, ...], tensor: int, fsdp: int) -> int:
    def moments(kind: Tensors) -> int:
        return 1 if job.optimizer == "muon" and kind.layer and len(kind.shape) > 1 else 2

    return sum(BYTES[job.state_dtype] * moments(kind) * kind.count * kind.shard(tensor, fsdp) for kind in tensors)


def _gathered(job: Job, plan: ParallelPlan, part: RankPart, whole: int, layer: int) -> int:
    """Weights in the dtype of the products, beside the float32 shards."""
    if plan.world_size == 1:  # autocast keeps its copies of the layers' matrices to the end of the forward, or longer
        return 2 * sum(part.layers) * layer if job.dtype == "bfloat16" else 0
    if not plan.reshard or plan.pipeline > 1:  # a pipeline keeps what a backward has gathered for the next one
        return job.width * whole
    return job.width * (_largest_end(job.config, plan, part) + 2 * layer)  # a layer, and the one that comes next


def _largest_end(config: ModelConfig, plan: ParallelPlan, part: RankPart) -> int:
    ends = (embedding_tensors(config) if part.first else (), head_tensors(config) if part.last else ())
    return max(elements(end, plan.tensor) for end in ends)


def _loss(job: Job, plan: ParallelPlan, tokens: int, alone: bool) -> int:
    """The head: its float32 gradient, the hidden states' and the chunk of logits at its largest."""
    config = job.config
    rows = -(-config.vocab_size // plan.tensor) if config.head == "lm" else 1
    chunk = min(chunk_tokens(rows, on_cpu=job.device == "cpu"), tokens)
    logits = 4 * chunk * rows * (1 if job.device == "cpu" and plan.tensor == 1 else 2)
    gradient = 4 * rows * config.hidden_size
    hidden = job.width * tokens * config.hidden_size
    if job.dtype == "float32":
        return logits + gradient + hidden
    narrow = 2 * rows * config.hidden_size  # a chunk's part of the gradient, and at the end its narrow copy
    return logits + gradient + hidden + narrow * (2 if alone else 1)


def _buffers(job: Job, plan: ParallelPlan, part: RankPart, tokens: int, layer: int) -> int:
    """What is sent and received beside what is kept: weights as they arrive, gradients of the largest group of
    parameters on their way out, the gathered tokens of tensor parallelism, heads exchanged for tokens, and messages
    between stages."""
    config, stream = job.config, job.width * tokens * job.config.hidden_size
    size = job.width * layer + 4 * max(layer, _largest_end(config, plan, part))  # gradients are summed in float32
    if plan.tensor > 1:
        size += 2 * stream
    if plan.context > 1:
        size += job.width * tokens * (config.qkv_size + config.num_heads * config.head_dim) // plan.tensor
    if plan.pipeline > 1:
        size += 4 * stream // plan.tensor
    return size


@dataclass(frozen=True)
class _Kept:
    """Bytes that autograd keeps of one micro-batch.

    Attributes:
        layer: Of each layer.
        again: What the backward of one layer makes again.
        begin: Of what is before the first layer on any rank: rotary tables, and token ids.
        end: Of the last norm.
    """

    layer: int
    again: int
    begin: int
    end: int

    def ends(self, part: RankPart) -> int:
        return self.begin + (self.end if part.last else 0)


def _kept(job: Job, plan: ParallelPlan, tokens: int, seq_len: int) -> _Kept:
    """What autograd keeps of each operation of `Block` and `Stage`, a rank's `tokens` (over context, not tensor).

    Sequence parallelism shares the residual stream and the norms among tensor ranks; the products' inputs are gathered
    from all of them, and products and attention are shared by heads and columns.
    """
    config, width, tensor = job.config, job.width, plan.tensor
    hidden, mlp = config.hidden_size, config.intermediate_size // tensor
    mixed = config.num_heads * config.head_dim // tensor
    wide = job.dtype == "float32" or plan.world_size == 1  # autocast leaves the residual stream in float32
    residual = (4 if wide else width) * hidden // tensor
    inside = residual if wide else (4 + width) * hidden // tensor  # of a norm: written out in float32, its wide input
    inputs = 2 * width * hidden  # of the first product of each half of a layer: the norms' results
    attention = _attention_bytes(job, plan, seq_len)
    everything = 2 * inside + 8 + inputs + attention + 3 * width * mlp  # gate and up, and what becomes of them
    products = residual + width * (config.qkv_size // tensor + mixed + hidden // tensor + 2 * mlp)
    products += 4 * config.num_heads // tensor  # of attention, the sums of its softmax beside its result
    if plan.compile:  # a norm written out is no more than its input, and attention, uncompiled, keeps what it does
        everything -= 2 * (inside - residual)
        products += attention - width * (config.qkv_size // tensor + mixed) - 4 * config.num_heads // tensor
    layer = {"none": everything, "selective": min(products, everything), "full": residual}[plan.recompute]
    tables = 2 * config.head_dim * width
    end = inside + width * hidden // tensor
    return _Kept(layer * tokens, (everything - layer) * tokens, (tables + 16) * tokens, end * tokens)


def _attention_bytes(job: Job, plan: ParallelPlan, seq_len: int) -> int:
    """Bytes a token that mixing keeps, at most: rotated queries and keys, values, and the result.

    The value is a part of the qkv product and the key one of what is rotated, which keeps both whole; compiled, the
    three are made apart. A kernel that serves each document by itself has its queries copied; that of variable length
    has the heads repeated, four tensors of one size. Results of documents of different lengths are copied on the way
    out. The CPU's own kernel keeps half of the square of probabilities. Context parallelism has one tensor of exchanged
    heads, and the result once more after its way back.
    """
    config = job.config
    heads, kv = config.num_heads // plan.tensor, max(config.num_kv_heads // plan.tensor, 1)
    mixed, keys, sums = heads * config.head_dim, kv * config.head_dim, 4 * heads
    behind = mixed if plan.context > 1 else 0
    if plan.context > 1:
        before = mixed + 2 * keys * (plan.context // math.gcd(plan.context, kv))
    else:
        before = mixed + 2 * keys if plan.compile else 2 * mixed + 3 * keys
    copied = 0 if plan.compile and plan.context == 1 else mixed
    if job.device == "cuda" and job.dtype == "bfloat16":
        return job.width * (max(4 * mixed, before + copied + mixed) + behind) + sums
    longest = min(seq_len, ATTENTION_LENGTHS.stop - 1)
    own = job.device == "cpu" and job.dtype == "float32" and longest in ATTENTION_LENGTHS
    probabilities = heads * (longest + QUERY_BLOCK) // 2 if own else 0
    return job.width * (before + mixed + max(copied + mixed, probabilities) + behind) + sums


def flops_per_token(config: ModelConfig, seq_len: int, *, causal: bool = False) -> float:
    """Floating-point operations of a forward and backward pass a token, where documents are as long as rows.

    6 for every weight of a matrix product (the embedding is none, the head is), and `12 * layers * heads * head_dim *
    seq_len` for attention: the whole square, as PaLM counts (Chowdhery et al. 2022, appendix B); half of that where
    only the causal half is counted.
    """
    return layer_flops(config, seq_len, causal=causal) * config.num_layers + head_flops(config)


def layer_flops(config: ModelConfig, seq_len: int, *, causal: bool = False) -> float:
    """The part of one layer in `flops_per_token`."""
    mixed = config.num_heads * config.head_dim
    weights = config.hidden_size * (config.qkv_size + mixed + 3 * config.intermediate_size)
    return 6.0 * weights + (6.0 if causal else 12.0) * mixed * seq_len


def head_flops(config: ModelConfig) -> float:
    """The part of the head in `flops_per_token`."""
    return 6.0 * config.hidden_size * (config.vocab_size if config.head == "lm" else 1)
