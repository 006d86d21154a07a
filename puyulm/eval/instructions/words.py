"""Instructions about the words of a text: which, how many, in which language and case."""

from __future__ import annotations

import re
from collections.abc import Sequence

from puyulm.eval.instructions.language import detect_language, sentences, tokens


def existence(text: str, keywords: Sequence[str]) -> bool:
    """All keywords occur, also inside of other words, in any case."""
    return all(_count(word, text) for word in keywords)


def frequency(text: str, keyword: str, frequency: float, relation: str) -> bool:
    """A keyword occurs so often, also inside of other words."""
    return _compare(_count(keyword.strip(), text), relation, frequency)


def forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    """None of the words occurs as a word of its own."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: float, let_relation: str) -> bool:
    """A letter, or another sign, occurs so often in either case."""
    return _compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    """The text's most likely language is this one (ISO 639-1), or none can be told."""
    found = detect_language(text)
    return found is None or found == language


def number_words(text: str, num_words: float, relation: str) -> bool:
    """So many words; a word is a run of letters, digits and underscores.

    As published scores were taken, combining marks (vowels of Indic scripts, Thai) end a word; with NLTK from 3.10 on,
    the official checker counts them in.
    """
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


def number_sentences(text: str, num_sentences: float, relation: str) -> bool:
    """So many sentences, as Punkt splits English."""
    return _compare(len(sentences(text)), relation, num_sentences)


def capital_word_frequency(text: str, capital_frequency: float, capital_relation: str) -> bool:
    """So many words in capitals, split as in the Penn Treebank ("DON'T" is two)."""
    return _compare(sum(token.isupper() for token in tokens(text)), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """English, and no small letter."""
    return text.isupper() and detect_language(text) in ("en", None)


def english_lowercase(text: str) -> bool:
    """English, and no capital letter."""
    return text.islower() and detect_language(text) in ("en", None)


def _count(word: str, text: str) -> int:
    return len(re.findall(re.escape(word), text, re.IGNORECASE))


def _compare(count: int, relation: str, bound: float) -> bool:
    return count < bound if relation == "less than" else count >= bound
