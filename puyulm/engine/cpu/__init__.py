"""What makes a decoder fast on CPUs: kernels in C, and what is taken where there is no compiler."""

from puyulm.engine.cpu.block import CpuBlock, CpuRMSNorm
from puyulm.engine.cpu.dense import DenseLinear
from puyulm.engine.cpu.onednn import PackedLinear
from puyulm.engine.cpu.pack import pack_for_inference

__all__ = ["CpuBlock", "CpuRMSNorm", "DenseLinear", "PackedLinear", "pack_for_inference"]
