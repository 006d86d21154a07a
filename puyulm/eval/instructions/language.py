"""What the checks of IFEval leave to libraries, as the official checker does: languages, sentences, words.

The official checker downloads NLTK's English Punkt model; the same tables come in a package here, so that nothing is
downloaded. Its language detection draws at random in each run; here it is seeded.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

_loading = threading.Lock()  # verdicts are given in threads


def detect_language(text: str) -> str | None:
    """ISO 639-1 code of the most likely language, by langdetect; None: no letters to tell it by."""
    from langdetect import LangDetectException

    detector = _detectors().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


def sentences(text: str) -> list[str]:
    """Sentences, by NLTK's Punkt for English (Kiss and Strunk, 2006)."""
    return list(_sentence_splitter().tokenize(text))


def tokens(text: str) -> list[str]:
    """Words and punctuation marks of each sentence, by NLTK's Penn Treebank rules."""
    return [token for sentence in sentences(text) for token in _word_splitter().tokenize(sentence)]


def _detectors() -> Any:
    with _loading:
        return _load_detectors()


def _sentence_splitter() -> Any:
    with _loading:
        return _load_sentence_splitter()


def _word_splitter() -> Any:
    with _loading:
        return _load_word_splitter()


@cache
def _load_detectors() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.seed = 0
    factory.load_profile(PROFILES_DIRECTORY)
    return factory


@cache
def _load_sentence_splitter() -> Any:
    import punkt
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    # The package's own splitter differs from NLTK's in a few cases (". . ." at the end), so only its tables are used.
    model, tables = punkt.load_model("english"), PunktParameters()
    tables.abbrev_types = set(model.abbrev_types)
    tables.collocations = {tuple(pair) for pair in model.collocations}
    tables.sent_starters = set(model.sent_starters)
    tables.ortho_context.update({word: int(flags) for word, flags in model.ortho_context.items()})
    splitter = PunktSentenceTokenizer()
    splitter._params = tables
    return splitter


@cache
def _load_word_splitter() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()
