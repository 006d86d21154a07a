"""Train and validation sides, decided by a document's id alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from puyulm.data.documents import Document


def is_validation(document_id: str, fraction: float, seed: int = 0) -> bool:
    """Whether a document belongs to the validation side: it depends on nothing but id, fraction and seed.

    A larger fraction keeps every document that a smaller one chose.
    """
    return _position(document_id, f"split-{seed}") < fraction


def split_documents(
    documents: Iterable[Document], fraction: float, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """Splits into (train, validation), each in the order of the ids' hashes.

    That order mixes the sources evenly, so that the beginning of either side is a fair sample of the whole.
    """
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in sorted(documents, key=lambda d: (_position(d.id, "order"), d.id)):
        sides[is_validation(document.id, fraction, seed)].append(document)
    return sides


def within_bytes(documents: Iterable[Document], max_bytes: int) -> list[Document]:
    """A fixed sample of at most `max_bytes` of text: in the order of the ids' hashes, whatever still fits.

    The sample is spread over the whole source, and is the same in every run and whatever the order of `documents`.
    """
    chosen, used = [], 0
    for document in sorted(documents, key=lambda d: (_position(d.id, "sample"), d.id)):
        if used + document.num_bytes <= max_bytes:
            chosen.append(document)
            used += document.num_bytes
    return sorted(chosen, key=lambda d: d.id)


def _position(document_id: str, purpose: str) -> float:
    digest = hashlib.blake2b(
        document_id.encode("utf-8", "surrogatepass"), digest_size=8, person=purpose.encode()[:16]
    ).digest()
    return int.from_bytes(digest, "big") / 2**64
