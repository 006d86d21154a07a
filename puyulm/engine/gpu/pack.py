"""Replaces the parts of a decoder by those that run fast on a CUDA device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puyulm.engine.gpu import products, rows
from puyulm.engine.gpu.available import runs_on
from puyulm.engine.quant.linear import QuantWeightLinear
from puyulm.model.decoder import Block, Decoder, RMSNorm
from puyulm.model.rope import RopeTables

HALF = (torch.float16, torch.bfloat16)


class GpuLinear(nn.Module):
    """A linear layer, whose single rows go through a kernel that reads the weights at the memory's speed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., K]` -> `[..., N]`."""
        if self._single(x):
            return products.row_product(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds the product of x, `[T, K]`, to `[T, N]` in place, and returns it."""
        if self._single(x):
            return products.row_product(x, self.weight, self.bias, residual)
        residual = residual.addmm_(x, self.weight.T)
        return residual if self.bias is None else residual.add_(self.bias)

    def _single(self, x: Tensor) -> bool:
        return x.dim() == 2 and x.shape[0] == 1 and x.dtype in HALF and self.in_features % products.LEAST_GROUP == 0


class GpuQuantLinear(QuantWeightLinear):
    """A `QuantWeightLinear` whose codes are turned into numbers on their way to the product."""

    def __init__(self, linear: QuantWeightLinear) -> None:
        super().__init__(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return products.product(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds the product of x, `[T, K]`, to `[T, N]` in place, and returns it."""
        return products.product(x, self.weight, self.bias, residual)


class GpuRMSNorm(RMSNorm):
    """An `RMSNorm` in one pass."""

    def __init__(self, norm: RMSNorm) -> None:
        nn.Module.__init__(self)
        self.eps, self.weight = norm.eps, norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """`[T, H]` -> `[T, H]`."""
        return rows.rms_norm(x, self.weight, self.eps)


class GpuBlock(Block):
    """A `Block` for inference, made of the parts of another. Sums with the residual stream are parts of the products
    where the linear layers offer `add_to`."""

    def __init__(self, block: Block) -> None:
        nn.Module.__init__(self)
        self.attention, self.mlp = block.attention, block.mlp
        self.attention_norm, self.mlp_norm = GpuRMSNorm(block.attention_norm), GpuRMSNorm(block.mlp_norm)

    def before(self, x: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.attention
        qkv = attention.qkv(self.attention_norm(x)).unflatten(-1, (-1, attention.q_per_kv + 2, attention.head_dim))
        return rows.rotate_qkv(qkv, rope)

    def behind(self, x: Tensor, mixed: Tensor) -> Tensor:
        """`[T, H]` and the mixed values -> the layer's `[T, H]`, in the memory of x."""
        x = _added(self.attention.out, x, mixed.flatten(1))
        return _added(self.mlp.down, x, rows.swiglu(self.mlp.gate_up(self.mlp_norm(x)), self.mlp.block))


def _added(linear: nn.Module, residual: Tensor, x: Tensor) -> Tensor:
    if hasattr(getattr(linear, "inner", linear), "add_to"):  # adapters offer it for what they wrap
        return linear.add_to(residual, x)  # type: ignore[operator]
    return residual.add_(linear(x))


@torch.no_grad()
def pack_for_gpu(model: Decoder) -> Decoder:
    """Replaces, in place, layers, norms and linear layers of a decoder by those of this file.

    Decoders in float64 and elsewhere, and machines without Triton, are left alone; so are linear layers of other kinds.
    Parameters stay the same tensors. A packed decoder cannot be trained.

    Returns:
        The same decoder.
    """
    weight = model.embed.weight
    if not runs_on(weight.device) or weight.dtype == torch.float64:
        return model
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is QuantWeightLinear and child.activations is None and products.suits(child.weight):
                setattr(owner, name, GpuQuantLinear(child))
            elif isinstance(child, nn.Linear) and type(child.weight.data) is Tensor:
                setattr(owner, name, GpuLinear(child))
            elif type(child) is Block:
                setattr(owner, name, GpuBlock(child))
            elif type(child) is RMSNorm:
                setattr(owner, name, GpuRMSNorm(child))
    return model
