"""Arrays that travel together come apart again as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from puyulm.engine.transfer import ALIGNMENT, pack, unpack, upload

ARRAYS = [
    np.arange(7, dtype=np.int64), np.float32([[1.5, -2], [3, 4]]).T, np.array([True, False, True]), np.zeros((0, 3)),
    np.arange(12, dtype=np.int32).reshape(3, 4)[:, :3], np.float64([0.1]),
]  # fmt: skip


def test_packed_arrays_come_apart() -> None:
    packed, places = pack(ARRAYS, pin=False)
    assert all(place % ALIGNMENT == 0 for place in places)
    for array, tensor in zip(ARRAYS, unpack(packed, ARRAYS, places), strict=True):
        assert np.array_equal(tensor.numpy(), array) and tensor.numpy().dtype == array.dtype


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_uploaded_arrays_are_the_same(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for array, tensor in zip(ARRAYS, upload(ARRAYS, torch.device(device)), strict=True):
        assert tensor.device.type == device
        assert np.array_equal(tensor.cpu().numpy(), array)
