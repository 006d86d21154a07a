"""Kernels run on a CUDA device, and without one on the host by Triton's interpreter.

The interpreter must be chosen before Triton is imported, so `test_interpreted.py` runs the tests of this folder in a
process of their own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import pytest
import torch

from puyulm.engine.gpu.available import interpreted


@pytest.fixture
def device() -> torch.device:
    if interpreted():
        _scalars_as_indices()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; test_interpreted.py runs it without one")
    return torch.device("cuda")


@functools.cache
def _scalars_as_indices() -> None:
    """Triton up to 3.8 takes int() of arrays of one number, which numpy from 2.4 on refuses."""
    assert importlib.util.find_spec("triton") is not None
    from triton.runtime import interpreter

    original: Any = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
