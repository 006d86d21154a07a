"""Counterparts for Chinese of the rules that count words between spaces or look for English.

Each Chinese character is a word to us. Where a published threshold counts words, it is turned into characters at 1.6 a
word; thresholds marked FineWeb2 are those of its configuration for `cmn_Hani` (Penedo et al. 2025), whose words are
found by a segmenter; the others are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from puyulm.data.clean import characters as c
from puyulm.data.clean import repetition
from puyulm.data.clean.c4 import lines_with
from puyulm.data.clean.characters import Mask
from puyulm.data.clean.features import Features
from puyulm.data.clean.refinedweb import line_counts, line_text, phrase_lines
from puyulm.data.clean.repetition import RepetitionRules
from puyulm.data.clean.rules import CHINESE, LineRule, Rule, check_range, check_shares
from puyulm.data.clean.texts import Texts

_COUNTER_WORDS = (
    "阅读|阅读量|浏览|浏览量|浏览次数|点击|点击量|点赞|赞|评论|回复|收藏|转发|分享|关注|粉丝|播放|下载|人气|热度"
)
_COUNTER = re.compile(
    rf"\W*(?:(?:{_COUNTER_WORDS})\W{{0,3}}[\d.,]+\s?[万亿kw+次条人]{{0,2}}"
    rf"|[\d.,]+\s?[万亿kw+]{{0,2}}\s?[次条个人]{{0,2}}\s?(?:{_COUNTER_WORDS}))\W*"
)
_COUNTER_CHARACTERS = 12


def _fineweb2_repetition() -> RepetitionRules:
    return RepetitionRules(
        duplicate_lines=0.287, top_2_gram=0.256, top_3_gram=0.201, top_4_gram=0.171, duplicate_5_grams=0.198,
        duplicate_6_grams=0.182, duplicate_7_grams=0.167, duplicate_8_grams=0.154, duplicate_9_grams=0.140,
        duplicate_10_grams=0.127,
    )  # fmt: skip


@dataclass(frozen=True)
class ChineseRules:
    """Thresholds for documents in Chinese.

    Attributes:
        min_characters, max_characters: Gopher's 50 and 100,000 words times 1.6. Latin words and numbers count as one.
        max_symbols_per_character: Gopher's 0.1 a word, of hash symbols and of ellipses, divided by 1.6.
        min_letters: Share of letters (of any script) in all characters but white space; ours, for Gopher's 80 % of
            words with a letter.
        min_chinese: Share of Chinese characters in the same; ours.
        stop_characters: Frequent function words, of the modern and of the classical language; ours.
        min_stop_characters: Different ones that must occur; Gopher's 2.
        min_terminal_lines: Share of lines that end a sentence; FineWeb2.
        max_short_lines, short_line: FineWeb's 67 %, of lines of at most 10 characters for its 30 (ours).
        max_line_breaks_per_character: FineWeb2's 0.178 a word, divided by 1.6.
        min_line_characters: Shorter lines are dropped; ours, for C4's 5 words: a verse of five characters stays.
        policy_phrases: Lines with one of them are dropped, as in C4; the phrases are ours.
        navigation_characters: Lines of at most so many are dropped if they hold one of the phrases, as in RefinedWeb.
        beginnings, endings, anywhere: Phrases; ours.
        max_spaced_characters: Share of neighbouring Chinese characters with a space between; ours, for the anomalous
            separation that the InternLM2 report (section 3.1.1) names.
        repetition: For `RepetitionRules`; FineWeb2 but for paragraphs and characters in lines, which it leaves as
            published.
    """

    min_characters: int = 80
    max_characters: int = 160_000
    max_symbols_per_character: float = 0.0625
    min_letters: float = 0.6
    min_chinese: float = 0.3
    stop_characters: tuple[str, ...] = tuple("的了是在不有和我他这之为以也而人于其")
    min_stop_characters: int = 2
    min_terminal_lines: float = 0.106
    max_short_lines: float = 0.67
    short_line: int = 10
    max_line_breaks_per_character: float = 0.111
    min_line_characters: int = 5
    policy_phrases: tuple[str, ...] = ("隐私政策", "隐私权政策", "使用条款", "服务条款", "使用cookie", "使用 cookie",
                                       "cookie政策", "cookie 政策")  # fmt: skip
    navigation_characters: int = 16
    beginnings: tuple[str, ...] = ("登录", "登陆", "注册", "上一篇", "下一篇", "分享到", "点击查看", "当前位置",
                                   "您的位置", "责任编辑")  # fmt: skip
    endings: tuple[str, ...] = ("阅读全文", "查看全文", "查看更多", "查看详情", "展开全部", "加载更多", "更多")
    anywhere: tuple[str, ...] = ("加入购物车", "版权所有", "返回顶部", "扫一扫", "icp备", "立即购买")
    max_spaced_characters: float = 0.2
    repetition: RepetitionRules = field(default_factory=_fineweb2_repetition)

    def __post_init__(self) -> None:
        check_range(self, "min_characters", "max_characters")
        check_shares(self, "min_letters", "min_chinese", "min_terminal_lines", "max_short_lines",
                     "max_spaced_characters")  # fmt: skip


def too_few_characters(features: Features, thresholds: ChineseRules) -> Mask:
    """Fewer than 80 characters."""
    return features.words < thresholds.min_characters


def too_many_characters(features: Features, thresholds: ChineseRules) -> Mask:
    """More than 160,000 characters. Books have more: exempt their source."""
    return features.words > thresholds.max_characters


def hash_symbols(features: Features, thresholds: ChineseRules) -> Mask:
    """More than one hash symbol for sixteen characters."""
    return features.hashes_per_word > thresholds.max_symbols_per_character


def ellipses(features: Features, thresholds: ChineseRules) -> Mask:
    """More than one ellipsis for sixteen characters."""
    return features.ellipses_per_word > thresholds.max_symbols_per_character


def letters(features: Features, thresholds: ChineseRules) -> Mask:
    """Less than 60 % letters."""
    return features.letter_share < thresholds.min_letters


def chinese_share(features: Features, thresholds: ChineseRules) -> Mask:
    """Less than 30 % Chinese characters."""
    return features.share(c.HAN) < thresholds.min_chinese


def stop_characters(features: Features, thresholds: ChineseRules) -> Mask:
    """Fewer than two different function words."""
    lists = dict.fromkeys(CHINESE, thresholds.stop_characters)
    found = features.different_words(lists)
    return (found >= 0) & (found < thresholds.min_stop_characters)


def terminal_lines(features: Features, thresholds: ChineseRules) -> Mask:
    """At most 10.6 % of the lines end a sentence."""
    return features.terminal_lines <= thresholds.min_terminal_lines


def short_lines(features: Features, thresholds: ChineseRules) -> Mask:
    """At least 67 % of the lines have at most ten characters."""
    return features.short_lines(thresholds.short_line) >= thresholds.max_short_lines


def line_breaks(features: Features, thresholds: ChineseRules) -> Mask:
    """More than one line break for nine characters."""
    return features.line_breaks_per_word > thresholds.max_line_breaks_per_character


def spaced_characters(features: Features, thresholds: ChineseRules) -> Mask:
    """Spaces between more than a fifth of the neighbouring Chinese characters."""
    return features.spaced_ideographs > thresholds.max_spaced_characters


def short_text_lines(texts: Texts, thresholds: ChineseRules) -> Mask:
    """Lines of fewer than five characters."""
    return texts.line_words < thresholds.min_line_characters


def policy_lines(texts: Texts, thresholds: ChineseRules) -> Mask:
    """Lines of notices of privacy policies and cookies."""
    return lines_with(texts, thresholds.policy_phrases)


def counter_lines(texts: Texts, thresholds: ChineseRules) -> Mask:
    """Counters, such as 阅读(123)."""
    found = np.zeros(len(texts.lines.owner), dtype=bool)
    short = (texts.line_words <= _COUNTER_CHARACTERS) & (line_counts(texts, c.DIGIT) > 0)
    for line in np.flatnonzero(short).tolist():
        found[line] = _COUNTER.fullmatch(line_text(texts, line)) is not None
    return found


def navigation_lines(texts: Texts, thresholds: ChineseRules) -> Mask:
    """Lines of at most 16 characters that begin or end with, or hold, a phrase of web sites."""
    return phrase_lines(texts, thresholds.navigation_characters, thresholds.beginnings, thresholds.endings,
                        thresholds.anywhere)  # fmt: skip


def _repetition(rule: Rule) -> Rule:
    """A rule of repetition, with the Chinese thresholds."""

    def rejects(features: Features, thresholds: ChineseRules) -> Mask:
        return rule.rejects(features, thresholds.repetition)

    return Rule(rule.reason.replace("repetition:", "chinese:"), rejects, CHINESE)


LINE_RULES = (
    LineRule("chinese: policy lines", policy_lines, CHINESE),
    LineRule("chinese: counters", counter_lines, CHINESE, counted=True),
    LineRule("chinese: navigation", navigation_lines, CHINESE, counted=True),
    LineRule("chinese: short text lines", short_text_lines, CHINESE),
)

RULES = (
    Rule("chinese: too few characters", too_few_characters, CHINESE),
    Rule("chinese: too many characters", too_many_characters, CHINESE),
    Rule("chinese: hash symbols", hash_symbols, CHINESE),
    Rule("chinese: ellipses", ellipses, CHINESE),
    Rule("chinese: few letters", letters, CHINESE),
    Rule("chinese: few Chinese characters", chinese_share, CHINESE),
    Rule("chinese: function words", stop_characters, CHINESE),
    Rule("chinese: lines without end punctuation", terminal_lines, CHINESE),
    Rule("chinese: short lines", short_lines, CHINESE),
    Rule("chinese: line breaks per character", line_breaks, CHINESE),
    Rule("chinese: spaces between characters", spaced_characters, CHINESE),
    *map(_repetition, repetition.RULES),
)
