"""Training tokenizers: the family's conventions, the sample, the report, the command."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from puyulm.cli import main
from puyulm.errors import TokenizerError
from puyulm.text.sample import draw_sample, language_of, read_texts
from puyulm.text.sentencepiece_model import ModelProto, Piece
from puyulm.text.tokenizer import Tokenizer
from puyulm.text.train import LAST_TOKENS, train_tokenizer

MARKERS = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]


def _text(lines: int) -> str:
    """Lines with a vocabulary of some hundred made words, Chinese, and numbers."""
    rng = random.Random(1)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "or", "un")]
    words = ["water", "the", *("".join(rng.choices(syllables, k=rng.randrange(1, 4))) for _ in range(400))]
    made = (f"{' '.join(rng.choices(words, k=8))}: 今天天气很好，{rng.randrange(10**6)}。" for _ in range(lines))
    return "\n".join(made)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_layout_of_the_ids(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer = Tokenizer.load(request.getfixturevalue(f"{kind}_folder"))
    size = tokenizer.vocab_size
    assert size == {"sentencepiece": 1500, "bytelevel": 400}[kind]
    assert [tokenizer.id_to_token(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert sorted(tokenizer.token_bytes(i) for i in range(3, 259)) == [bytes([i]) for i in range(256)]
    assert [tokenizer.id_to_token(i) for i in range(size - 6, size)] == MARKERS
    assert tokenizer.id_to_token(size - 7) == "<|reward|>"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.add_bos) == (1, 2, 2, True)


def test_sentencepiece_file_has_the_published_specification(sentencepiece_folder: Path) -> None:
    proto = ModelProto()
    proto.ParseFromString((sentencepiece_folder / "tokenizer.model").read_bytes())
    spec, rule = proto.trainer_spec, proto.normalizer_spec
    assert (spec.model_type, spec.byte_fallback, spec.vocab_size) == (2, True, 1500)
    assert (rule.name, rule.precompiled_charsmap) == ("identity", b"")
    assert (rule.add_dummy_prefix, rule.remove_extra_whitespaces) == (False, False)
    assert [piece.piece for piece in proto.pieces[3:259]] == [f"<0x{byte:02X}>" for byte in range(256)]
    last = [piece.piece for piece in proto.pieces if piece.type == Piece.USER_DEFINED]
    assert last == ["[UNUSED_TOKEN_0]", "[UNUSED_TOKEN_1]", *LAST_TOKENS]
    assert [piece.piece for piece in proto.pieces[-9:]] == last
    with_digits = {piece.piece for piece in proto.pieces[259:-9] if re.search("[0-9]", piece.piece)}
    assert with_digits == {f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)}


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
@pytest.mark.parametrize(
    ("max_digits", "groups"),
    [(1, ["1", "2", "3", "4", "5", "6", "7"]), (2, ["12", "34", "56", "7"]), (3, ["123", "456", "7"])],
)
def test_numbers_are_cut_from_the_left(tmp_path: Path, kind: str, max_digits: int, groups: list[str]) -> None:
    text = _text(300) + " 12 34 56 123 456 7" * 200
    train_tokenizer([text], 1500 if kind == "sentencepiece" else 800, tmp_path, kind, max_digits=max_digits)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = Tokenizer.load(path)
        assert [tokenizer.id_to_token(i) for i in tokenizer.encode("1234567")] == groups
        for digits in ("2024", "00000", "90210"):
            assert all(len(tokenizer.token_bytes(i)) <= max_digits for i in tokenizer.encode(digits))


def test_learns_line_ends_and_indentation(sentencepiece_folder: Path) -> None:
    tokenizer = Tokenizer.load(sentencepiece_folder)
    assert len(tokenizer.encode("        return")) <= 3
    assert len(tokenizer.encode("water 今天")) <= 3
    assert tokenizer.token_to_id("\n") is not None


def test_rare_characters_give_way_in_a_small_vocabulary(tmp_path: Path) -> None:
    """More Chinese characters than there are ids: the frequent ones are pieces, the others bytes."""
    rng = random.Random(0)
    characters = [chr(0x4E00 + n) for n in range(2000)]
    weights = [1 / (n + 1) for n in range(2000)]
    lines = ["".join(rng.choices(characters, weights, k=40)) for _ in range(400)]
    report = train_tokenizer(lines, 700, tmp_path, max_digits=1)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == report.vocab_size == 700
    assert tokenizer.token_to_id(characters[0]) is not None
    assert tokenizer.token_to_id(characters[1999]) is None
    assert tokenizer.decode(tokenizer.encode("".join(characters))) == "".join(characters)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_awkward_text_can_be_trained_on(tmp_path: Path, kind: str) -> None:
    text = "\0▁\ud800\t<s><|im_end|>\r\n" * 50 + "x" * 30_000 + "\n" + _text(300)
    train_tokenizer([text, ""], 700, tmp_path, kind, max_digits=1)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("\0▁\t<s>\r\n")) == "\0▁\t<s>\r\n"


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_the_same_text_gives_the_same_files(tmp_path: Path, kind: str) -> None:
    texts = [_text(100), _text(150)]
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train_tokenizer(texts, 600, tmp_path / name, kind, sample_bytes=8_000, seed=seed, max_digits=1)
    contents = {name: (tmp_path / name / "tokenizer.json").read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]


def test_sample_is_bounded_and_random() -> None:
    texts = [f"{n:04d} " * 700 + "\n" for n in range(400)]
    sample = draw_sample(iter(texts), 100_000, seed=0)
    assert sample.seen_bytes == sum(map(len, texts))
    assert 90_000 < sample.sample_bytes <= 100_000
    assert sum(map(len, sample.segments)) == sample.sample_bytes
    assert sample.segments == sorted(sample.segments)  # in their own order
    assert int(sample.segments[-1][:4]) > 300  # and from all of the text
    assert sample.held_out and not set(sample.held_out) & set(sample.segments)
    assert draw_sample(texts, 100_000, seed=0) == sample
    assert draw_sample(texts, 100_000, seed=1).segments != sample.segments


def test_sample_keeps_small_text_whole() -> None:
    text = "\n".join(f"line {n} " + "x" * 90 for n in range(400))
    sample = draw_sample([text, "", "z" * 9000], 10**6, seed=0)
    assert "".join(sample.segments) == text + "z" * 9000
    assert sample.segments[0].endswith("\n")
    assert max(map(len, sample.segments)) <= 4000
    assert not sample.held_out


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(f"def f{n}(self):\n    return self.x[{n}] + {{}}" for n in range(400))
    report = train_tokenizer(
        [_text(400), "，".join("今天天气很好" for _ in range(900)), code], 600, tmp_path, "bytelevel"
    )
    assert set(report.bytes_per_token) == {"zh", "en", "code"}
    assert all(ratio > 1.5 for ratio in report.bytes_per_token.values())
    assert report.sample_bytes == report.seen_bytes and not report.held_out
    assert "bytes per token on the sample itself: zh " in str(report)
    assert "on a sample of 0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("It was the best of times (it was the worst of times).", "en"),
        ("今天天气很好，we go out.", "zh"),
        ("for (int i = 0; i < n; i++) { x[i] = 0; }", "code"),
    ],
)
def test_guessing_the_language(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    ("texts", "size", "arguments", "message"),
    [
        (["word " * 100], 1000, {}, "of 1,000 is too small: .* take 1,376; ask for 1,440 or more"),
        (["word " * 100], 300, {"kind": "bytelevel"}, "ask for 330 or more"),
        (["word " * 100], 9000, {"max_digits": 1}, "too little text to train a tokenizer on; add text"),
        (["word " * 100], 9000, {"kind": "bytelevel"}, "too little text to train a tokenizer on; add text"),
        ([], 9000, {}, "there is no text"),
        (["", " \n "], 9000, {}, "there is no text"),
        (["word"], 9000, {"max_digits": 4}, "groups of 1, 2 or 3 digits"),
    ],
)
def test_what_cannot_be_trained(
    tmp_path: Path, texts: list[str], size: int, arguments: dict[str, str | int], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer(texts, size, tmp_path / "new", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_the_size_that_a_message_proposes_works(tmp_path: Path) -> None:
    for kind in ("sentencepiece", "bytelevel"):
        with pytest.raises(TokenizerError) as caught:
            train_tokenizer([_text(50)], 9000, tmp_path, kind, max_digits=1)
        most = int(str(caught.value).split("enough for ")[1].split(" ids")[0].replace(",", ""))
        assert train_tokenizer([_text(50)], most, tmp_path, kind, max_digits=1).vocab_size == most


def test_reading_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("一\r\ntwo\n".encode())
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "three\n", "id": 1}) + "\n\n" + json.dumps({"text": "four"}) + "\n")
    assert list(read_texts(tmp_path / "a.txt")) == ["一\r\ntwo\n"]
    assert list(read_texts(tmp_path / "b.jsonl.gz")) == ["three\n", "four"]
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n{"body": "y"}\n')
    (tmp_path / "d.txt").write_bytes(b"ok \xff")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    for name, message in (("c.jsonl", 'c.jsonl:2: not a json object with a string under "text"'),
                          ("d.txt", "not UTF-8 text"), ("e.txt.gz", "damaged"), ("f.txt", "no such file")):  # fmt: skip
        with pytest.raises(TokenizerError, match=message):
            list(read_texts(tmp_path / name))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(_text(300), encoding="utf-8")
    out = str(tmp_path / "out")
    arguments = ["--vocab-size", "600", "--max-digits", "1", "--spare", "1", "--out", out]
    assert main(["tokenizer", "train", str(tmp_path / "text.txt"), *arguments]) == 0
    assert "sentencepiece tokenizer of 600 ids" in capsys.readouterr().out
    assert main(["tokenizer", "inspect", out]) == 0
    shown = capsys.readouterr().out
    assert "599 <|im_start|>" in shown and "spare ids       1" in shown and "1 <s> (put before a text)" in shown
    assert main(["tokenizer", "encode", out, "<|im_end|>", "--markup"]) == 0
    assert capsys.readouterr().out == "598\n"
    assert main(["tokenizer", "encode", out, "water 今天", "--pieces"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines] == Tokenizer.load(out).encode("water 今天")
    assert main(["tokenizer", "encode", out, "water <|im_end|> 今天"]) == 0
    ids = capsys.readouterr().out.split()
    assert main(["tokenizer", "decode", out, *ids]) == 0
    assert capsys.readouterr().out == "water <|im_end|> 今天\n"


def test_command_reports_bad_input_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.txt")
    assert (
        main(["tokenizer", "train", missing, "--vocab-size", "900", "--out", str(tmp_path), "--max-digits", "1"]) == 2
    )
    assert capsys.readouterr().err == f"puyu tokenizer: {missing}: no such file\n"
    assert main(["tokenizer", "encode", str(tmp_path), "x"]) == 2
    assert "no tokenizer.model or tokenizer.json" in capsys.readouterr().err
