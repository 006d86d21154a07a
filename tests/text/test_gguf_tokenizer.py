"""Tokenizers out of GGUF files, against the tokenizers they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from puyulm.errors import TokenizerError
from puyulm.text.sentencepiece_model import ModelProto
from puyulm.text.tokenizer import Tokenizer

TEXT = " The water, 2024 和 1234567。今天天气很好😀\0 ▁ x\n\n    def f(self):\t<s></s><|im_end|>[UNUSED_TOKEN_0]I'm "


def _write(path: Path, architecture: str = "llama", **metadata: Any) -> Path:
    """A GGUF file without tensors; `__` in a key stands for "."."""
    writer = GGUFWriter(path, architecture)
    for name, value in metadata.items():
        key = f"tokenizer.{name.replace('__', '.')}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _sentencepiece_metadata(folder: Path) -> dict[str, Any]:
    proto = ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    return {
        "ggml__model": "llama",
        "ggml__tokens": [piece.piece for piece in proto.pieces],
        "ggml__scores": [piece.score for piece in proto.pieces],
        "ggml__token_type": [piece.type for piece in proto.pieces],
        "ggml__bos_token_id": 1, "ggml__eos_token_id": 2, "ggml__unknown_token_id": 0,
        "ggml__add_space_prefix": False, "chat_template": "T",
    }  # fmt: skip


def _byte_level_metadata(folder: Path, pre: str) -> dict[str, Any]:
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocab = document["model"]["vocab"] | {token["content"]: token["id"] for token in document["added_tokens"]}
    special = {token["id"] for token in document["added_tokens"]}
    return {
        "ggml__model": "gpt2", "ggml__pre": pre,
        "ggml__tokens": sorted(vocab, key=vocab.__getitem__),
        "ggml__merges": [" ".join(merge) for merge in document["model"]["merges"]],
        "ggml__token_type": [3 if i in special else 1 for i in range(len(vocab))],
        "ggml__bos_token_id": 1, "ggml__eos_token_id": 2, "ggml__padding_token_id": 2,
    }  # fmt: skip


def test_sentencepiece(sentencepiece_folder: Path, tmp_path: Path) -> None:
    original = Tokenizer.load(sentencepiece_folder)
    tokenizer = Tokenizer.load(_write(tmp_path / "m.gguf", **_sentencepiece_metadata(sentencepiece_folder)))
    for text in (TEXT, "", " ", "water"):
        assert tokenizer.encode(text, bos=True) == original.encode(text, bos=True)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_markup(TEXT) == original.encode_markup(TEXT)
    assert tokenizer.special_tokens == original.special_tokens
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.chat_template) == (1, 2, None, "T")


def test_sentencepiece_puts_a_space_first_unless_told(sentencepiece_folder: Path, tmp_path: Path) -> None:
    metadata = _sentencepiece_metadata(sentencepiece_folder)
    del metadata["ggml__add_space_prefix"]
    tokenizer = Tokenizer.load(_write(tmp_path / "m.gguf", **metadata))
    assert tokenizer.encode("water") == Tokenizer.load(sentencepiece_folder).encode(" water")
    assert tokenizer.decode(tokenizer.encode("water")) == "water"


def test_the_dragon_in_place_of_nul(sentencepiece_folder: Path, tmp_path: Path) -> None:
    metadata = _sentencepiece_metadata(sentencepiece_folder)
    metadata["ggml__tokens"][354] = "🐉"  # as llama.cpp writes InternLM2's NUL
    mine = Tokenizer.load(_write(tmp_path / "a.gguf", "internlm2", **metadata))
    assert mine.token_bytes(354) == b"\0"
    assert 354 not in mine.encode("🐉\0")
    assert mine.decode(mine.encode("🐉\0")) == "🐉\0"
    other = Tokenizer.load(_write(tmp_path / "b.gguf", "llama", **metadata))
    assert other.encode("🐉") == [354]


def test_byte_level(bytelevel_folder: Path, tmp_path: Path) -> None:
    """The trained tokenizer cuts words as Llama 3 does, numbers by threes."""
    original = Tokenizer.load(bytelevel_folder)
    tokenizer = Tokenizer.load(_write(tmp_path / "m.gguf", **_byte_level_metadata(bytelevel_folder, "llama-bpe")))
    assert tokenizer.encode(TEXT, bos=True) == original.encode(TEXT, bos=True)
    assert tokenizer.encode_markup(TEXT) == original.encode_markup(TEXT)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.special_tokens == original.special_tokens
    assert tokenizer.add_bos


@pytest.mark.parametrize(
    ("pre", "text", "parts"),
    [
        ("smollm", "ab 123 c", ["ab", " ", "1", "2", "3", " c"]),
        ("qwen2", "ab 123 c", ["ab", " ", "1", "2", "3", " c"]),
        ("gpt-2", "ab 1234 c", ["ab", " 1234", " c"]),
        ("default", "ab 1234=c", ["ab", " ", "123", "4", "=", "c"]),
        ("llama-bpe", "ab 1234 C'S", ["ab", " ", "123", "4", " C", "'S"]),
        ("gpt-2", "C'S!", ["C", "'", "S", "!"]),
    ],
)
def test_pre_tokenizers(tmp_path: Path, pre: str, text: str, parts: list[str]) -> None:
    """With every two neighbours joined that may be, the tokens are the words that the expressions cut."""
    marked = text.replace(" ", "Ġ")
    parts_of_text = {marked[i:j] for i in range(len(marked)) for j in range(i + 1, len(marked) + 1)}
    pieces = sorted(parts_of_text, key=lambda piece: (len(piece), piece))
    metadata = {
        "ggml__model": "gpt2", "ggml__pre": pre, "ggml__tokens": pieces,
        "ggml__merges": [f"{piece[:cut]} {piece[cut:]}" for piece in pieces for cut in range(1, len(piece))],
        "ggml__token_type": [1] * len(pieces),
    }  # fmt: skip
    tokenizer = Tokenizer.load(_write(tmp_path / "m.gguf", **metadata))
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode(text)] == [part.replace(" ", "Ġ") for part in parts]
    assert (tokenizer.bos_id, tokenizer.add_bos) == (None, False)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_saving_as_a_folder(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    by_bytes = kind == "bytelevel"
    metadata = _byte_level_metadata(folder, "smollm") if by_bytes else _sentencepiece_metadata(folder)
    tokenizer = Tokenizer.load(_write(tmp_path / "m.gguf", **metadata))
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.encode_markup(TEXT, bos=True) == tokenizer.encode_markup(TEXT, bos=True)
    assert (again.bos_id, again.eos_id, again.pad_id, again.add_bos, again.chat_template) == (
        tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.add_bos, tokenizer.chat_template,
    )  # fmt: skip


def test_errors_say_what_is_wrong(sentencepiece_folder: Path, bytelevel_folder: Path, tmp_path: Path) -> None:
    whole = _write(tmp_path / "a.gguf", **_sentencepiece_metadata(sentencepiece_folder)).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    cases = [
        (_write(tmp_path / "b.gguf"), "no tokenizer"),
        (_write(tmp_path / "c.gguf", ggml__model="bert", ggml__tokens=["a"]), "kind 'bert'"),
        (
            _write(tmp_path / "d.gguf", **_byte_level_metadata(bytelevel_folder, "tekken")),
            "'tekken' is not known \\(known: default,",
        ),
        (tmp_path / "cut.gguf", "damaged"),
    ]
    for path, message in cases:
        with pytest.raises(TokenizerError, match=message) as caught:
            Tokenizer.load(path)
        assert str(path) in str(caught.value)
