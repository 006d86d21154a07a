"""The 4-bit layouts that AutoAWQ and AutoGPTQ publish, unpacked into ours.

Both pack whole numbers into int32 and store a matrix `[N, K]` transposed. AWQ ("gemm"): eight columns of `[K, N]` in a
word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up; zero points the same. GPTQ: eight (four, for 8 bits)
rows of `[K, N]` in a word, in order; zero points along N and, but in the format "gptq_v2", lowered by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puyulm.engine.quant.tensor import Bits, QuantizedWeight
from puyulm.errors import CheckpointError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTEGERS = (torch.int32,)

Entry = tuple[tuple[torch.dtype, ...], tuple[int, ...]]
"""The types that a tensor may have, and its shape."""


@dataclass(frozen=True)
class AwqLayout:
    """AutoAWQ's "gemm" version."""

    group_size: int | None

    def tensors(self, rows: int, columns: int) -> dict[str, Entry]:
        """Suffixes, types and shapes of what stands for a matrix `[rows, columns]`."""
        groups = columns // (self.group_size or columns)
        return {
            "qweight": (INTEGERS, (columns, rows // 8)),
            "qzeros": (INTEGERS, (groups, rows // 8)),
            "scales": (FLOATS, (groups, rows)),
        }

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a matrix of this shape cannot be stored so, or None."""
        return _misfit(rows % 8, columns, self.group_size)

    def unpack(self, parts: Mapping[str, Tensor]) -> QuantizedWeight:
        """The matrix of some tensors."""
        codes = _unpack_columns(parts["qweight"], 4, AWQ_ORDER)
        zeros = _unpack_columns(parts["qzeros"], 4, AWQ_ORDER)
        return _four_bits(codes.T, parts["scales"], zeros.T, self.group_size)


@dataclass(frozen=True)
class GptqLayout:
    """AutoGPTQ's layout, with groups in order.

    Attributes:
        zero_offset: What was taken off the zero points when they were packed.
    """

    bits: Bits
    group_size: int | None
    zero_offset: int

    def tensors(self, rows: int, columns: int) -> dict[str, Entry]:
        """Suffixes, types and shapes of what stands for a matrix `[rows, columns]`."""
        groups, a_word = columns // (self.group_size or columns), 32 // self.bits
        return {
            "qweight": (INTEGERS, (columns // a_word, rows)),
            "qzeros": (INTEGERS, (groups, rows // a_word)),
            "scales": (FLOATS, (groups, rows)),
            "g_idx": (INTEGERS, (columns,)),
        }

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a matrix of this shape cannot be stored so, or None."""
        a_word = 32 // self.bits
        return _misfit(rows % a_word + columns % a_word, columns, self.group_size)

    def unpack(self, parts: Mapping[str, Tensor]) -> QuantizedWeight:
        """The matrix of some tensors.

        Raises:
            CheckpointError: Groups are not in order, or 8 bits are not symmetric.
        """
        codes = _unpack_columns(parts["qweight"].T.contiguous(), self.bits)  # [N, K]
        zeros = _unpack_columns(parts["qzeros"], self.bits).T + self.zero_offset
        columns = codes.shape[1]
        if "g_idx" in parts:
            in_order = torch.arange(columns, dtype=torch.int32) // (self.group_size or columns)
            if not torch.equal(parts["g_idx"].cpu(), in_order):
                raise CheckpointError("its groups are out of order (desc_act), which is not supported")
        if self.bits == 4:
            return _four_bits(codes, parts["scales"], zeros & 15, self.group_size)
        if not bool((zeros == 128).all()):
            raise CheckpointError("8 bits with zero points (sym: false) are not supported")
        # A code of -128 stands for a weight at the very edge, half a step beyond -127.
        signed = (codes - 128).clamp(min=-127).to(torch.int8)
        return QuantizedWeight(signed, _scales(parts["scales"]), None, 8, self.group_size or columns)


def awq_layout(raw: Mapping[str, Any], where: str) -> AwqLayout:
    """Reads AutoAWQ's `quantization_config`.

    Raises:
        CheckpointError: Another version, or other than 4 bits.
    """
    version, bits = str(raw.get("version", "gemm")).lower(), raw.get("bits", raw.get("w_bit", 4))
    if version != "gemm":
        raise CheckpointError(f"{where}: AWQ weights of version {version!r} are not supported; gemm is")
    if bits != 4:
        raise CheckpointError(f"{where}: AWQ weights with {bits} bits are not supported; 4 bits are")
    return AwqLayout(_group_size(raw.get("group_size", raw.get("q_group_size", 128)), where))


def gptq_layout(raw: Mapping[str, Any], where: str) -> GptqLayout:
    """Reads AutoGPTQ's `quantization_config`.

    Raises:
        CheckpointError: Another format, or other than 4 and 8 bits.
    """
    kind, bits = str(raw.get("checkpoint_format", "gptq")).lower(), raw.get("bits", 4)
    if kind not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"{where}: GPTQ weights in the format {kind!r} are not supported; gptq and gptq_v2 are")
    if bits not in (4, 8):
        raise CheckpointError(f"{where}: GPTQ weights with {bits} bits are not supported; 4 and 8 bits are")
    return GptqLayout(bits, _group_size(raw.get("group_size", 128), where), int(kind == "gptq"))


def _group_size(value: Any, where: str) -> int | None:
    if value in (-1, None):
        return None
    if not isinstance(value, int) or value < 2 or value % 2:
        raise CheckpointError(f"{where}: group_size must be an even number or -1, not {value!r}")
    return value


def _misfit(beyond_words: int, columns: int, group_size: int | None) -> str | None:
    if beyond_words:
        return "does not fill whole words of 32 bits"
    if columns % (group_size or columns):
        return f"has {columns} columns, which groups of {group_size} do not divide"
    return None


def _unpack_columns(words: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """int32 `[A, B]` -> int32 `[A, B * 32 / bits]`; `order` says which column each place of a word holds, from the
    lowest bits up."""
    count = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    if order is not None:
        shifts = shifts[torch.tensor(order).argsort()]
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).reshape(len(words), words.shape[1] * count)


def _four_bits(codes: Tensor, scales: Tensor, zeros: Tensor, group_size: int | None) -> QuantizedWeight:
    """From codes `[N, K]`, scales `[groups, N]` and zeros `[N, groups]`."""
    pairs = codes.to(torch.uint8).unflatten(1, (-1, 2))
    stored = None if bool((zeros == 8).all()) else zeros.to(torch.uint8).contiguous()
    packed = (pairs[..., 0] | pairs[..., 1] << 4).contiguous()
    return QuantizedWeight(packed, _scales(scales), stored, 4, group_size or codes.shape[1])


def _scales(scales: Tensor) -> Tensor:
    stored = scales if scales.dtype == torch.float16 else scales.float()
    return stored.T.contiguous()
