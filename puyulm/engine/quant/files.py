"""Writes the weight files of a quantised checkpoint, one parameter at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from puyulm.engine.quant.linear import AnyWeight
from puyulm.engine.quant.scheme import Scheme, base_name, part_slot, stored_parts
from puyulm.model.config import ModelConfig
from puyulm.model.layouts import Slot
from puyulm.model.weight_writer import write_json, write_tensors

Header = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def write_quantized_weights(
    config: ModelConfig,
    scheme: Scheme,
    parameters: Iterable[tuple[str, Tensor | AnyWeight]],
    folder: Path,
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    """Writes safetensors files, and an index where there are several.

    Args:
        parameters: Name and value of each, in the order of published files (`LayerwisePass.parameters`).
        dtype: What everything that is not quantised is stored in.
        max_shard_bytes: Of a file, unless a single tensor is larger.

    Raises:
        OSError: A file cannot be written.
    """
    slots = _by_parameter(config, scheme)
    header = stored_header(config, scheme, dtype)
    shards = list(_split(header, max_shard_bytes))
    tensors = _published(parameters, slots, scheme)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shapes = {name: header[name][1] for name in names}
        types = {name: header[name][0] for name in names}
        write_tensors(folder / file, shapes, types, itertools.islice(tensors, len(names)))
        weight_map |= dict.fromkeys(names, file)
    if next(tensors, None) is not None:
        raise ValueError("there are more parameters than places in the files")
    if len(shards) > 1:
        total = sum(_bytes(*entry) for entry in header.values())
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def stored_header(config: ModelConfig, scheme: Scheme, dtype: torch.dtype) -> Header:
    """Name, type and shape of every tensor of a folder, in the order in which they are written."""
    header: Header = {}
    for parameter, slots in _by_parameter(config, scheme).items():
        matrix = scheme.of(parameter)
        for name, slot in slots.items():
            if matrix is None:
                header[name] = (dtype, slot.shape)
                continue
            for suffix, entry in matrix.stored(slot.shape[0], slot.shape[1]).items():
                header[f"{base_name(name)}.{suffix}"] = entry
    return header


def _by_parameter(config: ModelConfig, scheme: Scheme) -> dict[str, dict[str, Slot]]:
    groups: dict[str, dict[str, Slot]] = {}
    for name, parameter, slot in stored_parts(config, scheme):
        groups.setdefault(parameter, {})[name] = slot
    return groups


def _published(
    parameters: Iterable[tuple[str, Tensor | AnyWeight]], slots: Mapping[str, Mapping[str, Slot]], scheme: Scheme
) -> Iterator[tuple[str, Tensor]]:
    for parameter, value in parameters:
        matrix = scheme.of(parameter)
        for name, slot in slots[parameter].items():
            if isinstance(value, Tensor):
                yield name, slot.extract(value)
                continue
            assert matrix is not None
            for suffix, part in matrix.take_apart(value).items():
                yield f"{base_name(name)}.{suffix}", part_slot(slot, part.shape[1]).extract(part)


def _split(header: Header, max_shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, entry in header.items():
        if names and size + _bytes(*entry) > max_shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(*entry)
    yield names


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize
