"""StreamDecoder: whole characters only, nothing lost, the same text as decoding at once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puyulm.text.stream import StreamDecoder
from puyulm.text.tokenizer import Tokenizer

fuzzed = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["sentencepiece", "bytelevel"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.load(request.getfixturevalue(f"{request.param}_folder"))


def _stream(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


def test_no_half_characters(tokenizer: Tokenizer) -> None:
    text = "看 the 😀👩‍👩‍👧 water，𠄗　é\u0301!"
    parts = _stream(tokenizer, tokenizer.encode(text))
    assert "".join(parts) == text
    assert "�" not in "".join(parts)
    assert parts[-1] == ""
    assert "" in parts[:-1]  # the emoji takes several ids, and appears with the last of them
    assert any("😀" in part for part in parts)


def test_keeps_the_space_of_the_first_word(tokenizer: Tokenizer) -> None:
    assert "".join(_stream(tokenizer, tokenizer.encode(" water and light"))) == " water and light"


def test_special_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_markup("hi<|im_end|>\n<|im_start|> you")
    assert "".join(_stream(tokenizer, ids)) == "hi\n you"
    assert "".join(_stream(tokenizer, ids, skip_special=False)) == "hi<|im_end|>\n<|im_start|> you"


def test_an_unfinished_character_appears_at_the_end(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    unfinished = tokenizer.encode("😀")[:-1]
    assert [decoder.push(token_id) for token_id in unfinished] == [""] * len(unfinished)
    assert decoder.flush() == "�"
    assert decoder.push(tokenizer.encode("a")[0]) == "a"  # and the decoder is as new


@fuzzed
@given(st.text(max_size=30))
def test_every_text_comes_out_whole(tokenizer: Tokenizer, text: str) -> None:
    parts = _stream(tokenizer, tokenizer.encode(text))
    assert "".join(parts) == text
    if "�" not in text:
        assert not any("�" in part for part in parts)


@fuzzed
@given(seed=st.integers(0, 10**6), skip_special=st.booleans())
def test_any_ids_stream_as_they_decode(tokenizer: Tokenizer, seed: int, skip_special: bool) -> None:
    """Models give ids that no text has: bytes in any order, special tokens between them, ids beyond the vocabulary."""
    rng = random.Random(seed)
    pools = [range(3, 259), sorted(tokenizer.special_tokens.values()), range(tokenizer.vocab_size + 3)]
    ids = [rng.choice(rng.choice(pools)) for _ in range(rng.randrange(12))]
    expected = tokenizer.decode(ids, skip_special=skip_special, mid_text=True)
    assert "".join(_stream(tokenizer, ids, skip_special)) == expected


def test_the_published_vocabulary(shared_dir: Path) -> None:
    tokenizer = Tokenizer.load(shared_dir / "tokenizers" / "internlm2.model")
    text = " 书生·浦语 🐉🐲 is a model.\n\n\t𠮷野家 — ok"
    parts = _stream(tokenizer, tokenizer.encode(text))
    assert "".join(parts) == text
    assert parts.count("") > 6
