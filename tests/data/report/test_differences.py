"""Marked differences: the parts are the texts, what is called the same is the same, and the cost is bounded."""

from __future__ import annotations

import difflib

from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.report.differences import MAX_TOKENS, Part, differences

WORDS = st.lists(st.sampled_from(["river", "stone", " ", " ", "\n", "的", "桥", "旧", "a", "."]), max_size=60).map(
    "".join
)


def different(parts: list[Part]) -> list[str]:
    return [part.text for part in parts if part.kind == "different"]


@given(WORDS, WORDS, st.booleans())
@settings(max_examples=200)
def test_parts_are_the_texts_and_same_is_same(left: str, right: str, beginnings: bool) -> None:
    a, b = differences(left, right, beginnings)
    assert "".join(part.text for part in a) == left
    assert "".join(part.text for part in b) == right
    same = ["".join(part.text for part in parts if part.kind == "same") for parts in (a, b)]
    assert same[0] == same[1]
    assert (not different(a) and not different(b)) or left != right
    if beginnings and (left.startswith(right) or right.startswith(left)):
        assert not different(a) and not different(b)


def test_words_of_english() -> None:
    a, b = differences("The old harbour was quiet in winter.", "The new harbour was very quiet in winter.")
    assert different(a) == ["old"]
    assert "".join(different(b)).split() == ["new", "very"]


def test_characters_of_chinese() -> None:
    a, b = differences("这座小城在冬天显得安静。", "这座大城在冬天显得格外安静。")
    assert (different(a), different(b)) == (["小"], ["大", "格外"])


def test_equal_and_empty_texts() -> None:
    assert differences("浦语", "浦语") == ([Part("浦语", "same")], [Part("浦语", "same")])
    assert differences("", "a b") == ([], [Part("a b", "different")])


def test_nothing_is_said_of_what_was_not_compared() -> None:
    words = " ".join(f"w{i}" for i in range(MAX_TOKENS))
    a, b = differences(words + " end", words + " other")
    assert not different(a) and not different(b)
    assert [part.kind for part in a] == ["same", "unknown"]
    a, b = differences("one two three", "one two three four", beginnings=True)
    assert [part.kind for part in b] == ["same", "unknown"]


def test_the_work_is_bounded(monkeypatch) -> None:
    """Texts of a few frequent words cost difflib the square of their length or more; counted in looks at positions."""
    looks = 0
    original = difflib.SequenceMatcher.find_longest_match

    def counting(self, alo=0, ahi=None, blo=0, bhi=None):  # type: ignore[no-untyped-def]
        nonlocal looks
        looks += sum(len(self.b2j.get(token, ())) for token in self.a[alo:ahi])
        return original(self, alo, ahi, blo, bhi)

    monkeypatch.setattr(difflib.SequenceMatcher, "find_longest_match", counting)
    for left, right in (("a b " * 5000, "b a " * 5000), (".".join(f"w{i % 26}" for i in range(5000)),
                        ".".join(f"w{i * 7 % 26}" for i in range(5000)))):  # fmt: skip
        differences(left, right)
    assert looks < 3_000_000
