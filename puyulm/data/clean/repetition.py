"""Repetition rules of Gopher (Rae et al. 2021, section A.1.1 and table A1)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

from puyulm.data.clean.characters import Mask
from puyulm.data.clean.features import Features
from puyulm.data.clean.rules import NOT_CHINESE, Rule, check_shares


@dataclass(frozen=True)
class RepetitionRules:
    """Thresholds, all of table A1: a document is dropped where a share is above.

    A line or paragraph is a duplicate where it occurred before in the document. Where each character is a word to us,
    an n-gram has 1.6 n of them, rounded: 3, 5, 6, 8, 10, 11, 13, 14, 16 for n = 2 to 10. The thresholds for Chinese
    are in `ChineseRules.repetition`.

    Attributes:
        first_occurrences: Whether the first occurrence of a duplicate n-gram counts too. So we read the paper's "all
            duplicate n-grams"; other programs, such as datatrove, count only the later ones, which is up to half as
            much and spares reference texts.
    """

    duplicate_lines: float = 0.30
    duplicate_paragraphs: float = 0.30
    duplicate_line_characters: float = 0.20
    duplicate_paragraph_characters: float = 0.20
    top_2_gram: float = 0.20
    top_3_gram: float = 0.18
    top_4_gram: float = 0.16
    duplicate_5_grams: float = 0.15
    duplicate_6_grams: float = 0.14
    duplicate_7_grams: float = 0.13
    duplicate_8_grams: float = 0.12
    duplicate_9_grams: float = 0.11
    duplicate_10_grams: float = 0.10
    first_occurrences: bool = True

    def __post_init__(self) -> None:
        check_shares(self, *(field.name for field in fields(self) if field.name != "first_occurrences"))


def duplicate_lines(features: Features, thresholds: RepetitionRules) -> Mask:
    """More than 30 % of the lines occurred before."""
    return features.duplicate_lines > thresholds.duplicate_lines


def duplicate_paragraphs(features: Features, thresholds: RepetitionRules) -> Mask:
    """More than 30 % of the paragraphs occurred before."""
    return features.duplicate_paragraphs > thresholds.duplicate_paragraphs


def duplicate_line_characters(features: Features, thresholds: RepetitionRules) -> Mask:
    """More than 20 % of the characters stand in lines that occurred before."""
    return features.duplicate_line_characters > thresholds.duplicate_line_characters


def duplicate_paragraph_characters(features: Features, thresholds: RepetitionRules) -> Mask:
    """More than 20 % of the characters stand in paragraphs that occurred before."""
    return features.duplicate_paragraph_characters > thresholds.duplicate_paragraph_characters


def top_ngram(features: Features, thresholds: RepetitionRules, n: int) -> Mask:
    """The most frequent n-gram has too large a share of the characters (n = 2, 3, 4)."""
    return features.top_ngram(n) > getattr(thresholds, f"top_{n}_gram")


def duplicate_ngrams(features: Features, thresholds: RepetitionRules, n: int) -> Mask:
    """N-grams that occur more than once have too large a share of the characters (n = 5 to 10)."""
    return features.duplicate_ngrams(n, thresholds.first_occurrences) > getattr(thresholds, f"duplicate_{n}_grams")


RULES = (
    Rule("repetition: duplicate lines", duplicate_lines, NOT_CHINESE),
    Rule("repetition: duplicate paragraphs", duplicate_paragraphs, NOT_CHINESE),
    Rule("repetition: characters in duplicate lines", duplicate_line_characters, NOT_CHINESE),
    Rule("repetition: characters in duplicate paragraphs", duplicate_paragraph_characters, NOT_CHINESE),
    *(Rule(f"repetition: top {n}-gram", partial(top_ngram, n=n), NOT_CHINESE) for n in (2, 3, 4)),
    *(Rule(f"repetition: duplicate {n}-grams", partial(duplicate_ngrams, n=n), NOT_CHINESE) for n in range(5, 11)),
)
