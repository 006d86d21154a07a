"""`puyu quantize`, and what the other verbs do with its folders."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from puyulm.cli import main
from puyulm.engine.load import load_chat_model
from puyulm.engine.quant.calibration import DocumentReader, sample_texts, split_rows, token_rows
from puyulm.engine.quant.load import load_quantized
from puyulm.errors import DataError
from puyulm.model.checkpoint import load_config
from puyulm.text.tokenizer import Tokenizer
from tests.conftest import tiny_decoder
from tests.engine.checkpoints import write_checkpoint

SMALL = ("--samples", "4", "--length", "32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    lines = [{"text": "The harbour town wakes early. " * 4}, {"messages": [{"role": "user", "content": "你好"}]}]
    file.write_text("\n".join(json.dumps(line) for line in lines * 8))
    return file


def run(*words: object) -> int:
    return main(["quantize", *map(str, words)])


@pytest.mark.parametrize(
    ("method", "options", "bits", "group_size"),
    [
        ("rtn", (), 4, 32),
        ("rtn", ("--bits", "8"), 8, None),
        ("rtn", ("--bits", "8", "--group-size", "32", "--head", "keep"), 8, 32),
        ("awq", ("--zero-point", "--head", "int4"), 4, 32),
        ("gptq", ("--act-order", "--group-size", "row"), 4, None),
        ("smoothquant", ("--alpha", "0.8"), 8, None),
        ("fp8", (), None, None),
    ],
)
def test_every_method_on_a_file_of_text(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, options: tuple[str, ...],
    bits: int | None, group_size: int | None,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert run(model, out, "--method", method, "--calibration", text, *SMALL, *options) == 0
    printed = capsys.readouterr()
    assert "perplexity" in printed.out and "decode, batch 1" in printed.out and f"wrote {out}" in printed.out
    given = json.loads((out / "config.json").read_text())["quantization_config"]
    assert (given["method"], given.get("bits"), given.get("group_size")) == (method, bits, group_size)
    report = json.loads((out / "quantization.json").read_text())
    assert report["calibration_tokens"] == (0 if method in ("rtn", "fp8") else 4 * 32)
    assert report["perplexity"]["after"] < 1.5 * report["perplexity"]["before"]
    chat = load_chat_model(str(out))  # tokenizer, chat format and generation settings came along
    assert chat.chat_format.name != "base" and chat.model.config.vocab_size == load_config(model).vocab_size


def test_without_text_of_your_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(model, tmp_path / "out", "--method", "awq", "--samples", "3", "--length", "24") == 0
    assert "note: calibrating on sample text" in capsys.readouterr().err
    assert run(model, tmp_path / "rtn", *SMALL) == 0
    assert "note" not in capsys.readouterr().err


def test_gguf_sources_bring_their_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("gguf")
    from tests.model.gguf_files import write

    file = write(tmp_path / "m.gguf", tiny_decoder(family="llama"))
    assert run(file, tmp_path / "out", *SMALL) == 0
    assert Tokenizer.load(tmp_path / "out").encode("a") == Tokenizer.load(file).encode("a")
    assert load_quantized(tmp_path / "out").config.num_layers == load_config(file).num_layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "8", "--zero-point"), "8 bits are symmetric"),
        (("--group-size", "48"), "multiple of 32"),
        (("--group-size", "64"), "do not divide the 96 columns"),
        (("--method", "smoothquant", "--bits", "4"), "smoothquant has 8 bits"),
        (("--method", "fp8", "--group-size", "32"), "a scale a row"),
        (("--samples", "0"), "--samples must be 1 or more"),
        (("--length", "3"), "--length must be 16 or more"),
        (("--method", "awq", "--calibration", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("--eval-text", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        (("--device", "tpu9"), "device 'tpu9'"),
        (("--max-shard-size", "big"), "'big' is not a size"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
):
    assert run(model, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("puyu quantize: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_existing_folders_are_kept_unless_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert run(model, out, *SMALL) == 0
    before = (out / "model.safetensors").read_bytes()
    assert run(model, out, "--bits", "8", *SMALL) == 2
    assert "already exists" in capsys.readouterr().err and (out / "model.safetensors").read_bytes() == before
    assert run(model, out, "--bits", "8", "--overwrite", *SMALL) == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert run(out, tmp_path / "again", *SMALL) == 2
    assert "its weights are quantised" in capsys.readouterr().err
    assert run(model, model, "--overwrite", *SMALL) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_words_that_are_no_group_size(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run(model, tmp_path / "out", "--group-size", "wide")
    assert "'row'" in capsys.readouterr().err


def test_reading_text_and_conversations(model: Path, text: Path, tmp_path: Path):
    tokenizer, config = Tokenizer.load(model), load_config(model)
    reader = DocumentReader(tokenizer, config)
    documents = list(reader.read(text))
    assert len(documents) == 16 and documents[0] == reader.encode("The harbour town wakes early. " * 4)
    assert any(tokenizer.is_special(token) for token in documents[1][1:])  # the chat format's marks
    with gzip.open(tmp_path / "t.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(text.read_text())
    assert list(reader.read(tmp_path / "t.jsonl.gz")) == documents
    (tmp_path / "t.txt").write_text("one\ntwo")
    assert list(reader.read(tmp_path / "t.txt")) == [reader.encode("one\ntwo")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", r"text must be .txt, .jsonl or .jsonl.gz"),
        ("a.jsonl", b'{"text": "a"}\n{', r"a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "a"}', r'a.jsonl:1: expected \{"text"'),
        ("a.jsonl", b'{"messages": [{"role": "alien", "content": ""}]}', "a.jsonl:1: "),
        ("a.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
    ],
)
def test_files_that_are_no_text(model: Path, tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(DocumentReader(Tokenizer.load(model), load_config(model)).read(tmp_path / name))


def test_rows_of_tokens():
    rows = token_rows([[1, 2, 3], list(range(4, 60))], 16, 3, 100)
    assert rows.shape == (3, 16) and rows.flatten().tolist() == list(range(1, 49))
    assert token_rows([list(range(20))], 512, 8, 100).shape == (1, 20)
    with pytest.raises(DataError, match="has 3 tokens"):
        token_rows([[1, 2, 3]], 16, 3, 100)
    with pytest.raises(DataError, match="token 99, the model 50"):
        token_rows([[99] * 20], 16, 3, 50)


def test_held_out_rows_are_spread_and_in_no_other_set():
    rows = torch.arange(100)[:, None].expand(-1, 16)
    seen, held_out = split_rows(rows, 84, 16)
    assert len(held_out) == 16 and len(seen) == 84
    assert not set(seen[:, 0].tolist()) & set(held_out[:, 0].tolist())
    assert held_out[:, 0].diff().max() < 8
    assert [len(part) for part in split_rows(rows[:2], 84, 16)] == [1, 1]
    assert [len(part) for part in split_rows(rows[:40], 84, 16)] == [30, 10]
    with pytest.raises(DataError, match="only 1 row"):
        split_rows(rows[:1], 84, 16)


def test_the_sample_text_is_there():
    texts = sample_texts()
    assert len(texts) > 15 and sum("的" in text for text in texts) > 5
