"""LoRA adapters of random weights, on disk as `peft` writes them, and their weights merged by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.layouts import Layout, Slot, layout_of, published_tensors

TARGETS = {
    "internlm2": ["wqkv", "wo", "w1", "w3", "w2"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
PREFIX = "base_model.model."


def linears(config: ModelConfig, layout: Layout, targets: Sequence[str]) -> dict[str, Slot]:
    return {
        name.removesuffix(".weight"): slot
        for name, slot in published_tensors(config, layout).items()
        if name.removesuffix(".weight").endswith(tuple(f".{target}" for target in targets)) and len(slot.shape) == 2
    }


def write_adapter(
    folder: Path,
    config: ModelConfig,
    *,
    layout: Layout | None = None,
    targets: Sequence[str] | None = None,
    rank: int = 4,
    alpha: float = 8,
    seed: int = 0,
    change: Callable[[dict[str, Tensor]], None] | None = None,
    **settings: object,
) -> Path:
    """An adapter with large B's.

    Args:
        change: Damages the tensors.
        settings: Of adapter_config.json, to add or replace.
    """
    layout = layout or layout_of(config)
    targets = TARGETS[layout] if targets is None else targets
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, slot in linears(config, layout, targets).items():
        outputs, inputs = slot.shape
        tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.3
    if change is not None:
        change(tensors)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(targets), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(written | settings))
    return folder


@torch.no_grad()
def merge(decoder: Decoder, folder: Path, scale: float, layout: Layout | None = None) -> Decoder:
    """Adds `scale * B A` to the published form of each matrix."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    parameters = dict(decoder.named_parameters())
    slots = published_tensors(decoder.config, layout or layout_of(decoder.config))
    for name in tensors:
        if name.endswith("lora_A.weight"):
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            slot = slots[f"{module}.weight"]
            product = tensors[f"{PREFIX}{module}.lora_B.weight"].double() @ tensors[name].double()
            published = slot.extract(parameters[slot.parameter]).double() + scale * product
            slot.store(parameters[slot.parameter], published.float())
    return decoder
