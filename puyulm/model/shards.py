"""Weight files of a checkpoint folder, read one tensor at a time.

safetensors files are read with plain reads straight into memory that the caller owns, not mapped: mapped pages would
count twice against the process while it loads. The format is eight bytes of header length, a JSON header, and raw
little-endian tensors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puyulm.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: its dtype, shape, and bytes `[begin, end)` of the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def read_into(self, destination: Tensor) -> None:
        """Fills a contiguous CPU tensor of the same dtype and size with the file's bytes."""
        raw = memoryview(destination.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.begin)
            done = 0
            while done < len(raw):
                count = stream.readinto(raw[done:])
                if not count:
                    raise CheckpointError(f"{self.file}: the file ended while it was read; was it being written?")
                done += count

    def read(self, scratch: Scratch) -> Tensor:
        """The tensor, in memory that the next read with the same scratch will overwrite."""
        tensor = scratch.bytes(self.end - self.begin).view(self.dtype).view(self.shape)
        self.read_into(tensor)
        return tensor

    def read_rows(self, scratch: Scratch, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` alone, in memory that the next read with the same scratch will overwrite."""
        row = (self.end - self.begin) // self.shape[0]
        begin, end = self.begin + start * row, self.begin + stop * row
        return replace(self, shape=(stop - start, *self.shape[1:]), begin=begin, end=end).read(scratch)


class Scratch:
    """A buffer that grows to the largest tensor read and is used again: fresh pages cost more than the reading."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def bytes(self, count: int) -> Tensor:
        """`[count]` uint8."""
        if len(self._buffer) < count:
            self._buffer = torch.empty(count, dtype=torch.uint8)
        return self._buffer[:count]


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, safetensors preferred to `.bin`.

    Raises:
        CheckpointError: None there, or the index names a file that is not.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            names = sorted(set(_index_map(index).values()))
            absent = [name for name in names if not (folder / name).is_file()]
            if absent:
                raise CheckpointError(f"{folder}: {index.name} names {len(names)} files, missing: {', '.join(absent)}")
            return [folder / name for name in names]
        single = folder / f"{stem}.{suffix}"
        if single.is_file():
            return [single]
    raise CheckpointError(
        f"{folder}: no weights (looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
        "pytorch_model.bin.index.json)"
    )


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, from its header alone.

    Raises:
        CheckpointError: The header is not readable, or the file is shorter than it promises.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{file}: not a safetensors file, or cut off in its header; download it again")
        try:
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            return {name: _stored(file, name, entry, 8 + length, size) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file}: damaged safetensors header ({error}); download it again") from None


def _stored(file: Path, name: str, entry: dict[str, Any], data: int, size: int) -> StoredTensor:
    begin, end = (data + int(offset) for offset in entry["data_offsets"])
    if entry["dtype"] not in _DTYPES:
        raise CheckpointError(f"{file}: tensor {name} has the unknown dtype {entry['dtype']!r}")
    stored = StoredTensor(file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), begin, end)
    if end > size:
        raise CheckpointError(f"{file}: truncated: {size:,} bytes, but {name} ends at {end:,}; download it again")
    if begin < data or end - begin != math.prod(stored.shape) * stored.dtype.itemsize:
        raise CheckpointError(f"{file}: damaged safetensors header (offsets of {name}); download it again")
    return stored


def bin_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a PyTorch `.bin` file; nothing but tensors is unpickled."""
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file}: cannot be read as PyTorch weights ({reason}); download it again") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: holds a {type(state).__name__}, not a table of tensors")
    yield from ((name, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor))


def tensor_names(folder: Path) -> set[str]:
    """Names of all tensors, from indexes and headers; empty where only reading everything would tell."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            return set(_index_map(folder / index))
    single = folder / "model.safetensors"
    return set(stored_tensors(single)) if single.is_file() else set()


def _index_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: damaged index ({error}); download it again") from None
