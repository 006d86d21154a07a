"""LoRA adapters as `peft` writes them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

An adapter adds `scale * B A` to matrices of a model (Hu et al., "LoRA", 2021, section 4.1), with `scale` alpha / r, or
alpha / sqrt(r) (Kalajdzievski, "rank-stabilized LoRA", 2023). Published matrices are rows of our fused ones: their A's
are stacked, and their B's are placed into the rows that a `Slot` names.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puyulm.errors import CheckpointError
from puyulm.model.config import ModelConfig
from puyulm.model.layouts import Layout, Slot, layout_of, published_tensors
from puyulm.model.shards import Scratch, bin_tensors, stored_tensors

RANK_STEP = 16  # ranks are filled up with zeros to multiples of what kernels take at a time

# What would be left out silently, and how a message calls it.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the low-rank ones (modules_to_save)",
    "trainable_token_indices": "trained token embeddings (trainable_token_indices)",
    "target_parameters": "parameters of experts (target_parameters)",
    "layer_replication": "replicated layers (layer_replication)",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "lora_bias": "biases (lora_bias)",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal matrices (use_bdlora)",
    "arrow_config": "Arrow routing",
}
# These begin by changing the base model's own weights, so that the adapter does not fit the published ones.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class LowRankWeights:
    """What is added to one of our linear layers: `x -> up (down x)`.

    Attributes:
        down: `[R, in]`, float32; R is a multiple of `RANK_STEP`.
        up: `[out, R]`, float32, with the scale in it.
    """

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class _Published:
    """The two matrices of one published module, and where the module lies in our parameters."""

    slot: Slot
    a: Tensor
    b: Tensor
    scale: float


def read_adapter(folder: Path, config: ModelConfig) -> dict[str, LowRankWeights]:
    """Reads an adapter for a model of this configuration.

    Returns:
        By the names of our linear layers ("layers.0.attention.qkv").

    Raises:
        CheckpointError: It is missing or damaged, was made for another model, or does what cannot be done here.
    """
    settings = _read_settings(folder)
    file, tensors = _read_tensors(folder)
    slots = _linear_slots(config)
    pairs = _pairs(file, tensors, slots, config)
    _require_targets(settings, pairs, slots, file)
    merged: dict[str, list[_Published]] = {}
    for module, (a, b) in pairs.items():
        slot = slots[module]
        _check_shapes(file, module, a, b, slot, _pattern(settings, "rank_pattern", module, settings["r"]))
        published = _Published(slot, a, b, _scale(settings, module, a.shape[0]))
        merged.setdefault(slot.parameter.removesuffix(".weight"), []).append(published)
    shapes = _parameter_shapes(config)
    return {name: _merge(parts, *shapes[name.partition(".")[2].partition(".")[2]]) for name, parts in merged.items()}


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    if not os.path.isdir(folder):  # False also for a name that no file can have
        raise CheckpointError(
            f"{str(folder)[:200]}: no such folder; a LoRA adapter is a folder with adapter_config.json"
        )
    try:
        settings = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: holds no adapter_config.json, so it is no LoRA adapter") from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: must hold a JSON object, not a {type(settings).__name__}")
    kind = settings.get("peft_type")
    if str(kind).upper() != "LORA":
        raise CheckpointError(f"{file}: an adapter of the kind {kind!r}; only LORA can be loaded")
    for key, what in _UNSUPPORTED.items():
        if settings.get(key):
            raise CheckpointError(f"{file}: the adapter uses {what}, which is not supported: merge it into the model")
    if settings.get("bias", "none") != "none":
        raise CheckpointError(
            f"{file}: the adapter changes biases (bias={settings['bias']!r}): merge it into the model"
        )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{file}: init_lora_weights={start!r} changes the base model's weights as well; save the adapter "
            "converted to plain LoRA (peft: path_initial_model_for_weight_conversion)"
        )
    _check_numbers(file, settings)
    return settings


def _check_numbers(file: Path, settings: dict[str, Any]) -> None:
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise CheckpointError(f"{file}: r must be a positive whole number, not {rank!r}")
    if not _is_number(alpha):
        raise CheckpointError(f"{file}: lora_alpha must be a number, not {alpha!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(key) or {}
        if not isinstance(patterns, dict) or not all(_is_number(value) for value in patterns.values()):
            raise CheckpointError(f"{file}: {key} must map names of modules to numbers, not {patterns!r}")
        try:
            for pattern in patterns:
                re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{file}: {key} holds the damaged pattern {pattern!r} ({error})") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        return file, {name: stored.read(Scratch()).float() for name, stored in stored_tensors(file).items()}
    file = folder / "adapter_model.bin"
    if file.is_file():
        return file, {name: tensor.float() for name, tensor in bin_tensors(file)}
    raise CheckpointError(f"{folder}: no weights (looked for adapter_model.safetensors, adapter_model.bin)")


def _linear_slots(config: ModelConfig) -> dict[str, Slot]:
    """Published names of the linear layers that an adapter may change, without "model." and ".weight". Besides the
    family's own also Llama's: a checkpoint may have been converted to them for training."""
    layouts: list[Layout] = [layout_of(config), "llama"]
    return {
        name.removeprefix("model.").removesuffix(".weight"): slot
        for layout in layouts
        for name, slot in published_tensors(config, layout).items()
        if name.startswith("model.layers.") and name.endswith(".weight") and len(slot.shape) == 2
    }


def _pairs(
    file: Path, tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], config: ModelConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each module that the file adapts."""
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{file}: holds the tensor {name}, which is not the lora_A or lora_B of a linear layer: "
                "merge the adapter into the model"
            )
        module = match["module"].removeprefix("model.")
        if module not in slots:
            own = sorted({name.split(".", 2)[2] for name in slots})
            raise CheckpointError(
                f"{file}: adapts {match['module']}, which cannot be adapted in this {config.family} model of "
                f"{config.num_layers} layers; its layers have {', '.join(own)}. Was it made for another base?"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name} holds values that are not numbers (NaN or infinity)")
        sides.setdefault(module, {})[match["side"]] = tensor
    if not sides:
        raise CheckpointError(f"{file}: holds no tensors")
    for module, found in sides.items():
        if len(found) < 2:
            missing = "B" if "A" in found else "A"
            raise CheckpointError(f"{file}: lora_{missing} of {module} is missing; save the adapter again")
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _require_targets(
    settings: Mapping[str, Any], pairs: Mapping[str, object], slots: Mapping[str, Slot], file: Path
) -> None:
    """Raises where adapter_config.json promises modules that the file does not hold."""
    if any(settings.get(key) is not None for key in ("layers_to_transform", "layers_pattern")):
        return
    targets = settings.get("target_modules")
    if settings.get("exclude_modules") or not isinstance(targets, list):
        return
    missing = [
        module
        for module in slots
        if module not in pairs and any(f".model.{module}".endswith(f".{target}") for target in targets)
    ]
    if missing:
        more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(
            f"{file}: nothing for {', '.join(missing[:3])}{more}, which adapter_config.json names in target_modules; "
            "was it made for a smaller base?"
        )


