"""GGUF files of llama.cpp: configuration and weights of the llama and internlm2 architectures.

llama.cpp stores both with Llama's separate projections, quantised in blocks along rows, and with the rows of each
query and key head interleaved for its own rotary kernel; the published order is restored here. What a GGUF file does
not carry is dynamic NTK: such a model is read with plain rotary embeddings, the same up to its context length.
"""

from __future__ import annotations

import difflib
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    ReaderField,
    ReaderTensor,
    dequantize,
)

from puyulm.errors import CheckpointError, ConfigError
from puyulm.model.config import DType, Family, ModelConfig, RopeConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from puyulm.model.decoder import Decoder
    from puyulm.model.layouts import Slot

Array = npt.NDArray[Any]

_FAMILIES: dict[str, Family] = {"llama": "llama", "internlm2": "internlm2"}
_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 18  # weights dequantised at a time: 1 MiB of float32, which stays in the processor's cache

# Published Llama names, without "model.layers.N." and the suffix -> GGUF names, without "blk.N."
_TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


class FastGGUFReader(GGUFReader):
    """The library's reader, made quick for long arrays.

    The library makes two or three NumPy views for every entry of a vocabulary, which takes seconds. Here an array of
    numbers is one view and strings are memory views; `ReaderField.contents()` reads both the same. Tensors that end
    beyond the file are reported by name.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        prefix: list[Any] = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        item, count, offset = GGUFValueType(int(prefix[0][0])), int(prefix[1][0]), orig_offs + 12
        types = [GGUFValueType.ARRAY, item][: 1 + bool(count)]
        if item in self.gguf_scalar_to_np:
            numbers = self._get(offset, self.gguf_scalar_to_np[item], count)
            return 12 + numbers.nbytes, [*prefix, numbers], [2], types
        if item != GGUFValueType.STRING:
            raise ValueError("an array of arrays in its metadata")
        view = memoryview(cast(bytes, self.data))
        strings = []
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(view, offset)
            strings.append(view[offset + 8 : offset + 8 + size])
            offset += 8 + size
        return offset - orig_offs, prefix + strings, list(range(2, 2 + count)), types

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        for field in fields:
            _, name, _, dims, raw_type, offset = field.parts
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(int(raw_type[0]))]
            end = start_offs + int(offset[0]) + int(np.prod(dims)) // block * block_bytes
            if end > len(self.data):
                raise ValueError(f"truncated: {len(self.data):,} bytes, but {bytes(name).decode()} ends at {end:,}")
        super()._build_tensors(start_offs, fields)


def open_gguf(path: Path) -> GGUFReader:
    """Reads a GGUF file's metadata; tensors stay mapped.

    Raises:
        CheckpointError: It is not there, not GGUF, damaged or cut off.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with path.open("rb") as stream:
            magic, version = stream.read(4), stream.read(4)
        if magic != b"GGUF":
            raise CheckpointError(f"{path}: not a GGUF file")
        if version[:2] == b"\0\0":
            raise CheckpointError(f"{path}: a big-endian GGUF file, which is not supported")
        return FastGGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError, struct.error, OSError) as error:
        raise CheckpointError(f"{path}: damaged GGUF file ({error}); download it again") from None


def gguf_config(path: Path) -> ModelConfig:
    """The configuration a GGUF file describes.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: Another architecture, or a feature the family does not have.
    """
    return _config(open_gguf(path), path)


