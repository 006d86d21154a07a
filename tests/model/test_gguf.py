"""GGUF files made here as llama.cpp's converter makes them, and read back."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from puyulm.errors import CheckpointError, ConfigError
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_config, load_model
from puyulm.model.config import RopeConfig
from puyulm.model.decoder import Decoder
from puyulm.model.gguf import gguf_config, load_gguf_model, open_gguf
from puyulm.model.layouts import published_tensors
from tests.conftest import tiny_decoder
from tests.model.gguf_files import tensors_of, write


def logits(decoder: Decoder) -> torch.Tensor:
    attention = PackedAttention([7, 4])
    with torch.inference_mode():
        return decoder.logits(decoder(torch.arange(11) * 7 % 128, attention.positions, attention))


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_a_float_file_gives_the_same_parameters_bit_for_bit(tmp_path: Path, family: str) -> None:
    decoder = tiny_decoder(family=family, qkv_bias=True, out_bias=True)
    for bias in (layer.attention.qkv.bias for layer in decoder.layers):
        torch.nn.init.normal_(bias, generator=torch.Generator().manual_seed(1))
    loaded = load_model(write(tmp_path / "m.gguf", decoder, architecture=family))
    assert loaded.config == decoder.config.evolve(initializer_range=0.02)  # which a GGUF file does not hold
    assert not loaded.training
    for (name, ours), theirs in zip(decoder.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_the_file_is_not_already_in_our_row_order(tmp_path: Path) -> None:
    decoder = tiny_decoder(family="llama")
    stored = tensors_of(decoder)["blk.0.attn_q.weight"]
    slot = published_tensors(decoder.config, "llama")["model.layers.0.self_attn.q_proj.weight"]
    assert not np.array_equal(stored, slot.extract(decoder.layers[0].attention.qkv.weight).detach().numpy())


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_quantised_files_give_what_the_library_dequantises(tmp_path: Path, kind: Kind) -> None:
    decoder = tiny_decoder(family="llama")
    parameters = dict(decoder.named_parameters())
    loaded = load_gguf_model(write(tmp_path / "m.gguf", decoder, kind))
    with torch.no_grad():
        for slot in published_tensors(decoder.config, "llama").values():
            value = slot.extract(parameters[slot.parameter])
            if value.ndim > 1:
                coarse = gguf.dequantize(gguf.quantize(value.numpy(), kind), kind)
                slot.store(parameters[slot.parameter], torch.from_numpy(coarse))
    assert torch.equal(logits(loaded), logits(decoder))


def test_tensors_larger_than_a_chunk_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puyulm.model.gguf._CHUNK", 1000)
    decoder = tiny_decoder(family="llama", num_kv_heads=4)
    assert torch.equal(logits(load_gguf_model(write(tmp_path / "m.gguf", decoder))), logits(decoder))


def test_tied_embeddings_and_dtype(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny_decoder(family="llama", tie_embeddings=True), Kind.Q8_0)
    loaded = load_gguf_model(path, torch.float16)
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.embed.weight.dtype == torch.float16
    assert gguf_config(path).dtype == "bfloat16"


def test_the_configuration_is_read_from_the_metadata(tmp_path: Path) -> None:
    decoder = tiny_decoder(family="llama", head_dim=24, rms_norm_eps=1e-6)
    fields = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.freq_base": 1e6}
    config = load_config(write(tmp_path / "m.gguf", decoder, Kind.F16, **fields))
    assert config == decoder.config.evolve(
        rope=RopeConfig(theta=1e6, scaling="linear", factor=4), dtype="float16", initializer_range=0.02
    )


def test_absent_metadata_takes_llama_defaults(tmp_path: Path) -> None:
    decoder = tiny_decoder(family="llama", num_kv_heads=4)
    absent = ("attention.head_count_kv", "rope.freq_base", "rope.dimension_count", "attention.key_length")
    config = gguf_config(write(tmp_path / "m.gguf", decoder, **dict.fromkeys(absent)))
    assert (config.num_kv_heads, config.head_dim, config.rope.theta) == (4, 16, 10_000)


def test_string_arrays_read_like_the_library_reads_them(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny_decoder(family="llama"))
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for key, field in theirs.fields.items():
        assert ours.fields[key].contents() == field.contents(), key
    assert ours.fields["tokenizer.ggml.tokens"].contents(5) == "piece 5 中"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_count": None}, "has no llama.block_count"),
        ({"expert_count": 8}, "mixture of experts"),
        ({"rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not supported"),
        ({"rope.dimension_count": 8}, "rotated dimensions must all have 16"),
        ({"attention.head_count_kv": 3}, "multiple of num_kv_heads"),
        ({"attention.head_count": 0}, "llama.attention.head_count must be one positive whole number, not 0"),
        ({"embedding_length": "many"}, "llama.embedding_length must be one positive whole number, not many"),
    ],
)
def test_what_the_family_does_not_have_is_refused(tmp_path: Path, fields: dict, message: str) -> None:
    path = write(tmp_path / "m.gguf", tiny_decoder(family="llama"), **fields)
    with pytest.raises(ConfigError, match=message) as raised:
        load_gguf_model(path)
    assert "m.gguf" in str(raised.value)


def test_one_part_of_a_split_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gguf.GGUFWriter.add_bos_token_id
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_bos_token_id", lambda self, id: (real(self, id), self.add_uint16("split.count", 3))
    )
    with pytest.raises(ConfigError, match=r"m\.gguf: one of 3 parts of a model; merge them"):
        gguf_config(write(tmp_path / "m.gguf", tiny_decoder(family="llama")))


def test_an_unknown_architecture_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny_decoder(), architecture="llama4")
    with pytest.raises(ConfigError, match=r"unknown architecture 'llama4'; the nearest is 'llama'; known are"):
        gguf_config(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"feed_forward_length": 192},
            r"blk.0.ffn_gate.weight has shape \[96, 64\], the metadata asks for \[192, 64\]",
        ),
        ({"block_count": 3}, r"missing tensors: blk.2.attn_k.weight, .* and 6 more"),
        ({"block_count": 1}, r"unexpected tensors: blk.1.attn_k.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_gguf_model(write(tmp_path / "m.gguf", tiny_decoder(family="llama"), **fields))


def test_a_type_the_library_cannot_dequantise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf", tiny_decoder(family="llama"), Kind.Q5_0)

    def unknown(rows: np.ndarray, kind: Kind) -> np.ndarray:
        raise NotImplementedError

    monkeypatch.setattr("puyulm.model.gguf.dequantize", unknown)
    with pytest.raises(CheckpointError, match=r"token_embd.weight has the unsupported type Q5_0"):
        load_gguf_model(path)


@pytest.mark.parametrize("keep", [3, 20, 300, 4000, 30_000, -100])
def test_a_file_cut_off_anywhere_is_an_error_of_one_line(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "m.gguf", tiny_decoder(family="llama"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"m\.gguf: (damaged GGUF file|not a GGUF file)") as raised:
        load_gguf_model(path)
    assert "\n" not in str(raised.value)
    if keep == -100:
        assert "truncated" in str(raised.value)
        assert "blk.1" in str(raised.value) or "output" in str(raised.value)


def test_files_that_are_not_there_or_not_gguf(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        gguf_config(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("hello, this is no model")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        gguf_config(tmp_path / "text.gguf")
    (tmp_path / "big.gguf").write_bytes(b"GGUF\0\0\0\3" + bytes(64))
    with pytest.raises(CheckpointError, match="big-endian"):
        gguf_config(tmp_path / "big.gguf")
