"""How many bytes of text a token of a tokenizer holds, by source and language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from puyulm.data.documents import Document
from puyulm.data.report.scan import Scan

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

SAMPLE_CHARACTERS = 4_000  # of each document
GROUP_CHARACTERS = 200_000  # of each source and language
ALL_CHARACTERS = 8_000_000  # in all


@dataclass(frozen=True)
class Compression:
    """What a tokenizer makes of texts: (source, language) -> (UTF-8 bytes, tokens)."""

    name: str
    vocab_size: int
    groups: dict[tuple[str, str], tuple[int, int]]


def sample_texts(shards: Sequence[Path]) -> dict[tuple[str, str], list[str]]:
    """Texts by (source, language): the beginnings of documents of a bounded `Scan` of the shards.

    Few enough to encode in seconds: 200,000 characters of each group, 8 million in all.
    """
    scan = Scan(shards)
    texts: dict[tuple[str, str], list[str]] = {}
    taken = 0
    for number, shard in enumerate(scan.shards):
        sizes: dict[tuple[str, str], int] = {}
        for document in scan.of(number, shard):
            key = (document.source, document.language)
            text = _beginning(document)
            if text and sizes.get(key, 0) < GROUP_CHARACTERS / len(scan.shards) and taken < ALL_CHARACTERS:
                texts.setdefault(key, []).append(text)
                sizes[key] = sizes.get(key, 0) + len(text)
                taken += len(text)
    return dict(sorted(texts.items()))


def measure(name: str, tokenizer: Tokenizer, texts: dict[tuple[str, str], list[str]]) -> Compression:
    """Encodes sampled texts.

    Args:
        name: What to call the tokenizer.
        tokenizer: Has `encode_batch` and `vocab_size`.
        texts: Of `sample_texts`.
    """
    groups = {}
    for key, group in texts.items():
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(group))
        groups[key] = (sum(len(text.encode("utf-8", "replace")) for text in group), tokens)
    return Compression(name, tokenizer.vocab_size, groups)


def _beginning(document: Document) -> str:
    """The first characters, with half surrogates replaced, which no tokenizer takes."""
    return document.text[:SAMPLE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
