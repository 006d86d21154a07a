"""Reads quantised checkpoint folders: our own, and those that AutoAWQ and AutoGPTQ publish.

Names, types and shapes are compared with what `config.json` asks for before the first weight is read; then one
published matrix at a time is read, unpacked and put into its place.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from puyulm.engine.quant.linear import Activations, AnyWeight, set_linear
from puyulm.engine.quant.published import Entry, awq_layout, gptq_layout
from puyulm.engine.quant.scheme import (
    QUANT_METHOD,
    base_name,
    head_slots,
    is_layer_matrix,
    part_slot,
    scheme_from_json,
)
from puyulm.engine.quant.tensor import QuantizedWeight
from puyulm.errors import CheckpointError
from puyulm.model.checkpoint import default_dtype, empty_decoder, load_config, quantization_config
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.layouts import Slot
from puyulm.model.shards import Scratch, bin_tensors, stored_tensors, weight_files
from puyulm.progress import Progress


class Layout(Protocol):
    """How one published matrix is stored in a folder."""

    def tensors(self, rows: int, columns: int) -> dict[str, Entry]: ...

    def misfit(self, rows: int, columns: int) -> str | None: ...

    def unpack(self, parts: Mapping[str, Tensor]) -> AnyWeight: ...


@dataclass(frozen=True)
class _Stored:
    """A tensor in a folder. `read` gives it in memory that the next read may overwrite."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class _Piece:
    """What stands for one published tensor: itself, or with a layout the tensors of a matrix, by suffix."""

    name: str
    slot: Slot
    layout: Layout | None
    stored: Mapping[str, _Stored]

    def float(self) -> Tensor:
        return self.stored[""].read()

    def matrix(self) -> AnyWeight:
        assert self.layout is not None
        try:
            return self.layout.unpack({suffix: stored.read().clone() for suffix, stored in self.stored.items()})
        except CheckpointError as error:
            raise CheckpointError(f"{next(iter(self.stored.values())).file}: {base_name(self.name)}: {error}") from None


def is_quantized(path: Path) -> bool:
    """Whether a checkpoint folder's `config.json` says that its weights are quantised. A GGUF file is not asked.

    Raises:
        ConfigError, CheckpointError: `config.json` is missing or damaged.
    """
    return quantization_config(path) is not None


@torch.no_grad()
def load_quantized(path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """Loads a quantised checkpoint folder, in evaluation mode, with plain layers (see `pack_quantized`).

    Peak memory is the quantised weights plus the largest published matrix, unpacked.

    Args:
        dtype: Of everything that is not quantised, and so of the activations; None takes `default_dtype`.

    Raises:
        ConfigError, CheckpointError: One line with the tensor and the file that do not fit.
    """
    config = load_config(path)
    raw = quantization_config(path)
    if raw is None:
        raise CheckpointError(f"{path}: config.json has no quantization_config; its weights are not quantised")
    layout, activations = _layouts(raw, f"{path / 'config.json'}")
    pieces = _plan(config, _stored(path), layout, path)
    decoder = empty_decoder(config, dtype or default_dtype(config, device), "meta")
    decoder.requires_grad_(False)
    total = sum(len(parts) for parts in pieces.values())
    with Progress(f"loading {path.name}", total=total, unit="tensor") as progress:
        # Matrices last: a layer is replaced with the bias that it has by then.
        for parameter, parts in sorted(pieces.items(), key=lambda item: item[1][0].layout is not None):
            if parts[0].layout is None:
                _set_float(decoder, parameter, parts, device)
            else:
                name = base_name(parameter)
                set_linear(decoder, name, _moved(_fused(decoder, parameter, parts), device), activations)
            progress.advance(len(parts))
    if "head.weight" not in pieces:
        decoder.head.weight = decoder.embed.weight
    return decoder.eval()


def _layouts(raw: Mapping[str, Any], where: str) -> tuple[Callable[[str], Layout | None], Activations]:
    """Gives a parameter's layout, or None where it is always stored as it is; and the kind of activations."""
    method = raw.get("quant_method")
    if method == QUANT_METHOD:
        scheme = scheme_from_json(raw, where)
        return scheme.of, scheme.activations
    if method not in ("awq", "gptq"):
        known = ", ".join((QUANT_METHOD, "awq", "gptq"))
        raise CheckpointError(f"{where}: weights quantised by {method!r} are not supported; supported are {known}")
    layout = awq_layout(raw, where) if method == "awq" else gptq_layout(raw, where)
    return lambda parameter: layout if is_layer_matrix(parameter) or parameter == "head.weight" else None, None


def _stored(folder: Path) -> dict[str, _Stored]:
    stored: dict[str, _Stored] = {}
    scratch = Scratch()
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            found = {
                name: _Stored(file, tensor.dtype, tensor.shape, functools.partial(tensor.read, scratch))
                for name, tensor in stored_tensors(file).items()
            }
        else:
            found = {
                name: _Stored(file, tensor.dtype, tuple(tensor.shape), functools.partial(tensor.contiguous))
                for name, tensor in bin_tensors(file)
            }
        for name in found:
            if name in stored:
                raise CheckpointError(f"{file}: tensor {name} is also in {stored[name].file.name}")
        stored |= found
    return stored


def _plan(
    config: ModelConfig, stored: Mapping[str, _Stored], layout_of: Callable[[str], Layout | None], folder: Path
) -> dict[str, list[_Piece]]:
    """What each of our parameters is made of, compared with what is stored."""
    pieces: dict[str, list[_Piece]] = {}
    missing: list[str] = []
    for name, slot in head_slots(config).items():
        # Some matrices may have been left as they are; a tied head may have been left out.
        layout = None if name in stored else layout_of(slot.parameter)
        wanted = {"": name} if layout is None else _wanted(name, slot, layout, stored, folder)
        if slot.parameter == "head.weight" and config.tie_embeddings and not any(n in stored for n in wanted.values()):
            continue
        missing += [full for full in wanted.values() if full not in stored]
        parts = {suffix: stored[full] for suffix, full in wanted.items() if full in stored}
        pieces.setdefault(slot.parameter, []).append(_Piece(name, slot, layout, parts))
    _require_all(pieces, missing, stored, folder)
    for parts_of in pieces.values():
        kinds = {part.layout is None for part in parts_of}
        if len(kinds) > 1:
            names = ", ".join(base_name(part.name) for part in parts_of)
            raise CheckpointError(f"{folder}: of {names} some are quantised and some are not, which is not supported")
        for part in parts_of:
            _require_fits(part)
    return pieces


def _wanted(name: str, slot: Slot, layout: Layout, stored: Mapping[str, _Stored], folder: Path) -> dict[str, str]:
    """Suffix -> name of the tensors that stand for a matrix."""
    misfit = layout.misfit(*slot.shape)
    if misfit is not None:
        raise CheckpointError(f"{folder}: {name} {list(slot.shape)} {misfit}")
    names = {suffix: f"{base_name(name)}.{suffix}" for suffix in layout.tensors(*slot.shape)}
    return {suffix: full for suffix, full in names.items() if suffix != "g_idx" or full in stored}


def _require_all(
    pieces: Mapping[str, list[_Piece]], missing: list[str], stored: Mapping[str, _Stored], folder: Path
) -> None:
    used = {
        f"{base_name(part.name)}.{suffix}" if suffix else part.name
        for parts in pieces.values()
        for part in parts
        for suffix in part.stored
    }
    unexpected = [name for name in stored if name not in used and not _redundant(name, stored[name])]
    if missing:
        near = difflib.get_close_matches(missing[0], unexpected, n=1)
        hint = f" (there is {near[0]})" if near else ""
        raise CheckpointError(f"{folder}: {_named(missing)} missing{hint}")
    if unexpected:
        raise CheckpointError(f"{stored[unexpected[0]].file}: {_named(unexpected)} unexpected")


def _require_fits(part: _Piece) -> None:
    entries: Mapping[str, Entry] = {"": (tuple(stored.dtype for stored in part.stored.values()), part.slot.shape)}
    if part.layout is not None:
        entries = part.layout.tensors(*part.slot.shape)
    for suffix, stored in part.stored.items():
        types, shape = entries[suffix]
        name = f"{base_name(part.name)}.{suffix}" if suffix else part.name
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: {name} has shape {list(stored.shape)}, config.json asks for {list(shape)}"
            )
        if stored.dtype not in types or (not suffix and not stored.dtype.is_floating_point):
            raise CheckpointError(f"{stored.file}: {name} holds {_dtype_name(stored.dtype)}, which does not fit")


