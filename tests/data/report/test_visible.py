"""Whatever a text holds, what is shown of it steers no terminal, turns no direction and can be encoded."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.report.visible import one_for_one, spelled, with_marks

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # half surrogates too
TURNS = {"LRO", "RLO", "LRE", "RLE", "PDF", "LRI", "RLI", "FSI", "PDI"}


def harmless(text: str) -> bool:
    def fine(c: str) -> bool:
        return unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and unicodedata.bidirectional(c) not in TURNS

    return all(c in "\n\t" or fine(c) for c in text)


@given(ANY_TEXT)
def test_nothing_odd_is_left(text: str) -> None:
    assert harmless(one_for_one(text))
    assert harmless(spelled(text))
    spelled(text).encode("utf-8")


@given(ANY_TEXT)
def test_positions_stay_on_a_terminal(text: str) -> None:
    shown = one_for_one(text)
    assert len(shown) == len(text)
    assert all(a == b for a, b in zip(text, shown, strict=True) if a.isalnum() or a in "\n\t ")


@given(ANY_TEXT)
def test_marks_stand_around_odd_characters_only(text: str) -> None:
    marked = with_marks(text, lambda odd: f"\x01{odd}\x02")
    assert marked.replace("\x01", "").replace("\x02", "") == spelled(text)
    assert all(part.startswith("[U+") and part.endswith("]") for part in re.findall("\x01(.*?)\x02", marked))
    assert not re.search(r"\x02\x01", marked)


def test_known_odd_characters() -> None:
    assert one_for_one("a\x1b[2Jb\x7f\x9b") == "a␛[2Jb␡\ufffd"
    assert spelled("a\u202ecod\ud800") == "a[U+202E]cod[U+D800]"
    assert spelled("\x00" * 5000) == "[U+0000 x 5000]"
    assert spelled("a\r\nb") == "a[U+000D]\nb"


def test_what_languages_need_stays() -> None:
    for text in ("浦语\t模型\n", "naïve café", "क्‍ष", "👩‍👩‍👧", "می‌خواهم", "שלום", "e\u0301"):
        assert spelled(text) == text == one_for_one(text)


def test_towers_of_marks_are_cut() -> None:
    assert spelled("Z" + "\u0301" * 300) == "Z" + "\u0301" * 4