def load_gguf_model(path: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Decoder:
    """Loads a GGUF file, dequantised, in evaluation mode. Peak memory is the final weights plus the mapped file.

    Args:
        dtype: Of the parameters; None takes float32 on a CPU, else the file's (bfloat16 where it is quantised).

    Raises:
        ConfigError, CheckpointError: With the tensor, the shapes and the file that do not fit.
    """
    import torch

    from puyulm.model.checkpoint import default_dtype, empty_decoder
    from puyulm.model.layouts import published_tensors
    from puyulm.progress import Progress

    reader = open_gguf(path)
    config = _config(reader, path)
    slots = {gguf_name(name): slot for name, slot in published_tensors(config, "llama").items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _require(tensors, slots, path)
    decoder = empty_decoder(config, dtype or default_dtype(config, device), device)
    parameters = dict(decoder.named_parameters())
    total = sum(tensor.n_bytes for tensor in tensors.values())
    with torch.no_grad(), Progress(f"loading {path.name}", total=total, unit="B") as progress:
        for name, slot in slots.items():
            _store(tensors[name], slot, parameters[slot.parameter], interleaved_heads(name, config))
            progress.advance(tensors[name].n_bytes)
    return decoder.eval()


@dataclass(frozen=True)
class _Metadata:
    """The values of a file, and errors that name it."""

    reader: GGUFReader
    path: Path

    def get(self, key: str, default: Any = None) -> Any:
        field = self.reader.get_field(key.replace("{arch}", self.architecture) if "{arch}" in key else key)
        return default if field is None else field.contents()

    @property
    def architecture(self) -> str:
        return str(self.get("general.architecture"))

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number of the architecture, `default` where it is absent."""
        value = self.get(f"{{arch}}.{key}", default)
        if value is None:
            raise ConfigError(f"{self.path}: the metadata has no {self.architecture}.{key}")
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.path}: {self.architecture}.{key} must be one positive whole number, not {value}")
        return value

    def real(self, key: str, default: float) -> float:
        """A float32 as its shortest decimal: 1e-05, where widening to float64 gives 9.999999747378752e-06."""
        return float(str(np.float32(self.get(f"{{arch}}.{key}", default))))


def _config(reader: GGUFReader, path: Path) -> ModelConfig:
    try:
        metadata = _Metadata(reader, path)
        _refuse_unsupported(metadata)
        return _read_config(metadata, {tensor.name: tensor for tensor in reader.tensors})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged GGUF metadata ({error}); download it again") from None


def _refuse_unsupported(metadata: _Metadata) -> None:
    path, architecture = metadata.path, metadata.architecture
    if architecture not in _FAMILIES:
        near = difflib.get_close_matches(architecture, _FAMILIES, n=1, cutoff=0.5)
        hint = f"the nearest is '{near[0]}'; " if near else ""
        raise ConfigError(f"{path}: unknown architecture '{architecture}'; {hint}known are {', '.join(_FAMILIES)}")
    if (parts := metadata.get("split.count", 1)) > 1:
        remedy = "merge them (llama-gguf-split --merge) and load that"
        raise ConfigError(f"{path}: one of {parts} parts of a model; {remedy}")
    if metadata.get("{arch}.expert_count", 0):
        raise ConfigError(f"{path}: a mixture of experts; only dense models are supported")


def _read_config(metadata: _Metadata, tensors: dict[str, ReaderTensor]) -> ModelConfig:
    path, whole = metadata.path, metadata.whole
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path}: tensor token_embd.weight is missing")
    heads, hidden = whole("attention.head_count"), whole("embedding_length")
    head_dim = whole("attention.key_length", whole("rope.dimension_count", hidden // heads))
    if {whole("rope.dimension_count", head_dim), whole("attention.value_length", head_dim)} != {head_dim}:
        raise ConfigError(f"{path}: keys, values and rotated dimensions must all have {head_dim} values a head")
    ends = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    try:
        return ModelConfig(
            family=_FAMILIES[metadata.architecture],
            vocab_size=int(tensors["token_embd.weight"].shape[-1]),
            hidden_size=hidden,
            intermediate_size=whole("feed_forward_length"),
            num_layers=whole("block_count"),
            num_heads=heads,
            num_kv_heads=whole("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position_embeddings=whole("context_length"),
            rope=_rope(metadata, "rope_freqs.weight" in tensors),
            rms_norm_eps=metadata.real("attention.layer_norm_rms_epsilon", 1e-5),
            qkv_bias="blk.0.attn_q.bias" in tensors,
            out_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_gate.bias" in tensors,
            tie_embeddings="output.weight" not in tensors,
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id", 1),
            eos_token_ids=tuple(dict.fromkeys(token for token in ends if token is not None)) or (2,),
            pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
            dtype=_stored_dtype(tensors.values()),
        )
    except ConfigError as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise ConfigError(f"{prefix}{error}") from None


def _rope(metadata: _Metadata, frequency_table: bool) -> RopeConfig:
    kind = metadata.get("{arch}.rope.scaling.type", "none")
    if kind not in ("none", "linear") or frequency_table:
        what = f"'{kind}'" if kind not in ("none", "linear") else "by a table (rope_freqs.weight, Llama 3.1's)"
        raise ConfigError(f"{metadata.path}: rope scaling {what} is not supported; supported is linear")
    # Older files give a factor without a type, under a name of its own.
    factor = metadata.real("rope.scaling.factor", metadata.real("rope.scale_linear", 1.0))
    scaling: Literal["none", "linear"] = "none" if factor == 1.0 else "linear"
    return RopeConfig(theta=metadata.real("rope.freq_base", 10_000.0), scaling=scaling, factor=factor)


def _stored_dtype(tensors: Iterable[ReaderTensor]) -> DType:
    """The type of most matrices; bfloat16 for quantised ones, whose float16 activations might overflow."""
    kinds = Counter(tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1)
    names = {"F32": "float32", "F16": "float16"}
    return cast(DType, names.get(kinds.most_common(1)[0][0], "bfloat16"))


def gguf_name(published: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight"""
    stem, _, suffix = published.rpartition(".")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{suffix}"
    index, _, name = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{_LAYER_NAMES[name]}.{suffix}"


def _require(tensors: dict[str, ReaderTensor], slots: dict[str, Slot], path: Path) -> None:
    """Raises unless the file holds exactly the wanted tensors, with their shapes."""
    for verb, names in (("missing", slots.keys() - tensors.keys()), ("unexpected", tensors.keys() - slots.keys())):
        if names:
            some = ", ".join(sorted(names)[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(f"{path}: {verb} tensor{'s' if len(names) > 1 else ''}: {some}")
    for name, slot in slots.items():
        tensor, shape = tensors[name], tuple(int(size) for size in reversed(tensors[name].shape))
        if shape != slot.shape:
            raise CheckpointError(f"{path}: {name} has shape {list(shape)}, the metadata asks for {list(slot.shape)}")
        try:
            _dequantize(_rows(tensor)[:1], tensor.tensor_type)
        except (NotImplementedError, ValueError):
            raise CheckpointError(f"{path}: {name} has the unsupported type {tensor.tensor_type.name}") from None


def interleaved_heads(name: str, config: ModelConfig) -> int:
    """Heads of a tensor whose rows llama.cpp interleaves; 0 for others."""
    return {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2], 0)


def _store(tensor: ReaderTensor, slot: Slot, parameter: Tensor, heads: int) -> None:
    """Dequantises a tensor into its place, some rows at a time."""
    import torch

    rows = _rows(tensor)
    if heads:
        rows = _half_split(rows, heads)
    target = slot.rows(parameter)
    per_target = len(rows) // len(target)
    step = max(1, _CHUNK * len(target) // target.numel())
    for start in range(0, len(target), step):
        part = target[start : start + step]
        values = _dequantize(rows[start * per_target : (start + len(part)) * per_target], tensor.tensor_type)
        part.copy_(torch.from_numpy(values).view(part.shape))


def _rows(tensor: ReaderTensor) -> Array:
    """The stored matrix, one row of blocks each; a vector is a matrix of one column."""
    return tensor.data.reshape(int(tensor.shape[-1]), -1)


def _half_split(rows: Array, heads: int) -> Array:
    """Undoes llama.cpp's row order: the two halves of a head alternate there, and follow each other here."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _dequantize(rows: Array, kind: GGMLQuantizationType) -> npt.NDArray[np.float32]:
    """Stored rows -> float32 rows, contiguous and writable.

    The common block types are done here, in less than half of the library's time; all others are the library's. A
    block is 32 values: a float16 scale, for Q4_1 a float16 minimum, then the values, where 16 bytes of 4-bit values
    hold the block's first half in their low bits.

    Raises:
        NotImplementedError: The library does not know the type either.
    """
    if kind == GGMLQuantizationType.F32:
        return np.array(rows, dtype=np.float32)
    if kind not in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0):
        return dequantize(rows, kind)
    blocks = rows.reshape(-1, GGML_QUANT_SIZES[kind][1])
    scale = blocks[:, :2].view(np.float16).astype(np.float32)
    values = np.empty((len(blocks), 32), np.float32)
    if kind == GGMLQuantizationType.Q8_0:
        np.multiply(blocks[:, 2:].view(np.int8), scale, out=values)
        return values.reshape(len(rows), -1)
    codes = blocks[:, -16:]
    np.multiply(codes & 15, scale, out=values[:, :16])
    np.multiply(codes >> 4, scale, out=values[:, 16:])
    values += -8 * scale if kind == GGMLQuantizationType.Q4_0 else blocks[:, 2:4].view(np.float16)
    return values.reshape(len(rows), -1)
