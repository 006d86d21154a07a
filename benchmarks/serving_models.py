"""The models of `benchmarks serving`: two shapes with random weights, in every contender's own files."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from puyulm.engine.quant.run import quantize_checkpoint
from puyulm.engine.quant.settings import QuantSettings
from puyulm.model.checkpoint import save_model
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.gguf_writer import GGUFType, write_gguf

GROUP = 32  # weights that share a scale, in our int8 and int4 and in llama.cpp's q8_0 and q4_0
GGUF_TYPES: dict[str, GGUFType] = {"float32": "f32", "int8": "q8_0", "int4": "q4_0"}


@dataclass(frozen=True)
class Shape:
    """A model, and how much of it is asked for: few enough tokens that five rounds of all contenders take minutes.

    Attributes:
        new: Tokens that are timed at batch 1 and at batch 8.
        short: Tokens of the prompt before them.
        long: Tokens of the prompt whose prefill is timed.
    """

    name: str
    config: ModelConfig
    new: tuple[int, int]
    short: int = 32
    long: int = 512

    def weights(self, bits: str) -> float:
        """Bytes of weights that are read for a token: all matrices, but of the embedding only a row."""
        config = self.config
        columns = config.qkv_size + config.num_heads * config.head_dim + 3 * config.intermediate_size
        layers, head = config.num_layers * config.hidden_size * columns, config.vocab_size * config.hidden_size
        scale = 2 / GROUP  # bytes a weight
        sizes = {"float32": (4.0, 4.0), "int8": (1 + scale, 1 + scale), "int4": (0.5 + scale, 1 + scale)}
        of_layers, of_head = sizes[bits]
        return layers * of_layers + head * of_head


def shapes(smoke: bool) -> list[Shape]:
    if smoke:
        tiny = _llama(hidden_size=64, intermediate_size=96, num_layers=2, num_heads=2, num_kv_heads=2, vocab_size=320)
        return [Shape("tiny", tiny, (4, 3), short=8, long=24)]
    small = _llama(hidden_size=768, intermediate_size=2048, num_layers=12, num_heads=12, num_kv_heads=12)
    large = _llama(hidden_size=2048, intermediate_size=5632, num_layers=22, num_heads=32, num_kv_heads=4)
    return [Shape("110M", small, (64, 32)), Shape("1.1B", large, (16, 8))]


def _llama(*, hidden_size: int, num_heads: int, vocab_size: int = 32_000, **shape: int) -> ModelConfig:
    return ModelConfig(
        family="llama", vocab_size=vocab_size, hidden_size=hidden_size, num_heads=num_heads,
        head_dim=hidden_size // num_heads, max_position_embeddings=2048, dtype="float32", **shape,  # type: ignore[arg-type]
    )  # fmt: skip


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """Fresh weights in Llama's layout, which is every peer's source, with a tokenizer of as many tokens."""
    decoder = Decoder(shape.config)
    decoder.init_weights(0)
    save_model(decoder, folder, layout="llama")
    vocab = {token(i): i for i in range(shape.config.vocab_size)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": token(0)}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    names = {"unk_token": token(0), "bos_token": token(1), "eos_token": token(2)}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def token(token_id: int) -> str:
    """The name of a token, for CTranslate2, which takes names."""
    return f"t{token_id}"


def our_folder(folder: Path, bits: str) -> Path:
    """What `puyu quantize` makes of a checkpoint, made where it is not there."""
    if bits == "float32":
        return folder
    target = folder / f"puyulm-{bits}"
    if not target.exists():
        quantize_checkpoint(folder, target, QuantSettings(bits=8 if bits == "int8" else 4, group_size=GROUP))
    return target


def llama_cpp_file(folder: Path, bits: str) -> Path:
    """The GGUF file of a checkpoint, made where it is not there."""
    file = folder / f"{GGUF_TYPES[bits]}.gguf"
    if not file.exists():
        write_gguf(folder, file, GGUF_TYPES[bits])
    return file


def ctranslate2_folder(folder: Path, bits: str) -> Path:
    """CTranslate2's files of a checkpoint, made where they are not there."""
    from ctranslate2.converters import TransformersConverter

    target = folder / f"ctranslate2-{bits}"
    if not target.exists():
        TransformersConverter(str(folder), low_cpu_mem_usage=True).convert(str(target), quantization=bits)
    return target


def remove_others(folder: Path) -> None:
    """Removes what was made from a checkpoint, which takes as much room again."""
    for path in folder.iterdir():
        if path.suffix == ".gguf":
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
