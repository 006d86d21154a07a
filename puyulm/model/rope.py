"""Rotary position embedding: plain, linear scaling, and dynamic NTK.

Numerics of the published code: inverse frequencies and angles in float32, the two halves of a head are the real and
imaginary parts ("half-split" order), cosine and sine are cast to the activations' dtype before use.

Dynamic NTK depends on the length S of the sequence that a token belongs to. The published code mixes this with state
kept between calls; here the base comes from S of this forward alone, so equal inputs always give equal outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from puyulm.model.config import RopeConfig


class RopeTables(NamedTuple):
    """Cosine and signed sine of every token's angles, each `[T, head_dim]` in the activations' dtype.

    The angles of the first half are repeated in the second; the sines of the first half are negated, so that the
    rotation is two full-width products: `x * cos + swap_halves(x) * sin`.
    """

    cos: Tensor
    sin: Tensor

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both as `[T, 1, ..., head_dim]`, in the type of x, which under autocast may be narrower."""
        shape = (x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
        return self.cos.to(x.dtype).view(shape), self.sin.to(x.dtype).view(shape)


def dynamic_ntk_theta(theta: float, factor: float, length: int, max_positions: int, head_dim: int) -> float:
    """The base for a sequence of `length` tokens: unchanged up to `max_positions`, then
    `theta * (factor * length / max_positions - (factor - 1)) ** (head_dim / (head_dim - 2))`."""
    if length <= max_positions:
        return theta
    return theta * (factor * length / max_positions - (factor - 1)) ** (head_dim / (head_dim - 2))


def rope_tables(
    rope: RopeConfig, head_dim: int, max_positions: int, positions: Tensor, seq_lens: Tensor, dtype: torch.dtype
) -> RopeTables:
    """Makes the tables of one forward.

    Args:
        positions: `[T]`, each token's position in its own sequence.
        seq_lens: `[T]`, the length of the sequence each token belongs to; read only for dynamic NTK.
        dtype: Of the activations.
    """
    device = positions.device
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    if rope.scaling == "dynamic":
        # Same formula as `dynamic_ntk_theta`, per token. In float64: theta near 1e9 loses digits in float32.
        lengths = seq_lens.to(torch.float64)
        stretch = (rope.factor * lengths / max_positions - (rope.factor - 1)).clamp_min(1.0)
        theta = rope.theta * stretch ** (head_dim / (head_dim - 2))
        inv_freq = 1.0 / theta.to(torch.float32)[:, None] ** exponents  # [T, D/2]
    else:
        inv_freq = 1.0 / torch.full((), rope.theta, dtype=torch.float32, device=device) ** exponents
    scale = rope.factor if rope.scaling == "linear" else 1.0
    angles = (positions.to(torch.float32) / scale)[:, None] * inv_freq
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return RopeTables(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def rotate(x: Tensor, tables: RopeTables) -> Tensor:
    """Rotates heads by their tokens' angles.

    Args:
        x: `[T, ..., head_dim]`.

    Returns:
        Same shape: with halves (a, b) of each head, (a cos - b sin, b cos + a sin).
    """
    cos, sin = tables.beside(x)
    half = x.shape[-1] // 2
    return (x * cos).addcmul_(torch.cat((x[..., half:], x[..., :half]), dim=-1), sin)
