"""Bytes to characters, as pages declare them, as they are, and as they are broken."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.format.encoding import decode_page, decode_text
from puyulm.data.format.quarantine import QuarantineError, Reason

from .helpers import TEXTS, page

ZH = "\n".join(TEXTS["zh"])


@pytest.mark.parametrize(
    ("language", "charset"),
    [("zh", "gbk"), ("zh", "gb2312"), ("zh", "gb18030"), ("ja", "shift_jis"), ("ja", "euc-jp"), ("ja", "iso-2022-jp"),
     ("ko", "euc-kr"), ("ru", "windows-1251"), ("ru", "koi8-r"), ("ru", "iso-8859-5"), ("he", "windows-1255"),
     ("de", "iso-8859-1"), ("pl", "iso-8859-2"), ("ar", "windows-1256"), ("fr", "utf-8"), ("en", "us-ascii")],
)  # fmt: skip
def test_declared_charsets(language: str, charset: str) -> None:
    text = "\n".join(TEXTS[language])
    data = text.encode(charset)
    assert decode_page(data, charset.upper()) == text  # by the HTTP header
    assert TEXTS[language][0] in decode_page(page("x", TEXTS[language], charset))  # by the page itself
    xml = f'<?xml version="1.0" encoding="{charset}"?><p>'.encode() + data
    assert decode_page(xml).endswith(text)


@pytest.mark.parametrize(("language", "charset"), [("zh", "gb18030"), ("ja", "shift_jis"), ("ru", "windows-1251")])
def test_undeclared_charsets_are_detected(language: str, charset: str) -> None:
    text = "\n".join(TEXTS[language] * 3)
    assert decode_page(text.encode(charset)) == text
    assert decode_text(text.encode(charset)) == text


@pytest.mark.parametrize(
    ("mark", "codec"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
     (codecs.BOM_UTF32_LE, "utf-32-le")],
)  # fmt: skip
def test_byte_order_marks_win_and_go(mark: bytes, codec: str) -> None:
    assert decode_page(mark + ZH.encode(codec), "windows-1252") == ZH


def test_valid_utf8_is_utf8_whatever_is_declared() -> None:
    assert decode_page(ZH.encode(), "gbk") == ZH
    assert decode_page(page("x", TEXTS["zh"]).replace(b'"utf-8"', b'"gb2312"')).count(TEXTS["zh"][0]) == 1


def test_utf16_without_a_mark_needs_its_declaration() -> None:
    assert decode_page("plain <b>text</b>".encode("utf-16-le"), "utf-16le") == "plain <b>text</b>"


def test_characters_beyond_what_the_declared_standard_has() -> None:
    for text, charset, declared in (
        ("镕基", "gbk", "gb2312"),
        ("㐀𠀀字", "gb18030", "gbk"),
        ("①髙", "cp932", "shift_jis"),
    ):
        assert decode_page(text.encode(charset), declared) == text


def test_a_wrong_declaration_gives_way_to_what_makes_sense() -> None:
    assert decode_page((ZH * 3).encode("gbk"), "utf-8") == ZH * 3
    assert decode_page((ZH * 3).encode("gbk"), "no-such-charset") == ZH * 3


def test_a_few_lost_bytes_cost_a_few_characters() -> None:
    damaged = ZH.encode("gbk").replace(b"\n", b"\xff\n", 1)
    assert decode_page(damaged, "gbk") == ZH.replace("\n", "\ufffd\n", 1)
    ascii_page = b"plain words " * 100 + b"\xff" + b" plain words" * 100
    assert decode_page(ascii_page, "utf-8").startswith("plain words ")


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(QuarantineError) as error:
        decode_page(bytes(range(256)) * 50)
    assert error.value.reason == Reason.BROKEN_ENCODING and error.value.sample


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=400), st.sampled_from(["", "utf-8", "gbk", "shift_jis", "utf-7", "rot13", "hex", "utf-16"]))
def test_any_bytes_become_text_or_are_refused(data: bytes, declared: str) -> None:
    try:
        text = decode_page(data, declared)
    except QuarantineError:
        return
    text.encode("utf-8")  # no halves of surrogate pairs


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x1b\ufeff"), max_size=200))
def test_utf8_survives(text: str) -> None:
    assert decode_text(text.encode()) == text
