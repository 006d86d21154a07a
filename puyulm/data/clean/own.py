"""Rules of the kinds that the InternLM2 report names and does not spell out (section 3.1.1).

They are anomalous separation and line breaks, frequent abnormal characters, and the distribution of punctuation. All
thresholds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from puyulm.data.clean.characters import DIGIT, LOWER, UPPER, Mask
from puyulm.data.clean.documents import LONG_LINE, MAX_ABNORMAL_SHARE, MAX_REPEATED_SHARE, MIN_BYTES
from puyulm.data.clean.features import Features
from puyulm.data.clean.rules import CJK, CODE, EVERYTHING, SPACED, TEXT, Rule, check_shares

_FEW_LINES = 10  # a rule about how lines break needs some of them


@dataclass(frozen=True)
class OwnRules:
    """Thresholds, all ours.

    Attributes:
        min_bytes: Of UTF-8 text.
        max_abnormal: Control, private-use, replacement, surrogate and non-characters, per character.
        max_mojibake: Share of characters in sequences that only a wrong encoding gives.
        max_punctuation: Share of punctuation and symbols in all characters but white space.
        min_punctuation: The same, from below; asked of texts of at least `unpunctuated` characters.
        unpunctuated: So much text should have a few marks.
        max_repeated_marks: Share of characters in runs of four or more equal marks.
        max_digits: Share of digits.
        max_uppercase: Share of capitals in letters with case.
        max_single_letters: Share of words of one letter: letters that were set apart.
        min_mean_line: Characters in a line on average, where there are ten lines or more.
        max_broken_lines: Share of lines that are short and break off in a sentence, where there are ten or more.
        broken_line, broken_line_cjk: Characters of such a line at most; text wrapped at a usual width is not broken.
        max_line: Characters in one line without a break.
        max_repeated_code: Share of a code file's characters in lines of 16 characters or more that occurred before.
    """

    min_bytes: int = MIN_BYTES
    max_abnormal: float = MAX_ABNORMAL_SHARE
    max_mojibake: float = 0.001
    max_punctuation: float = 0.3
    min_punctuation: float = 0.003
    unpunctuated: int = 1000
    max_repeated_marks: float = 0.1
    max_digits: float = 0.4
    max_uppercase: float = 0.6
    max_single_letters: float = 0.4
    min_mean_line: float = 4.0
    max_broken_lines: float = 0.6
    broken_line: int = 20
    broken_line_cjk: int = 6
    max_line: int = 50_000
    max_repeated_code: float = MAX_REPEATED_SHARE

    def __post_init__(self) -> None:
        check_shares(self, "max_abnormal", "max_mojibake", "max_punctuation", "min_punctuation", "max_repeated_marks",
                     "max_digits", "max_uppercase", "max_single_letters", "max_broken_lines",
                     "max_repeated_code")  # fmt: skip


def too_short(features: Features, thresholds: OwnRules) -> Mask:
    """Under 64 bytes, or nothing but white space."""
    return (features.utf8_bytes < thresholds.min_bytes) | (features.solid_characters == 0)


def abnormal_characters(features: Features, thresholds: OwnRules) -> Mask:
    """More than 0.1 % control, private-use, replacement, surrogate or non-characters, after normalisation."""
    return features.abnormal_share > thresholds.max_abnormal


def mojibake(features: Features, thresholds: OwnRules) -> Mask:
    """More than 0.1 % of the characters come of a wrong encoding."""
    return features.mojibake_share > thresholds.max_mojibake


def much_punctuation(features: Features, thresholds: OwnRules) -> Mask:
    """More than 30 % punctuation and symbols."""
    return features.punctuation_share > thresholds.max_punctuation


def little_punctuation(features: Features, thresholds: OwnRules) -> Mask:
    """1000 characters or more with under 0.3 % punctuation: lists of words, captions run together."""
    long = features.solid_characters >= thresholds.unpunctuated
    return long & (features.punctuation_share < thresholds.min_punctuation)


def repeated_marks(features: Features, thresholds: OwnRules) -> Mask:
    """More than 10 % of the characters in runs of equal marks."""
    return features.repeated_mark_share > thresholds.max_repeated_marks


def digits(features: Features, thresholds: OwnRules) -> Mask:
    """More than 40 % digits."""
    return features.share(DIGIT) > thresholds.max_digits


def uppercase(features: Features, thresholds: OwnRules) -> Mask:
    """More than 60 % of the letters are capitals."""
    cased = features.count(UPPER, LOWER) > features.solid_characters / 2
    return cased & (features.uppercase_share > thresholds.max_uppercase)


def single_letters(features: Features, thresholds: OwnRules) -> Mask:
    """More than 40 % of the words are one letter or digit."""
    return features.single_letter_words > thresholds.max_single_letters


def tiny_lines(features: Features, thresholds: OwnRules) -> Mask:
    """Ten lines or more, of under four characters on average."""
    return (features.lines >= _FEW_LINES) & (features.mean_line_length < thresholds.min_mean_line)


def broken_lines(features: Features, thresholds: OwnRules) -> Mask:
    """Ten lines or more, most of them of at most 20 characters and broken off inside a sentence."""
    return (features.lines >= _FEW_LINES) & (
        features.broken_lines(thresholds.broken_line) > thresholds.max_broken_lines
    )


def broken_lines_cjk(features: Features, thresholds: OwnRules) -> Mask:
    """The same in Chinese, Japanese and Korean, with lines of at most 6 characters."""
    broken = features.broken_lines(thresholds.broken_line_cjk)
    return (features.lines >= _FEW_LINES) & (broken > thresholds.max_broken_lines)


def enormous_line(features: Features, thresholds: OwnRules) -> Mask:
    """More than 50,000 characters without a line break."""
    return features.longest_line > thresholds.max_line


def repeated_code(features: Features, thresholds: OwnRules) -> Mask:
    """More than 30 % of the characters in lines of 16 characters or more that occurred before in the file."""
    return features.repeated_line_characters(LONG_LINE) > thresholds.max_repeated_code


RULES = (
    Rule("own: too short", too_short, EVERYTHING),
    Rule("own: abnormal characters", abnormal_characters, EVERYTHING),
    Rule("own: mojibake", mojibake, TEXT),
    Rule("own: too much punctuation", much_punctuation, TEXT),
    Rule("own: too little punctuation", little_punctuation, TEXT),
    Rule("own: runs of equal marks", repeated_marks, TEXT),
    Rule("own: digits", digits, TEXT),
    Rule("own: capitals", uppercase, TEXT),
    Rule("own: single letters", single_letters, SPACED),
    Rule("own: lines of a few characters", tiny_lines, TEXT),
    Rule("own: lines broken inside sentences", broken_lines, SPACED),
    Rule("own: lines broken inside sentences", broken_lines_cjk, CJK),
    Rule("own: no line breaks", enormous_line, TEXT),
    Rule("own: repeated lines of code", repeated_code, CODE),
)
