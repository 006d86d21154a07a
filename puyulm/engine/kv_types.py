"""Keys and values in fewer bits: a scale, and for whole numbers an offset, for each head and token.

"int8" and "int4", asymmetric, with 255 or 15 steps between the least and the greatest value of a head's vector x:

    scale = (max(x) - min(x)) / steps        code = round((x - min(x)) / scale)        x ~ min(x) + scale * code

so that no value is off by more than half a scale. "fp8" (float8_e4m3fn: three bits after the leading one):

    scale = max(|x|) / 448        code = fp8(x / scale)        x ~ scale * code

so that no value is off by more than 1/16 of itself, or 2^-10 of a scale where it is smallest.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KVType = Literal["model", "int8", "int4", "fp8"]

FP8 = torch.float8_e4m3fn
_STEPS = {"int8": 255, "int4": 15}


def code_bytes(head_dim: int, kv_type: KVType) -> int:
    """Bytes of the codes of a head's vector. Two codes of 4 bits share a byte, in a multiple of 16 bytes."""
    return -(-head_dim // 32) * 16 if kv_type == "int4" else head_dim


def num_scales(kv_type: KVType) -> int:
    """Numbers, in float32, beside the codes of a head's vector: scale and offset, or the scale alone."""
    return {"model": 0, "fp8": 1}.get(kv_type, 2)


def encode(x: Tensor, kv_type: KVType) -> tuple[Tensor, Tensor]:
    """`[..., D]` -> codes, uint8, `[..., code_bytes]`, and scales, float32, `[..., num_scales]`."""
    x = x.float()
    if kv_type == "fp8":
        scale = x.abs().amax(-1, keepdim=True) / torch.finfo(FP8).max
        return (x / _divisor(scale)).to(FP8).view(torch.uint8), scale
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / _STEPS[kv_type]
    codes = ((x - low) / _divisor(scale)).round().clamp(0, _STEPS[kv_type]).to(torch.uint8)
    if kv_type == "int4":
        width = code_bytes(x.shape[-1], kv_type)
        codes = torch.nn.functional.pad(codes, (0, 2 * width - x.shape[-1]))
        codes = codes[..., :width] | codes[..., width:] << 4
    return codes, torch.cat((scale, low), dim=-1)


def decode(codes: Tensor, scales: Tensor, head_dim: int, kv_type: KVType) -> Tensor:
    """What `encode` made, as float32 `[..., D]`."""
    if kv_type == "fp8":
        return codes.view(FP8).float() * scales
    if kv_type == "int4":
        codes = torch.cat((codes & 15, codes >> 4), dim=-1)[..., :head_dim]
    return codes * scales[..., :1] + scales[..., 1:]


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)  # a vector of one value has no steps
