"""Whether the kernels of this folder can run."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch


@functools.cache
def installed() -> bool:
    """Whether Triton is; PyTorch brings it along with CUDA on Linux."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run on the host, element by element, through Triton's interpreter: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(device: torch.device) -> bool:
    """Whether kernels can run on a device."""
    return installed() and (device.type == "cuda" or interpreted())


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
