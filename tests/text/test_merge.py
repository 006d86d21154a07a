"""Merged vocabularies: what they take, that every token can come out, and that any text comes back."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer

from puyulm.cli import main
from puyulm.errors import TokenizerError
from puyulm.text.merge import is_chinese, merge_vocabularies, unreachable_tokens
from puyulm.text.sentencepiece_model import ModelProto
from puyulm.text.tokenizer import Tokenizer
from puyulm.text.tokenizer_json import byte_alphabet
from puyulm.text.train import LAST_TOKENS, train_tokenizer
from tests.text.conftest import made_text

CHINESE = "浦江两岸的高楼在夜里亮起灯光，游人沿着江边慢慢走着，看水面上来往的船只。"
SAMPLE = (
    "The first model counts water: 2024 people!\n\tdef f(x): return x[12345]  # 今天天气很好，我们一起学习语言模型。\n"
)


def english(lines: int) -> str:
    return "\n".join(line for line in made_text(lines).splitlines() if not is_chinese(line))


def chinese(lines: int) -> str:
    rng = random.Random(0)
    words = [CHINESE[i : i + 2] for i in range(0, len(CHINESE) - 1, 2)]
    made = ["".join(rng.choices(words, k=12)) + "，model " + str(rng.randrange(100)) + "。" for _ in range(lines)]
    return "\n".join([*made, *(line for line in made_text(lines).splitlines() if is_chinese(line))])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An English and a Chinese tokenizer of each kind, and one that puts a space before texts."""
    folder = tmp_path_factory.mktemp("parts")
    for kind, size in (("sentencepiece", 1500), ("bytelevel", 520)):
        train_tokenizer([english(400)], size, folder / f"en-{kind}", kind)
        train_tokenizer([chinese(400)], size + 100, folder / f"zh-{kind}", kind)
    output = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(english(300).splitlines()), model_writer=output, model_type="bpe", vocab_size=500,
        byte_fallback=True, minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    (folder / "prefixed.model").write_bytes(output.getvalue())
    return folder


@pytest.fixture(scope="module")
def merged(parts: Path) -> Callable[[str], Tokenizer]:
    def load(kind: str) -> Tokenizer:
        folder = parts / f"merged-{kind}"
        if not folder.exists():
            base = parts / ("prefixed.model" if kind == "prefixed" else f"en-{kind}")
            top = {"sentencepiece": 1230, "bytelevel": 200, "prefixed": 200}[kind]
            other = parts / ("zh-bytelevel" if kind == "bytelevel" else "zh-sentencepiece")
            merge_vocabularies(base, other, folder, base_top=top, chinese_top=250, spare_tokens=3)
        return Tokenizer.load(folder)

    return load


KINDS = ["sentencepiece", "bytelevel", "prefixed"]


@pytest.mark.parametrize("kind", KINDS)
def test_layout_and_reachability(merged: Callable[[str], Tokenizer], kind: str) -> None:
    tokenizer = merged(kind)
    size = tokenizer.vocab_size
    assert [tokenizer.id_to_token(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert sorted(tokenizer.token_bytes(i) for i in range(3, 259)) == [bytes([i]) for i in range(256)]
    last = [f"[UNUSED_TOKEN_{n}]" for n in range(3)] + list(LAST_TOKENS)
    assert [tokenizer.id_to_token(i) for i in range(size - len(last), size)] == last
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.encode_markup("<|im_end|>") == [size - 2]
    assert unreachable_tokens(tokenizer) == []


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.text(alphabet=CHINESE + "abc 12\n▁", max_size=80)))
def test_any_text_comes_back(merged: Callable[[str], Tokenizer], kind: str, text: str) -> None:
    tokenizer = merged(kind)
    text = text.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_density_of_both_and_encodings_of_the_base(parts: Path, merged: Callable[[str], Tokenizer], kind: str) -> None:
    """English encodes nearly as with the base, Chinese nearly as with the other."""
    both, base, other = merged(kind), Tokenizer.load(parts / f"en-{kind}"), Tokenizer.load(parts / f"zh-{kind}")
    text = english(30)
    assert len(both.encode(text)) <= 1.1 * len(base.encode(text))
    assert len(both.encode(CHINESE)) <= 1.3 * len(other.encode(CHINESE)) < 0.5 * len(base.encode(CHINESE))
    if kind == "sentencepiece":
        assert [both.id_to_token(i) for i in both.encode("1234567")] == ["123", "456", "7"]


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_a_whole_base_is_the_base(parts: Path, tmp_path: Path, kind: str) -> None:
    """With all tokens of the base and none of the other, every text encodes as before."""
    base = Tokenizer.load(parts / f"en-{kind}")
    top = base.vocab_size - 259 - len(LAST_TOKENS)
    report = merge_vocabularies(parts / f"en-{kind}", parts / f"zh-{kind}", tmp_path, base_top=top, chinese_top=0)
    assert (report.vocab_size, report.base_tokens, report.chinese_tokens) == (base.vocab_size, top, 0)
    again = Tokenizer.load(tmp_path)
    for text in (SAMPLE, english(40), chinese(40), "00000 90210 7"):
        assert [again.token_bytes(i) for i in again.encode(text)] == [base.token_bytes(i) for i in base.encode(text)]


