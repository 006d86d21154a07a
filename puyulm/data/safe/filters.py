"""The parts of the stage `safe`: what drops a document by its address or words, and what masks its text."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from puyulm.data.documents import Document
from puyulm.data.safe import blocklists
from puyulm.data.safe.masking import PLACEHOLDERS, mask
from puyulm.data.safe.wordlists import WordList, load_words

if TYPE_CHECKING:
    from puyulm.data.safe.settings import SafeSettings, WordListSettings

DOMAIN, ADDRESS, ADDRESS_WORDS = "safe: domain", "safe: address", "safe: words of the address"
Stamped = tuple[tuple[Path, int, int], ...]


class AddressFilter:
    """Drops documents by where they come from.

    Args:
        settings: Name the lists; what is loaded stays in the process.
    """

    def __init__(self, settings: SafeSettings) -> None:
        self._domains = _domains(_stamped(settings.domains))
        self._urls = _urls(_stamped(settings.urls))
        self._words = _url_words(_stamped(settings.url_words))
        self._min_words = settings.min_url_words

    def reasons(self, documents: Sequence[Document]) -> list[str | None]:
        """Why each document is dropped, or None."""
        reasons: list[str | None] = [None] * len(documents)
        if self._words:
            for i, document in enumerate(documents):
                if len(blocklists.url_words(document.url) & self._words) >= self._min_words:
                    reasons[i] = ADDRESS_WORDS
        for blocked, candidates, reason in (
            (self._urls, blocklists.url_candidates, ADDRESS),
            (self._domains, blocklists.domain_candidates, DOMAIN),
        ):
            if len(blocked):
                found = blocked.blocks([candidates(document.url) for document in documents])
                reasons = [reason if hit else earlier for hit, earlier in zip(found, reasons, strict=True)]
        return reasons


class WordFilter:
    """Drops documents that hold too many words of a list."""

    def __init__(self, settings: WordListSettings) -> None:
        self._settings = settings
        [(path, size, changed)] = _stamped([settings.path])
        self._words = _words(path, size, changed)
        self._reason = f"safe: words, {settings.label}"

    def reason(self, document: Document) -> str | None:
        """Why a document is dropped, or None."""
        settings = self._settings
        if settings.languages and document.language not in settings.languages:
            return None
        hits = self._words.hits(document.text)
        dense = hits.occurrences >= settings.min_occurrences and hits.density > settings.max_density
        return self._reason if dense or hits.distinct >= settings.min_distinct else None


def mask_document(document: Document, settings: SafeSettings, placeholders: Mapping[str, str]) -> Document:
    """Masks a document's text; `metadata["masked"]` counts what was masked, by kind."""
    kinds = settings.mask_code if document.language == "code" else settings.mask
    text, counts = mask(document.text, kinds, placeholders)
    if not counts:
        return document
    masked = document.metadata.get("masked")
    earlier = masked if isinstance(masked, Mapping) else {}
    known = {kind: number for kind, number in earlier.items() if kind in PLACEHOLDERS and isinstance(number, int)}
    total = {kind: known.get(kind, 0) + counts.get(kind, 0) for kind in {**known, **counts}}
    return replace(document, text=text, metadata={**document.metadata, "masked": total})


def _stamped(paths: Sequence[Path]) -> Stamped:
    """Paths with sizes and times of change, so that a changed list is read anew; missing files are told when read."""
    stats = [(path, path.stat() if path.is_file() else None) for path in paths]
    return tuple((path, stat.st_size if stat else 0, stat.st_mtime_ns if stat else 0) for path, stat in stats)


@functools.lru_cache(maxsize=2)
def _domains(files: Stamped) -> blocklists.BlockList:
    return blocklists.load_domains(path for path, _, _ in files)


@functools.lru_cache(maxsize=2)
def _urls(files: Stamped) -> blocklists.BlockList:
    return blocklists.load_urls(path for path, _, _ in files)


@functools.lru_cache(maxsize=2)
def _url_words(files: Stamped) -> frozenset[str]:
    return blocklists.load_url_words(path for path, _, _ in files)


@functools.lru_cache(maxsize=16)
def _words(path: Path, size: int, changed: int) -> WordList:
    return load_words(path)
