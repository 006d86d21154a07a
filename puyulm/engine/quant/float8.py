"""Weights in 8-bit floating point (e4m3) with a scale a row: 8 bits that GPUs from Hopper on multiply by themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puyulm.errors import ConfigError

LARGEST = 448.0  # of e4m3
E4M3 = torch.float8_e4m3fn
TILE = 16  # rows and columns of a matrix come in multiples of this for the GPU's product


@dataclass(frozen=True)
class Float8Weight:
    """A matrix `[N, K]`; the value is `code * scale`.

    Attributes:
        codes: float8_e4m3fn `[N, K]`.
        scales: float32 `[N, 1]`.
    """

    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def dequantize(self) -> Tensor:
        """`[N, K]` in float32."""
        return self.codes.float() * self.scales


def quantize_float8(weight: Tensor) -> Float8Weight:
    """Rounds a matrix `[N, K]` so that the largest weight of a row is the largest e4m3 number.

    Raises:
        ConfigError: The matrix holds infinities or NaN.
    """
    scales = weight.float().abs().amax(1, keepdim=True) / LARGEST
    if not bool(scales.isfinite().all()):
        raise ConfigError("the matrix holds infinities or NaN and cannot be quantised")
    scaled = weight.float() / torch.where(scales == 0, 1, scales)
    return Float8Weight(scaled.clamp(-LARGEST, LARGEST).to(E4M3), scales)


class Float8Linear(nn.Module):
    """A linear layer with an e4m3 weight: by the tensor cores where they take it, each row of inputs rounded with a
    scale of its own; dequantised elsewhere."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float8Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Float8Weight:
        return Float8Weight(self.codes, self.scales)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., K]` -> `[..., N]`."""
        if x.is_cuda and self._suits(x):
            return self._by_tensor_cores(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return F.linear(x, self.weight.dequantize().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _suits(self, x: Tensor) -> bool:
        # Scales a row need Hopper, and results in bfloat16.
        tiled = self.in_features % TILE == 0 and self.out_features % TILE == 0
        return tiled and x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (9, 0)

    def _by_tensor_cores(self, x: Tensor) -> Tensor:
        scales = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST
        rounded = (x.float() / scales).clamp(-LARGEST, LARGEST).to(E4M3)
        return torch._scaled_mm(
            rounded, self.codes.T, scale_a=scales, scale_b=self.scales.T, bias=self.bias, out_dtype=torch.bfloat16
        )
