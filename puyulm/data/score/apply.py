"""Scoring documents: loads the scorers of a stage, writes scores, drops by thresholds."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Dropped, Outcome
from puyulm.data.score.settings import ScorerSettings
from puyulm.errors import DataError

Scores = npt.NDArray[np.float64]

DECIMALS = 4  # of a recorded score
CODE_LANGUAGE = "programming_language"
"""Key of a code document's metadata under which its programming language stands."""


class Scorer(Protocol):
    """A model that scores texts."""

    def score(self, texts: Sequence[str]) -> Scores:
        """A score from 0 to 1 for each text, `[N]`; NaN where there is none."""
        ...


@dataclass(frozen=True)
class LoadedScorer:
    """A scorer with its settings and the languages that its file allows (None: all)."""

    settings: ScorerSettings
    scorer: Scorer
    languages: tuple[str, ...] | None = None

    def applies(self, document: Document) -> bool:
        """Whether a document is to be scored."""
        language, settings = language_of(document), self.settings
        return (
            (not settings.languages or language in settings.languages)
            and (self.languages is None or language in self.languages)
            and (not settings.only_sources or document.source in settings.only_sources)
        )

    def drops(self, score: float) -> bool:
        """Whether a document with this score is dropped."""
        above, below = self.settings.drop_above, self.settings.drop_below
        return (above is not None and score > above) or (below is not None and score < below)


def language_of(document: Document) -> str:
    """A document's language; of code, the programming language where its metadata tells it."""
    if document.language == "code":
        return str(document.metadata.get(CODE_LANGUAGE) or "code")
    return document.language


def load_scorers(settings: Iterable[ScorerSettings]) -> list[LoadedScorer]:
    """Loads scorers; a process loads each only once.

    Raises:
        DataError: A model is missing, damaged or of another kind, or a library is not installed.
    """
    return [_load(each, _stamp(each.path)) for each in settings]


def apply_scorers(documents: Sequence[Document], scorers: Sequence[LoadedScorer], family: str) -> list[Outcome]:
    """Scores a batch of documents with one scorer after the other.

    Args:
        documents: The batch.
        scorers: In order; what one drops is not shown to the next.
        family: First word of the reasons: "quality" gives "quality: NAME".

    Returns:
        One outcome a document, in order. `metadata["unscored"]` names scorers that gave no score.
    """
    outcomes: list[Outcome] = list(documents)
    for scorer in scorers:
        name = scorer.settings.name
        chosen = [i for i, d in enumerate(outcomes) if isinstance(d, Document) and scorer.applies(d)]
        texts = [documents[i].text[: scorer.settings.max_characters] for i in chosen]
        for i, score in zip(chosen, np.round(scorer.scorer.score(texts), DECIMALS).tolist(), strict=True):
            document = outcomes[i]
            assert isinstance(document, Document)
            if score != score:
                earlier = document.metadata.get("unscored")
                unscored = [*(earlier if isinstance(earlier, list) else []), name]
                outcomes[i] = replace(document, metadata={**document.metadata, "unscored": unscored})
                continue
            document = replace(document, scores={**document.scores, name: score})
            outcomes[i] = Dropped(document, f"{family}: {name}") if scorer.drops(score) else document
    return outcomes


@functools.lru_cache(maxsize=32)
def _load(settings: ScorerSettings, stamp: tuple[tuple[str, int, int], ...]) -> LoadedScorer:
    if settings.kind == "linear":
        from puyulm.data.score.linear import LinearScorer

        assert settings.path is not None
        linear = LinearScorer.load(settings.path).for_label(settings.label)
        return LoadedScorer(settings, linear, linear.facts.languages)
    if settings.kind == "fasttext":
        from puyulm.data.score.models import FastTextScorer

        assert settings.path is not None
        return LoadedScorer(settings, FastTextScorer(settings.path, settings.label))
    if settings.kind == "huggingface":
        from puyulm.data.score.models import HuggingFaceScorer

        assert settings.path is not None
        return LoadedScorer(settings, HuggingFaceScorer(settings.path, settings.label, settings.batch_size))
    from puyulm.data.score.judge import Judge

    assert settings.judge is not None
    return LoadedScorer(settings, Judge(settings.judge))


def _stamp(path: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a model's files, so that a changed model is loaded anew."""
    if path is None:
        return ()
    if not path.exists():
        raise DataError(f"no scorer at {path}: train one with puyu data train-scorer, or check the path")
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return tuple((file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
