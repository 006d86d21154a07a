"""Cleaning: text in one form, and small rules that keep a document or say why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from puyulm.data.clean.characters import ABNORMAL_RANGES
from puyulm.data.clean.normalise import unify
from puyulm.data.documents import Document, text_hash

Rule = Callable[[Document], str | None]
"""A pure function of one document: None keeps it, anything else is the reason for dropping it (the counter's name)."""

MIN_BYTES = 64
MAX_REPEATED_SHARE = 0.3
LONG_LINE = 16
MAX_ABNORMAL_SHARE = 0.001
SAMPLES_PER_RULE = 3
SAMPLE_CHARACTERS = 160

_ABNORMAL = re.compile("[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ABNORMAL_RANGES) + "]")
# How editors of old Chinese texts mark a character that is lost or that no font has.
_LOST = re.compile(r"[□■]|\{[^}]*\}|\?\?")
_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)


@dataclass
class CleanReport:
    """What cleaning did: documents and bytes in and kept, and per reason how many were dropped, with samples."""

    documents: int = 0
    bytes: int = 0
    kept_documents: int = 0
    kept_bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, document: Document, reason: str) -> None:
        """Counts a dropped document and keeps the first few as samples."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        samples = self.samples.setdefault(reason, [])
        if len(samples) < SAMPLES_PER_RULE:
            samples.append(f"{document.id}: {document.text[:SAMPLE_CHARACTERS]}")


def normalise(text: str) -> str:
    """One form of line ends, no byte order mark, no spaces at line ends, no blank lines around.

    The text ends with one line feed. Half surrogate pairs, which no encoding can hold, become U+FFFD.
    """
    text = _TRAILING.sub("", unify(text)).strip("\n")
    return text + "\n" if text else ""


def too_short(document: Document) -> str | None:
    """Drops texts of under 64 bytes: bytes, so that a Chinese poem of twenty characters stays."""
    return "too short" if document.num_bytes < MIN_BYTES else None


def repeated_lines(document: Document) -> str | None:
    """Drops texts of which more than 30 % of the characters stand in lines that occurred before.

    Lines of under 16 characters do not count: `return None` and `[Exit.]` repeat in good texts. After the duplicate
    line character fraction of Gopher (Rae et al. 2021, table A1), with a threshold that code passes.
    """
    seen: set[str] = set()
    total = repeated = 0
    for line in document.text.split("\n"):
        line = line.strip()
        total += len(line)
        if len(line) < LONG_LINE:
            continue
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return "repeated lines" if repeated > MAX_REPEATED_SHARE * total else None


def abnormal_characters(document: Document) -> str | None:
    """Drops texts with a NUL, or with more than 0.1 % of control, private-use, surrogate or replacement characters."""
    found = _ABNORMAL.findall(document.text)
    return "abnormal characters" if "\0" in found or len(found) > MAX_ABNORMAL_SHARE * len(document.text) else None


def lost_characters(document: Document) -> str | None:
    """Drops Chinese texts in which an editor marked characters as lost or unprintable (□, {上休下鳥}, ??)."""
    return "lost characters" if document.language == "zh" and _LOST.search(document.text) else None


RULES: tuple[Rule, ...] = (too_short, abnormal_characters, lost_characters, repeated_lines)


def clean_documents(
    documents: Iterable[Document], report: CleanReport, rules: Sequence[Rule] = RULES
) -> Iterator[Document]:
    """Normalises each document, drops what a rule rejects, then exact duplicates (the first copy stays).

    Args:
        documents: In any order; which copy of a duplicate stays depends on it.
        report: Filled as the documents pass.
        rules: Asked in order; the first reason counts.
    """
    seen: set[str] = set()
    for document in documents:
        report.documents += 1
        report.bytes += document.num_bytes
        document = replace(document, text=normalise(document.text))
        reason = next((reason for rule in rules if (reason := rule(document))), None)
        if reason is None:
            key = text_hash(document.text)
            reason = "exact duplicate" if key in seen else None
            seen.add(key)
        if reason is not None:
            report.drop(document, reason)
            continue
        report.kept_documents += 1
        report.kept_bytes += document.num_bytes
        yield document
