"""The one decoder: every generation of the family, for training, scoring and serving.

Activations are ragged, `[T, H]`: tokens of any number of sequences one after another, with no batch axis and no
padding. Which tokens belong together is the business of the attention object (`puyulm.model.attention`). The module
knows nothing of ranks, caches or quantisation; those are applied from outside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from puyulm.model.attention import Attention
from puyulm.model.config import ModelConfig
from puyulm.model.init import initial_values
from puyulm.model.kernels import rms_norm, rotate_qkv, swiglu
from puyulm.model.rope import RopeTables, rope_tables


class Linear(nn.Linear):
    """`nn.Linear` without PyTorch's default filling, which a checkpoint or `init_weights` would only overwrite."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """`nn.Embedding` without PyTorch's default filling."""

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """Root-mean-square norm: normalised in float32, cast back, then scaled by the weight.

    The first generation multiplies before it casts; since the cast of a half-precision activation to float32 is exact,
    that rounds identically, and one implementation serves all.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Module):
    """Grouped-query attention with one matrix for q, k and v.

    Rows of `qkv` are `[num_kv_heads, q_per_kv + 2, head_dim]`: a group's queries, its key, its value. Any contiguous
    split over groups is a tensor-parallel shard (InternLM2 report, section 2.2).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_per_kv = config.q_per_kv
        self.qkv = Linear(config.hidden_size, config.qkv_size, bias=config.qkv_bias)
        self.out = Linear(config.num_heads * config.head_dim, config.hidden_size, bias=config.out_bias)

    def project(self, x: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
        """`[T, H]` -> rotated queries `[T, KV, q_per_kv, D]`, rotated keys and values `[T, KV, D]`."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.q_per_kv + 2, self.head_dim))
        return rotate_qkv(qkv, rope)

    def forward(self, mixed: Tensor) -> Tensor:
        """Mixed values `[T, KV, q_per_kv, D]` -> `[T, H]`."""
        return self.out(mixed.flatten(1))


class MLP(nn.Module):
    """SwiGLU with one matrix for gate and up.

    Rows of `gate_up` are `[mlp_groups, 2, intermediate_size / mlp_groups]`: gate and up alternate in blocks, so that a
    contiguous split over groups is a tensor-parallel shard, as for qkv.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.block = config.intermediate_size // config.mlp_groups
        self.gate_up = Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x), self.block))


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)).

    What is before and what is behind the mixing of values are functions of tokens alone: these are what is compiled.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = SelfAttention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: RopeTables, attention: Attention, layer: int) -> Tensor:
        q, k, v = self.before(x, rope)
        return self.behind(x, attention(layer, q, k, v))

    def before(self, x: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
        """`[T, H]` -> queries, keys and values to mix, as `SelfAttention.project` gives them."""
        return self.attention.project(self.attention_norm(x), rope)

    def behind(self, x: Tensor, mixed: Tensor) -> Tensor:
        """`[T, H]` and the mixed values -> the layer's `[T, H]`."""
        x = x + self.attention(mixed)
        return x + self.mlp(self.mlp_norm(x))


RunLayers = Callable[[nn.ModuleList, Tensor, RopeTables, Attention], Tensor]


def run_layers(layers: nn.ModuleList, x: Tensor, rope: RopeTables, attention: Attention) -> Tensor:
    """`[T, H]` through all layers."""
    for index, layer in enumerate(layers):
        x = layer(x, rope, attention, index)
    return x


class Decoder(nn.Module):
    """An InternLM.

    Parameters are left uninitialised; fill them with `init_weights` or from a checkpoint.

    Example:
        >>> attention = PackedAttention([5, 3])
        >>> hidden = decoder(tokens, attention.positions, attention)  # [8, H]
        >>> logits = decoder.logits(hidden)                           # [8, V]
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.run_layers: RunLayers = run_layers  # what runs all layers at once may take its place
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = Linear(config.hidden_size, config.vocab_size if config.head == "lm" else 1, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Runs all layers.

        Args:
            tokens: `[T]` ids.
            positions: `[T]`, each token's position in its own sequence.
            attention: Who sees whom.

        Returns:
            `[T, H]`: final-normed hidden states, the input of `logits` and `scores`.
        """
        config = self.config
        x = self.embed(tokens)
        rope = rope_tables(
            config.rope, config.head_dim, config.max_position_embeddings, positions, attention.seq_lens, x.dtype
        )
        return self.norm(self.run_layers(self.layers, x, rope, attention))

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., H]` -> `[..., V]` in float32."""
        return self.head(hidden).float()

    def scores(self, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Reward of each document, read at its last token: `[T, H]`, `[documents + 1]` -> `[documents]` in float32."""
        return self.head(hidden[cu_seqlens[1:].long() - 1]).float().squeeze(-1)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Fills the parameters to train from scratch, see `puyulm.model.init`."""
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_values(self.config, name, tuple(parameter.shape), seed))
