"""Linear layers whose weights are in 4 or 8 bits and whose activations are rounded to 8 bits as they come.

Each token's activations are rounded in groups of 32 for themselves, products are exact integers inside a group, and
groups are added in ascending order, so that a row of the result depends on no other row, on no number of rows and on
no number of threads. Three kernels compute the same: C, numba, and plain PyTorch, which says what is meant.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puyulm.engine.cpu import native
from puyulm.engine.cpu.panels import GROUP, PanelWeight
from puyulm.engine.quant.tensor import QuantizedWeight
from puyulm.errors import ConfigError

Kernel = Callable[[Tensor, Tensor, bool], None]
"""(x, out, add): writes the product of x, float32 `[T, K]`, to out, float32 `[T, N]`, or adds it to what stands there.
Both are contiguous, and T is at least 1."""


@dataclass(frozen=True)
class QuantizedActivations:
    """Rows of activations in 8 bits; a value is `code * scale`. K is filled up to groups of 32 with zeros.

    Attributes:
        codes: `[T, groups, 32]`, int8, from -127 to 127.
        scales: `[T, groups]`, float32: the group's largest magnitude / 127; NaN where a value is not finite.
        sums: `[T, groups]`, int32, of the codes.
    """

    codes: Tensor
    scales: Tensor
    sums: Tensor


def quantize_activations(x: Tensor) -> QuantizedActivations:
    """Rounds float32 `[T, K]` to the nearest codes, halves to even."""
    groups = F.pad(x, (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(dim=2)
    scales = torch.where(largest.isfinite(), largest / 127, torch.nan)
    exact = groups / scales.unsqueeze(2)
    # Subnormal scales are coarse: the quotient may exceed 127, or the scale be 0.
    codes = torch.where(scales.unsqueeze(2) > 0, exact, 0.0).round().clamp(-127, 127).to(torch.int8)
    return QuantizedActivations(codes, scales, codes.sum(dim=2, dtype=torch.int32))


def quantize_activations_natively(x: Tensor, num_threads: int = 1) -> QuantizedActivations:
    """The same in C; needs a compiler."""
    library = _library()
    if library is None:
        raise ConfigError("there is no C compiler on this machine: use quantize_activations")
    x = x.float().contiguous()
    rows, columns = x.shape
    groups = -(-columns // GROUP)
    codes = torch.empty(rows, groups, GROUP, dtype=torch.int8)
    scales = torch.empty(rows, groups, dtype=torch.float32)
    sums = torch.empty(rows, groups, dtype=torch.int32)
    outputs = (codes.data_ptr(), scales.data_ptr(), sums.data_ptr())
    library.quantised_round(x.data_ptr(), rows, columns, *outputs, num_threads)
    return QuantizedActivations(codes, scales, sums)


class QuantLinear(nn.Module):
    """An `nn.Linear` for inference with a weight in 4 or 8 bits. It has no parameters and passes no gradients.

    Results are float32 whatever the type of x. A NaN or an infinity in a row makes that row of the result NaN.
    """

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None = None,
        kernel: Callable[[QuantizedWeight, Tensor | None], Kernel] | None = None,
    ) -> None:
        """Lays the weight out for `kernel`, by default the fastest that this machine has.

        Raises:
            ConfigError: The weight's groups are neither whole rows nor of a multiple of 32 values.
        """
        super().__init__()
        self.out_features, self.in_features = weight.shape
        if weight.group_size % GROUP and weight.group_size != self.in_features:
            raise ConfigError(
                f"weights in groups of {weight.group_size} cannot be multiplied: "
                f"quantise in groups of a multiple of {GROUP}, or of whole rows"
            )
        self._kernel = (kernel or fastest_kernel())(weight, None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """`[..., K]` -> `[..., N]`."""
        out = torch.empty(*x.shape[:-1], self.out_features, dtype=torch.float32)
        self._run(x, out, False)
        return out

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds the product of x, `[T, K]`, to the residual stream, `[T, N]`, in place, and returns it."""
        if residual.dtype != torch.float32 or not residual.is_contiguous():
            return residual.add_(self(x))
        self._run(x, residual, True)
        return residual

    def _run(self, x: Tensor, out: Tensor, add: bool) -> None:
        if x.dtype != torch.float32 or not x.is_contiguous():
            x = x.float().contiguous()
        rows, rest = divmod(x.numel(), self.in_features)
        if rest or x.shape[-1] != self.in_features or out.numel() != rows * self.out_features:
            raise ValueError(
                f"a layer of {self.in_features} to {self.out_features}, not {x.shape[-1]} to {out.shape[-1]}"
            )
        if rows:
            self._kernel(x.view(rows, self.in_features), out.view(rows, self.out_features), add)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def fastest_kernel() -> Callable[[QuantizedWeight, Tensor | None], Kernel]:
    """C where there is a compiler, else numba where it is installed, else PyTorch."""
    if _library() is not None:
        return NativeKernel
    try:
        from puyulm.engine.cpu.quantised_numba import NumbaKernel
    except ImportError:
        return ReferenceKernel
    return NumbaKernel


