"""The product of quantised.c through numba, which installs by pip alone: the same layout, the same bits.

Loops are Python's; a group of 32 inputs is one piece of LLVM's vector code, which fits any processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from puyulm.engine.cpu.panels import GROUP, PANEL, PanelWeight
from puyulm.engine.quant.tensor import QuantizedWeight

QUADS = GROUP // 4
QUAD_BYTES = 4 * PANEL

_BYTE, _SHORT, _WORD, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


class NumbaKernel:
    """A `Kernel` for machines without a C compiler. The first call of a kind compiles for some seconds, once a user."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        layout = PanelWeight.of(weight)
        outputs, inputs = weight.shape
        groups = -(-inputs // GROUP)
        # The types of the arrays tell the compiled code the number of bits and the precision of the scales.
        codes = layout.codes.numpy().view(np.int8 if weight.bits == 8 else np.uint8)
        half = layout.scales.dtype == torch.float16
        self._weight = (
            codes.reshape(codes.shape[0], groups, -1),
            (layout.scales.view(torch.uint16) if half else layout.scales).numpy(),
            np.full((1, 1, PANEL), 8, np.uint8) if layout.zeros is None else layout.zeros.numpy(),
            layout.zeros is not None,
            (torch.zeros(outputs) if bias is None else bias.contiguous()).numpy(),
        )

    def __call__(self, x: Tensor, out: Tensor, add: bool) -> None:
        _multiply(*self._weight, x.detach().numpy(), out.detach().numpy(), add, torch.get_num_threads())


def _typed_fma_group(
    context: Any, codes: Any, scales: Any, zeros: Any, x_codes: Any, x_scale: Any, x_sum: Any, total: Any
) -> Any:
    """total = fma(exact sums of one group, weight scales * activation scale, total), for a panel."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        def pointer(i: int) -> ir.Value:
            return context.make_array(signature.args[i])(context, builder, arguments[i]).data

        exact = _exact_sums(builder, pointer(0), pointer(3), signed=signature.args[0].dtype == types.int8)
        if signature.args[0].dtype == types.uint8:
            zero = builder.zext(_load(builder, pointer(2), _BYTE, PANEL), _vector(_WORD, PANEL))
            exact = builder.sub(exact, builder.mul(zero, _repeat(builder, arguments[5], PANEL)))
        if signature.args[1].dtype == types.uint16:
            half = _load(builder, pointer(1), ir.HalfType(), PANEL)
            scale = builder.fpext(half, _vector(_FLOAT, PANEL))
        else:
            scale = _load(builder, pointer(1), _FLOAT, PANEL)
        scale = builder.fmul(scale, _repeat(builder, arguments[4], PANEL))
        before = _load(builder, pointer(6), _FLOAT, PANEL)
        kind = ir.FunctionType(before.type, [before.type] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{PANEL}f32")
        after = builder.call(fma, (builder.sitofp(exact, before.type), scale, before))
        builder.store(after, builder.bitcast(pointer(6), after.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(codes, scales, zeros, x_codes, x_scale, x_sum, total), generate


_fma_group: Any = intrinsic(_typed_fma_group)


def _exact_sums(builder: ir.IRBuilder, codes: ir.Value, x: ir.Value, signed: bool) -> ir.Value:
    """16 sums of 32 products: of 8 quads of inputs, each of 64 codes and 4 repeated activations.

    Products of even and of odd places are added pair by pair: the pattern in which LLVM sees what processors call a
    multiply-add of 16-bit pairs.
    """
    pairs = ir.Constant(_vector(_WORD, 2 * PANEL), [0] * 2 * PANEL)
    shorts = _vector(_SHORT, QUAD_BYTES)
    for quad in range(QUADS):
        if signed:
            w = builder.sext(_load(builder, codes, _BYTE, QUAD_BYTES, quad * QUAD_BYTES), shorts)
        else:
            both = _load(builder, codes, _BYTE, QUAD_BYTES, quad // 2 * QUAD_BYTES)
            shift, mask = (ir.Constant(both.type, [value] * QUAD_BYTES) for value in (4, 15))
            w = builder.zext(builder.lshr(both, shift) if quad % 2 else builder.and_(both, mask), shorts)
        four = builder.sext(_load(builder, x, _BYTE, 4, quad * 4), _vector(_SHORT, 4))
        repeated = _shuffle(builder, four, list(range(4)) * PANEL)
        products = []
        for parity in range(2):
            places = range(parity, QUAD_BYTES, 2)
            wide = (builder.sext(_shuffle(builder, part, places), pairs.type) for part in (w, repeated))
            products.append(builder.mul(*wide))
        pairs = builder.add(pairs, builder.add(*products))
    return builder.add(*(_shuffle(builder, pairs, range(parity, 2 * PANEL, 2)) for parity in range(2)))


def _vector(element: ir.Type, count: int) -> ir.VectorType:
    return ir.VectorType(element, count)


def _load(builder: ir.IRBuilder, pointer: ir.Value, element: ir.Type, count: int, offset: int = 0) -> ir.Value:
    """`count` elements from memory at any address, `offset` bytes after `pointer`."""
    start = builder.gep(builder.bitcast(pointer, _BYTE.as_pointer()), [_WORD(offset)])
    return builder.load(builder.bitcast(start, _vector(element, count).as_pointer()), align=1)


def _repeat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    one = builder.insert_element(ir.Constant(_vector(value.type, 1), ir.Undefined), value, _WORD(0))
    return _shuffle(builder, one, [0] * count)


def _shuffle(builder: ir.IRBuilder, vector: ir.Value, places: Iterable[int]) -> ir.Value:
    places = list(places)
    mask = ir.Constant(_vector(_WORD, len(places)), places)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


@njit(inline="always")
def _round_group(values, codes):  # type: ignore[no-untyped-def]
    """Codes of up to 32 values; returns their scale and sum."""
    largest = np.uint32(0)
    for value in values.view(np.uint32):
        largest = max(largest, np.uint32(value & np.uint32(0x7FFFFFFF)))
    if largest >= 0x7F800000:
        return np.float32(np.nan), np.int32(0)
    magnitude = np.float32(0)
    for value in values:
        magnitude = max(magnitude, abs(value))
    scale = np.float32(magnitude / np.float32(127))
    total = np.int32(0)
    if scale > 0:
        for i in range(values.shape[0]):
            code = np.int32(min(max(np.rint(values[i] / scale), np.float32(-127)), np.float32(127)))
            codes[i] = code
            total += code
    return scale, total


@njit(parallel=True, nogil=True, cache=True)
def _multiply(codes, scales, zeros, asymmetric, bias, x, out, add, num_threads):  # type: ignore[no-untyped-def]
    rows = x.shape[0]
    panels, groups, _ = codes.shape
    outputs = out.shape[1]
    per_scale = groups // scales.shape[1]
    x_codes = np.zeros((rows, groups, GROUP), np.int8)
    x_scales = np.empty((rows, groups), np.float32)
    x_sums = np.empty((rows, groups), np.int32)
    for part in prange(num_threads):
        for item in range(rows * groups * part // num_threads, rows * groups * (part + 1) // num_threads):
            row, group = item // groups, item % groups
            values = x[row, group * GROUP : (group + 1) * GROUP]
            x_scales[row, group], x_sums[row, group] = _round_group(values, x_codes[row, group])
    for part in prange(num_threads):
        total = np.empty(PANEL, np.float32)
        for panel in range(panels * part // num_threads, panels * (part + 1) // num_threads):
            first = panel * PANEL
            for row in range(rows):
                total[:] = 0
                for group in range(groups):
                    scale = group // per_scale
                    zero = zeros[panel, scale] if asymmetric else zeros[0, 0]
                    at = row, group
                    _fma_group(
                        codes[panel, group], scales[panel, scale], zero, x_codes[at], x_scales[at], x_sums[at], total
                    )
                for i in range(min(PANEL, outputs - first)):
                    value = total[i] + bias[first + i]
                    out[row, first + i] = out[row, first + i] + value if add else value
