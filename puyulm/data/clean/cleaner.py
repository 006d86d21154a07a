"""The work of the stage `clean`: batches of documents, normalised and judged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from puyulm.data.clean.c4 import without_citations
from puyulm.data.clean.characters import NEWLINE, Mask
from puyulm.data.clean.features import Features
from puyulm.data.clean.normalise import normalise_code, normalise_text
from puyulm.data.clean.rules import WORDS_PER_GRAM, LineRule, Rule, groups_of, kind_of
from puyulm.data.clean.settings import CITATIONS, TOO_LONG, CleanSettings
from puyulm.data.clean.texts import Integers, Texts
from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Dropped, Outcome

CHUNK_CHARACTERS = 250_000  # small enough that the arrays stay in the cache, long enough for NumPy
_BLANK_LINES = re.compile(r"\n{3,}")


class Cleaner:
    """Normalises documents, drops lines, and drops documents, as the settings say."""

    def __init__(self, settings: CleanSettings) -> None:
        self._settings = settings
        self._rules = list(settings.rules())
        self._line_rules = list(settings.line_rules())

    def __call__(self, batch: Sequence[Document]) -> Iterator[Outcome]:
        """One outcome a document, in order.

        A dropped document is as it came in, with the reasons of all rules that reject it in its metadata's `reasons`. A
        kept one that lost lines has them counted by reason in `dropped_lines`.
        """
        outcomes: list[Outcome | None] = [None] * len(batch)
        for places in _chunks(batch, self._settings.max_characters):
            for place, outcome in zip(places, self._judge([batch[i] for i in places]), strict=True):
                outcomes[place] = outcome
        for document, judged in zip(batch, outcomes, strict=True):
            yield judged or _dropped(document, [TOO_LONG])

    def _judge(self, documents: list[Document]) -> Iterator[Outcome]:
        """Judges documents that are all written in one way (`kind_of`)."""
        strings = [self._normalised(document) for document in documents]
        asked = _Asked(documents, self._settings.exempt)
        texts = Texts(strings, [document.language for document in documents])
        flagged, lost_lines = self._drop_lines(texts, strings, asked)
        if any(lost_lines):
            texts = Texts(strings, texts.languages)
        features = Features(texts, WORDS_PER_GRAM.get(kind_of(documents[0].language), 1.0), flagged)
        reasons: list[list[str]] = [[] for _ in documents]
        for rule, thresholds in self._rules:
            mask = asked(rule)
            if mask.any():
                for i in np.flatnonzero(rule.rejects(features, thresholds) & mask).tolist():
                    reasons[i].append(rule.reason)
        for document, text, found, lines in zip(documents, strings, reasons, lost_lines, strict=True):
            if found:
                yield _dropped(document, found)
            else:
                extra = {"dropped_lines": dict(lines)} if lines else {}
                yield replace(document, text=text, metadata={**document.metadata, **extra})

    def _normalised(self, document: Document) -> str:
        if kind_of(document.language) == "code":
            return normalise_code(document.text)
        text = normalise_text(document.text, self._settings.half_width)
        if self._settings.c4 is None or not self._settings.c4.citations or "[" not in text:
            return text
        if CITATIONS in _exempt(self._settings.exempt, document.source):
            return text
        shorter = without_citations(text)
        return text if shorter == text else normalise_text(shorter, self._settings.half_width)

    def _drop_lines(
        self, texts: Texts, strings: list[str], asked: _Asked
    ) -> tuple[Integers | None, list[Counter[str]]]:
        """Asks the rules of lines, and takes what they flag out of `strings`.

        Returns:
            words: Words in counted lines, and all words, `[D, 2]`; None if no rule is for these languages.
            lost: The lines that each text lost, by reason.
        """
        lost: list[Counter[str]] = [Counter() for _ in strings]
        rules = [(rule, thresholds, mask) for rule, thresholds in self._line_rules if (mask := asked(rule)).any()]
        if not rules:
            return None, lost
        owner = texts.lines.owner
        first_rule = np.full(len(owner), -1)
        counted = np.zeros(len(owner), dtype=bool)
        for number, (rule, thresholds, mask) in enumerate(rules):
            flags = rule.flags(texts, thresholds) & mask[owner]
            first_rule[flags & (first_rule < 0)] = number
            if rule.counted:
                counted |= flags
        line_words = texts.line_words
        words = [np.bincount(owner, values, len(strings)) for values in (np.where(counted, line_words, 0), line_words)]
        before = np.searchsorted(np.flatnonzero(texts.classes == NEWLINE), texts.bounds[:-1])
        gone: dict[int, set[int]] = {}
        for line in np.flatnonzero(first_rule >= 0).tolist():
            text = int(owner[line])
            gone.setdefault(text, set()).add(int(texts.lines.number[line] - before[text]))
            lost[text][rules[first_rule[line]][0].reason] += 1
        for text, numbers in gone.items():
            kept = [line for number, line in enumerate(strings[text].split("\n")) if number not in numbers]
            strings[text] = _BLANK_LINES.sub("\n\n", "\n".join(kept)).strip("\n")
        return np.stack(words, axis=1).astype(np.int64), lost


class _Asked:
    """Which documents of a chunk a rule is asked of: those of its languages whose source is not exempt."""

    def __init__(self, documents: Sequence[Document], exempt: dict[str, tuple[str, ...]]) -> None:
        pairs = list(dict.fromkeys((document.language, document.source) for document in documents))
        numbers = {pair: number for number, pair in enumerate(pairs)}
        self._of = np.array([numbers[document.language, document.source] for document in documents])
        self._kinds = [(groups_of(language), _exempt(exempt, source)) for language, source in pairs]

    def __call__(self, rule: Rule | LineRule) -> Mask:
        return np.array([not groups.isdisjoint(rule.languages) and rule.reason not in exempt
                         for groups, exempt in self._kinds], dtype=bool)[self._of]  # fmt: skip


def _exempt(table: dict[str, tuple[str, ...]], source: str) -> tuple[str, ...]:
    return (*table.get("*", ()), *table.get(source, ()))


def _chunks(batch: Sequence[Document], max_characters: int) -> Iterator[list[int]]:
    """Indices of documents of about 250,000 characters together and of one kind; too long ones are left out."""
    open_chunks: dict[str, tuple[list[int], int]] = {}
    for place, document in enumerate(batch):
        length = len(document.text)
        if length > max_characters:
            continue
        kind = kind_of(document.language)
        places, size = open_chunks.pop(kind, ([], 0))
        if places and size + length > CHUNK_CHARACTERS:
            yield places
            places, size = [], 0
        open_chunks[kind] = ([*places, place], size + length)
    for places, _ in open_chunks.values():
        yield places


def _dropped(document: Document, reasons: list[str]) -> Dropped:
    marked = replace(document, metadata={**document.metadata, "reasons": reasons})
    return Dropped(marked, reasons[0])
