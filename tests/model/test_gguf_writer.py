"""GGUF files that we write: read back by ourselves, and run by llama.cpp where it is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from puyulm.cli import main
from puyulm.errors import CheckpointError, ConfigError
from puyulm.model import gguf_writer
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_model, save_model
from puyulm.model.config import RopeConfig
from puyulm.model.decoder import Decoder
from puyulm.model.gguf import load_gguf_model, open_gguf
from puyulm.model.gguf_writer import write_gguf
from puyulm.text.tokenizer import Tokenizer
from puyulm.text.train import train_tokenizer
from tests.conftest import tiny_decoder
from tests.model.llama_cpp_models import bytes_of, load_llama_cpp, logits_of
from tests.text.conftest import made_text
from tests.text.small_tokenizers import small_tokenizer

Captured = pytest.CaptureFixture[str]

FAMILIES = {
    "internlm": dict(family="internlm", num_kv_heads=4, qkv_bias=True, out_bias=True),
    "internlm2": dict(family="internlm2"),
    "internlm2 with biases": dict(family="internlm2", qkv_bias=True, out_bias=True),
    "internlm3": dict(family="internlm3", head_dim=24, qkv_bias=True),
    "llama, tied": dict(family="llama", tie_embeddings=True),
    "llama, linear": dict(family="llama", rope=RopeConfig(theta=5e4, scaling="linear", factor=4.0)),
    "llama, one kv head": dict(family="llama", num_kv_heads=1, mlp_bias=True),
}  # fmt: skip
TEXTS = [
    "", " ", "Hello, world!", " leading  and   inner spaces ", "def f(self, x):\n\treturn self.x[x] + 1234567\n\n\n",
    "今天天气很好，我们一起学习语言模型。", "emoji 😀🐉 and ——……Ｅｆ", "naïve café Ω ∑ ☃", "a\0b",
    "I'm, you'LL; it's 3.14159", made_text(5, seed=1),
]  # fmt: skip


def decoder_with_biases(**changes: object) -> Decoder:
    decoder = tiny_decoder(**changes)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return decoder


def logits(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    attention = PackedAttention([len(ids)])
    with torch.inference_mode():
        return decoder.logits(decoder(torch.tensor(ids), attention.positions, attention))


def converted(tmp_path: Path, decoder: Decoder, kind: gguf_writer.GGUFType, layout: str = "own") -> Path:
    save_model(decoder, tmp_path / "source", overwrite=True, layout=layout)  # type: ignore[arg-type]
    write_gguf(tmp_path / "source", tmp_path / "m.gguf", kind)
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_floats_come_back_bit_for_bit(tmp_path: Path, name: str, kind: gguf_writer.GGUFType) -> None:
    decoder = decoder_with_biases(**FAMILIES[name])
    half = kind == "f16"
    for parameter in decoder.parameters() if half else ():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half().float()
    loaded = load_model(converted(tmp_path, decoder, kind))
    for (label, ours), theirs in zip(decoder.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), label
    config = decoder.config
    family = "internlm2" if name == "internlm2" else "llama"
    dtype = "float16" if half else "float32"
    assert loaded.config == config.evolve(family=family, dtype=dtype, initializer_range=0.02)


@pytest.mark.parametrize("layout", ["own", "llama"])
def test_both_layouts_shards_bin_and_gguf_sources_give_the_same_file(tmp_path: Path, layout: str) -> None:
    decoder = tiny_decoder()
    expected = converted(tmp_path, decoder, "q8_0").read_bytes()
    save_model(decoder, tmp_path / "b", layout=layout, max_shard_bytes=60_000)  # type: ignore[arg-type]
    write_gguf(tmp_path / "b", tmp_path / "b" / "m.gguf", "f32")
    write_gguf(tmp_path / "b" / "m.gguf", tmp_path / "from_gguf" / "m.gguf", "q8_0")
    write_gguf(tmp_path / "b", tmp_path / "from_shards" / "m.gguf", "q8_0")
    if layout == "own":
        assert (tmp_path / "from_shards" / "m.gguf").read_bytes() == expected
        assert (tmp_path / "from_gguf" / "m.gguf").read_bytes() == expected
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "config.json").write_bytes((tmp_path / "source" / "config.json").read_bytes())
        from safetensors.torch import load_file

        state = load_file(tmp_path / "source" / "model.safetensors")
        torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
        write_gguf(tmp_path / "bin", tmp_path / "bin" / "m.gguf", "q8_0")
        assert (tmp_path / "bin" / "m.gguf").read_bytes() == expected
    ours, theirs = (load_model(path).parameters() for path in (tmp_path / "m.gguf", tmp_path / "from_shards/m.gguf"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_types_of_the_tensors(tmp_path: Path) -> None:
    decoder = tiny_decoder(family="llama", intermediate_size=80)
    reader = open_gguf(converted(tmp_path, decoder, "q4_0"))
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == Kind.Q8_0
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_up.weight"] == Kind.Q4_0
    assert kinds["blk.0.ffn_down.weight"] == Kind.F16  # rows of 80 are no whole number of blocks
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == Kind.F32
    assert reader.fields["general.file_type"].contents() == 2


def test_chunks_do_not_change_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_decoder()
    expected = converted(tmp_path, decoder, "q4_0").read_bytes()
    monkeypatch.setattr(gguf_writer, "_CHUNK", 100)
    assert converted(tmp_path, decoder, "q4_0").read_bytes() == expected


def test_quantised_as_the_library_quantises(tmp_path: Path) -> None:
    decoder = tiny_decoder(family="llama")
    loaded = load_gguf_model(converted(tmp_path, decoder, "q4_0"))
    for ours, theirs, kind in (
        (decoder.embed.weight, loaded.embed.weight, Kind.Q8_0),
        (decoder.layers[1].attention.out.weight, loaded.layers[1].attention.out.weight, Kind.Q4_0),
    ):
        expected = gguf.dequantize(gguf.quantize(ours.detach().numpy(), kind), kind)
        assert np.array_equal(theirs.detach().numpy(), expected)


def test_what_cannot_be_written_is_one_line_and_no_file(tmp_path: Path, capsys: Captured) -> None:
    save_model(tiny_decoder(head="reward", reward_token_id=5), tmp_path / "reward")
    assert main(["convert", str(tmp_path / "reward"), str(tmp_path / "out.gguf")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ConfigError, match=r"a reward model, which llama\.cpp cannot run"):
        write_gguf(tmp_path / "reward", tmp_path / "out.gguf", "f16")
    decoder = tiny_decoder()
    decoder.layers[0].mlp.down.weight.data[3, 4] = 1e6
    with pytest.raises(CheckpointError, match=r"ffn_down\.weight holds values beyond float16"):
        converted(tmp_path, decoder, "f16")
    save_model(tiny_decoder(), tmp_path / "damaged")
    file = tmp_path / "damaged" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 97}))
    with pytest.raises(CheckpointError, match=r"w1.weight has shape \[96, 64\], config.json asks for \[97, 64\]"):
        write_gguf(tmp_path / "damaged", tmp_path / "out.gguf", "f16")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(CheckpointError, match="its weights are quantised"):
        write_gguf(tmp_path / "damaged", tmp_path / "out.gguf", "f16")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


def test_the_command(tmp_path: Path, capsys: Captured) -> None:
    source, target = tmp_path / "source", tmp_path / "out.gguf"
    train_tokenizer([made_text(200)], 700, source, "sentencepiece", max_digits=1)
    capsys.readouterr()
    save_model(tiny_decoder(vocab_size=704, rope=RopeConfig(scaling="dynamic", factor=2.0)), tmp_path / "weights")
    for file in (tmp_path / "weights").iterdir():
        file.rename(source / file.name)
    assert main(["convert", str(source), str(target), "--to", "gguf", "--gguf-type", "q8_0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"wrote {target}: GGUF, q8_0, ")
    assert captured.err == "note: GGUF has no dynamic NTK: beyond 64 tokens the file is another model\n"
    original, inside = Tokenizer.load(source), Tokenizer.load(target)
    assert [inside.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]
    assert inside.chat_template == original.chat_template
    assert inside.id_to_token(703) == "[PAD703]"
    assert inside.eos_id == original.token_to_id("<|im_end|>")
    assert main(["convert", str(source), str(target)]) == 2
    assert "already exists; choose another name, or add --overwrite" in capsys.readouterr().err
    assert main(["convert", str(source), str(target), "--overwrite"]) == 0
    assert main(["convert", str(source), str(tmp_path / "x.gguf"), "--dtype", "float16"]) == 2
    assert "--dtype: only for a folder" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "x"), "--gguf-type", "f16"]) == 2
    assert main(["convert", str(source), str(tmp_path / "x"), "--to", "gguf"]) == 2
    assert "must end in .gguf" in capsys.readouterr().err


def test_a_tokenizer_that_llama_cpp_does_not_know_is_left_out_with_a_note(tmp_path: Path, capsys: Captured) -> None:
    tokenizer = small_tokenizer(tmp_path / "t", [])
    save_model(tiny_decoder(vocab_size=tokenizer.vocab_size, eos_token_ids=(5, 6)), tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "m.gguf"), "--gguf-type", "f32"]) == 0
    assert "note: no tokenizer is written:" in capsys.readouterr().err
    assert load_model(tmp_path / "m.gguf").config.eos_token_ids == (5, 6)
    save_model(tiny_decoder(vocab_size=100), tmp_path / "few")
    tokenizer.save(tmp_path / "few")
    assert main(["convert", str(tmp_path / "few"), str(tmp_path / "few.gguf")]) == 0
    assert "tokens, but the model 100 rows" in capsys.readouterr().err


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_computes_the_same(tmp_path: Path, name: str) -> None:
    """Logits along 64 greedy tokens of ours, and each next token, unless two are as likely but for rounding.

    llama.cpp also rounds the inputs of quantised matrices to 8 bits, which ours does not: hence the wider tolerance.
    """
    decoder = decoder_with_biases(**FAMILIES[name])
    for kind, tolerance in (("f32", 2e-3), ("f16", 4e-3), ("q8_0", 0.05), ("q4_0", 0.05)):
        path = converted(tmp_path, decoder, kind)  # type: ignore[arg-type]
        same_weights, ids = load_model(path), [1, 17, 99]
        for _ in range(64):
            ids.append(int(logits(same_weights, ids)[-1].argmax()))
        mine = logits(same_weights, ids)
        peer = load_llama_cpp(path)
        theirs = logits_of(peer, ids)
        peer.close()
        assert (mine - theirs).square().mean().sqrt() < tolerance * mine.std(), kind
        best = mine.topk(2).values
        sure = best[:, 0] - best[:, 1] > (4 * tolerance if kind.startswith("q") else tolerance) * mine.std()
        assert sure.sum() > 30
        assert torch.equal(mine.argmax(-1)[sure], theirs.argmax(-1)[sure]), kind


def test_llama_cpp_generates_the_same_tokens(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    path = converted(tmp_path, decoder, "f32")
    peer, ids = load_llama_cpp(path), [1, 17, 99]
    theirs = [*ids, *(token for token, _ in zip(peer.generate(ids, temp=0.0), range(64), strict=False))]
    peer.close()
    for _ in range(64):
        ids.append(int(logits(decoder, ids)[-1].argmax()))
    assert theirs == ids


def _checkpoint(folder: Path, tokenizer: Tokenizer, family: str) -> Path:
    shape = dict(hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=2, num_layers=1)
    save_model(tiny_decoder(family=family, vocab_size=tokenizer.vocab_size + 3, **shape), folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(params=["trained pieces", "trained bytes", "digits", "internlm2", "internlm"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of each kind of tokenizer."""
    if request.param in ("internlm2", "internlm"):
        file = request.getfixturevalue("shared_dir") / "tokenizers" / f"{request.param}.model"
        if not file.is_file():
            pytest.skip(f"no {file}")
        tokenizer, family = Tokenizer.load(file), request.param
    else:
        kind = "bytelevel" if request.param == "trained bytes" else "sentencepiece"
        digits = 1 if request.param == "digits" else 3
        size = 1500 if digits == 3 and kind == "sentencepiece" else 600
        train_tokenizer([made_text(300)], size, tmp_path / "t", kind, spare_tokens=2, max_digits=digits)
        tokenizer, family = Tokenizer.load(tmp_path / "t"), "internlm2"
    yield _checkpoint(tmp_path / "m", tokenizer, family)


