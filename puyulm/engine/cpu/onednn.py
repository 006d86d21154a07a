"""Makes a float32 decoder fast on CPUs.

`F.linear` hands the matrix library a weight in row order, and for a few tokens at a time most of the work is bringing
it into the order the kernel wants, anew at every call. oneDNN can keep a weight in that order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from puyulm.model.decoder import Decoder

# Rows that oneDNN is told to expect. From 8 on it picks the one order of weights that serves all row counts.
EXPECTED_ROWS = 16


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference whose weight is held in oneDNN's own order only.

    It has no parameters: a packed model can neither be saved nor trained.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, EXPECTED_ROWS)
        # Some shapes sum a lone row in another order than the same row among others. A second row then keeps answers
        # independent of the batch, at next to no cost: the weight is what has to be read.
        probe = torch.linspace(-1.0, 1.0, 2 * self.in_features).view(2, -1)
        self._pads_one_row = not torch.equal(self._multiply(probe[:1]), self._multiply(probe)[:1])

    def forward(self, x: Tensor) -> Tensor:
        if self._pads_one_row and x.numel() == self.in_features:
            rows = x.reshape(1, -1).repeat(2, 1)
            return self._multiply(rows)[:1].view(*x.shape[:-1], -1)
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self._bias is not None}"


@torch.no_grad()
def pack_for_inference(model: Decoder) -> Decoder:
    """Replaces, in place, each linear layer of a float32 CPU model by one with a prepacked weight.

    Weights are packed one after another and their originals released, so that memory grows by one matrix at most; only
    a head tied to the embeddings costs its size again, since rows cannot be looked up in a packed matrix.
    Models elsewhere or in other types, and torch builds without oneDNN, are left as they are.

    Returns:
        The same model.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return model
    # Places, not modules: a list of the modules would keep every original alive to the end.
    places = [
        (owner, name)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.Linear)
    ]
    for owner, name in places:
        linear = getattr(owner, name)
        if linear.weight.device.type == "cpu" and linear.weight.dtype == torch.float32:
            try:
                setattr(owner, name, PackedLinear(linear))
            except RuntimeError:  # the operator is there, but not for this processor
                return model
    return model
