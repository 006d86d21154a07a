"""Rules of C4 (Raffel et al. 2020, section 2.2, and the released code, `c4_utils` of TensorFlow Datasets).

The list of bad words belongs to the stage `safe`, the removal of repeated three-sentence spans to `dedup`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from puyulm.data.clean import characters as c
from puyulm.data.clean.characters import Mask
from puyulm.data.clean.features import Features, ends_sentence
from puyulm.data.clean.rules import SPACED, TEXT, LineRule, Rule
from puyulm.data.clean.texts import Integers, Texts

# Numbers of footnotes and two buttons of Wikipedia. The released code also takes "[]", which means something in prose
# about programs.
_CITATION = re.compile(r" ?\[(?:[0-9]{1,3}|edit|citation needed|编辑|来源请求)\]")


@dataclass(frozen=True)
class C4Rules:
    """Which rules, and their thresholds.

    Attributes:
        terminal_punctuation: Drop lines that do not end in . ! ? or a closing quotation mark. Off, unlike in C4: it
            alone removes about 30 % of all tokens, and FineWeb (section 3.5) kept every rule of C4 but this one.
        min_line_words: Shorter lines are dropped.
        max_word_length: Lines with a longer word are dropped; of the released code.
        javascript: Drop lines with the word Javascript.
        policy_phrases: Lines with one of them are dropped.
        citations: Remove [1], [edit] and [citation needed].
        min_sentences: Of what is left. 3 sentences and 5 words a line stand in the paper's last version and in the
            released code; its first versions print 5 sentences and 3 words.
        lorem_ipsum, curly_braces: Drop documents that hold them.
    """

    terminal_punctuation: bool = False
    min_line_words: int = 5
    max_word_length: int = 1000
    javascript: bool = True
    policy_phrases: tuple[str, ...] = (
        "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    )  # fmt: skip
    citations: bool = True
    min_sentences: int = 3
    lorem_ipsum: bool = True
    curly_braces: bool = True


def without_citations(text: str) -> str:
    """A text without the marks of Wikipedia's citations."""
    return _CITATION.sub("", text) if "[" in text else text


def unfinished_lines(texts: Texts, thresholds: C4Rules) -> Mask:
    """Lines that do not end in a terminal punctuation mark; an ellipsis is none."""
    if not thresholds.terminal_punctuation:
        return np.zeros(len(texts.lines.owner), dtype=bool)
    last = texts.lines.last
    dots = (texts.codes[last] == ord(".")) & (texts.codes[np.maximum(last - 1, 0)] == ord("."))
    ends = ends_sentence(texts) & (texts.classes[last] != c.ELLIPSIS) & ~dots
    return ~(ends | (texts.classes[last] == c.QUOTE))


def short_lines(texts: Texts, thresholds: C4Rules) -> Mask:
    """Lines of fewer than five words."""
    return texts.line_words < thresholds.min_line_words


def long_words(texts: Texts, thresholds: C4Rules) -> Mask:
    """Lines with more than 1000 characters without a space."""
    solid = np.concatenate([[False], texts.classes > c.SPACE])
    edges = np.flatnonzero(solid[1:] != solid[:-1])  # starts and ends in turn: the batch ends with a line feed
    starts, ends = edges[::2], edges[1::2]
    return _holding(texts, starts[ends - starts > thresholds.max_word_length])


def javascript_lines(texts: Texts, thresholds: C4Rules) -> Mask:
    """Lines with the word Javascript."""
    return lines_with(texts, ("javascript",) if thresholds.javascript else ())


def policy_lines(texts: Texts, thresholds: C4Rules) -> Mask:
    """Lines of notices of privacy policies and cookies."""
    return lines_with(texts, thresholds.policy_phrases)


def lines_with(texts: Texts, phrases: tuple[str, ...]) -> Mask:
    """Lines in which one of some phrases stands, in any case, `[N]`."""
    found = np.zeros(len(texts.lines.owner), dtype=bool)
    for phrase in phrases:
        found |= _holding(texts, texts.find(phrase.lower()))
    return found


def sentences(features: Features, thresholds: C4Rules) -> Mask:
    """Fewer than three sentences."""
    return features.sentences < thresholds.min_sentences


def lorem_ipsum(features: Features, thresholds: C4Rules) -> Mask:
    """Placeholder text."""
    return (features.occurrences("lorem ipsum") > 0) & thresholds.lorem_ipsum


def curly_braces(features: Features, thresholds: C4Rules) -> Mask:
    """A curly brace: code, in a text that should be none."""
    return (features.count(c.BRACE) > 0) & thresholds.curly_braces


def _holding(texts: Texts, places: Integers) -> Mask:
    """Which lines hold one of some places, `[N]`."""
    low, high = np.searchsorted(places, texts.lines.start), np.searchsorted(places, texts.lines.end)
    return low < high


LINE_RULES = (
    LineRule("c4: lines without end punctuation", unfinished_lines, TEXT),
    LineRule("c4: lines with a very long word", long_words, SPACED),
    LineRule("c4: lines with javascript", javascript_lines, TEXT),
    LineRule("c4: policy lines", policy_lines, TEXT),
    LineRule("c4: short lines", short_lines, SPACED),
)

RULES = (
    Rule("c4: too few sentences", sentences, TEXT),
    Rule("c4: lorem ipsum", lorem_ipsum, TEXT),
    Rule("c4: curly braces", curly_braces, TEXT),
)
