"""`puyu info`: what a model is and what it needs, from its configuration alone, without loading weights or PyTorch."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puyulm.errors import ConfigError

if TYPE_CHECKING:
    from puyulm.model.config import ModelConfig
    from puyulm.model.presets import Preset


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="NAME_OR_FOLDER", help="preset, checkpoint folder or .gguf file")
    parser.add_argument(
        "--memory", default="80GiB", metavar="SIZE", help="memory to fit a context into, like 24GB [%(default)s]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    from puyulm.model.memory import parse_bytes
    from puyulm.model.presets import PRESETS

    memory = parse_bytes(args.memory)
    if args.model is None:
        print(json.dumps([_facts_of(p, memory) for p in PRESETS], indent=2) if args.json else _list(PRESETS))
        return
    facts, config = _find(args.model, memory)
    print(json.dumps(facts, indent=2) if args.json else _describe(facts, config))


def _find(name: str, memory: int) -> tuple[dict[str, Any], ModelConfig]:
    from puyulm.model.presets import find_preset, unknown_name

    path = Path(name).expanduser()
    if path.exists():
        config = _local_config(path)
        return _facts(path.name or str(path.resolve()), config, memory) | {"path": str(path)}, config
    preset = find_preset(name)
    if preset is None:
        raise ConfigError(f"{unknown_name(name)}; a folder or file of that name is not here either")
    return _facts_of(preset, memory), preset.config


def _local_config(path: Path) -> ModelConfig:
    """The configuration of a folder or GGUF file, without PyTorch where its tensors' names need not be read."""
    if path.suffix == ".gguf":
        from puyulm.model.gguf import gguf_config

        return gguf_config(path)
    try:
        raw = json.loads((path / "config.json").read_text("utf-8"))
        simple = raw.get("model_type") != "internlm"  # may be an InternLM2, which its tensors' names tell
    except (OSError, ValueError, AttributeError):
        simple = False  # the loader words the error
    if simple:
        from puyulm.model.hf_config import config_from_json

        return config_from_json(raw, str(path / "config.json"))
    from puyulm.model.checkpoint import load_config

    return load_config(path)


def _facts_of(preset: Preset, memory: int) -> dict[str, Any]:
    named = {"repository": preset.repository, "aliases": list(preset.aliases), "note": preset.note}
    return _facts(preset.name, preset.config, memory) | named


def _facts(name: str, config: ModelConfig, memory: int) -> dict[str, Any]:
    from puyulm.model.memory import (
        PRECISIONS,
        WORKING_RESERVE,
        count_parameters,
        kv_bytes_per_token,
        longest_context,
        weight_bytes,
    )

    count = count_parameters(config)
    return {
        "name": name,
        "config": asdict(config),
        "parameters": {"total": count.total, **asdict(count)},
        "kv_bytes_per_token": kv_bytes_per_token(config),
        "memory": memory,
        "working_reserve": WORKING_RESERVE,
        "weights": {
            precision: {
                "bytes": weight_bytes(config, precision),
                "longest_context": longest_context(config, memory, precision),
                "longest_context_by_cache": {
                    cache: longest_context(config, memory, precision, cache) for cache in PRECISIONS
                },
            }
            for precision in PRECISIONS
        },
    }


def _describe(facts: dict[str, Any], config: ModelConfig) -> str:
    from puyulm.model.memory import format_bytes

    count = facts["parameters"]
    parts = [f"{count['per_layer']:,} a layer", f"{count['embedding']:,} embedding"]
    parts.append("tied head" if config.tie_embeddings else f"{count['head']:,} head")
    biases = [n for n in ("qkv", "out", "mlp") if getattr(config, f"{n}_bias")]
    rows = [
        ("family", f"{config.family}, {'reward' if config.head == 'reward' else 'language model'}, {config.dtype}"),
        ("layers", f"{config.num_layers}"),
        ("hidden size", f"{config.hidden_size:,}"),
        ("MLP size", f"{config.intermediate_size:,}"),
        ("heads", f"{config.num_heads} query, {config.num_kv_heads} key/value, {config.head_dim} wide"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("positions", f"{config.max_position_embeddings:,}"),
        ("rope", _rope(config)),
        ("norm epsilon", f"{config.rms_norm_eps:g}"),
        ("biases", ", ".join(biases) or "none"),
        ("parameters", f"{count['total']:,} ({', '.join(parts)})"),
        ("KV cache", f"{facts['kv_bytes_per_token']:,} bytes a token, in 16 bits"),
    ]
    title = facts["name"] + (f"  {facts['repository']}" if facts.get("repository") else "")
    lines = [title, *([f"note: {facts['note']}"] if facts.get("note") else []), ""]
    lines += [f"{label:<14}{value}" for label, value in rows]
    lines += ["", f"tokens of context in {format_bytes(facts['memory'])}, with keys and values in"]
    lines.append(f"{'weights':<8}{'bytes':>18}{'':>13}" + "".join(f"{name:>13}" for name in facts["weights"]))
    for precision, row in facts["weights"].items():
        tokens = "".join(f"{count:>13,}" for count in row["longest_context_by_cache"].values())
        fits = tokens if row["longest_context"] else f"{'does not fit':>15}"
        lines.append(f"{precision:<8}{row['bytes']:>18,}{format_bytes(row['bytes']):>13}{fits}")
    return "\n".join([*lines, *_remarks(facts, config)])


def _rope(config: ModelConfig) -> str:
    kinds = {"none": "plain", "linear": "linear scaling", "dynamic": "dynamic NTK"}
    factor = f", factor {config.rope.factor:g}" if config.rope.scaling != "none" else ""
    return f"base {config.rope.theta:,.0f}, {kinds[config.rope.scaling]}{factor}"


def _remarks(facts: dict[str, Any], config: ModelConfig) -> list[str]:
    limit = config.max_position_embeddings
    remarks = [f"Context: {facts['working_reserve']:.0%} of the memory is kept for activations; one sequence."]
    if any(max(row["longest_context_by_cache"].values()) > limit for row in facts["weights"].values()):
        beyond = {
            "none": "nothing stretches it, so expect no sense beyond",
            "linear": "linear scaling is already part of it",
            "dynamic": "dynamic NTK stretches it, at some loss",
        }[config.rope.scaling]
        remarks.append(f"The model's own limit is {limit:,} tokens: {beyond}.")
    return remarks


def _list(presets: tuple[Preset, ...]) -> str:
    from puyulm.model.memory import count_parameters, format_bytes, kv_bytes_per_token, weight_bytes

    head = ("name", "parameters", "layers", "hidden", "heads/kv", "vocabulary", "positions", "bf16", "KV/token")
    rows = [head]
    for preset in presets:
        c = preset.config
        name = preset.name if preset.repository else f"{preset.name} (unreleased)"
        rows.append((
            name, f"{count_parameters(c).total:,}", f"{c.num_layers}", f"{c.hidden_size}",
            f"{c.num_heads}/{c.num_kv_heads}", f"{c.vocab_size:,}", f"{c.max_position_embeddings:,}",
            format_bytes(weight_bytes(c, "bf16")), format_bytes(kv_bytes_per_token(c)),
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*lines, "", "One model in full: puyu info NAME. Hub names (internlm/internlm2-7b) work too."])
