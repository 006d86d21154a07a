"""`config.json` of the published checkpoints, read into a `ModelConfig` and written back.

Keys that a published file leaves out take the defaults of the published configuration class of its generation, which
are not the values of the released models. Sources: the `configuration_internlm*.py` files of the released
repositories, and transformers' `LlamaConfig`.
"""

from __future__ import annotations

import difflib
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


def config_from_json(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Reads a published `config.json`.

    Args:
        raw: The parsed file.
        where: Named in errors.

    Raises:
        ConfigError: Unknown `model_type`, or a feature the published models do not have.
    """
    family = _family(raw, where)
    values = {**_DEFAULTS[family], **{key: value for key, value in raw.items() if value is not None}}
    if values.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where}: hidden_act {values['hidden_act']!r} is not supported; the family uses 'silu'")
    reward = _is_reward(raw)
    if "ForSequenceClassification" in _architecture(raw) and family != "llama":
        raise ConfigError(f"{where}: sequence classification heads are not supported; load the language model")
    heads = int(values["num_attention_heads"])
    hidden = int(values["hidden_size"])
    try:
        return ModelConfig(
            family=family,
            vocab_size=values["vocab_size"],
            hidden_size=hidden,
            intermediate_size=values["intermediate_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=int(values.get("num_key_value_heads", heads)),
            head_dim=int(values.get("head_dim", hidden // heads)),
            max_position_embeddings=values["max_position_embeddings"],
            rope=_rope(family, values, where),
            rms_norm_eps=float(values["rms_norm_eps"]),
            **_biases(family, values),
            tie_embeddings=bool(values.get("tie_word_embeddings", False)) and not reward,
            head="reward" if reward else "lm",
            reward_token_id=values.get("reward_token_id"),
            bos_token_id=_first(values.get("bos_token_id", 1)),
            eos_token_ids=_ids(values.get("eos_token_id", 2)),
            pad_token_id=values.get("pad_token_id"),
            initializer_range=float(values.get("initializer_range", 0.02)),
            dtype=_dtype(values, where),
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def config_to_json(config: ModelConfig, layout: Literal["own", "llama"] = "own") -> Json:
    """Writes `config.json` for the family's own published layout, or as a plain Llama.

    Raises:
        ConfigError: Llama's layout cannot express the model.
    """
    family: Family = config.family if layout == "own" else "llama"
    raw: Json = {
        "architectures": [_ARCHITECTURES[family, config.head]],
        "model_type": family,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0] if len(config.eos_token_ids) == 1 else list(config.eos_token_ids),
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


def _architecture(raw: Mapping[str, Any]) -> str:
    return " ".join(raw.get("architectures") or ())


def _is_reward(raw: Mapping[str, Any]) -> bool:
    one_label = raw.get("num_labels", len(raw.get("id2label") or ()) or 2) == 1
    return "RewardModel" in _architecture(raw) or ("ForSequenceClassification" in _architecture(raw) and one_label)


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
    if family == "internlm":
        rotary = values["rotary"]
        kind = {"origin": "none"}.get(rotary.get("type"), rotary.get("type"))
        theta, factor = rotary.get("base", 10_000), rotary.get("scaling_factor", 1.0)
    else:
        # transformers 5 writes `rope_parameters`, the releases `rope_theta` and `rope_scaling`.
        scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        kind = "none" if kind == "default" else kind
        theta, factor = scaling.get("rope_theta", values["rope_theta"]), scaling.get("factor", 1.0)
    if kind not in ("none", "linear", "dynamic"):
        raise ConfigError(f"{where}: rope scaling {kind!r} is not supported; supported are linear and dynamic")
    return RopeConfig(theta=float(theta), scaling=kind, factor=float(factor))


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


def _ids(value: int | list[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _first(value: int | list[int] | None) -> int | None:
    return value[0] if isinstance(value, list) else value


def _plain(number: float) -> float | int:
    """Whole numbers without a decimal point, as the released files have them."""
    return int(number) if number == int(number) else number
