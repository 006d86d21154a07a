"""Settings of the stage `long_context`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from puyulm.data.documents import Document
from puyulm.data.longtext.coherence import COHERENCE_FEATURES, Windows
from puyulm.data.longtext.features import TEXT_FEATURES
from puyulm.data.pipeline.counts import Outcome
from puyulm.errors import DataError

FEATURES = (*TEXT_FEATURES, *COHERENCE_FEATURES)


@dataclass(frozen=True)
class Bounds:
    """Where a feature must lie; None: no bound."""

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise DataError("a threshold needs a min, a max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise DataError(f"a threshold has min {self.min} above max {self.max}")


Thresholds = dict[str, dict[str, Bounds]]


def default_thresholds() -> Thresholds:
    """Bounds far outside what books, papers, documentation and source code have; ours.

    The published work says that thresholds are set for each domain and language and gives none: tune them for a corpus
    (`puyu data tune-long`).
    """
    return {
        "*/*": {
            "ppl_delta": Bounds(min=0.0),
            "compression": Bounds(min=0.05, max=0.7),
            "bar_rate": Bounds(max=0.05),
        },
        "*/en": {
            "conjunction_rate": Bounds(min=0.01),
            "pronoun_rate": Bounds(min=0.002),
            "unique_word_rate": Bounds(min=0.1),
            "line_mean": Bounds(min=12.0),
            "comma_rate": Bounds(max=0.06),
        },
        "*/zh": {
            "conjunction_rate": Bounds(min=0.0005),
            "unique_word_rate": Bounds(min=0.1),
            "line_mean": Bounds(min=5.0),
            "comma_rate": Bounds(max=0.15),
        },
    }


@dataclass(frozen=True)
class LongTextSettings:
    """The stage `long_context`: keeps texts that are long, make sense, and hang together.

    Source: InternLM2 report, section 3.1.3 (the three stages: length, statistics, perplexity), and LongWanjuan (what
    is measured).

    Attributes:
        min_bytes: Length of a long text in UTF-8 bytes; the report keeps texts over 32K bytes.
        short: What happens to shorter ones: dropped, or kept as they are.
        domains: Source -> domain, where sources are to have thresholds in common; a source is its own domain else.
        thresholds: "domain/language" -> feature -> bounds; "*" stands for all domains or all languages. Of several
            entries that fit, the most special counts, for each feature: "a/en", then "a/*", "*/en", "*/*". A feature
            that a document does not have (conjunctions of code, coherence without a model) is passed over. What is
            given takes the place of all the defaults (`default_thresholds`).
        record: Keep the features in `document.scores`, as "long.NAME"; dropped documents have them always.
        model: Checkpoint folder of the model that predicts; None leaves the perplexity stage out.
        tokenizer: Its tokenizer; None takes the model's folder.
        windows: What the model predicts, from what.
        batch_tokens: Tokens of a forward pass.
        device: Where the model runs: "cpu", "cuda", "cuda:1", ...
    """

    min_bytes: int = 32_768
    short: Literal["drop", "keep"] = "drop"
    domains: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, dict[str, Bounds]] = field(default_factory=default_thresholds)
    record: bool = True
    model: Path | None = None
    tokenizer: Path | None = None
    windows: Windows = field(default_factory=Windows)
    batch_tokens: int = 24_576
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.min_bytes < 0 or self.batch_tokens < 1:
            raise DataError(f"min_bytes is {self.min_bytes} and batch_tokens {self.batch_tokens}: give 0 and 1 or more")
        for key, bounds in self.thresholds.items():
            domain, slash, language = key.rpartition("/")
            if not (domain and slash and language):
                raise DataError(f"thresholds: {key!r} is not 'domain/language', such as web/en, */zh or */*")
            if unknown := [name for name in bounds if name not in FEATURES]:
                raise DataError(
                    f"thresholds of {key}: no feature is called {unknown[0]!r}; they are {', '.join(FEATURES)}"
                )
        if self.tokenizer is not None and self.model is None:
            raise DataError("long_context: a tokenizer is given without a model: give the 'model' too")

    def transform(self) -> Callable[[Sequence[Document]], Iterable[Outcome]]:
        """The function that judges a batch of documents; loads the model where there is one."""
        from puyulm.data.longtext.judge import Judge

        return Judge(self)


def bounds_for(thresholds: Mapping[str, Mapping[str, Bounds]], domain: str, language: str) -> dict[str, Bounds]:
    """The bounds of each feature that hold for a domain and a language."""
    found: dict[str, Bounds] = {}
    for key in ("*/*", f"*/{language}", f"{domain}/*", f"{domain}/{language}"):
        found.update(thresholds.get(key, {}))
    return found
