"""Each rule on made texts on both sides of its threshold, and which languages it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.clean import documents
from puyulm.data.clean.c4 import C4Rules
from puyulm.data.clean.features import Features
from puyulm.data.clean.repetition import RepetitionRules
from puyulm.data.clean.rules import WORDS_PER_GRAM, LineRule, Rule, groups_of, kind_of
from puyulm.data.clean.settings import CleanSettings
from puyulm.data.clean.texts import Texts
from puyulm.data.documents import Document
from tests.data.clean.corpus import PIECES, chinese, english, unique_characters, unique_words

RULES: dict[tuple[str, str], tuple[Rule, Any]] = {}
LINE_RULES: dict[str, tuple[LineRule, Any]] = {}
for rule, thresholds in CleanSettings().rules():
    for group in rule.languages:
        RULES[rule.reason, group] = rule, thresholds
for line_rule, thresholds in CleanSettings().line_rules():
    LINE_RULES[line_rule.reason] = line_rule, thresholds


def rejects(reason: str, text: str, language: str = "en", **changes: object) -> bool:
    """Whether a rule drops a text."""
    found = [pair for (name, group), pair in RULES.items() if name == reason and group in groups_of(language)]
    assert len(found) == 1, (reason, language)
    rule, thresholds = found[0]
    scale = WORDS_PER_GRAM.get(kind_of(language), 1.0)
    features = Features(Texts(["Another text.", text], [language, language]), scale)
    mask = rule.rejects(features, replace(thresholds, **changes))
    assert mask.shape == (2,) and mask.dtype == bool
    return bool(mask[1])


def flagged(reason: str, text: str, language: str = "en", **changes: object) -> list[str]:
    """The lines of a text that a rule drops."""
    rule, thresholds = LINE_RULES[reason]
    assert not groups_of(language).isdisjoint(rule.languages)
    texts = Texts(["Another text.\n\nMore.", text], [language, language])
    mask = rule.flags(texts, replace(thresholds, **changes))
    assert mask.shape == texts.lines.owner.shape and mask.dtype == bool
    return [texts.line_texts[number] for number in texts.lines.number[mask & (texts.lines.owner == 1)]]


def words(count: int, length: int = 5) -> str:
    return " ".join(unique_words(count, length))


def lines(*parts: str) -> str:
    return "\n".join(parts)


BYTES_64 = "x" * 64
CASES: dict[str, tuple[Any, ...]] = {  # reason -> dropped, kept, language
    "own: too short": (BYTES_64[:-1], BYTES_64, "en"),
    "own: abnormal characters": ("a" * 997 + "\x80\ue000", "a" * 999 + "\ufffd", "en"),
    "own: mojibake": (english(10) + " itâ€™s", english(100), "en"),
    "own: too much punctuation": ("a" * 69 + ";|" * 15 + "=", "a" * 70 + ";|" * 15, "en"),
    "own: too little punctuation": ("ab " * 500 + "..", "ab " * 500 + "....", "en"),
    "own: runs of equal marks": ("a" * 80 + "=" * 9, "a" * 81 + "=" * 9, "en"),
    "own: digits": ("a" * 58 + "12" * 20, "a" * 60 + "12" * 20, "en"),
    "own: capitals": ("A" * 61 + "a" * 39, "A" * 60 + "a" * 40, "en"),
    "own: single letters": ("h e l l x " + words(7), "h e l l " + words(6), "en"),
    "own: lines of a few characters": (lines(*["abc"] * 9, "abcd"), lines(*["abc"] * 9, "abcdefghijklm"), "en"),
    "own: lines broken inside sentences": (lines(*["some words and"] * 8, "end", "A new one."),
                                           lines(*["some words and"] * 6, "end", *["A new one."] * 3), "en"),
    "own: no line breaks": ("x" * 50_001 + "\ny", "x" * 50_000 + "\ny", "en"),
    "own: repeated lines of code": ("return first_of(them)\n" * 2 + "x" * 27, "return first_of(them)\n" * 2 + "x" * 28,
                                    "code"),
    "gopher: too few words": (words(49), words(50), "en"),
    "gopher: too many words": ("a " * 100_001, "a " * 100_000, "en"),
    "gopher: mean word length": ("ab " * 99 + "abc", "ab " * 50 + "abcd " * 50, "en"),
    "gopher: hash symbols": ("# " * 6 + words(50), "# " * 5 + words(50), "en"),
    "gopher: ellipses": ("word... " * 6 + words(44), "word... " * 3 + "word… " * 2 + words(45), "en"),
    "gopher: bullet lines": (lines(*["- point"] * 10), lines(*["• point"] * 9, "no point"), "en"),
    "gopher: lines ending in an ellipsis": (lines(*["more..."] * 4, *["done"] * 6),
                                            lines(*["more..."] * 3, *["done"] * 7), "en"),
    "gopher: words without letters": ("a1 " * 79 + "42 " * 21, "a1 " * 80 + "42 " * 20, "en"),
    "gopher: stop words": ("The the cat sat", "The end of it", "en"),
    "c4: too few sentences": ("One. Two", "One! Two? Three.", "en"),
    "c4: lorem ipsum": (english(5) + " LOREM ipsum dolor", english(5) + " lorem, ipsum", "en"),
    "c4: curly braces": (english(5) + " {", english(5) + " [", "en"),
    "fineweb: lines without end punctuation": (lines(*["no end"] * 22, *["An end."] * 3),
                                               lines(*["no end"] * 21, *["An end."] * 4), "en"),
    "fineweb: short lines": (lines(*["x" * 30] * 67, *["x" * 31] * 33),
                             lines(*["x" * 30] * 66, *["x" * 31] * 34), "en"),
    "fineweb: characters in duplicate lines": (lines("a" * 10, "b" * 980, "a" * 10), lines("a" * 9, "b" * 982, "a" * 9),
                                               "en"),
    "fineweb: line breaks per word": ("a\n\n\na\n\na\na\na a a a a a", "a\n\n\na\na\na a a a a a a", "en"),
    "chinese: too few characters": (unique_characters(79), unique_characters(80), "zh"),
    "chinese: too many characters": ("书" * 160_001, "书" * 160_000, "zh"),
    "chinese: hash symbols": ("#" * 6 + unique_characters(80), "#" * 5 + unique_characters(80), "zh"),
    "chinese: ellipses": ("书……" * 6 + unique_characters(74), "书……" * 5 + unique_characters(75), "zh"),
    "chinese: few letters": ("书" * 59 + "1" * 41, "书" * 60 + "1" * 40, "zh"),
    "chinese: few Chinese characters": ("书" * 29 + "x" * 71, "书" * 30 + "x" * 70, "zh"),
    "chinese: function words": ("我我我书", "我的书", "zh"),
    "chinese: lines without end punctuation": (lines(*["没有"] * 17, "有。", "有”"),
                                               lines(*["没有"] * 16, "有。", "“有。”"), "zh"),
    "chinese: short lines": (lines(*["书" * 10] * 67, *["书" * 11] * 33),
                             lines(*["书" * 10] * 66, *["书" * 11] * 34), "zh"),
    "chinese: line breaks per character": (lines(*["书" * 8] * 10), lines(*["书" * 9] * 10), "zh"),
    "chinese: spaces between characters": ("书 书 书 " + "书" * 8 + "x", "书 书 " + "书" * 9, "zh"),
}  # fmt: skip
CJK_CASES = {
    "own: lines broken inside sentences": (lines(*["三个字"] * 8, "书。", "书。"), lines(*["七个字的一行啊"] * 10))
}

LINE_CASES: dict[str, tuple[str, list[str], str]] = {  # reason -> text, lines dropped, language
    "c4: lines with a very long word": (lines("x" * 1000 + " a", "b " + "x" * 1001), ["b " + "x" * 1001], "en"),
    "c4: lines with javascript": (lines("Please turn on JavaScript.", "Java script is fine."),
                                  ["Please turn on JavaScript."], "en"),
    "c4: policy lines": (lines("Read our Privacy Policy here.", "This site USES COOKIES.", "We use many cookies."),
                         ["Read our Privacy Policy here.", "This site USES COOKIES."], "en"),
    "c4: short lines": (lines("only four words here", "", "here I don't see four"), ["only four words here"], "en"),
    "refinedweb: uppercase lines": (lines("ALL OF it", "HALFhalf", "HALFhal"), ["ALL OF it", "HALFhal"], "en"),
    "refinedweb: numeric lines": (lines("12.5 % (2019)", "12 apples", "---"), ["12.5 % (2019)"], "en"),
    "refinedweb: counters": (lines("3 likes", "1,204 Comments", "Views: 12k", "I have 3 likes", "3 apples"),
                             ["3 likes", "1,204 Comments", "Views: 12k"], "en"),
    "refinedweb: lines of one word": (lines("Home", "Home page", " Contact. "), ["Home", " Contact. "], "en"),
    "refinedweb: navigation": (lines(
        "Sign in or register", "He did not sign in.", "The news of today. Read more...", "To read more of it is good.",
        "3 items in cart now", "Sign in " + "and again " * 5),
        ["Sign in or register", "The news of today. Read more...", "3 items in cart now"], "en"),
    "chinese: policy lines": (lines("请阅读我们的隐私政策。", "本站使用Cookie", "政策很好。"),
                              ["请阅读我们的隐私政策。", "本站使用Cookie"], "zh"),
    "chinese: counters": (lines("阅读(123)", "点赞 1.2万", "35 条评论", "他有3个评论员", "第3章"),
                          ["阅读(123)", "点赞 1.2万", "35 条评论"], "zh"),
    "chinese: navigation": (lines("登录 | 注册", "他登录了系统。", "今天的新闻 阅读全文>>", "京ICP备12345号",
                                  "注册" + "书" * 15),
                            ["登录 | 注册", "今天的新闻 阅读全文>>", "京ICP备12345号"], "zh"),
    "chinese: short text lines": (lines("前言", "红豆生南国", "四个字。书"), ["前言", "四个字。书"], "zh"),
}  # fmt: skip


def test_every_rule_has_a_case() -> None:
    repetition = {reason for reason, _ in RULES if reason.startswith("repetition:")}
    shared = {reason.replace("repetition:", "chinese:") for reason in repetition}
    reasons = {reason for reason, _ in RULES} - repetition - shared - {"refinedweb: words in flagged lines"}
    assert reasons == set(CASES)
    assert set(LINE_RULES) == set(LINE_CASES) | {"c4: lines without end punctuation"}
    assert len(repetition) == 13


@pytest.mark.parametrize("reason", CASES)
def test_rule_on_both_sides_of_its_threshold(reason: str) -> None:
    dropped, kept, language = CASES[reason]
    assert rejects(reason, dropped, language)
    assert not rejects(reason, kept, language)
    if reason in CJK_CASES:
        assert rejects(reason, CJK_CASES[reason][0], "zh")
        assert not rejects(reason, CJK_CASES[reason][1], "zh")


@pytest.mark.parametrize("reason", LINE_CASES)
def test_line_rule(reason: str) -> None:
    text, expected, language = LINE_CASES[reason]
    assert flagged(reason, text, language) == expected


def test_terminal_punctuation_of_c4() -> None:
    text = lines(
        "An end.", "None", "He said “yes.”", 'A quote"', "Dots...", "Dots…", "句号。", "(an aside.)", "Really?!"
    )
    reason = "c4: lines without end punctuation"
    assert flagged(reason, text) == []
    assert flagged(reason, text, terminal_punctuation=True) == ["None", "Dots...", "Dots…"]


def test_upper_ends_of_ranges() -> None:
    assert rejects("gopher: mean word length", words(99, 10) + " " + "x" * 11)
    assert not rejects("gopher: mean word length", words(60, 10))


def test_rules_can_be_switched_off_by_thresholds() -> None:
    assert not rejects("c4: lorem ipsum", "lorem ipsum", lorem_ipsum=False)
    assert not rejects("c4: curly braces", "{}", curly_braces=False)
    assert flagged("c4: lines with javascript", "javascript", javascript=False) == []


TOP = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
TOP_CHINESE = {2: 0.256, 3: 0.201, 4: 0.171}
DUPLICATE_CHINESE = {5: 0.198, 6: 0.182, 7: 0.167, 8: 0.154, 9: 0.140, 10: 0.127}
SIZES_CHINESE = {2: 3, 3: 5, 4: 6, 5: 8, 6: 10, 7: 11, 8: 13, 9: 14, 10: 16}


def repeating(parts: list[str], size: int, total: int, separator: str) -> str:
    """`total` parts, all different but for a run of `size` that stands at both ends."""
    return separator.join([*parts[: total - size], *parts[:size]])


@pytest.mark.parametrize(("n", "threshold"), [*TOP.items(), *DUPLICATE.items()])
def test_ngram_rules(n: int, threshold: float) -> None:
    total = int(2 * n / threshold + 1e-9)  # two runs of n words have a share of 2 n / total
    above = total - 1 if 2 * n / total <= threshold else total
    kept, dropped = (repeating(unique_words(200), n, t, " ") for t in (above + 1, above))
    reason = f"repetition: top {n}-gram" if n in TOP else f"repetition: duplicate {n}-grams"
    assert rejects(reason, dropped)
    assert not rejects(reason, kept)
    if n in DUPLICATE:  # without the first occurrence, half as much
        assert not rejects(reason, dropped, first_occurrences=False)


@pytest.mark.parametrize(("n", "threshold"), [*TOP_CHINESE.items(), *DUPLICATE_CHINESE.items()])
def test_ngram_rules_in_chinese(n: int, threshold: float) -> None:
    size = SIZES_CHINESE[n]
    above = int(2 * size / threshold)
    kept, dropped = (repeating(list(unique_characters(400)), size, t, "") for t in (above + 1, above))
    reason = f"chinese: top {n}-gram" if n in TOP else f"chinese: duplicate {n}-grams"
    assert rejects(reason, dropped, "zh")
    assert not rejects(reason, kept, "zh")


@pytest.mark.parametrize(("family", "language", "duplicate_lines"), [("repetition", "en", 30), ("chinese", "zh", 28)])
def test_duplicate_lines_and_paragraphs(family: str, language: str, duplicate_lines: int) -> None:
    def text(repeats: int, length: int, separator: str = "\n") -> str:
        """100 lines, of which so many occurred before; the others fill up to 1000 characters."""
        own = 100 - repeats
        rest = 1000 - (repeats + 1) * length
        parts = [f"{i:03}".ljust(rest // (own - 1), "x") for i in range(own - 1)]
        parts[-1] += "x" * (rest - sum(map(len, parts)))
        return separator.join([*parts, *["r" * length] * (repeats + 1)])

    assert rejects(f"{family}: duplicate lines", text(duplicate_lines + 1, 3), language)
    assert not rejects(f"{family}: duplicate lines", text(duplicate_lines, 3), language)
    assert rejects(f"{family}: duplicate paragraphs", text(31, 3, "\n\n"), language)
    assert not rejects(f"{family}: duplicate paragraphs", text(30, 3, "\n\n"), language)
    assert not rejects(f"{family}: duplicate paragraphs", text(31, 3), language)
    for kind, separator in (("lines", "\n"), ("paragraphs", "\n\n")):
        assert rejects(f"{family}: characters in duplicate {kind}", text(21, 10, separator), language)
        assert not rejects(f"{family}: characters in duplicate {kind}", text(20, 10, separator), language)


def test_published_thresholds() -> None:
    settings = CleanSettings()
    assert settings.gopher and settings.c4 and settings.fineweb and settings.refinedweb
    assert settings.gopher.stop_words == {"en": ("the", "be", "to", "of", "and", "that", "have", "with")}
    assert settings.repetition == RepetitionRules(
        0.3, 0.3, 0.2, 0.2, 0.2, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.1
    )
    assert settings.refinedweb.max_flagged_words == 0.05 and settings.refinedweb.navigation_words == 10
    assert (settings.c4.min_sentences, settings.c4.min_line_words) == (3, 5)


def test_languages_of_groups() -> None:
    assert {"en", "spaced", "text", "everything"} <= groups_of("en")
    assert groups_of("zh-Hant") == groups_of("zh")
    assert groups_of("code") == {"code", "everything"}
    assert "spaced" not in groups_of("ja") | groups_of("th") | groups_of("code")
    assert [kind_of(language) for language in ("en", "", "ko", "th", "code")] == [
        "spaced", "spaced", "cjk", "unspaced", "code"]  # fmt: skip


def asked(language: str) -> set[str]:
    rules = [*CleanSettings().rules(), *CleanSettings().line_rules()]
    return {rule.reason for rule, _ in rules if not groups_of(language).isdisjoint(rule.languages)}


def test_which_families_a_language_is_asked() -> None:
    def families(language: str) -> set[str]:
        return {reason.partition(":")[0] for reason in asked(language)}

    assert asked("code") == {"own: too short", "own: abnormal characters", "own: repeated lines of code"}
    assert families("en") == families("fr") == {"own", "gopher", "repetition", "c4", "refinedweb", "fineweb"}
    assert families("zh") == {"own", "gopher", "c4", "refinedweb", "fineweb", "chinese"}
    assert "repetition" in families("ja") and "chinese" not in families("ja")
    assert not asked("zh") & {"gopher: too few words", "gopher: mean word length", "fineweb: short lines"}
    for language in ("en", "zh", "ja", "code"):  # no rule twice
        rules = [r.reason for r, _ in CleanSettings().rules() if not groups_of(language).isdisjoint(r.languages)]
        assert len(rules) == len(set(rules))


def test_good_texts_pass_every_rule() -> None:
    for text, language in ((english(20), "en"), (chinese(20), "zh")):
        scale = WORDS_PER_GRAM.get(kind_of(language), 1.0)
        features = Features(Texts([text], [language]), scale)
        for rule, thresholds in CleanSettings().rules():
            if not groups_of(language).isdisjoint(rule.languages):
                assert not rule.rejects(features, thresholds).any(), (rule.reason, text[:300])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from([*PIECES, "return something(x)\n"]), max_size=40).map("".join), max_size=4))
def test_shared_rules_agree_with_those_of_single_documents(texts: list[str]) -> None:
    pairs: list[tuple[str, Callable[[Document], str | None]]] = [
        ("own: too short", documents.too_short), ("own: repeated lines of code", documents.repeated_lines),
        ("own: abnormal characters", documents.abnormal_characters)]  # fmt: skip
    texts = [text.replace("\0", "").replace("\t", "") for text in texts]
    features = Features(Texts(texts, ["code"] * len(texts)))
    for reason, single in pairs:
        rule, thresholds = next(pair for (name, _), pair in RULES.items() if name == reason)
        expected = [single(Document("d", text, "code", "s")) is not None for text in texts]
        assert rule.rejects(features, thresholds).tolist() == expected


def test_flagged_words_is_a_share_of_what_was_there_before() -> None:
    texts = Texts(["one two three", "four"], ["en", "en"])
    rule, thresholds = RULES["refinedweb: words in flagged lines", "text"]
    for counts, expected in (([[5, 100], [6, 100]], [False, True]), ([[0, 0], [1, 1]], [False, True])):
        assert rule.rejects(Features(texts, 1.0, np.array(counts)), thresholds).tolist() == expected
    assert rule.rejects(Features(texts), thresholds).tolist() == [False, False]


def test_citations() -> None:
    from puyulm.data.clean.c4 import without_citations

    assert without_citations("A fact.[12] Another [3], too [citation needed]. a[i] = [] [1234]") == (
        "A fact. Another, too. a[i] = [] [1234]")  # fmt: skip
    assert C4Rules().citations
