"""Languages of texts, and of what is hardly a text."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pycld2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.format.language import _load_fasttext, detect_languages
from puyulm.errors import DataError

from .helpers import TEXTS

TRADITIONAL = "那年冬天港口結冰很早，漁船一直停在沙灘上，直到三月中旬纔重新下水，村裡沒有人記得這樣漫長的嚴寒。"
OTHERS = {
    "pt": "Naquele inverno o porto gelou cedo e os barcos de pesca ficaram na praia até meados de março, como nunca.",
    "id": "Pada musim dingin itu pelabuhan membeku lebih awal dan perahu nelayan tetap di pantai sampai Maret.",
    "hi": "उस साल सर्दियों में बंदरगाह जल्दी जम गया और मछली पकड़ने की नावें मार्च के मध्य तक किनारे पर पड़ी रहीं।",
    "th": "ฤดูหนาวปีนั้นท่าเรือกลายเป็นน้ำแข็งเร็วมาก และเรือประมงจอดอยู่บนชายหาดจนถึงกลางเดือนมีนาคม",
    "el": "Εκείνο τον χειμώνα το λιμάνι πάγωσε νωρίς και οι ψαρόβαρκες έμειναν στην παραλία ως τα μέσα του Μαρτίου.",
}  # fmt: skip


def test_a_table_of_languages() -> None:
    expected = [*TEXTS, *OTHERS]
    texts = ["\n".join(paragraphs) for paragraphs in TEXTS.values()] + list(OTHERS.values())
    assert len(expected) >= 15
    assert detect_languages(texts) == expected


def test_chinese_in_either_script_is_chinese() -> None:
    assert detect_languages([TRADITIONAL, "".join(TEXTS["zh"])]) == ["zh", "zh"]


@pytest.mark.parametrize("text", ["", " \n", "12 345 67.8", "xqzt", "\x00\x01\ud800", "。。。"])
def test_what_is_no_language_is_undetermined(text: str) -> None:
    assert detect_languages([text]) == ["und"]


def test_an_unsure_guess_counts_if_it_covers_half_of_the_text() -> None:
    text = "\n\n".join([TEXTS["ru"][0], *TEXTS["ru"]])  # CLD2 leaves out what is repeated
    reliable, _, guesses = pycld2.detect(text, isPlainText=True)
    assert not reliable and guesses[0][1] == "ru" and guesses[0][2] >= 50
    assert detect_languages([text]) == ["ru"]


@pytest.mark.parametrize(("text", "language"), [
    ("日期 显示当前日期。", "zh"), ("表达式 Expression 返回 String 或 Variant 类型的值。", "zh"),
    ("日付を表示します。", "ja"), ("현재 날짜", "ko"),
])  # fmt: skip
def test_short_texts_by_their_script(text: str, language: str) -> None:
    assert detect_languages([text]) == [language]


def test_what_cld2_refuses_is_taken_out() -> None:
    text = "\n".join(TEXTS["en"])
    dirty = text.replace(" ", "\x00 \x1b\x85\ud800\ufffe\U0001ffff ")
    assert detect_languages([dirty, text]) == ["en", "en"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.characters(), max_size=60), max_size=3))
def test_any_text_gets_an_answer(texts: list[str]) -> None:
    codes = detect_languages(texts)
    assert len(codes) == len(texts) and all(2 <= len(code) <= 3 and code.isalpha() for code in codes)


def test_a_fasttext_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def predict(line: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        asked.append(line)
        answers = {"a b": ("__label__en", 0.9), "c": ("__label__fr", 0.3), "d": ("__label__zho_Hans", 0.8)}
        label, probability = answers[line]
        return (label,), (probability,)

    model = tmp_path / "lid.ftz"
    model.write_bytes(b"model")
    monkeypatch.setitem(sys.modules, "fasttext", SimpleNamespace(load_model=lambda _: SimpleNamespace(predict=predict)))
    _load_fasttext.cache_clear()
    assert detect_languages(["a\nb", "c", "", "d"], "fasttext", model) == ["en", "und", "und", "zh"]
    assert asked == ["a b", "c", "d"]
    _load_fasttext.cache_clear()


def test_a_missing_fasttext_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no fastText model at .*none\.ftz"):
        detect_languages(["x"], "fasttext", tmp_path / "none.ftz")