def _redundant(name: str, stored: _Stored) -> bool:
    """Tensors that published files hold and nobody needs: rotary frequencies, biases of zeros."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    return name.endswith(".bias") and stored.dtype.is_floating_point and not bool(stored.read().any())


def _set_float(decoder: Decoder, parameter: str, parts: list[_Piece], device: torch.device | str) -> None:
    owner, _, last = parameter.rpartition(".")
    module = decoder.get_submodule(owner)
    empty = getattr(module, last)
    value = torch.empty(empty.shape, dtype=empty.dtype)
    for part in parts:
        part.slot.store(value, part.float())
    setattr(module, last, nn.Parameter(value.to(device), requires_grad=False))


def _fused(decoder: Decoder, parameter: str, parts: list[_Piece]) -> AnyWeight:
    """Our matrix, from the published ones that are its rows."""
    first = parts[0].matrix()
    if len(parts) == 1 and parts[0].slot.view is None:
        return first
    rows = decoder.get_parameter(parameter).shape[0]
    fused = {name: tensor.new_empty(rows, tensor.shape[1]) for name, tensor in _tensors(first).items()}
    for index, part in enumerate(parts):
        for name, tensor in _tensors(part.matrix() if index else first).items():
            part_slot(part.slot, tensor.shape[1]).store(fused[name], tensor)
    if not isinstance(first, QuantizedWeight):
        return type(first)(**fused)
    zeros = fused.get("zeros")
    zeros = None if zeros is None or bool((zeros == 8).all()) else zeros
    return QuantizedWeight(fused["codes"], fused["scales"], zeros, first.bits, first.group_size)


def _tensors(weight: AnyWeight) -> dict[str, Tensor]:
    """By name; zeros of 4 bits are always among them."""
    tensors = {"codes": weight.codes, "scales": weight.scales}
    if isinstance(weight, QuantizedWeight) and weight.bits == 4:
        eight = torch.full_like(weight.scales, 8, dtype=torch.uint8)
        tensors["zeros"] = eight if weight.zeros is None else weight.zeros
    return tensors


def _moved(weight: AnyWeight, device: torch.device | str) -> AnyWeight:
    if not isinstance(weight, QuantizedWeight):
        return type(weight)(weight.codes.to(device), weight.scales.to(device))
    zeros = None if weight.zeros is None else weight.zeros.to(device)
    codes, scales = weight.codes.to(device), weight.scales.to(device)
    return QuantizedWeight(codes, scales, zeros, weight.bits, weight.group_size)


def _named(names: list[str]) -> str:
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(names[:3])}{more})"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
