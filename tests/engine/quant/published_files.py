"""Packs matrices as AutoAWQ and AutoGPTQ do, value by value, and writes checkpoints of such matrices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from puyulm.model.checkpoint import save_model
from puyulm.model.decoder import Decoder

Codes = npt.NDArray[np.int64]
Pack = Callable[[Codes, Codes, Tensor], dict[str, Tensor]]
"""(codes `[N, K]`, zeros `[N, K / g]`, scales `[N, K / g]`) -> tensors by suffix."""


def pack_awq(codes: Codes, zeros: Codes, scales: Tensor) -> dict[str, Tensor]:
    """The "gemm" version."""
    return {"qweight": _awq_words(codes.T), "qzeros": _awq_words(zeros.T), "scales": scales.T.contiguous().half()}


def pack_gptq(codes: Codes, zeros: Codes, scales: Tensor, bits: int = 4, lowered: int = 1) -> dict[str, Tensor]:
    """The first format, whose zeros are one too low."""
    rows, columns = codes.shape
    a_word, groups = 32 // bits, scales.shape[1]
    qweight = np.zeros((columns // a_word, rows), dtype=np.uint32)
    for k in range(columns):
        for n in range(rows):
            qweight[k // a_word, n] |= np.uint32(int(codes[n, k]) << bits * (k % a_word))
    qzeros = np.zeros((groups, rows // a_word), dtype=np.uint32)
    for group in range(groups):
        for n in range(rows):
            zero = (int(zeros[n, group]) - lowered) % (1 << bits)
            qzeros[group, n // a_word] |= np.uint32(zero << bits * (n % a_word))
    order = torch.arange(columns, dtype=torch.int32) // (columns // groups)
    return {
        "qweight": _words(qweight), "qzeros": _words(qzeros), "scales": scales.T.contiguous().half(), "g_idx": order,
    }  # fmt: skip


def _awq_words(values: Codes) -> Tensor:
    """`[A, B]` -> `[A, B / 8]`."""
    packed = np.zeros((values.shape[0], values.shape[1] // 8), dtype=np.uint32)
    for row in range(values.shape[0]):
        for word in range(packed.shape[1]):
            for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                packed[row, word] |= np.uint32(int(values[row, 8 * word + column]) << 4 * place)
    return _words(packed)


def _words(values: npt.NDArray[np.uint32]) -> Tensor:
    return torch.from_numpy(values.view(np.int32).copy())


def published_checkpoint(
    decoder: Decoder, folder: Path, pack: Pack, config: dict[str, object], *, group_size: int = 32, bits: int = 4,
    symmetric: bool = False, seed: int = 0,
) -> Path:  # fmt: skip
    """A checkpoint whose matrices are random codes; the same matrices in float lie in `float` inside the folder."""
    generator = np.random.default_rng(seed)
    save_model(decoder, folder / "float")
    tensors, float_tensors = {}, load_file(folder / "float" / "model.safetensors")
    for name, weight in list(float_tensors.items()):
        if "layers" not in name or weight.dim() == 1:
            tensors[name] = weight.half()
            float_tensors[name] = weight.half().float()
            continue
        rows, columns = weight.shape
        top, groups = 1 << bits, columns // group_size
        codes = generator.integers(0, top, (rows, columns))
        zeros = np.full((rows, groups), top // 2) if symmetric else generator.integers(0, top, (rows, groups))
        scales = torch.from_numpy(generator.uniform(0.01, 0.05, (rows, groups)) * 16 / top).half()
        for suffix, tensor in pack(codes, zeros, scales).items():
            tensors[f"{name.removesuffix('.weight')}.{suffix}"] = tensor
        values = codes - zeros.repeat(group_size, axis=1)
        float_tensors[name] = torch.from_numpy(values).float() * scales.float().repeat_interleave(group_size, dim=1)
    save_file(float_tensors, folder / "float" / "model.safetensors")
    save_file(tensors, folder / "model.safetensors")
    raw = json.loads((folder / "float" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": config}))
    return folder
