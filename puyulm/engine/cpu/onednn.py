"""Linear layers in float32 for machines without a C compiler.

`F.linear` hands the matrix library a weight in row order, and for a few tokens at a time most of the work is bringing
it into the order the kernel wants, anew at every call. oneDNN can keep a weight in that order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Rows that oneDNN is told to expect. From 8 on it picks the one order of weights that serves all row counts.
EXPECTED_ROWS = 16


def available() -> bool:
    """Whether this build of PyTorch has oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference whose weight is held in float32, in oneDNN's own order only.

    It has no parameters and passes no gradients.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Copies the weight.

        Raises:
            RuntimeError: oneDNN cannot do this on this processor.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().float(), EXPECTED_ROWS)
        # Some shapes sum a lone row in another order than the same row among others. A second row then keeps answers
        # independent of the batch, at next to no cost: the weight is what has to be read.
        probe = torch.linspace(-1.0, 1.0, 2 * self.in_features).view(2, -1)
        self._pads_one_row = not torch.equal(self._multiply(probe[:1]), self._multiply(probe)[:1])

    def forward(self, x: Tensor) -> Tensor:
        """`[..., K]` -> `[..., N]`."""
        if self._pads_one_row and x.numel() == self.in_features:
            rows = x.reshape(1, -1).repeat(2, 1)
            return self._multiply(rows)[:1].view(*x.shape[:-1], -1)
        return self._multiply(x)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds the product of x, `[T, K]`, to the residual stream, `[T, N]`, in place, and returns it."""
        return residual.add_(self(x))

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self._bias is not None}"
