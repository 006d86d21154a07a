"""Linear layers in float32 whose weights lie in the order in which `dense.c` reads them.

Every output is computed in one order of operations, so a row of the result depends on no other row, on no number of
rows and on no number of threads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from puyulm.engine.cpu import native

PANEL = 16
"""Outputs whose weights lie together."""


def available() -> bool:
    """Whether this machine can compile the kernels."""
    return native.load("dense") is not None


class DenseLinear(nn.Module):
    """An `nn.Linear` for inference on float32 rows, with weights in float32 or bfloat16.

    Weights in bfloat16 are half the bytes to read, and give the bits that the same values in float32 give.
    It has no parameters and passes no gradients. Needs a C compiler, see `available`.
    """

    def __init__(self, linear: nn.Linear, weights: torch.dtype | None = None) -> None:
        """Copies the weight.

        Args:
            linear: On the CPU.
            weights: torch.float32 or torch.bfloat16, in which to keep them; None: the linear's own.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.panels = panels_of(weight.to(weights or weight.dtype))
        self._bias = None if linear.bias is None else linear.bias.detach().float().contiguous()
        self._multiply = _library().dense_linear
        bias = None if self._bias is None else self._bias.data_ptr()
        self.weight_arguments = (self.panels.data_ptr(), self.panels.dtype == torch.bfloat16, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., K]` -> `[..., N]`."""
        out = torch.empty(*x.shape[:-1], self.out_features)
        self._run(x if x.dim() == 2 else x.reshape(-1, self.in_features), out, False)
        return out

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds the product of x, `[T, K]`, to the residual stream, `[T, N]`, in place, and returns it."""
        if residual.dtype != torch.float32 or not residual.is_contiguous():
            return residual.add_(self(x))
        self._run(x, residual, True)
        return residual

    def _run(self, x: Tensor, out: Tensor, add: bool) -> None:
        if x.dtype != torch.float32 or not x.is_contiguous():
            x = x.float().contiguous()
        rows, columns = x.shape
        if columns != self.in_features or out.numel() != rows * self.out_features:
            raise ValueError(f"a layer of {self.in_features} to {self.out_features}, not {columns} to {out.shape[-1]}")
        self._multiply(
            x.data_ptr(), *self.weight_arguments, out.data_ptr(), rows, columns, self.out_features, add,
            torch.get_num_threads(),
        )  # fmt: skip

    def extra_repr(self) -> str:
        kept = str(self.panels.dtype).removeprefix("torch.")
        return f"in_features={self.in_features}, out_features={self.out_features}, weights={kept}"


class PanelEmbedding(nn.Module):
    """An embedding tied to a head: looks its rows up in the head's panels.

    Attributes:
        weight: Empty; its type and device are those of the activations.
    """

    def __init__(self, head: DenseLinear) -> None:
        super().__init__()
        self.weight = torch.empty(0, head.in_features)
        self._vocab_size, self._panels = head.out_features, head.panels
        self._look_up = _library().dense_rows

    def forward(self, tokens: Tensor) -> Tensor:
        """`[...]` ids -> `[..., H]`.

        Raises:
            IndexError: An id is not in the vocabulary.
        """
        ids = tokens.long().contiguous()
        out = torch.empty(*ids.shape, self.weight.shape[1])
        wrong = self._look_up(
            ids.data_ptr(), self._panels.data_ptr(), self._panels.dtype == torch.bfloat16, out.data_ptr(), ids.numel(),
            out.shape[-1], self._vocab_size, torch.get_num_threads(),
        )  # fmt: skip
        if wrong >= 0:
            raise IndexError(f"token id {int(ids.flatten()[wrong])} is not in the vocabulary of {self._vocab_size}")
        return out


class WideEmbedding(nn.Module):
    """An embedding kept in half precision that gives float32.

    Attributes:
        weight: Empty; its type and device are those of the activations.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = torch.empty(0, embedding.embedding_dim)
        self._rows = embedding.weight.detach()

    def forward(self, tokens: Tensor) -> Tensor:
        """`[...]` ids -> `[..., H]`."""
        return nn.functional.embedding(tokens, self._rows).float()


def panels_of(weight: Tensor) -> Tensor:
    """`[N, K]` -> `[ceil(N / 16), K, 16]`, filled up with zeros."""
    outputs, inputs = weight.shape
    whole = outputs // PANEL
    panels = weight.new_zeros(-(-outputs // PANEL), inputs, PANEL)
    panels[:whole].copy_(weight[: whole * PANEL].unflatten(0, (whole, PANEL)).transpose(1, 2))
    if outputs % PANEL:
        panels[whole, :, : outputs % PANEL] = weight[whole * PANEL :].T
    return panels


def _library() -> ctypes.CDLL:
    library = native.load("dense")
    if library is None:
        raise RuntimeError("there is no C compiler on this machine: use puyulm.engine.cpu.onednn.PackedLinear")
    if library.dense_linear.argtypes is None:
        declare(library)
    return library


def declare(library: ctypes.CDLL) -> None:
    """Tells ctypes the functions' arguments."""
    pointer, long, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    sizes = (long, long, long)
    library.dense_linear.argtypes = (pointer, pointer, integer, pointer, pointer, *sizes, integer, integer)
    library.dense_linear.restype = None
    library.dense_rows.argtypes = (pointer, pointer, integer, pointer, *sizes, integer)
    library.dense_rows.restype = long
