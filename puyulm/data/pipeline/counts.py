"""What a stage did, in figures and samples: kept by each task, merged for the stage, drawn by the report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from puyulm.data.documents import Document

KEPT_SAMPLES = 8
DROPPED_SAMPLES = 4  # of each reason
SAMPLE_CHARACTERS = 1200
LENGTH_BINS = 32


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that a stage leaves out.

    Attributes:
        document: As it came in; of raw input that is no document, what could be read of it.
        reason: The counter's name: the same words for all documents that a rule drops, without values.
    """

    document: Document
    reason: str


Outcome = Document | Dropped
"""What a stage says of a document: kept, perhaps changed, or dropped with a reason."""


@dataclass
class Counts:
    """Documents and bytes through a stage, or a part of one; all sums, so that parts merge in any order.

    Attributes:
        documents_in, bytes_in: What came in. Bytes are UTF-8 bytes of text; in the stage `format`, bytes of raw input.
        documents_out, bytes_out: What was kept.
        dropped: Reason -> [documents, bytes].
        groups: Source -> language -> [documents, bytes] of what was kept.
        lengths: Kept documents by the bit length of their number of characters, `[32]`.
        notes: Any other counter of the stage, such as characters masked; name -> sum.
        kept_samples: A fixed random sample of what was kept.
        dropped_samples: Reason -> a fixed random sample of what it dropped.
        seconds: Of work, summed over workers.
    """

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    groups: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=lambda: [0] * LENGTH_BINS)
    notes: dict[str, float] = field(default_factory=dict)
    kept_samples: list[dict[str, Any]] = field(default_factory=list)
    dropped_samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0

    def add_input(self, num_bytes: int, documents: int = 1) -> None:
        """Counts what came in."""
        self.documents_in += documents
        self.bytes_in += num_bytes

    def add(self, outcome: Outcome) -> None:
        """Counts an outcome, and perhaps keeps it as a sample."""
        if isinstance(outcome, Dropped):
            _count(self.dropped, outcome.reason, outcome.document.num_bytes)
            samples = self.dropped_samples.setdefault(outcome.reason, [])
            _sample(samples, outcome.document, DROPPED_SAMPLES)
            return
        size = outcome.num_bytes
        self.documents_out += 1
        self.bytes_out += size
        _count(self.groups.setdefault(outcome.source, {}), outcome.language, size)
        self.lengths[min(len(outcome.text).bit_length(), LENGTH_BINS - 1)] += 1
        _sample(self.kept_samples, outcome, KEPT_SAMPLES)

    def note(self, name: str, amount: float = 1) -> None:
        """Adds to a counter of the stage's own."""
        self.notes[name] = self.notes.get(name, 0) + amount

    def merge(self, other: Counts) -> None:
        """Adds another part's figures."""
        for name in ("documents_in", "bytes_in", "documents_out", "bytes_out", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        _add_pairs(self.dropped, other.dropped)
        for source, languages in other.groups.items():
            _add_pairs(self.groups.setdefault(source, {}), languages)
        self.lengths = [a + b for a, b in zip(self.lengths, other.lengths, strict=True)]
        for name, amount in other.notes.items():
            self.note(name, amount)
        self.kept_samples = _smallest([*self.kept_samples, *other.kept_samples], KEPT_SAMPLES)
        for reason, samples in other.dropped_samples.items():
            mine = self.dropped_samples.get(reason, [])
            self.dropped_samples[reason] = _smallest([*mine, *samples], DROPPED_SAMPLES)

    @classmethod
    def merged(cls, parts: Iterable[Mapping[str, Any]]) -> Self:
        """The sum of parts that were saved as mappings, in the order of their names where order shows."""
        total = cls()
        for part in parts:
            total.merge(cls(**part))
        for name in ("dropped", "groups", "notes", "dropped_samples"):
            setattr(total, name, dict(sorted(getattr(total, name).items())))
        return total


def _count(table: dict[str, list[int]], name: str, size: int) -> None:
    pair = table.setdefault(name, [0, 0])
    pair[0] += 1
    pair[1] += size


def _add_pairs(table: dict[str, list[int]], other: Mapping[str, list[int]]) -> None:
    for name, (documents, size) in other.items():
        pair = table.setdefault(name, [0, 0])
        pair[0] += documents
        pair[1] += size


def _sample(samples: list[dict[str, Any]], document: Document, limit: int) -> None:
    """Keeps the documents whose ids hash lowest: the same sample whatever the order and the division of the work."""
    key = hashlib.blake2b(document.id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    if len(samples) == limit and key >= samples[-1]["key"]:
        return
    samples.append({
        "key": key, "id": document.id, "source": document.source, "language": document.language, "url": document.url,
        "characters": len(document.text), "text": document.text[:SAMPLE_CHARACTERS],
        "scores": dict(document.scores), "metadata": dict(document.metadata),
    })  # fmt: skip
    samples[:] = _smallest(samples, limit)


def _smallest(samples: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda sample: (sample["key"], sample["id"]))[:limit]
