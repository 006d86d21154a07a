"""Settings of the stages `code` and `repositories`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from puyulm.data.code.languages import LOW_RESOURCE, language_named
from puyulm.data.code.licences import licences_in, normal_expression
from puyulm.data.code.order import CircleStart
from puyulm.data.code.rules import Limits
from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Outcome
from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.data.pipeline.stage import StageRun

Unknown = Literal["keep", "drop"]


@dataclass(frozen=True)
class TierThresholds:
    """Where the tiers begin on a score from 0 to 1.

    Attributes:
        low: Below it a file is of the tier "low".
        high: From it on it is of the tier "high"; None: no file is, by this score.
    """

    low: float
    high: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or (self.high is not None and not self.low <= self.high <= 1):
            raise DataError(f"tiers: low is {self.low} and high is {self.high}: give 0 <= low <= high <= 1")


@dataclass(frozen=True)
class CodeSettings:
    """The stage `code`: language, licence, rules and quality tier of each file of code; other documents pass.

    Source: InternLM2 report, section 3.1.2. Its scorer and its rules are not published: the tiers, the place of a
    scorer, and that low-resource languages are always kept are the report's, the numbers are not.

    Attributes:
        licences: SPDX identifiers that are allowed; none: all. A file's own licence counts, or else
            the document's `licence`.
        unknown_licence: What happens, where `licences` are given, to files of which no licence is known.
        limits: Of the rules.
        drop_tests: Leave out tests and what only tests use, by their paths.
        scorer: Name in `document.scores` of a classifier's quality score, 0 to 1; empty: rules alone.
        scorer_languages: Programming languages in which the scorer agrees with people on a validation set; only
            these take their tier from it. None given: all.
        scorer_tiers: Tiers by that score.
        rules_tiers: Tiers by the rules' score (`document.scores["code.rules"]`) for files without the other. By
            default it tells "low" from "moderate" only: that no rule speaks against a file does not make it good.
        always_keep: Programming languages of which there is too little to choose from: never of the tier "low".
    """

    licences: tuple[str, ...] = ()
    unknown_licence: Unknown = "keep"
    limits: Limits = field(default_factory=Limits)
    drop_tests: bool = False
    scorer: str = ""
    scorer_languages: tuple[str, ...] = ()
    scorer_tiers: TierThresholds = field(default_factory=lambda: TierThresholds(0.25, 0.75))
    rules_tiers: TierThresholds = field(default_factory=lambda: TierThresholds(0.4))
    always_keep: tuple[str, ...] = LOW_RESOURCE

    def __post_init__(self) -> None:
        check_licences(self.licences)
        for name, values in (("scorer_languages", self.scorer_languages), ("always_keep", self.always_keep)):
            if unknown := [value for value in values if language_named(value) is None]:
                raise DataError(f"{name}: no programming language is called {unknown[0]!r}; names are as on GitHub")
        if self.scorer_languages and not self.scorer:
            raise DataError("scorer_languages says where a scorer is used: name the 'scorer' too")

    def transform(self) -> Callable[[Sequence[Document]], Iterable[Outcome]]:
        """The function that judges a batch of documents."""
        from puyulm.data.code.judge import judge

        return lambda documents: (judge(document, self) for document in documents)


@dataclass(frozen=True)
class RepositorySettings:
    """The stage `repositories`: the files of each repository as one Markdown document, imported files first.

    A document belongs to a repository if `metadata["repository"]` names one. Source: InternLM2 report, section 3.1.2.

    Attributes:
        max_repository_mb: Larger repositories become several documents, each of files that follow one another by path;
            it bounds the memory of a task.
        circle_start: Which file of a circle of imports stands first: the first by name, as in the report, or the one
            that most files import. The second keeps more imports in order: in packages with a circle nearly all.
        licences: SPDX identifiers that are allowed; none: all. A file without a licence of its own has that of the
            LICENSE file in its folder or in the nearest folder above it.
        unknown_licence: What happens, where `licences` are given, to files of which no licence is known.
    """

    max_repository_mb: float = 16.0
    circle_start: CircleStart = "name"
    licences: tuple[str, ...] = ()
    unknown_licence: Unknown = "keep"

    def __post_init__(self) -> None:
        check_licences(self.licences)
        if self.max_repository_mb <= 0:
            raise DataError(f"max_repository_mb is {self.max_repository_mb}: give megabytes, more than 0")

    def run(self, stage: StageRun) -> None:
        """Groups, sorts and writes the repositories of all shards."""
        from puyulm.data.code.repositories import run_repositories

        run_repositories(self, stage)


def check_licences(licences: Sequence[str]) -> None:
    """Raises DataError unless each is a single SPDX identifier in its usual spelling."""
    for licence in licences:
        if licences_in(licence) != (licence,) or normal_expression(licence) != licence:
            raise DataError(f"licences: {licence!r} is no SPDX identifier (write {normal_expression(licence)!r}?)")
