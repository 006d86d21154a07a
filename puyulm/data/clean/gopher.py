"""Quality rules of Gopher (Rae et al. 2021, "Scaling Language Models", section A.1.1), made for web pages."""

from __future__ import annotations

from dataclasses import dataclass, field

from puyulm.data.clean.characters import Mask
from puyulm.data.clean.features import Features
from puyulm.data.clean.rules import SPACED, TEXT, Rule, check_range, check_shares
from puyulm.errors import DataError


@dataclass(frozen=True)
class GopherRules:
    """Thresholds, all as published. For languages written with spaces; Chinese has its own in `ChineseRules`.

    Attributes:
        min_words, max_words: A document has so many words.
        min_mean_word_length, max_mean_word_length: Characters.
        max_symbols_per_word: Of hash symbols, and of ellipses.
        max_bullet_lines: Share of lines that begin with a bullet.
        max_ellipsis_lines: Share of lines that end with an ellipsis.
        min_alphabetic_words: Share of words (between spaces) that hold a letter.
        stop_words: By language; where a language has no list, nothing is asked.
        min_stop_words: Different ones that must occur.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    stop_words: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"en": ("the", "be", "to", "of", "and", "that", "have", "with")}
    )
    min_stop_words: int = 2

    def __post_init__(self) -> None:
        check_range(self, "min_words", "max_words")
        check_range(self, "min_mean_word_length", "max_mean_word_length")
        check_shares(self, "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words")
        short = next((name for name, words in self.stop_words.items() if len(words) < self.min_stop_words), None)
        if short is not None:
            raise DataError(f"stop_words.{short} has {len(self.stop_words[short])} words and min_stop_words is "
                            f"{self.min_stop_words}: every document would be dropped")  # fmt: skip


def too_few_words(features: Features, thresholds: GopherRules) -> Mask:
    """Fewer than 50 words."""
    return features.words < thresholds.min_words


def too_many_words(features: Features, thresholds: GopherRules) -> Mask:
    """More than 100,000 words. Books have more: exempt their source."""
    return features.words > thresholds.max_words


def mean_word_length(features: Features, thresholds: GopherRules) -> Mask:
    """A mean word length outside 3 to 10 characters."""
    length = features.mean_word_length
    return (length < thresholds.min_mean_word_length) | (length > thresholds.max_mean_word_length)


def hash_symbols(features: Features, thresholds: GopherRules) -> Mask:
    """More than one hash symbol for ten words."""
    return features.hashes_per_word > thresholds.max_symbols_per_word


def ellipses(features: Features, thresholds: GopherRules) -> Mask:
    """More than one ellipsis for ten words."""
    return features.ellipses_per_word > thresholds.max_symbols_per_word


def bullet_lines(features: Features, thresholds: GopherRules) -> Mask:
    """More than 90 % of the lines begin with a bullet."""
    return features.bullet_lines > thresholds.max_bullet_lines


def ellipsis_lines(features: Features, thresholds: GopherRules) -> Mask:
    """More than 30 % of the lines end with an ellipsis."""
    return features.ellipsis_lines > thresholds.max_ellipsis_lines


def alphabetic_words(features: Features, thresholds: GopherRules) -> Mask:
    """Fewer than 80 % of the words hold a letter."""
    return features.alphabetic_words < thresholds.min_alphabetic_words


def stop_words(features: Features, thresholds: GopherRules) -> Mask:
    """Fewer than two different words of: the, be, to, of, and, that, have, with."""
    found = features.different_words(thresholds.stop_words)
    return (found >= 0) & (found < thresholds.min_stop_words)


RULES = (
    Rule("gopher: too few words", too_few_words, SPACED),
    Rule("gopher: too many words", too_many_words, SPACED),
    Rule("gopher: mean word length", mean_word_length, SPACED),
    Rule("gopher: hash symbols", hash_symbols, SPACED),
    Rule("gopher: ellipses", ellipses, SPACED),
    Rule("gopher: bullet lines", bullet_lines, TEXT),
    Rule("gopher: lines ending in an ellipsis", ellipsis_lines, TEXT),
    Rule("gopher: words without letters", alphabetic_words, SPACED),
    Rule("gopher: stop words", stop_words, SPACED),
)
