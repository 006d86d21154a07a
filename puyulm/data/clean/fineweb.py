"""The filters that FineWeb added to those of Gopher and C4 (Penedo et al. 2024, section 3.6, and its released code)."""

from __future__ import annotations

from dataclasses import dataclass

from puyulm.data.clean.characters import Mask
from puyulm.data.clean.features import Features
from puyulm.data.clean.rules import SPACED, TEXT, Rule, check_shares


@dataclass(frozen=True)
class FineWebRules:
    """Thresholds of the released code, with which the published data were made.

    Attributes:
        min_terminal_lines: Share of lines that end a sentence; dropped at or below.
        max_short_lines: Share of short lines; dropped at or above.
        short_line: Characters of a short line.
        max_duplicate_line_characters: Share of characters in lines that occurred before; dropped at or above. The
            paper prints 0.1.
        max_line_breaks_per_word: Dropped above; only in the released code.
    """

    min_terminal_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 30
    max_duplicate_line_characters: float = 0.01
    max_line_breaks_per_word: float = 0.3

    def __post_init__(self) -> None:
        check_shares(self, "min_terminal_lines", "max_short_lines", "max_duplicate_line_characters")


def terminal_lines(features: Features, thresholds: FineWebRules) -> Mask:
    """At most 12 % of the lines end a sentence: a list or a menu."""
    return features.terminal_lines <= thresholds.min_terminal_lines


def short_lines(features: Features, thresholds: FineWebRules) -> Mask:
    """At least 67 % of the lines have at most 30 characters."""
    return features.short_lines(thresholds.short_line) >= thresholds.max_short_lines


def duplicate_line_characters(features: Features, thresholds: FineWebRules) -> Mask:
    """At least 1 % of the characters stand in lines that occurred before."""
    return features.duplicate_line_characters >= thresholds.max_duplicate_line_characters


def line_breaks(features: Features, thresholds: FineWebRules) -> Mask:
    """More than three line breaks for ten words."""
    return features.line_breaks_per_word > thresholds.max_line_breaks_per_word


RULES = (
    Rule("fineweb: lines without end punctuation", terminal_lines, SPACED),
    Rule("fineweb: short lines", short_lines, SPACED),
    Rule("fineweb: characters in duplicate lines", duplicate_line_characters, TEXT),
    Rule("fineweb: line breaks per word", line_breaks, SPACED),
)
