"""From a model's name to everything that an answer needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from puyulm.engine.context import scaled_rope
from puyulm.engine.cpu import dense, pack_for_inference
from puyulm.engine.gpu.available import runs_on
from puyulm.engine.params import SamplingParams
from puyulm.engine.quant.linear import pack_quantized, quantize_in_place
from puyulm.engine.quant.load import is_quantized, load_quantized
from puyulm.errors import ChatError, GenerationError
from puyulm.model.checkpoint import load_config, load_model, stored_dtype
from puyulm.model.decoder import Decoder
from puyulm.model.hub import resolve_model
from puyulm.text.formats import BASE, ChatFormat, SamplingDefaults, chat_format_for, find_chat_format
from puyulm.text.tokenizer import Tokenizer

Quantize = Literal["int8", "int4"]
Split = Callable[[Decoder], Decoder]
GROUP_SIZE = 32  # of weights rounded while they are loaded

_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "min_new_tokens")


class ChatModel(NamedTuple):
    """A model ready to answer.

    Attributes:
        params: How the checkpoint wants to be sampled, its stop ids included.
        path: The folder or file it came from.
    """

    model: Decoder
    tokenizer: Tokenizer
    chat_format: ChatFormat
    params: SamplingParams
    path: Path


def load_chat_model(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    quantize: Quantize | None = None,
    rope_scaling: str | None = None,
    chat_format: str | None = None,
    needs_chat_format: bool = True,
    split: Split | None = None,
) -> ChatModel:
    """Loads a model for generation.

    Args:
        name: Anything that `puyulm.model.hub.resolve_model` takes.
        dtype: Of the weights; None: the checkpoint's (see `load_for_inference`).
        device: None: the first GPU where there is one, else the CPU.
        quantize, rope_scaling, split: See `load_for_inference`.
        chat_format: A name from `puyulm.text.formats.CHAT_FORMATS`; None: told from the checkpoint.
        needs_chat_format: False: a checkpoint whose format is not known gets plain text's ("base"); for callers that
            write prompts in another way.

    Raises:
        PuyuError: The model cannot be found or loaded, its generation settings are damaged, or there is no such
            device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    path = resolve_model(name)
    tokenizer = Tokenizer.load(path)
    config = load_config(path)
    try:
        if chat_format is not None:
            chosen = find_chat_format(chat_format)
        else:
            chosen = chat_format_for(config.family, tokenizer, reward_token_id=config.reward_token_id)
    except ChatError:
        if needs_chat_format or chat_format is not None:
            raise
        chosen = BASE
    params = default_params(path, tokenizer, chosen)
    model = load_for_inference(path, dtype, device, quantize=quantize, rope_scaling=rope_scaling, split=split)
    return ChatModel(model, tokenizer, chosen, params, path)


def load_draft(name: str, device: str | None = None) -> Decoder:
    """Loads a small model that guesses for another (`puyulm.engine.speculate`)."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    return load_for_inference(resolve_model(name), device=device)


def load_for_inference(
    path: Path,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    *,
    quantize: Quantize | None = None,
    rope_scaling: str | None = None,
    split: Split | None = None,
) -> Decoder:
    """Loads a checkpoint, quantised or not, with what makes it fast on its device.

    A CPU computes in float32. bfloat16 weights stay so in memory where there is a C compiler: they are widened on their
    way, which changes no bit of the result.

    Args:
        dtype: Of the weights; None: the checkpoint's, and float32 for float16 on a CPU.
        quantize: Rounds the weights of the matrices to 8 or 4 bits in groups of 32; a checkpoint made by
            `puyu quantize` is more exact.
        rope_scaling: Instead of the checkpoint's, see `puyulm.engine.context.scaled_rope`.
        split: Leaves this process its part of a model over several, see `puyulm.engine.tensor.split_for_inference`.
            The model is whole in the host's memory before.

    Raises:
        GenerationError: The checkpoint is quantised already.
    """
    if dtype is None and device == "cpu":
        stored = stored_dtype(load_config(path))
        dtype = stored if stored == torch.bfloat16 and dense.available() else torch.float32
    if is_quantized(path):
        if quantize is not None:
            raise GenerationError(f"{path}: its weights are quantised already; leave --quantize out")
        if split is not None:
            raise GenerationError(
                f"{path}: quantised weights cannot be split over processes; split the original, with --quantize"
            )
        model = load_quantized(path, device, dtype)
    else:
        model = load_model(path, dtype, device if split is None else "cpu").eval()
        if split is not None:
            model = split(model).to(device)
        if quantize is not None:
            quantize_in_place(model, 8 if quantize == "int8" else 4, GROUP_SIZE)
    if rope_scaling is not None:
        model.config = model.config.evolve(rope=scaled_rope(model.config.rope, rope_scaling))
    return _pack_for_gpu(pack_for_inference(pack_quantized(model)))


def _pack_for_gpu(model: Decoder) -> Decoder:
    if not runs_on(model.embed.weight.device):
        return model
    from puyulm.engine.gpu.pack import pack_for_gpu

    return pack_for_gpu(model)


def check_device(name: str) -> None:
    """Raises a GenerationError unless PyTorch has this device."""
    if name.split(":")[0] == "cuda" and not torch.cuda.is_available():
        raise GenerationError(f"device {name}: PyTorch finds no CUDA device; use cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise GenerationError(
            f"device {name!r}: PyTorch has no such device here; use cpu, or cuda with a GPU"
        ) from None


def default_params(path: Path, tokenizer: Tokenizer, chat_format: ChatFormat, *, think: bool = False) -> SamplingParams:
    """How a checkpoint wants to be sampled: what its `generation_config.json` says, and for the rest what its chat
    format's publishers use.

    Args:
        path: The checkpoint's folder or file.
        think: For an answer with deep thinking: its own defaults, with its longer budget.

    Raises:
        GenerationError: The file is damaged or asks for something impossible.
    """
    defaults = chat_format.defaults
    if think:
        defaults = chat_format.thinking_defaults or defaults
    file = path / "generation_config.json"
    given = _generation_config(file) if file.is_file() else {}
    wanted = {**_as_dict(defaults), **{key: given[key] for key in _SAMPLING_KEYS if given.get(key) is not None}}
    if given.get("do_sample") is False:
        wanted["temperature"] = 0.0
    if think:
        wanted["max_new_tokens"] = defaults.max_new_tokens
    eos = given.get("eos_token_id")
    eos_ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    try:
        stop_ids = tuple(sorted({*chat_format.stop_ids(tokenizer), *eos_ids}))
        return SamplingParams(**wanted, stop_ids=stop_ids)
    except (GenerationError, TypeError) as error:
        raise GenerationError(f"{file}: {error}; correct the file or remove the entry") from None


def _generation_config(file: Path) -> Mapping[str, Any]:
    try:
        given = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise GenerationError(f"{file}: not valid JSON ({error}); correct or remove it") from None
    if not isinstance(given, dict):
        raise GenerationError(f"{file}: must hold a JSON object, not a {type(given).__name__}")
    return given


def _as_dict(defaults: SamplingDefaults) -> dict[str, Any]:
    return {key: getattr(defaults, key) for key in _SAMPLING_KEYS if hasattr(defaults, key)}