def test_llama_cpp_cuts_texts_as_we_do(checkpoint: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["convert", str(checkpoint), str(tmp_path / "m.gguf")]) == 0
    assert "note" not in capsys.readouterr().err
    ours, back = Tokenizer.load(checkpoint), Tokenizer.load(tmp_path / "m.gguf")
    peer = load_llama_cpp(tmp_path / "m.gguf", vocab_only=True)
    assert peer.n_vocab() == ours.vocab_size + 3
    for text in TEXTS:
        ids = ours.encode(text)
        assert peer.tokenize(text.encode(), add_bos=False, special=False) == ids, text
        assert peer.tokenize(text.encode(), add_bos=True, special=False) == ours.encode(text, bos=True), text
        assert back.encode(text) == ids
        assert b"".join(bytes_of(peer, i) for i in ids) == text.encode()
    markers = [name for name in ours.special_tokens if name.startswith("<|")] or ["<eoh>", "<eoa>"]
    markup = "".join(f"{name}user\nHi 你好 " for name in markers)
    assert peer.tokenize(markup.encode(), add_bos=False, special=True) == ours.encode_markup(markup)
    assert back.encode_markup(markup) == ours.encode_markup(markup)
    end = ours.token_to_id("<eoa>" if "<eoa>" in ours.special_tokens else "<|im_end|>")
    assert peer.token_eos() == end == back.eos_id
    assert peer.token_bos() == ours.bos_id
    assert peer.metadata.get("tokenizer.chat_template") == ours.chat_template
    nul = next((i for i in range(ours.vocab_size) if ours.id_to_token(i) == "\0"), None)
    if nul is not None:
        assert back.token_bytes(nul) == b"\0" == bytes_of(peer, nul)
    peer.close()
