"""GGUF files for llama.cpp, of every generation: what `puyulm.model.gguf` reads, the other way round.

Tensors have llama.cpp's names; the rows of each query and key head alternate between its two halves, as llama.cpp's
rotary kernel wants them. Norms and biases are float32, as llama.cpp's own converter writes them. Weights go from the
source to the file some rows at a time.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType, quantize
from torch import Tensor

from puyulm.errors import CheckpointError, ConfigError
from puyulm.model.checkpoint import load_config, load_model, refuse_quantized, stored_dtype
from puyulm.model.config import ModelConfig
from puyulm.model.gguf import gguf_name, interleaved_heads
from puyulm.model.layouts import Slot, layout_of, published_tensors
from puyulm.model.shards import Scratch, StoredTensor, stored_tensors, weight_files
from puyulm.progress import Progress

GGUFType = Literal["f32", "f16", "q8_0", "q4_0"]
Fields = Mapping[str, str | bool | int | float | list[str] | list[int] | list[float]]

NO_TOKENIZER: Fields = {"tokenizer.ggml.model": "no_vocab"}

_KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_CHUNK = 1 << 20  # weights at a time, in whole rows or heads

Read = Callable[[int, int], Tensor]
"""Reads rows `[start, stop)` of a tensor, into memory that the next read may overwrite."""


def write_gguf(source: Path, file: Path, kind: GGUFType, tokenizer: Fields = NO_TOKENIZER) -> None:
    """Writes a checkpoint as a GGUF file, whole or not at all.

    Dynamic NTK has no place in the format and is left out: the model is the same up to its context length. In memory
    are some rows at a time of a folder of safetensors, or the largest tensor where it holds q, k and v in one; other
    sources are loaded whole.

    Args:
        source: Checkpoint folder or GGUF file.
        file: Replaced if it exists.
        kind: Of the matrices. Rows that do not divide into the blocks of 32 of "q8_0" and "q4_0" are stored as
            float16; with "q4_0", embeddings and head are "q8_0".
        tokenizer: Metadata of the tokenizer (`puyulm.text.gguf_tokenizer_writer`).

    Raises:
        ConfigError: A reward model.
        CheckpointError: The source is quantised already or cannot be read, the file cannot be written, or a weight is
            beyond float16.
    """
    refuse_quantized(source)
    config = load_config(source)
    if config.head == "reward":
        raise ConfigError(f"{source}: a reward model, which llama.cpp cannot run; write a folder instead")
    tensors = list(_tensors(config, _KINDS[kind][0]))
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        writer = GGUFWriter(partial, _architecture(config))
        ids = _token_ids(config) if tokenizer == NO_TOKENIZER else {}
        for key, value in (_metadata(config, kind, file.stem) | ids | dict(tokenizer)).items():
            _add(writer, key, value)
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, tensor.slot.shape, np.dtype(np.float32), tensor.num_bytes, tensor.kind)
        partial.parent.mkdir(parents=True, exist_ok=True)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_tensors(writer, tensors, _reader(source, config))
        writer.close()
        os.replace(partial, file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _architecture(config: ModelConfig) -> str:
    """llama.cpp's internlm2 has neither biases nor a tied head, nor heads of another size; its llama has all."""
    plain = not (config.qkv_bias or config.out_bias or config.mlp_bias or config.tie_embeddings)
    fits = plain and config.num_heads * config.head_dim == config.hidden_size
    return "internlm2" if config.family == "internlm2" and fits else "llama"


def _metadata(config: ModelConfig, kind: GGUFType, name: str) -> dict[str, Any]:
    values: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim, "rope.freq_base": float(config.rope.theta),
    }  # fmt: skip
    if config.rope.scaling == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope.factor)}
    architecture = _architecture(config)
    return (
        {"general.type": "model", "general.name": name, "general.file_type": int(_KINDS[kind][1])}
        | {"general.quantization_version": GGML_QUANT_VERSION}
        | {f"{architecture}.{key}": value for key, value in values.items()}
    )