class ReferenceKernel:
    """What the product means, in plain PyTorch: exact, and slow."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor, out: Tensor, add: bool) -> None:
        rounded = quantize_activations(x)
        integers = F.pad(self._weight.integers(), (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        scales = self._weight.scales.float()
        total = torch.zeros_like(out)
        for group in range(integers.shape[1]):
            # Float64 holds these sums exactly.
            exact = rounded.codes[:, group].double() @ integers[:, group].double().T
            weight_scales = scales[:, group * GROUP // self._weight.group_size]
            total = _fma(exact, weight_scales * rounded.scales[:, group, None], total)
        if self._bias is not None:
            total += self._bias
        out.copy_(out + total if add else total)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Float32 a * b + c with one rounding, for a product that float64 holds exactly.

    The sum is rounded to odd in float64, after which rounding to float32 gives what a single rounding would
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    below = torch.where(lost.sign() * total.sign() < 0, bits - 1, bits)
    inexact = (lost != 0) & lost.isfinite()
    return torch.where(inexact, below | 1, bits).view(torch.float64).float()


class _Weight(ctypes.Structure):
    """`Weight` of quantised.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "groups", "groups_per_scale", "scale_groups")),
        *((name, ctypes.c_int32) for name in ("bits", "half")),
    )


class NativeKernel:
    """The product in C. Weights lie as quantised.c says; scales keep their precision."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        library = _library()
        if library is None:
            raise ConfigError("there is no C compiler on this machine: use another kernel")
        outputs, inputs = weight.shape
        groups = -(-inputs // GROUP)
        layout = PanelWeight.of(weight)
        scale_groups = layout.scales.shape[1]
        half = layout.scales.dtype == torch.float16
        sizes = (outputs, inputs, groups, groups // scale_groups, scale_groups, weight.bits, half)
        bias = None if bias is None else bias.contiguous()
        parts = (layout.codes, layout.scales, layout.zeros, bias)
        pointers = (None if part is None else part.data_ptr() for part in parts)
        self._kept = parts  # what the structure points to
        self._weight = _Weight(*pointers, *sizes)
        self.address = ctypes.addressof(self._weight)
        self._multiply = library.quantised_multiply

    def __call__(self, x: Tensor, out: Tensor, add: bool) -> None:
        rows, inputs = x.shape
        if self._multiply(self.address, x.data_ptr(), rows, out.data_ptr(), add, torch.get_num_threads()):
            raise MemoryError(f"no memory to round {rows} rows of {inputs} activations")


def _library() -> ctypes.CDLL | None:
    library = native.load("quantised")
    if library is not None and library.quantised_multiply.argtypes is None:
        _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    pointer, long, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    library.quantised_multiply.argtypes = (pointer, pointer, long, pointer, integer, integer)
    library.quantised_multiply.restype = ctypes.c_int
    library.quantised_round.argtypes = (pointer, long, long, pointer, pointer, pointer, integer)
    library.quantised_round.restype = None
