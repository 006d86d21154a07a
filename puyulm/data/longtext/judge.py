"""The three stages on a batch of documents: length, statistics, perplexity."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from puyulm.data.documents import Document
from puyulm.data.longtext.coherence import (
    COHERENCE_FEATURES,
    WindowScores,
    coherence_features,
    score_windows,
    token_features,
)
from puyulm.data.longtext.features import text_features
from puyulm.data.longtext.settings import Bounds, LongTextSettings, bounds_for
from puyulm.data.pipeline.counts import Dropped, Outcome
from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.model.decoder import Decoder
    from puyulm.text.tokenizer import Tokenizer

PREFIX = "long."  # of names in `document.scores`

Encode = Callable[[list[str]], list[list[int]]]
Score = Callable[[list[npt.NDArray[np.int64]]], WindowScores]


class Judge:
    """Judges batches of documents; made once a task.

    Args:
        settings: Of the stage; the model that they name is loaded.
        encode, score: What stands for the tokenizer and the model; None: theirs.
    """

    def __init__(self, settings: LongTextSettings, encode: Encode | None = None, score: Score | None = None) -> None:
        self._settings = settings
        self._encode, self._score = encode, score
        if settings.model is not None and (encode is None or score is None):
            self._encode, self._score = _model_functions(settings)

    def __call__(self, documents: Sequence[Document]) -> Iterator[Outcome]:
        """One outcome a document, in order."""
        outcomes: list[Outcome] = []
        places = []  # of long documents that pass the statistics
        for place, document in enumerate(documents):
            if document.num_bytes <= self._settings.min_bytes:
                keep = self._settings.short == "keep"
                outcomes.append(document if keep else Dropped(document, "long: too short"))
                continue
            outcomes.append(self._outcome(document, text_features(document.text, document.language)))
            if isinstance(outcomes[-1], Document):
                places.append(place)
        if self._encode is not None and places:
            for place, features in zip(places, self._coherence([documents[p].text for p in places]), strict=True):
                outcomes[place] = self._outcome(outcomes[place], features)
        for document, outcome in zip(documents, outcomes, strict=True):
            yield document if isinstance(outcome, Document) and not self._settings.record else outcome

    def _coherence(self, texts: list[str]) -> Iterator[dict[str, float]]:
        assert self._encode is not None and self._score is not None
        encoded = self._encode(texts)
        windows = [self._settings.windows.cut(tokens) for tokens in encoded]
        scores = self._score([window for some in windows for window in some])
        places = pairwise([0, *accumulate(map(len, windows))])
        for text, tokens, (first, last) in zip(texts, encoded, places, strict=True):
            yield {**coherence_features(scores, first, last), **token_features(tokens, len(text))}

    def _outcome(self, document: Outcome, features: Mapping[str, float]) -> Outcome:
        """The document with more features in its scores; dropped if one of them is out of bounds."""
        assert isinstance(document, Document)
        document = _with_scores(document, features)
        domain = self._settings.domains.get(document.source, document.source)
        bounds = bounds_for(self._settings.thresholds, domain, document.language)
        reason = next((r for name, value in features.items() if (r := _reason(name, value, bounds.get(name)))), None)
        return document if reason is None else Dropped(document, reason)


def _reason(name: str, value: float, bounds: Bounds | None) -> str | None:
    low = bounds is not None and bounds.min is not None and value < bounds.min
    high = bounds is not None and bounds.max is not None and value > bounds.max
    if not low and not high:
        return None
    if low and name in COHERENCE_FEATURES and name.endswith(("_delta", "_ratio")):
        return "long: context does not help"
    return f"long: {name.replace('_', ' ')} too {'low' if low else 'high'}"


def _with_scores(document: Document, features: Mapping[str, float]) -> Document:
    # Rounded, since sums on processors of other kinds differ in the last digits.
    rounded = {f"{PREFIX}{name}": v if v.is_integer() else float(f"{v:.6g}") for name, v in features.items()}
    return replace(document, scores={**document.scores, **rounded})


def _model_functions(settings: LongTextSettings) -> tuple[Encode, Score]:
    assert settings.model is not None
    tokenizer, decoder = _loaded(settings.model, settings.tokenizer or settings.model, settings.device)
    longest = decoder.config.max_position_embeddings
    if settings.windows.size > longest:
        raise DataError(f"windows of {settings.windows.size:,} tokens are longer than the context of {settings.model} "
                        f"({longest:,}): set windows.size to that or less")  # fmt: skip
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise DataError(f"the tokenizer has {tokenizer.vocab_size:,} tokens and {settings.model} only "
                        f"{decoder.config.vocab_size:,}: give the model's own tokenizer")  # fmt: skip

    def score(windows: list[npt.NDArray[np.int64]]) -> WindowScores:
        return score_windows(decoder, windows, settings.windows, settings.batch_tokens)

    return tokenizer.encode_batch, score


@functools.lru_cache(maxsize=1)
def _loaded(model: Path, tokenizer: Path, device: str) -> tuple[Tokenizer, Decoder]:
    """Tokenizer and model; kept, so that the tasks of a process load them once."""
    from puyulm.model.checkpoint import load_model
    from puyulm.text.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer), load_model(model, device=device)