def test_both_files_of_a_merged_folder_agree(parts: Path, merged: Callable[[str], Tokenizer]) -> None:
    one = merged("sentencepiece")
    other = Tokenizer.load(parts / "merged-sentencepiece" / "tokenizer.json")
    for text in (SAMPLE, english(40), chinese(40)):
        assert one.encode(text) == other.encode(text)


def test_scores_and_merges_keep_their_order(parts: Path, merged: Callable[[str], Tokenizer]) -> None:
    merged("sentencepiece")
    protos = []
    for folder in ("en-sentencepiece", "merged-sentencepiece"):
        protos.append(ModelProto())
        protos[-1].ParseFromString((parts / folder / "tokenizer.model").read_bytes())
    old, new = ({p.piece: p.score for p in proto.pieces[259:] if p.type == 1} for proto in protos)
    common = [piece for piece in new if piece in old]
    for a, b in pairwise(common):
        assert (old[a] > old[b]) == (new[a] > new[b]) and (old[a] == old[b]) == (new[a] == new[b])
    added = [piece for piece in new if piece not in old]
    assert added and all(is_chinese(piece) for piece in added)
    assert max(new[piece] for piece in added) < min(new[piece] for piece in common)
    merged("bytelevel")
    models = [json.loads((parts / f"{n}-bytelevel" / "tokenizer.json").read_text())["model"] for n in ("en", "merged")]
    taken = models[1]["merges"]
    assert taken[:200] == models[0]["merges"][:200]
    known = set(byte_alphabet())
    for a, b in taken:  # every merge joins what is there already
        assert a in known and b in known and a + b in models[1]["vocab"]
        known.add(a + b)


def test_how_many_are_taken(parts: Path, tmp_path: Path) -> None:
    for kind in ("sentencepiece", "bytelevel"):
        for wanted in (0, 1, 40, 10**6):
            report = merge_vocabularies(
                parts / f"en-{kind}", parts / f"zh-{kind}", tmp_path, base_top=1150 if kind == "sentencepiece" else 100,
                chinese_top=wanted, spare_tokens=2,
            )  # fmt: skip
            assert report.chinese_tokens <= wanted and report.unreachable == 0
            assert report.vocab_size == 259 + report.base_tokens + report.chinese_tokens + 2 + len(LAST_TOKENS)
            assert report.chinese_tokens >= min(wanted, 40) - 2  # a token may need others, for which there is no room
        assert Tokenizer.load(tmp_path).vocab_size == report.vocab_size


def test_bad_input(parts: Path, tmp_path: Path) -> None:
    en, zh = parts / "en-sentencepiece", parts / "zh-bytelevel"
    for base, other, top, message in (
        (en, zh, 10, "merge two of one kind"), (en, en, 10**6, "ask for so many or fewer"),
        (zh, zh, 10**6, "ask for so many or fewer"),
        (tmp_path, en, 10, "no tokenizer.model"), (en, en, 0, "base-top must be 1"),
        (parts / "merged-sentencepiece" / "tokenizer.json", zh / "tokenizer.json", 10, "not byte-level BPE"),
    ):  # fmt: skip
        with pytest.raises(TokenizerError, match=message):
            merge_vocabularies(base, other, tmp_path / "out", base_top=top, chinese_top=5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "chinese"), [("hello", False), ("你", True), ("a，b", True), ("𠀀", True), ("é", False)]
)
def test_what_is_chinese(text: str, chinese: bool) -> None:
    assert is_chinese(text) is chinese


def test_command(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(parts / "en-bytelevel"), str(parts / "zh-bytelevel"), "--base-top", "150", "--chinese-top", "90"]
    assert main(["tokenizer", "merge", *arguments, "--spare", "5", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "bytelevel tokenizer of 511 ids: 150 tokens of the base and 90 Chinese ones" in shown
    assert "0 tokens do not come out" in shown
    assert Tokenizer.load(tmp_path / "out").vocab_size == 511
