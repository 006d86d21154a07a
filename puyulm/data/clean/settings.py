"""Settings of the stage `clean`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puyulm.data.clean import c4, chinese, fineweb, gopher, own, refinedweb, repetition
from puyulm.data.clean.c4 import C4Rules
from puyulm.data.clean.chinese import ChineseRules
from puyulm.data.clean.fineweb import FineWebRules
from puyulm.data.clean.gopher import GopherRules
from puyulm.data.clean.own import OwnRules
from puyulm.data.clean.refinedweb import RefinedWebRules
from puyulm.data.clean.repetition import RepetitionRules
from puyulm.data.clean.rules import LineRule, Rule, extra_reason, extra_rule, extra_rule_file
from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Outcome
from puyulm.errors import DataError

CITATIONS = "c4: citations"
"""Name, for `exempt`, of the removal of citation marks, which is no rule."""
TOO_LONG = "own: more characters than the stage reads"


@dataclass(frozen=True)
class CleanSettings:
    """Normalisation and heuristic rules, the second stage of the InternLM2 report (section 3.1.1).

    Rules of lines, which change the text, go first, then those of documents, in the order of the fields.
    A family set to null is off. Which languages a rule is for stands in the table at the end of its family's module.

    Attributes:
        own: Of the report's kinds, with our thresholds; also all that is asked of code.
        gopher: Quality rules of Gopher.
        repetition: Repetition rules of Gopher.
        c4: Rules of C4, some of which drop lines.
        refinedweb: Line-wise corrections of RefinedWeb.
        fineweb: The additional filters of FineWeb.
        chinese: Counterparts for Chinese. The rules for any text are asked too.
        half_width: Turn full-width Latin letters and digits into ASCII.
        max_characters: Longer documents are dropped unread: a worker needs about 100 bytes a character of the longest.
        exempt: Source -> reasons of the rules that are not asked of its documents; "*" is every source.
        extra_rules: More rules, as `package.module:function` from features to a mask; asked last.
    """

    own: OwnRules | None = field(default_factory=OwnRules)
    gopher: GopherRules | None = field(default_factory=GopherRules)
    repetition: RepetitionRules | None = field(default_factory=RepetitionRules)
    c4: C4Rules | None = field(default_factory=C4Rules)
    refinedweb: RefinedWebRules | None = field(default_factory=RefinedWebRules)
    fineweb: FineWebRules | None = field(default_factory=FineWebRules)
    chinese: ChineseRules | None = field(default_factory=ChineseRules)
    half_width: bool = False
    max_characters: int = 5_000_000
    exempt: dict[str, tuple[str, ...]] = field(default_factory=dict)
    extra_rules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise DataError(f"max_characters is {self.max_characters}: give 1 or more")
        known = _known_reasons(self.extra_rules)
        for source, reasons in self.exempt.items():
            for reason in reasons:
                if reason not in known:
                    near = difflib.get_close_matches(reason, known, n=1, cutoff=0)[0]
                    raise DataError(f"exempt.{source} names no rule: {reason!r}; the nearest one is {near!r}")

    def transform(self) -> Callable[[Sequence[Document]], Iterable[Outcome]]:
        """Makes the function that works on batches.

        Raises:
            DataError: An extra rule cannot be loaded.
        """
        from puyulm.data.clean.cleaner import Cleaner

        return Cleaner(self)

    def files(self) -> Iterator[Path]:
        """The modules of the extra rules: a change in one runs the stage again."""
        for name in self.extra_rules:
            yield extra_rule_file(name)

    def rules(self) -> Iterator[tuple[Rule, Any]]:
        """The rules of documents that are on, each with its thresholds, in the order in which they are asked."""
        for thresholds, (rules, _) in zip(self._thresholds(), _TABLES, strict=True):
            if thresholds is not None:
                yield from ((rule, thresholds) for rule in rules)
        yield from ((extra_rule(name), None) for name in self.extra_rules)

    def line_rules(self) -> Iterator[tuple[LineRule, Any]]:
        """The rules of lines that are on, each with its thresholds; the first that flags a line counts it."""
        for thresholds, (_, rules) in zip(self._thresholds(), _TABLES, strict=True):
            if thresholds is not None:
                yield from ((rule, thresholds) for rule in rules)

    def _thresholds(self) -> tuple[Any, ...]:
        return self.own, self.gopher, self.repetition, self.c4, self.refinedweb, self.fineweb, self.chinese


_TABLES: tuple[tuple[tuple[Rule, ...], tuple[LineRule, ...]], ...] = (
    (own.RULES, ()),
    (gopher.RULES, ()),
    (repetition.RULES, ()),
    (c4.RULES, c4.LINE_RULES),
    (refinedweb.RULES, refinedweb.LINE_RULES),
    (fineweb.RULES, ()),
    (chinese.RULES, chinese.LINE_RULES),
)


def _known_reasons(extra_rules: Sequence[str]) -> list[str]:
    tables = [rule.reason for tables in _TABLES for table in tables for rule in table]
    return [*dict.fromkeys(tables), CITATIONS, TOO_LONG, *map(extra_reason, extra_rules)]
