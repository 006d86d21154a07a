"""Line-wise corrections of RefinedWeb (Penedo et al. 2023, appendix G.2).

Published are the kinds of lines and the share of flagged words; the share of capitals and the phrases are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from puyulm.data.clean import characters as c
from puyulm.data.clean.c4 import lines_with
from puyulm.data.clean.characters import Mask, members
from puyulm.data.clean.features import Features
from puyulm.data.clean.rules import SPACED, TEXT, LineRule, Rule, check_shares
from puyulm.data.clean.texts import Integers, Texts

_COUNTER = re.compile(
    r"\W*(?:[\d.,]+\s?[km]?\+?\s?(?:{0})|(?:{0})\W{{0,3}}[\d.,]+\s?[km]?)\W*".format(
        "likes?|shares?|comments?|views?|followers?|following|subscribers?|retweets?|replies|reply|votes?|points?|"
        "reviews?|ratings?|downloads?|posts?|members?|fans?|photos?|pages?|hits?|reads?"
    )
)
_COUNTER_WORDS = 4
_PUNCTUATION = " .…>»→:：！!"


@dataclass(frozen=True)
class RefinedWebRules:
    """Which lines are dropped, and when the document is.

    Attributes:
        max_uppercase: Share of capitals in a line's characters; dropped above. Published: "mainly"; the value is ours.
        navigation_words: Lines of at most so many words are dropped if they hold one of the phrases.
        beginnings, endings, anywhere: Phrases; ours. (RefinedWeb cuts the phrase out of the line; we drop the line.)
        max_flagged_words: Share of the document's words in such lines; above, the document is dropped.
    """

    max_uppercase: float = 0.5
    navigation_words: int = 10
    beginnings: tuple[str, ...] = ("sign in", "sign-in", "sign up", "log in", "login", "skip to", "share this",
                                   "posted by", "posted on", "click here", "follow us")  # fmt: skip
    endings: tuple[str, ...] = ("read more", "continue reading", "learn more", "view all", "see all", "load more")
    anywhere: tuple[str, ...] = ("items in cart", "add to cart", "all rights reserved", "back to top")
    max_flagged_words: float = 0.05

    def __post_init__(self) -> None:
        check_shares(self, "max_uppercase", "max_flagged_words")


def uppercase_lines(texts: Texts, thresholds: RefinedWebRules) -> Mask:
    """Lines mainly of capitals."""
    return line_counts(texts, c.UPPER) > thresholds.max_uppercase * _solid(texts)


def numeric_lines(texts: Texts, thresholds: RefinedWebRules) -> Mask:
    """Lines with digits and without a letter."""
    return (line_counts(texts, c.DIGIT) > 0) & (line_counts(texts, *c.ALPHABETIC) == 0)


def counter_lines(texts: Texts, thresholds: RefinedWebRules) -> Mask:
    """Counters, such as "3 likes"."""
    found = np.zeros(len(texts.lines.owner), dtype=bool)
    for line in np.flatnonzero((texts.line_words <= _COUNTER_WORDS) & (line_counts(texts, c.DIGIT) > 0)).tolist():
        found[line] = _COUNTER.fullmatch(line_text(texts, line)) is not None
    return found


def single_words(texts: Texts, thresholds: RefinedWebRules) -> Mask:
    """Lines of one word."""
    return texts.line_words == 1


def navigation_lines(texts: Texts, thresholds: RefinedWebRules) -> Mask:
    """Lines of at most ten words that begin or end with, or hold, a phrase of web sites."""
    return phrase_lines(texts, thresholds.navigation_words, thresholds.beginnings, thresholds.endings,
                        thresholds.anywhere)  # fmt: skip


def phrase_lines(
    texts: Texts, max_words: int, beginnings: tuple[str, ...], endings: tuple[str, ...], anywhere: tuple[str, ...]
) -> Mask:
    """Lines of at most `max_words` words with one of the phrases in its place, `[N]`; behind the last, there may be
    punctuation."""
    lines = texts.lines
    found = lines_with(texts, anywhere)
    for phrase in beginnings:
        found |= np.isin(lines.first, texts.find(phrase))
    for phrase in endings:
        places = texts.find(phrase)
        for line, place in zip(np.searchsorted(lines.end, places).tolist(), places.tolist(), strict=True):
            rest = texts.lower[place + len(phrase) : int(lines.end[line])]
            found[line] |= not rest.strip(_PUNCTUATION)
    return found & (texts.line_words <= max_words)


def line_text(texts: Texts, line: int) -> str:
    """A line in lower case, without white space around."""
    return texts.lower[int(texts.lines.first[line]) : int(texts.lines.last[line]) + 1]


def line_counts(texts: Texts, *classes: int) -> Integers:
    """Characters of some classes in each line, `[N]`."""
    sums = np.zeros(len(texts.classes) + 1, dtype=np.int32)
    np.cumsum(members(*classes)[texts.classes], dtype=np.int32, out=sums[1:])
    return (sums[texts.lines.end] - sums[texts.lines.start]).astype(np.int64)


def flagged_words(features: Features, thresholds: RefinedWebRules) -> Mask:
    """More than 5 % of the words stood in flagged lines."""
    return features.flagged_words > thresholds.max_flagged_words


def _solid(texts: Texts) -> Integers:
    everything = range(c.SPACE + 1, c.NUM_CLASSES)
    return line_counts(texts, *everything)


LINE_RULES = (
    LineRule("refinedweb: uppercase lines", uppercase_lines, SPACED, counted=True),
    LineRule("refinedweb: numeric lines", numeric_lines, TEXT, counted=True),
    LineRule("refinedweb: counters", counter_lines, SPACED, counted=True),
    LineRule("refinedweb: lines of one word", single_words, SPACED, counted=True),
    LineRule("refinedweb: navigation", navigation_lines, SPACED, counted=True),
)

RULES = (Rule("refinedweb: words in flagged lines", flagged_words, TEXT),)
