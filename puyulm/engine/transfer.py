"""From the host to a device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16  # bytes: kernels read the beginning of a tensor in vectors


def upload(arrays: Sequence[NDArray], device: torch.device) -> list[Tensor]:
    """Copies arrays to a device. On CUDA all of them go in one copy that nobody waits for."""
    if device.type != "cuda":
        return [torch.from_numpy(array).to(device) for array in arrays]
    # PyTorch gives pinned memory to nobody else before the copy is done.
    packed, places = pack(arrays, pin=True)
    on_device = packed.to(device, non_blocking=True)
    return unpack(on_device, arrays, places)


def pack(arrays: Sequence[NDArray], *, pin: bool) -> tuple[Tensor, list[int]]:
    """Arrays one after another in new memory of the host, as bytes, and where each begins."""
    places, end = [], 0
    for array in arrays:
        places.append(end)
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=pin)
    memory = packed.numpy()
    for array, place in zip(arrays, places, strict=True):
        memory[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed, places


def unpack(packed: Tensor, arrays: Sequence[NDArray], places: Sequence[int]) -> list[Tensor]:
    """Views of what `pack` made, wherever it lies, in the shapes and types of the arrays."""
    return [
        packed[place : place + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for array, place in zip(arrays, places, strict=True)
    ]
