"""Normalisation on planted faults, and that a second time changes nothing."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from puyulm.data.clean.normalise import normalise_code, normalise_text
from tests.data.clean.corpus import CODE, ENGLISH, PIECES, REAL

FAULTS = ["\ufeff", "\u200b", "\u200c", "\u200d", "\xad", "\xa0", "\u3000", "\u2028", "\x85", "\x0b", "\x0c",
          "\r", "\r\n", "\t", "&amp;", "amp;", "&", ";", "nbsp;", "&nbsp;", "&lt;", "#39;", "\u037e", "\0", "\x07",
          "\x7f", "\x9f", "\ud800", "e\u0301", "\u212b", "ｆ", "，",
          "\u0915\u093c", "\U0001f469", "می\u200cخواهم"]  # fmt: skip
faulty_texts = st.lists(st.sampled_from([*FAULTS, *PIECES]), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("", ""),
        (" \n\t\n", ""),
        ("\ufeffa\r\nb\rc\x85d\u2028e\x0bf\x0cg", "a\nb\nc\nd\ne\nf\ng"),
        ("\n\n a \n\n\n\n b\t \n", " a\n\n b"),
        ("two  words,   three\xa0\xa0of\u2003them", "two words, three of them"),
        ("    an indented  line", "    an indented line"),
        ("　　全角　　空格　一个　", "　　全角　空格　一个"),
        ("zero\u200b-width soft\xadhyphen \u202eright\u202c", "zero-width softhyphen right"),
        ("x\0y\x07z\x7f", "xyz"),
        ("mojibake \x80\x9f stays", "mojibake \x80\x9f stays"),
        ("cafe\u0301 \u212b", "café Å"),
        ("，。！（）：；１２ａ", "，。！（）：；１２ａ"),
        ("half \ud800 pair", "half \ufffd pair"),
        ("Q&amp;A &lt;b&gt; it&#39;s&nbsp;&nbsp;here &unknown; &amp &copy;", "Q&A <b> it's here &unknown; &amp ©"),
        ("&amp;amp;nbsp;x", " x"),
        ("می\u200cخواهم 👩\u200d💻 but a\u200cb 中\u200d文", "می\u200cخواهم 👩\u200d💻 but ab 中文"),
    ],
)
def test_planted_faults(raw: str, clean: str) -> None:
    assert normalise_text(raw) == clean
    assert normalise_text(clean) == clean


def test_half_width_is_asked_for_and_spares_punctuation() -> None:
    assert normalise_text("ＡＢｃ１２，！（）～", half_width=True) == "ABc12，！（）～"
    assert normalise_text("ＡＢｃ１２") == "ＡＢｃ１２"


def test_real_texts_keep_their_words() -> None:
    for text in REAL:
        assert normalise_text(text).split() == text.split()
    for text in ENGLISH:
        lines = [line for line in text.split("\n") if line.strip()]
        kept = [line for line in normalise_text(text).split("\n") if line.strip()]
        indents = [len(line) - len(line.lstrip()) for line in lines]
        assert [len(line) - len(line.lstrip()) for line in kept] == indents


@settings(max_examples=300, deadline=None, derandomize=True)
@given(faulty_texts, st.booleans())
@example("&amp\u037e", False)
@example("ن\u200c\u200ca", False)
@example("a \u200b b", False)
@example("a\u200b\n \xa0\n\n\u200b\nb", True)
def test_normal_form(text: str, half_width: bool) -> None:
    once = normalise_text(text, half_width)
    assert normalise_text(once, half_width) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not set(once) & set("\r\0\ufeff\u200b\xa0\x85\u2028\ud800")
    assert "\n\n\n" not in once and once == once.strip("\n")
    assert all(line == line.rstrip(" \t\u3000") for line in once.split("\n"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_idempotent_on_any_text(text: str) -> None:
    assert normalise_text(normalise_text(text)) == normalise_text(text)
    assert normalise_code(normalise_code(text)) == normalise_code(text)


def test_code_keeps_everything_but_line_ends_and_nul() -> None:
    code = "\ufeffif x:\r\n\ty = '\xa0&amp;  \u200b'  \r\n\n\n\n\x0cz\0 = 1\r"
    assert normalise_code(code) == "if x:\n\ty = '\xa0&amp;  \u200b'  \n\n\n\n\x0cz = 1\n"
    assert normalise_code(CODE[0]) == CODE[0]
