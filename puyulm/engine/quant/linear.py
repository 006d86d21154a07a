"""Linear layers of quantised weights, and putting them into a decoder."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puyulm.engine.quant.float8 import Float8Linear, Float8Weight
from puyulm.engine.quant.rounding import quantize
from puyulm.engine.quant.settings import QuantSettings
from puyulm.engine.quant.tensor import Bits, QuantizedWeight
from puyulm.errors import ConfigError
from puyulm.model.decoder import Decoder, Linear

Activations = Literal["int8"] | None
AnyWeight = QuantizedWeight | Float8Weight


class QuantWeightLinear(nn.Module):
    """A linear layer that dequantises its weight at every call: correct on any device, fast on none.

    Args:
        weight: `[N, K]`.
        bias: `[N]` or None.
        activations: "int8" rounds each row of the inputs to 8 bits with a scale of its own, as the kernels do that
            multiply integers; None takes them as they are.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, activations: Activations = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bits: Bits = weight.bits
        self.group_size = weight.group_size
        self.activations = activations
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zeros", weight.zeros)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> QuantizedWeight:
        return QuantizedWeight(self.codes, self.scales, self.zeros, self.bits, self.group_size)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., K]` -> `[..., N]`."""
        if self.activations == "int8":
            x = round_activations(x)
        return F.linear(x, self.weight.dequantize().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{shape}, bits={self.bits}, group_size={self.group_size}, activations={self.activations}"


def round_activations(x: Tensor) -> Tensor:
    """Each row of `[..., K]` rounded to multiples of a 127th of its largest magnitude."""
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    rounded = (x.float() / torch.where(scale == 0, 1, scale)).round()
    return (rounded * scale).to(x.dtype)


def quantized_linear(weight: AnyWeight, bias: Tensor | None, activations: Activations = None) -> nn.Module:
    """The plain layer of a quantised weight."""
    if isinstance(weight, Float8Weight):
        return Float8Linear(weight, bias)
    return QuantWeightLinear(weight, bias, activations)


def set_linear(owner: nn.Module, name: str, weight: AnyWeight, activations: Activations = None) -> None:
    """Replaces the linear of a name ("mlp.down") by one of a quantised weight; its bias stays."""
    parent, _, last = name.rpartition(".")
    bias = owner.get_submodule(name).bias
    kept = bias.detach() if isinstance(bias, Tensor) else None
    setattr(owner.get_submodule(parent), last, quantized_linear(weight, kept, activations))


@torch.no_grad()
def quantize_in_place(decoder: Decoder, bits: Bits, group_size: int | None = 32) -> Decoder:
    """Rounds the matrices of a loaded decoder to nearest, one after another: 4 bits with zero points; a language-model
    head gets 8 bits.

    Embeddings, norms, biases and a reward head stay as they are.

    Raises:
        ConfigError: The groups do not divide the matrices' columns, or a matrix holds infinities or NaN.
    """
    settings = QuantSettings(bits=bits, group_size=group_size)
    settings.require_fits(decoder.config)
    for name in [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]:
        is_head = name.partition(".")[0] == "head"
        if is_head and decoder.config.head != "lm":
            continue
        weight = decoder.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        columns = weight.shape[1]
        if group_size is not None and columns % group_size:  # of a part of a matrix that is split over processes
            raise ConfigError(
                f"{name}: groups of {group_size} do not divide the {columns} columns that each process has: use fewer "
                "processes, or leave the weights as they are"
            )
        own_bits: Bits = 8 if is_head else bits
        set_linear(decoder, name, quantize(weight.detach(), own_bits, group_size, zero_point=own_bits == 4))
    return decoder


@torch.no_grad()
def pack_quantized(model: Decoder) -> Decoder:
    """Replaces, in place, the plain layers of a quantised decoder by those that its device runs fast.

    On a CPU: integer kernels, and for e4m3, which no CPU multiplies, float32. Groups that the kernels do not take, and
    decoders elsewhere, are left alone.

    Returns:
        The same model.
    """
    if model.embed.weight.device.type != "cpu":
        return model
    from puyulm.engine.cpu.quantised import GROUP, QuantLinear

    # Places, not modules: a list of the modules would keep every original alive to the end.
    places = [(owner, name) for owner in model.modules() for name, _ in owner.named_children()]
    for owner, name in places:
        module = getattr(owner, name)
        if isinstance(module, Float8Linear):
            setattr(owner, name, _float_linear(module))
        elif isinstance(module, QuantWeightLinear) and (
            module.group_size % GROUP == 0 or module.group_size == module.in_features
        ):
            setattr(owner, name, QuantLinear(module.weight, module.bias))
    return model


def _float_linear(module: Float8Linear) -> Linear:
    linear = Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias, requires_grad=False)
    return linear