def _check_shapes(file: Path, module: str, a: Tensor, b: Tensor, slot: Slot, rank: float) -> None:
    outputs, inputs = slot.shape
    for side, tensor, expected in (("A", a, (int(rank), inputs)), ("B", b, (outputs, int(rank)))):
        if tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{file}: lora_{side} of {module} has shape {list(tensor.shape)}, but this model and "
                f"adapter_config.json ask for {list(expected)}. Was it made for another base?"
            )


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = _pattern(settings, "alpha_pattern", module, settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _pattern(settings: Mapping[str, Any], key: str, module: str, default: float) -> float:
    """A number that the settings give by patterns of modules' names, the first that fits."""
    for pattern, value in (settings.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", f"model.{module}"):
            return float(value)
    return float(default)


def _parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of our linear layers, by their names in a layer."""
    hidden, inter, heads = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    return {
        "attention.qkv": (config.qkv_size, hidden),
        "attention.out": (hidden, heads),
        "mlp.gate_up": (2 * inter, hidden),
        "mlp.down": (hidden, inter),
    }


def _merge(parts: list[_Published], outputs: int, inputs: int) -> LowRankWeights:
    rank = sum(part.a.shape[0] for part in parts)
    rank += -rank % RANK_STEP
    down, up = torch.zeros(rank, inputs), torch.zeros(outputs, rank)
    start = 0
    for part in parts:
        own = part.a.shape[0]
        down[start : start + own] = part.a
        view = None if part.slot.view is None else (*part.slot.view[:-1], own)
        placed = torch.zeros(outputs, own)
        replace(part.slot, view=view).store(placed, part.scale * part.b)
        up[:, start : start + own] = placed
        start += own
    return LowRankWeights(down, up)
