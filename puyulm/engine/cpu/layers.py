"""All layers of a packed decoder in one call of C, see `layers.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from puyulm.engine.cpu import attention, block, dense, native, quantised
from puyulm.engine.cpu.attention import NativeAttention
from puyulm.engine.cpu.block import CpuBlock
from puyulm.engine.cpu.dense import DenseLinear
from puyulm.engine.cpu.quantised import NativeKernel, QuantLinear
from puyulm.engine.paged import KVCache
from puyulm.model.attention import Attention
from puyulm.model.decoder import Decoder, run_layers
from puyulm.model.rope import RopeTables

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
_LINEARS = (("attention", "qkv"), ("attention", "out"), ("mlp", "gate_up"), ("mlp", "down"))


class _Kernels(ctypes.Structure):
    _fields_ = tuple((name, _POINTER) for name in ("dense", "quant", "norm", "rotate", "swiglu", "attention"))


class _Shape(ctypes.Structure):
    _fields_ = tuple(
        (name, _LONG) for name in ("layers", "hidden", "groups", "queries", "head", "intermediate", "mlp_block")
    )


class _Linear(ctypes.Structure):
    _fields_ = (
        ("weight", _POINTER), ("bias", _POINTER), ("columns", _LONG), ("outputs", _LONG), ("quantised", _INT),
        ("half", _INT),
    )  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", _POINTER), ("mlp_norm", _POINTER), ("attention_eps", ctypes.c_float),
        ("mlp_eps", ctypes.c_float), ("qkv", _Linear), ("out", _Linear), ("gate_up", _Linear), ("down", _Linear),
        ("keys", _POINTER), ("values", _POINTER), ("key_scales", _POINTER), ("value_scales", _POINTER),
    )  # fmt: skip


class FusedLayers:
    """Stands for the loop over a decoder's layers (`puyulm.model.decoder.run_layers`), with the same bits.

    Steps that it does not know go through that loop: another attention object, and layers whose linear layers were
    replaced since (by adapters, say).
    """

    def __init__(self, decoder: Decoder) -> None:
        self._layers = decoder.layers
        self._linears = [_linears_of(layer) for layer in decoder.layers]
        first: Any = decoder.layers[0]
        config = decoder.config
        self._shape = _Shape(
            len(decoder.layers), config.hidden_size, first.attention.qkv.out_features // _group_size(first),
            first.attention.q_per_kv, first.attention.head_dim, first.mlp.gate_up.out_features // 2, first.mlp.block,
        )  # fmt: skip
        self._kernels = _kernels()
        self._run = _library().layers_run
        self._cache: KVCache | None = None
        self._table: Any = None

    def __call__(self, layers: nn.ModuleList, x: Tensor, rope: RopeTables, mixing: Attention) -> Tensor:
        """`[T, H]` -> `[T, H]`."""
        if not self._knows(x, rope, mixing):
            return run_layers(layers, x, rope, mixing)
        assert isinstance(mixing, NativeAttention)
        if mixing.cache is not self._cache:
            self._cache, self._table = mixing.cache, self._layer_table(mixing.cache)
        failed = self._run(
            self._kernels, self._shape, self._table, mixing.step_pointer, rope.cos.data_ptr(), rope.sin.data_ptr(),
            x.data_ptr(), x.shape[0], torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for the activations of {x.shape[0]} tokens")
        return x

    def _knows(self, x: Tensor, rope: RopeTables, mixing: Attention) -> bool:
        plain = all(part.dtype == torch.float32 and part.is_contiguous() for part in (x, rope.cos, rope.sin))
        if type(mixing) is not NativeAttention or not plain or x.shape[0] == 0:
            return False
        # Without nn.Module's attribute access, which would take as long as what is spared.
        now = ([layer._modules[part]._modules[name] for part, name in _LINEARS] for layer in self._layers)  # type: ignore[union-attr]
        return all(own is known for row, known_row in zip(now, self._linears, strict=True)
                   for own, known in zip(row, known_row, strict=True))  # fmt: skip

    def _layer_table(self, cache: KVCache) -> Any:
        rows = []
        for layer, linears, stores in zip(self._layers, self._linears, cache.pointers, strict=True):
            norms: Any = (layer.attention_norm, layer.mlp_norm)
            rows.append(_Layer(
                *(norm.weight.data_ptr() for norm in norms), *(norm.eps for norm in norms),
                *(_linear(linear) for linear in linears), *stores,
            ))  # fmt: skip
        return (_Layer * len(rows))(*rows)


def fuse_layers(decoder: Decoder) -> None:
    """Lets a packed decoder run its layers in one call, where all of them are of the kinds that C knows."""
    known = all(type(layer) is CpuBlock and all(map(_is_native, _linears_of(layer))) for layer in decoder.layers)
    if known and len(decoder.layers) and native.load("layers") is not None and attention.library() is not None:
        decoder.run_layers = FusedLayers(decoder)


def _linears_of(layer: nn.Module) -> Sequence[nn.Module]:
    return [layer.get_submodule(f"{part}.{name}") for part, name in _LINEARS]


def _is_native(linear: nn.Module) -> bool:
    return type(linear) is DenseLinear or (type(linear) is QuantLinear and type(linear._kernel) is NativeKernel)


def _linear(linear: nn.Module) -> _Linear:
    if isinstance(linear, QuantLinear):
        assert isinstance(linear._kernel, NativeKernel)
        return _Linear(linear._kernel.address, None, linear.in_features, linear.out_features, 1, 0)
    assert isinstance(linear, DenseLinear)
    weight, half, bias = linear.weight_arguments
    return _Linear(weight, bias, linear.in_features, linear.out_features, 0, half)


def _group_size(layer: Any) -> int:
    return (layer.attention.q_per_kv + 2) * layer.attention.head_dim


def _kernels() -> _Kernels:
    libraries: list[Any] = [dense._library(), quantised._library(), *[block._library()] * 3, attention.library()]
    names = (
        "dense_linear",
        "quantised_multiply",
        "block_rms_norm",
        "block_rotate_qkv",
        "block_swiglu",
        "paged_attention",
    )
    addresses = (
        None if library is None else ctypes.cast(getattr(library, name), _POINTER).value
        for library, name in zip(libraries, names, strict=True)
    )
    return _Kernels(*addresses)


def _library() -> ctypes.CDLL:
    library = native.load("layers")
    assert library is not None
    library.layers_run.argtypes = (
        ctypes.POINTER(_Kernels), ctypes.POINTER(_Shape), _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG,
        ctypes.c_int,
    )  # fmt: skip
    library.layers_run.restype = ctypes.c_int
    return library
