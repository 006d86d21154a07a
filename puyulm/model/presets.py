"""The family by name: shapes of every published InternLM, and of the small model that a first try uses.

Numbers are those of the published `config.json` files; where a file could not be read, the row's note says what is
unconfirmed. A checkpoint's own `config.json` always wins over a preset: presets serve `puyu info`, training from
scratch in a published shape, and the way from a short name to a repository.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from puyulm.errors import ConfigError
from puyulm.model.config import ModelConfig, RopeConfig

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Preset:
    """One model of the family.

    Attributes:
        name: Short name, the repository's without its owner, lower case.
        repository: Published repository on the hub, or None for a model that was never released.
        config: Its shape and numerics.
        aliases: Other names people use for it.
        note: What is special or unconfirmed about it; empty for most.
    """

    name: str
    repository: str | None
    config: ModelConfig
    aliases: tuple[str, ...] = ()
    note: str = ""


# First generation (July and September 2023). One head per key/value, biases in the 7B's attention only.
_V1_7B = ModelConfig(
    family="internlm", vocab_size=103_168, hidden_size=4096, intermediate_size=11_008, num_layers=32, num_heads=32,
    num_kv_heads=32, head_dim=128, max_position_embeddings=2048, rope=RopeConfig(theta=1e4, scaling="dynamic"),
    rms_norm_eps=1e-6, qkv_bias=True, out_bias=True, dtype="float16",
)  # fmt: skip
_V1_7B_8K = _V1_7B.evolve(max_position_embeddings=8192)
_V1_20B = _V1_7B.evolve(
    hidden_size=5120, intermediate_size=13_824, num_layers=60, num_heads=40, num_kv_heads=40,
    max_position_embeddings=4096, qkv_bias=False, out_bias=False, dtype="bfloat16",
)  # fmt: skip
_V1_104B = _V1_20B.evolve(
    vocab_size=65_536, hidden_size=10_240, intermediate_size=27_392, num_layers=82, num_heads=80, num_kv_heads=80,
    max_position_embeddings=2048,
)  # fmt: skip

# Second generation (2024): grouped queries with 8 key/value heads in every size, 32K context.
_V2_7B = ModelConfig(
    family="internlm2", vocab_size=92_544, hidden_size=4096, intermediate_size=14_336, num_layers=32, num_heads=32,
    num_kv_heads=8, head_dim=128, max_position_embeddings=32_768, rope=RopeConfig(theta=1e6), rms_norm_eps=1e-5,
)  # fmt: skip
_V2_1_8B = _V2_7B.evolve(hidden_size=2048, intermediate_size=8192, num_layers=24, num_heads=16)
_V2_20B = _V2_7B.evolve(hidden_size=6144, intermediate_size=16_384, num_layers=48, num_heads=48)

# 2.5 and the 1.8B of 2 differ only beyond 32K tokens: dynamic NTK with factor 2.
_NTK2 = RopeConfig(theta=1e6, scaling="dynamic", factor=2.0)
_V2_1_8B_NTK = _V2_1_8B.evolve(rope=_NTK2)
_V25_7B = _V2_7B.evolve(rope=_NTK2)
_V25_20B = _V2_20B.evolve(rope=_NTK2)
_V25_7B_1M = _V2_7B.evolve(
    max_position_embeddings=262_144, rope=RopeConfig(theta=5e7, scaling="dynamic", factor=2.5)
)  # fmt: skip

_REWARD_1_8B, _REWARD_7B, _REWARD_20B = (
    config.evolve(head="reward", reward_token_id=92_527) for config in (_V2_1_8B, _V2_7B, _V2_20B)
)

# Third generation (January 2025): 2 key/value heads, Llama's tensor names.
_V3_8B = ModelConfig(
    family="internlm3", vocab_size=128_512, hidden_size=4096, intermediate_size=10_240, num_layers=48, num_heads=32,
    num_kv_heads=2, head_dim=128, max_position_embeddings=32_768, rms_norm_eps=1e-5,
    rope=RopeConfig(theta=5e7, scaling="dynamic", factor=6.0),
)  # fmt: skip

_SMOLLM2_135M = ModelConfig(
    family="llama", vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_layers=30, num_heads=9,
    num_kv_heads=3, head_dim=64, max_position_embeddings=8192, rope=RopeConfig(theta=1e5), rms_norm_eps=1e-5,
    tie_embeddings=True,
)  # fmt: skip

_ROPE_NOTE = "rope scaling unconfirmed; no effect within 32,768 tokens"
_REPORT_NOTE = "unreleased; shape of the 2023 report; MLP width and kind, biases and exact vocabulary are UNCONFIRMED"

# repository (or bare name), shape, other names, note
_ROWS: tuple[tuple[str, ModelConfig, tuple[str, ...], str], ...] = (
    ("internlm/internlm-7b", _V1_7B, (), "stored dtype unconfirmed"),
    ("internlm/internlm-chat-7b", _V1_7B, ("internlm-7b-chat",), "stored dtype unconfirmed"),
    ("internlm/internlm-chat-7b-8k", _V1_7B_8K, ("internlm-7b-chat-8k",), "max_position_embeddings unconfirmed"),
    ("internlm/internlm-20b", _V1_20B, (), ""),
    ("internlm/internlm-chat-20b", _V1_20B, ("internlm-20b-chat",), ""),
    ("internlm-104b", _V1_104B, (), _REPORT_NOTE),
    ("internlm/internlm2-1_8b", _V2_1_8B_NTK, (), ""),
    ("internlm/internlm2-chat-1_8b-sft", _V2_1_8B_NTK, ("internlm2-1_8b-chat-sft",), ""),
    ("internlm/internlm2-chat-1_8b", _V2_1_8B_NTK, ("internlm2-1_8b-chat",), ""),
    ("internlm/internlm2-base-7b", _V2_7B, ("internlm2-7b-base",), ""),
    ("internlm/internlm2-7b", _V2_7B, (), ""),
    ("internlm/internlm2-chat-7b-sft", _V2_7B, ("internlm2-7b-chat-sft",), ""),
    ("internlm/internlm2-chat-7b", _V2_7B, ("internlm2-7b-chat",), ""),
    ("internlm/internlm2-base-20b", _V2_20B, ("internlm2-20b-base",), ""),
    ("internlm/internlm2-20b", _V2_20B, (), ""),
    ("internlm/internlm2-chat-20b-sft", _V2_20B, ("internlm2-20b-chat-sft",), ""),
    ("internlm/internlm2-chat-20b", _V2_20B, ("internlm2-20b-chat",), ""),
    ("internlm/internlm2_5-1_8b", _V2_1_8B_NTK, (), ""),
    ("internlm/internlm2_5-1_8b-chat", _V2_1_8B_NTK, ("internlm2_5-chat-1_8b",), ""),
    ("internlm/internlm2_5-7b", _V25_7B, (), ""),
    ("internlm/internlm2_5-7b-chat", _V25_7B, ("internlm2_5-chat-7b",), ""),
    ("internlm/internlm2_5-7b-chat-1m", _V25_7B_1M, ("internlm2_5-chat-7b-1m",), "trained to 256K, run to 1M tokens"),
    ("internlm/internlm2_5-20b", _V25_20B, (), ""),
    ("internlm/internlm2_5-20b-chat", _V25_20B, ("internlm2_5-chat-20b",), ""),
    ("internlm/internlm2-1_8b-reward", _REWARD_1_8B, ("internlm2-reward-1_8b",), _ROPE_NOTE),
    ("internlm/internlm2-7b-reward", _REWARD_7B, ("internlm2-reward-7b",), _ROPE_NOTE),
    ("internlm/internlm2-20b-reward", _REWARD_20B, ("internlm2-reward-20b",), _ROPE_NOTE),
    ("internlm/internlm3-8b-instruct", _V3_8B, ("internlm3-8b",), "stored dtype unconfirmed"),
    ("internlm/internlm2-math-base-7b", _V2_7B, ("internlm2-math-7b-base",), _ROPE_NOTE),
    ("internlm/internlm2-math-base-20b", _V2_20B, ("internlm2-math-20b-base",), _ROPE_NOTE),
    ("internlm/internlm2-math-7b", _V2_7B, (), _ROPE_NOTE),
    ("internlm/internlm2-math-20b", _V2_20B, (), _ROPE_NOTE),
    ("internlm/internlm2-math-plus-1_8b", _V2_1_8B, (), _ROPE_NOTE),
    ("internlm/internlm2-math-plus-7b", _V2_7B, (), _ROPE_NOTE),
    ("internlm/internlm2-math-plus-20b", _V2_20B, (), _ROPE_NOTE),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", _SMOLLM2_135M, (), "not an InternLM: the small model of a first try"),
)  # fmt: skip


def _make(published: str, config: ModelConfig, aliases: tuple[str, ...], note: str) -> Preset:
    repository = published if "/" in published else None
    return Preset(published.rsplit("/", 1)[-1].lower(), repository, config, aliases, note)


PRESETS: tuple[Preset, ...] = tuple(_make(*row) for row in _ROWS)


def _key(name: str) -> str:
    """Names compare without case and with '.', '_' and '-' alike: "InternLM2.5-7B-Chat" is internlm2_5-7b-chat."""
    return name.strip().lower().replace(".", "-").replace("_", "-")


def _names(entry: Preset) -> tuple[str, ...]:
    return (entry.name, *((entry.repository,) if entry.repository else ()), *entry.aliases)


_BY_KEY = {_key(name): entry for entry in PRESETS for name in _names(entry)}


def find_preset(name: str) -> Preset | None:
    """The preset with this short name, repository name or alias, or None."""
    return _BY_KEY.get(_key(name))


def nearest_names(name: str, count: int = 3) -> list[str]:
    """Short names of the presets whose name or alias looks most like `name`, best first."""
    keys = difflib.get_close_matches(_key(name), _BY_KEY, n=4 * count, cutoff=0.5)
    return list(dict.fromkeys(_BY_KEY[key].name for key in keys))[:count]


def unknown_name(name: str) -> str:
    """One line for a name that is no preset: what was asked for, the nearest names, and where all names are."""
    nearest = nearest_names(name)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return f"unknown model '{name}': {hint}`puyu info` lists all names"


def preset(name: str) -> Preset:
    """The preset with this short name, repository name or alias.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    found = find_preset(name)
    if found is None:
        raise ConfigError(unknown_name(name))
    return found
