"""Weight files of a checkpoint folder, written one parameter at a time.

A safetensors file begins with the names, shapes and places of its tensors, which the configuration tells; the values
follow as they come. So a model that is spread over many processes can be written by one that never holds it whole.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from puyulm.model.config import ModelConfig
from puyulm.model.layouts import Layout, Slot, published_tensors
from puyulm.progress import Progress

_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


def write_weights(
    config: ModelConfig,
    parameters: Iterable[tuple[str, Tensor]],
    folder: Path,
    layout: Layout,
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    """Writes safetensors files, and an index where there are several.

    Args:
        parameters: Name and whole value of each, on any device, in the order of `by_parameter`.
        dtype: What is stored.
        max_shard_bytes: Of a file, unless a single tensor is larger.

    Raises:
        OSError: A file cannot be written.
    """
    groups = by_parameter(config, layout)
    slots = {name: slot for group in groups.values() for name, slot in group.items()}
    shards = list(_split(slots, dtype.itemsize, max_shard_bytes))
    weight_map: dict[str, str] = {}
    with Progress(f"writing {len(slots)} tensors", total=len(slots), unit="tensor") as progress:
        tensors = _published(groups, parameters, progress)
        for number, names in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            shapes = {name: slots[name].shape for name in names}
            write_tensors(folder / file, shapes, dtype, itertools.islice(tensors, len(names)))
            weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(slot_bytes(slot, dtype.itemsize) for slot in slots.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def by_parameter(config: ModelConfig, layout: Layout) -> dict[str, dict[str, Slot]]:
    """The published tensors that each parameter holds; parameters are in the order of the layers."""
    groups: dict[str, dict[str, Slot]] = {}
    for name, slot in published_tensors(config, layout).items():
        groups.setdefault(slot.parameter, {})[name] = slot
    return groups


def write_tensors(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | Mapping[str, torch.dtype],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Writes one safetensors file and flushes it to disk.

    Args:
        shapes: Of all tensors, in the order they are stored.
        dtype: Of all tensors, or of each.
        tensors: The same, in the same order; converted to `dtype`.

    Raises:
        OSError: The file cannot be written.
    """
    dtypes = dict.fromkeys(shapes, dtype) if isinstance(dtype, torch.dtype) else dtype
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtypes[name].itemsize
        header[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of eight bytes, for readers that map the file
    with file.open("wb", buffering=0) as stream:
        _write(stream, struct.pack("<Q", len(text)) + text)
        for (expected, shape), (name, tensor) in zip(shapes.items(), tensors, strict=True):
            if (name, tuple(tensor.shape)) != (expected, shape):
                raise ValueError(f"{name} {list(tensor.shape)} was given where {expected} {list(shape)} belongs")
            values = tensor.to("cpu", dtypes[name]).contiguous().view(-1).view(torch.uint8).numpy()
            _write(stream, memoryview(values))  # type: ignore[arg-type]
        os.fsync(stream.fileno())


def write_json(file: Path, content: object) -> None:
    """Writes JSON for people."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def slot_bytes(slot: Slot, itemsize: int) -> int:
    """Bytes of a published tensor."""
    return math.prod(slot.shape) * itemsize


def _published(
    groups: Mapping[str, Mapping[str, Slot]], parameters: Iterable[tuple[str, Tensor]], progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    for parameter, tensor in parameters:
        for name, slot in groups[parameter].items():
            yield name, slot.extract(tensor.detach())
            progress.advance()


def _split(slots: Mapping[str, Slot], itemsize: int, max_shard_bytes: int) -> Iterator[list[str]]:
    """Names of each file's tensors, in order, no file above the limit unless a single tensor is."""
    names: list[str] = []
    size = 0
    for name, slot in slots.items():
        if names and size + slot_bytes(slot, itemsize) > max_shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += slot_bytes(slot, itemsize)
    yield names


def _write(stream: FileIO, content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while len(rest):  # the system takes at most 2 GiB at once
        rest = rest[stream.write(rest) :]
