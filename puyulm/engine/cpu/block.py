"""A decoder's layer for inference in float32: what is between the matrix products is one pass over memory each."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from puyulm.engine.cpu import native
from puyulm.model.decoder import Block, RMSNorm
from puyulm.model.rope import RopeTables


def available() -> bool:
    """Whether this machine can compile the kernels."""
    return native.load("block") is not None


class CpuRMSNorm(nn.Module):
    """An `RMSNorm` whose weight is kept in float32 and passes no gradients."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.eps, self.weight = norm.eps, norm.weight.detach().float()
        self._norm = _library().block_rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """`[T, H]` -> `[T, H]`."""
        x = _rows(x)
        out = torch.empty_like(x)
        rows, size = x.shape
        if size != self.weight.numel():
            raise ValueError(f"rows of {size} numbers, a norm of {self.weight.numel()}")
        self._norm(
            x.data_ptr(), self.weight.data_ptr(), self.eps, out.data_ptr(), rows, size, torch.get_num_threads()
        )  # fmt: skip
        return out


class CpuBlock(Block):
    """A `Block` for inference, made of the parts of another.

    Its linear layers must offer, beside `forward`, `add_to(residual, x)`, which adds the product to `[T, N]` in place:
    `DenseLinear`, `QuantLinear` and `PackedLinear` do. Every row is computed for itself, in one order of operations.
    """

    def __init__(self, block: Block) -> None:
        nn.Module.__init__(self)
        self.attention, self.mlp = block.attention, block.mlp
        self.attention_norm = CpuRMSNorm(block.attention_norm)  # type: ignore[assignment]
        self.mlp_norm = CpuRMSNorm(block.mlp_norm)  # type: ignore[assignment]
        library = _library()
        self._rotate, self._swiglu = library.block_rotate_qkv, library.block_swiglu

    def before(self, x: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
        """`[T, H]` -> rotated queries `[T, KV, q_per_kv, D]`, rotated keys and values `[T, KV, D]`, each contiguous."""
        return self.rotate_qkv(self.attention.qkv(self.attention_norm(x)), rope)

    def behind(self, x: Tensor, mixed: Tensor) -> Tensor:
        """`[T, H]` and the mixed values -> the layer's `[T, H]`, in the memory of x."""
        x = self.attention.out.add_to(x, mixed.flatten(1))  # type: ignore[operator]
        return self.mlp.down.add_to(x, self.swiglu(self.mlp.gate_up(self.mlp_norm(x))))  # type: ignore[operator]

    def rotate_qkv(self, qkv: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
        """As `puyulm.model.kernels.rotate_qkv`, of `[T, KV * (q_per_kv + 2) * D]`."""
        size, queries = self.attention.head_dim, self.attention.q_per_kv
        rows, groups = qkv.shape[0], qkv.shape[1] // (size * (queries + 2))
        q, k = torch.empty(rows, groups, queries, size), torch.empty(rows, groups, size)
        v = torch.empty_like(k)
        qkv, cos, sin = _rows(qkv), _rows(rope.cos), _rows(rope.sin)
        if cos.shape != (rows, size) or sin.shape != (rows, size):
            raise ValueError(f"tables of {list(cos.shape)} for {rows} rows of heads of {size}")
        self._rotate(
            qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr(),
            rows, groups, queries, size, torch.get_num_threads(),
        )  # fmt: skip
        return q, k, v

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """As `puyulm.model.kernels.swiglu`: `[T, 2 I]` -> `[T, I]`."""
        gate_up, block = _rows(gate_up), self.mlp.block
        rows, size = gate_up.shape
        out = torch.empty(rows, size // 2)
        self._swiglu(
            gate_up.data_ptr(), out.data_ptr(), rows, size // (2 * block), block, torch.get_num_threads()
        )  # fmt: skip
        return out


def _rows(x: Tensor) -> Tensor:
    """What a kernel can read: float32 without gaps."""
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.float().contiguous()


def _library() -> ctypes.CDLL:
    library = native.load("block")
    if library is None:
        raise RuntimeError("there is no C compiler on this machine: use puyulm.model.decoder.Block")
    if library.block_rms_norm.argtypes is None:
        declare(library)
    return library


def declare(library: ctypes.CDLL) -> None:
    """Tells ctypes the functions' arguments."""
    pointer, long, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.block_rms_norm.argtypes = (pointer, pointer, ctypes.c_float, pointer, long, long, integer)
    library.block_rotate_qkv.argtypes = (*[pointer] * 6, *[long] * 4, integer)
    library.block_swiglu.argtypes = (pointer, pointer, long, long, long, integer)
    library.block_exponential.argtypes = (pointer, pointer, long)
    for function in (
        library.block_rms_norm, library.block_rotate_qkv, library.block_swiglu, library.block_exponential
    ):  # fmt: skip
        function.restype = None
