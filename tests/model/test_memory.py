"""Parameter counts to the unit, and what is derived from them."""

import pytest
import torch

from puyulm.errors import ConfigError
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.memory import (
    count_parameters,
    format_bytes,
    kv_bytes_per_token,
    longest_context,
    parse_bytes,
    weight_bytes,
)
from puyulm.model.presets import PRESETS, preset
from tests.conftest import tiny_config

PUBLISHED = {  # name: parameters, of them in one layer, bytes of keys and values a token in 16 bits
    "internlm-7b": (7_321_948_160, 202_399_744, 524_288),
    "internlm-20b": (20_088_714_240, 317_204_480, 1_228_800),
    "internlm2-1_8b": (1_889_110_016, 62_918_656, 98_304),
    "internlm2-7b": (7_737_708_544, 218_112_000, 131_072),
    "internlm2-20b": (19_861_149_696, 390_082_560, 196_608),
    "internlm2_5-1_8b-chat": (1_889_110_016, 62_918_656, 98_304),
    "internlm2_5-7b-chat-1m": (7_737_708_544, 218_112_000, 131_072),
    "internlm2_5-20b": (19_861_149_696, 390_082_560, 196_608),
    "internlm2-1_8b-reward": (1_699_581_952, 62_918_656, 98_304),
    "internlm2-7b-reward": (7_358_652_416, 218_112_000, 131_072),
    "internlm2-20b-reward": (19_292_565_504, 390_082_560, 196_608),
    "internlm3-8b-instruct": (8_804_241_408, 161_488_896, 49_152),
    "smollm2-135m-instruct": (134_515_008, 3_540_096, 23_040),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_equal_the_published_ones(name: str) -> None:
    config = preset(name).config
    count = count_parameters(config)
    assert (count.total, count.per_layer, kv_bytes_per_token(config)) == PUBLISHED[name]


def test_the_checkpoints_total_size_is_twice_the_count() -> None:
    assert weight_bytes(preset("internlm-7b").config, "bf16") == 14_643_896_320
    assert weight_bytes(preset("internlm-20b").config, "bf16") == 40_177_428_480
    assert weight_bytes(preset("internlm2-7b").config, "bf16") == 15_475_417_088


SHAPES = {preset.config: preset.name for preset in PRESETS} | {
    tiny_config(head_dim=24, qkv_bias=True, mlp_bias=True): "tiny with biases",
    tiny_config(out_bias=True, tie_embeddings=True, num_kv_heads=1): "tiny and tied",
}


@pytest.mark.parametrize("config", SHAPES, ids=SHAPES.values())
def test_the_decoder_has_as_many_parameters_as_counted(config: ModelConfig) -> None:
    with torch.device("meta"):
        decoder = Decoder(config)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == count_parameters(config).total
    layer = sum(parameter.numel() for parameter in decoder.layers[0].parameters())
    assert layer == count_parameters(config).per_layer


def test_quantised_bytes_follow_the_stated_layout() -> None:
    config = tiny_config(hidden_size=192, intermediate_size=256, num_layers=3)
    shapes = [(128, 192), (192, 64), (512, 192), (192, 256)]  # qkv, out, gate and up, down
    matrices = sum(rows * columns for rows, columns in shapes)
    rest = 2 * (count_parameters(config).total - 3 * matrices)
    scales = sum(2 * rows for rows, _ in shapes)
    groups = sum(rows * -(-columns // 128) for rows, columns in shapes)  # a row of 192 has one whole group and a half
    assert weight_bytes(config, "int8") == rest + 3 * (matrices + scales)
    assert weight_bytes(config, "int4") == rest + 3 * (matrices // 2 + 4 * groups)


def test_longest_context_fills_what_weights_and_reserve_leave() -> None:
    config, memory = preset("internlm2-7b").config, parse_bytes("24GiB")
    tokens = longest_context(config, memory, "bf16")
    used = 15_475_417_088 + tokens * 131_072
    assert used <= 0.9 * memory < used + 131_072
    assert longest_context(config, memory, "int4") > longest_context(config, memory, "int8") > tokens
    assert longest_context(config, parse_bytes("16GiB"), "bf16") == 0


def test_a_million_tokens_fit_one_gpu_of_80_gigabytes_with_four_bits_of_cache() -> None:
    config, memory = preset("internlm2_5-7b-chat-1m").config, parse_bytes("80GiB")
    tokens = [longest_context(config, memory, "bf16", cache) for cache in ("bf16", "int8", "int4")]
    assert tokens[0] < tokens[1] < 2**20 < tokens[2]


@pytest.mark.parametrize("name", ["internlm2-7b", "internlm3-8b-instruct", "smollm2-135m-instruct"])
def test_cache_bytes_are_those_of_the_engine(name: str) -> None:
    from puyulm.engine.paged import BLOCK_SIZE, block_bytes

    config = preset(name).config
    for precision, kv_type in (("bf16", "model"), ("int8", "int8"), ("int4", "int4")):
        assert kv_bytes_per_token(config, precision) * BLOCK_SIZE == block_bytes(config, torch.bfloat16, kv_type)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * 2**30), ("80gib", 80 * 2**30), ("16G", 16 * 2**30), ("24GB", 24 * 10**9), ("1.5 KiB", 1536),
        ("512m", 512 * 2**20), ("2TB", 2 * 10**12), ("4096", 4096), ("100B", 100),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "80 furlongs", "-1GiB", "1,5GB", "0GB", "nan", "1e9"])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_bytes(text)


def test_sizes_are_written_in_binary_units() -> None:
    assert [format_bytes(n) for n in (512, 1536, 15_475_417_088, 2**41)] == [
        "512 B",
        "1.50 KiB",
        "14.41 GiB",
        "2.00 TiB",
    ]
