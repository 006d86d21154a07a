"""`config.json` of the published checkpoints, read into a `ModelConfig` and written back.

Keys that a published file leaves out take the defaults of the published configuration class of its generation, which
are not the values of the released models. Sources: the `configuration_internlm*.py` files of the released
repositories, and transformers' `LlamaConfig`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from puyulm.errors import ConfigError
from puyulm.model.config import DType, Family, ModelConfig, RopeConfig

Json = dict[str, Any]

_DEFAULTS: dict[Family, Json] = {
    "internlm": {
        "vocab_size": 103_168, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bias": True,
        "rotary": {"base": 10_000, "type": "dynamic"}, "pad_token_id": 0,
    },
    "internlm2": {
        "vocab_size": 103_168, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bias": True,
        "rope_theta": 10_000, "pad_token_id": 0,
    },
    "internlm3": {
        "vocab_size": 128_512, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6, "bias": False, "qkv_bias": False, "rope_theta": 10_000, "pad_token_id": 2,
    },
    "llama": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10_000,
        "attention_bias": False, "mlp_bias": False, "pad_token_id": None,
    },
}  # fmt: skip

_ARCHITECTURES: dict[tuple[Family, str], str] = {
    ("internlm", "lm"): "InternLMForCausalLM",
    ("internlm2", "lm"): "InternLM2ForCausalLM",
    ("internlm2", "reward"): "InternLM2ForRewardModel",
    ("internlm3", "lm"): "InternLM3ForCausalLM",
    ("llama", "lm"): "LlamaForCausalLM",
    ("llama", "reward"): "LlamaForSequenceClassification",
}


_READ_KEYS = frozenset({
    *(key for defaults in _DEFAULTS.values() for key in defaults), "dtype", "torch_dtype", "head_dim", "hidden_act",
    "rope_scaling", "rope_parameters", "reward_token_id", "num_key_value_heads", "tie_word_embeddings",
})  # fmt: skip
"""What `config_from_json` reads: a key of these that we leave out must not come back from an older file."""


def config_from_json(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Reads a published `config.json`.

    Args:
        raw: The parsed file.
        where: Named in errors.

    Raises:
        ConfigError: Unknown `model_type`, a value of the wrong kind, or a feature the published models do not have.
    """
    family = _family(raw, where)
    # null is a value of its own for token ids ("there is none"); anywhere else it asks for the default.
    given = {key: value for key, value in raw.items() if value is not None or key.endswith("_token_id")}
    values = {**_DEFAULTS[family], **given}
    if values.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where}: hidden_act {values['hidden_act']!r} is not supported; the family uses 'silu'")
    architecture = _architecture(raw, where)
    reward = _is_reward(raw, architecture)
    if "ForSequenceClassification" in architecture and family != "llama":
        raise ConfigError(f"{where}: sequence classification heads are not supported; load the language model")
    heads = _whole(values, "num_attention_heads", where)
    hidden = _whole(values, "hidden_size", where)
    values = {"num_key_value_heads": heads, "head_dim": hidden // heads, "initializer_range": 0.02, **values}
    eos = _token_ids(values, "eos_token_id", 2, where)
    try:
        return ModelConfig(
            family=family,
            vocab_size=values["vocab_size"],
            hidden_size=hidden,
            intermediate_size=values["intermediate_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=values["num_key_value_heads"],
            head_dim=values["head_dim"],
            max_position_embeddings=values["max_position_embeddings"],
            rope=_rope(family, values, where),
            rms_norm_eps=_number(values["rms_norm_eps"], "rms_norm_eps", where),
            **_biases(family, values),
            tie_embeddings=bool(values.get("tie_word_embeddings", False)) and not reward,
            head="reward" if reward else "lm",
            reward_token_id=_token_id(values, "reward_token_id", None, where),
            bos_token_id=_token_id(values, "bos_token_id", 1, where),
            eos_token_ids=eos,
            pad_token_id=_token_id(values, "pad_token_id", None, where),
            initializer_range=_number(values["initializer_range"], "initializer_range", where),
            dtype=_dtype(values, where),
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def config_to_json(config: ModelConfig, layout: Literal["own", "llama"] = "own") -> Json:
    """Writes `config.json` for the family's own published layout, or as a plain Llama.

    Raises:
        ConfigError: The layout cannot express the model.
    """
    family: Family = config.family if layout == "own" else "llama"
    if (family, config.head) not in _ARCHITECTURES:
        raise ConfigError(f"the {family} layout has no {config.head} head; internlm2 and llama have one")
    eos = config.eos_token_ids
    raw: Json = {
        "architectures": [_ARCHITECTURES[family, config.head]],
        "model_type": family,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if len(eos) > 1 else eos[0] if eos else None,
        "pad_token_id": config.pad_token_id,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": config.dtype,
        "use_cache": True,
    }
    if config.head_dim * config.num_heads != config.hidden_size or family in ("internlm3", "llama"):
        raw["head_dim"] = config.head_dim
    if config.reward_token_id is not None:
        raw["reward_token_id"] = config.reward_token_id
    if config.head == "reward" and family == "llama":
        raw["num_labels"] = 1
    return raw | _biases_to_json(family, config) | _rope_to_json(family, config.rope)


def merge_config(published: Mapping[str, Any], ours: Mapping[str, Any]) -> Json:
    """A published `config.json` brought up to date: its order, and its keys that say nothing about the model's shape
    and numerics (`auto_map` and whatever else came with it), with ours on top."""
    kept = {key: value for key, value in published.items() if key in ours or key not in _READ_KEYS}
    return {**kept, **ours}


def _architecture(raw: Mapping[str, Any], where: str) -> str:
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: architectures must be a list of names, not {names!r}")
    return " ".join(names)


def _is_reward(raw: Mapping[str, Any], architecture: str) -> bool:
    labels = raw.get("id2label")
    one_label = raw.get("num_labels", len(labels) if isinstance(labels, dict) and labels else 2) == 1
    return "RewardModel" in architecture or ("ForSequenceClassification" in architecture and one_label)


def _family(raw: Mapping[str, Any], where: str) -> Family:
    known = get_args(Family)
    model_type = raw.get("model_type")
    if model_type in known:
        return cast(Family, model_type)
    if model_type is None:
        raise ConfigError(f"{where}: no model_type; known are {', '.join(known)}")
    nearest = difflib.get_close_matches(str(model_type), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ConfigError(f"{where}: unknown model_type {model_type!r}; {hint}known are {', '.join(known)}")


def _rope(family: Family, values: Json, where: str) -> RopeConfig:
    kind: Any
    if family == "internlm":
        rotary = _object(values, "rotary", where)
        kind = "none" if rotary.get("type") == "origin" else rotary.get("type")
        theta, factor = rotary.get("base", 10_000), rotary.get("scaling_factor", 1.0)
    else:
        # transformers 5 writes `rope_parameters`, the releases `rope_theta` and `rope_scaling`.
        scaling = _object(values, "rope_parameters", where) or _object(values, "rope_scaling", where)
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        kind = "none" if kind == "default" else kind
        theta, factor = scaling.get("rope_theta", values["rope_theta"]), scaling.get("factor", 1.0)
    if kind not in ("none", "linear", "dynamic"):
        raise ConfigError(f"{where}: rope scaling {kind!r} is not supported; supported are linear and dynamic")
    theta, factor = _number(theta, "the rope base", where), _number(factor, "the rope scaling factor", where)
    return RopeConfig(theta=theta, scaling=kind, factor=factor)


def _rope_to_json(family: Family, rope: RopeConfig) -> Json:
    if family == "internlm":
        kind = "origin" if rope.scaling == "none" else rope.scaling
        rotary: Json = {"base": _plain(rope.theta), "type": kind}
        return {"rotary": rotary if rope.factor == 1.0 else {**rotary, "scaling_factor": rope.factor}}
    kind_key = "type" if family == "internlm2" else "rope_type"
    scaling = None if rope.scaling == "none" else {kind_key: rope.scaling, "factor": rope.factor}
    raw: Json = {"rope_theta": _plain(rope.theta), "rope_scaling": scaling}
    if family == "llama":
        raw["rope_parameters"] = {"rope_theta": rope.theta, **(scaling or {"rope_type": "default"})}
    return raw


def _biases(family: Family, values: Json) -> dict[str, bool]:
    if family == "llama":
        attention = bool(values["attention_bias"])
        return {"qkv_bias": attention, "out_bias": attention, "mlp_bias": bool(values["mlp_bias"])}
    bias = bool(values["bias"])
    if family == "internlm3":
        return {"qkv_bias": bool(values["qkv_bias"]), "out_bias": bias, "mlp_bias": bias}
    return {"qkv_bias": bias, "out_bias": bias, "mlp_bias": False}


def _biases_to_json(family: Family, config: ModelConfig) -> Json:
    qkv, out, mlp = config.qkv_bias, config.out_bias, config.mlp_bias
    if family == "internlm3" and out == mlp:
        return {"bias": out, "qkv_bias": qkv}
    if family == "llama" and qkv == out:
        return {"attention_bias": qkv, "mlp_bias": mlp}
    if family in ("internlm", "internlm2") and qkv == out and not mlp:
        return {"bias": qkv}
    raise ConfigError(f"the {family} layout cannot express qkv_bias={qkv}, out_bias={out}, mlp_bias={mlp}")


def _dtype(values: Json, where: str) -> DType:
    dtype = str(values.get("dtype", values.get("torch_dtype", "bfloat16"))).removeprefix("torch.")
    if dtype not in get_args(DType):
        raise ConfigError(f"{where}: torch_dtype {dtype!r} is not one of {', '.join(get_args(DType))}")
    return cast(DType, dtype)


def _whole(values: Json, key: str, where: str) -> int:
    value = values[key]
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where}: {key} must be a positive whole number, not {value!r}")
    return value


def _number(value: object, name: str, where: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"{where}: {name} must be a number that is not negative, not {value!r}")
    return float(value)


def _object(values: Json, key: str, where: str) -> Json:
    value = values.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} must be a JSON object, not {value!r}")
    return value


def _token_ids(values: Json, key: str, default: int | None, where: str) -> tuple[int, ...]:
    value = values.get(key, default)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise ConfigError(f"{where}: {key} must be a token id or a list of them, not {value!r}")
    return tuple(ids)


def _token_id(values: Json, key: str, default: int | None, where: str) -> int | None:
    return next(iter(_token_ids(values, key, default, where)), None)


def _plain(number: float) -> float | int:
    """Whole numbers without a decimal point, as the released files have them."""
    return int(number) if number == int(number) else number
