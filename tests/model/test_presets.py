"""The family table: names, and the numbers of the published configurations."""

import pytest

from puyulm.errors import ConfigError
from puyulm.model.config import RopeConfig
from puyulm.model.presets import DEFAULT_MODEL, PRESETS, find_preset, nearest_names, preset

RELEASED = {
    "internlm": ["7b", "chat-7b", "chat-7b-8k", "20b", "chat-20b"],
    "internlm2": [
        "1_8b", "7b", "20b", "base-7b", "base-20b", "chat-1_8b", "chat-1_8b-sft", "chat-7b", "chat-7b-sft", "chat-20b",
        "chat-20b-sft", "1_8b-reward", "7b-reward", "20b-reward", "math-base-7b", "math-base-20b", "math-7b",
        "math-20b", "math-plus-1_8b", "math-plus-7b", "math-plus-20b",
    ],
    "internlm2_5": ["1_8b", "7b", "20b", "1_8b-chat", "7b-chat", "20b-chat", "7b-chat-1m"],
    "internlm3": ["8b-instruct"],
}  # fmt: skip


@pytest.mark.parametrize("name", [f"{series}-{size}" for series, sizes in RELEASED.items() for size in sizes])
def test_every_released_model_is_found_by_short_and_by_repository_name(name: str) -> None:
    found = preset(name)
    assert found.name == name
    assert found.repository == f"internlm/{name}"
    assert preset(found.repository) is found


def test_the_table_holds_nothing_else_but_the_report_and_the_small_model() -> None:
    released = {f"{series}-{size}" for series, sizes in RELEASED.items() for size in sizes}
    assert {p.name for p in PRESETS} - released == {"internlm-104b", DEFAULT_MODEL}


def test_names_and_aliases_belong_to_one_model_each() -> None:
    names = [n for p in PRESETS for n in {p.name, *p.aliases}]
    assert len(names) == len(set(names))
    assert all(find_preset(alias) is p for p in PRESETS for alias in p.aliases)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("InternLM2.5-7B-Chat", "internlm2_5-7b-chat"),
        ("internlm/internlm2.5-7b-chat", "internlm2_5-7b-chat"),
        ("internlm2-chat-1.8b", "internlm2-chat-1_8b"),
        ("internlm2-7b-chat", "internlm2-chat-7b"),
        ("internlm2_5-chat-7b-1m", "internlm2_5-7b-chat-1m"),
        ("internlm3-8b", "internlm3-8b-instruct"),
        ("SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
    ],
)
def test_names_are_read_as_people_write_them(written: str, name: str) -> None:
    assert preset(written).name == name


def test_a_repository_of_another_owner_is_no_preset() -> None:
    assert find_preset("someone/internlm2-chat-7b") is None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"internlm2-chat-7bb.*did you mean internlm2-chat-7b or .*puyu info"):
        preset("internlm2-chat-7bb")
    assert nearest_names("qqqq") == []
    with pytest.raises(ConfigError, match=r"unknown model 'qqqq': `puyu info`"):
        preset("qqqq")


def test_generations_have_their_published_numbers() -> None:
    v1, v2, v3 = (preset(n).config for n in ("internlm-7b", "internlm2-20b", "internlm3-8b-instruct"))
    assert (v1.family, v1.num_kv_heads, v1.qkv_bias, v1.out_bias, v1.mlp_bias) == ("internlm", 32, True, True, False)
    assert (v1.rms_norm_eps, v1.rope) == (1e-6, RopeConfig(theta=10_000, scaling="dynamic", factor=1))
    assert not preset("internlm-20b").config.qkv_bias
    assert (v2.family, v2.hidden_size, v2.num_heads, v2.num_kv_heads, v2.head_dim) == ("internlm2", 6144, 48, 8, 128)
    assert (v2.intermediate_size, v2.vocab_size, v2.rms_norm_eps) == (16_384, 92_544, 1e-5)
    assert (v3.family, v3.num_kv_heads, v3.vocab_size) == ("internlm3", 2, 128_512)
    assert v3.rope == RopeConfig(theta=5e7, scaling="dynamic", factor=6)
    million = preset("internlm2_5-7b-chat-1m").config
    assert (million.max_position_embeddings, million.rope.theta, million.rope.factor) == (262_144, 5e7, 2.5)


def test_rewards_and_the_unreleased_model_are_marked() -> None:
    reward = preset("internlm2-7b-reward").config
    assert (reward.head, reward.reward_token_id) == ("reward", 92_527)
    report = preset("internlm-104b")
    assert report.repository is None
    assert "unreleased" in report.note
    assert "UNCONFIRMED" in report.note
    assert (report.config.num_layers, report.config.num_heads, report.config.hidden_size) == (82, 80, 10_240)
