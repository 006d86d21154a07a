"""What an InternLM is: one frozen dataclass of shapes and flags, for every generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from puyulm.errors import ConfigError

Family = Literal["internlm", "internlm2", "internlm3", "llama"]
Head = Literal["lm", "reward"]
DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
        theta: Base of the frequencies, `theta ** (-2 i / head_dim)`.
        scaling: "none"; "linear" divides positions by `factor`; "dynamic" (NTK) raises the base once a sequence is
            longer than `max_position_embeddings` (see `puyulm.model.rope`).
        factor: Strength of the scaling.
    """

    theta: float = 10_000.0
    scaling: Literal["none", "linear", "dynamic"] = "none"
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and numerics of a decoder.

    Attributes:
        family: Whose published layout the checkpoint has: tensor names, `config.json` keys.
        num_kv_heads: Key and value heads; each serves `num_heads // num_kv_heads` query heads (GQA).
        qkv_bias, out_bias, mlp_bias: Biases of the q/k/v, attention output, and gate/up/down projections.
        tie_embeddings: The language-model head shares the embedding matrix.
        head: "lm" gives logits `[T, vocab_size]`, "reward" one score a token (read at a document's last token).
        reward_token_id: Token appended to a conversation that a reward model scores.
        dtype: The type the checkpoint is stored in.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: RopeConfig = field(default_factory=RopeConfig)
    rms_norm_eps: float = 1e-5
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    head: Head = "lm"
    reward_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)
    pad_token_id: int | None = 2
    initializer_range: float = 0.02
    dtype: DType = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
                     "head_dim", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive whole number, not {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}): "
                "each key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        if self.head == "reward" and self.tie_embeddings:
            raise ConfigError("a reward head cannot be tied to the embeddings")

    @property
    def q_per_kv(self) -> int:
        """Query heads served by one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_size(self) -> int:
        """Rows of the grouped qkv matrix: `num_kv_heads * (q_per_kv + 2) * head_dim`."""
        return self.num_kv_heads * (self.q_per_kv + 2) * self.head_dim

    @property
    def mlp_groups(self) -> int:
        """Blocks in which gate and up alternate in their shared matrix: as many kv groups as divide the MLP evenly,
        so that a contiguous split over groups is a tensor-parallel shard of both."""
        return math.gcd(self.num_kv_heads, self.intermediate_size)

    def evolve(self, **changes: object) -> ModelConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]