def _token_ids(config: ModelConfig) -> dict[str, int]:
    ids = {"bos": config.bos_token_id, "padding": config.pad_token_id}
    ids |= dict(zip(("eos", "eot"), config.eos_token_ids, strict=False))
    return {f"tokenizer.ggml.{role}_token_id": i for role, i in ids.items() if i is not None}


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


@dataclass(frozen=True)
class _Target:
    """A tensor of the file: what it holds, and as what."""

    name: str
    slot: Slot
    kind: GGMLQuantizationType
    heads: int  # whose rows alternate between two halves; 0: none

    @property
    def num_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.slot.shape) // block * size

    def chunks(self, read: Read) -> Iterator[npt.NDArray[Any]]:
        """The stored bytes, some rows at a time."""
        count, columns = self.slot.shape[0], math.prod(self.slot.shape[1:])
        unit = count // self.heads if self.heads else 1
        step = max(1, _CHUNK // (unit * columns)) * unit
        for start in range(0, count, step):
            rows = read(start, min(start + step, count)).float().view(-1, columns)
            if self.heads:
                rows = rows.view(-1, 2, unit // 2, columns).transpose(1, 2).reshape(-1, columns)
            yield self._encode(rows.numpy().reshape(-1, *self.slot.shape[1:]))

    def _encode(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        if self.kind == GGMLQuantizationType.F32:
            return rows
        if self.kind == GGMLQuantizationType.F16:
            with np.errstate(over="ignore"):
                half = rows.astype(np.float16)
            if not np.isfinite(half).all():
                raise CheckpointError(f"{self.name} holds values beyond float16; choose --gguf-type f32 or q8_0")
            return half
        return quantize(rows, self.kind)


def _tensors(config: ModelConfig, kind: GGMLQuantizationType) -> Iterator[_Target]:
    for published, slot in published_tensors(config, "llama").items():
        name = gguf_name(published)
        yield _Target(name, slot, _stored_as(name, slot.shape, kind), interleaved_heads(name, config))


def _stored_as(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if kind == GGMLQuantizationType.Q4_0 and name in ("token_embd.weight", "output.weight"):
        kind = GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.F16 if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _write_tensors(writer: GGUFWriter, tensors: list[_Target], reader: Callable[[Slot], Read]) -> None:
    assert writer.fout is not None
    (stream,) = writer.fout
    total = sum(tensor.num_bytes for tensor in tensors)
    with Progress("writing GGUF", total=total, unit="B") as progress:
        for tensor in tensors:
            writer.write_padding(stream, stream.tell())
            for chunk in tensor.chunks(reader(tensor.slot)):
                stream.write(np.ascontiguousarray(chunk).data)
                progress.advance(chunk.nbytes)
        writer.write_padding(stream, stream.tell())
    stream.flush()
    os.fsync(stream.fileno())


def _reader(source: Path, config: ModelConfig) -> Callable[[Slot], Read]:
    """What reads the rows of a slot: from the files where they can be read in any order, else from a loaded model."""
    files = [] if source.suffix == ".gguf" else weight_files(source)
    if not files or files[0].suffix != ".safetensors":
        parameters = dict(load_model(source, stored_dtype(config)).named_parameters())
        return lambda slot: functools.partial(_rows, slot.extract(parameters[slot.parameter].detach()))
    stored = {name: tensor for file in files for name, tensor in stored_tensors(file).items()}
    names = {slot: name for name, slot in published_tensors(config, layout_of(config)).items()}
    _require({name: slot.shape for slot, name in names.items()}, stored, source)
    scratch = Scratch()

    def reader(slot: Slot) -> Read:
        if slot in names:
            return functools.partial(stored[names[slot]].read_rows, scratch)
        whole = next(name for other, name in names.items() if other.parameter == slot.parameter)  # InternLM2's wqkv
        return functools.partial(_rows, slot.extract(stored[whole].read(scratch)))

    return reader


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop]


def _require(wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], folder: Path) -> None:
    """Raises unless the files hold what the configuration asks for."""
    for name, shape in wanted.items():
        if name not in stored:
            raise CheckpointError(f"{folder}: tensor {name} is missing")
        if stored[name].shape != shape:
            found = list(stored[name].shape)
            raise CheckpointError(f"{stored[name].file}: {name} has shape {found}, config.json asks for {list(shape)}")
