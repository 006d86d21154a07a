"""Writing token shards: documents encoded in batches, appended to a shard's two files, and the folder's `meta.json`.

What the files hold stands in `puyulm.data.shards`, which reads them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from puyulm.data.documents import Document, replacing
from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

VERSION = 1
META_FILE = "meta.json"


@dataclass(frozen=True)
class SourceTokens:
    """What one source of one language gave: documents, tokens (bos and eos included) and UTF-8 bytes of text."""

    source: str
    language: str
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class EncodedBatch:
    """Some documents and their ids.

    Attributes:
        documents: `[D]`.
        tokens: Their ids end to end, `[N]` int64.
        lengths: Ids of each, `[D]` int64.
        sizes: UTF-8 bytes of each text, `[D]` int64.
    """

    documents: Sequence[Document]
    tokens: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray

    def split(self, count: int) -> tuple[EncodedBatch, EncodedBatch]:
        """The first `count` documents, and the others."""
        cut = int(self.lengths[:count].sum())
        first = EncodedBatch(self.documents[:count], self.tokens[:cut], self.lengths[:count], self.sizes[:count])
        return first, EncodedBatch(self.documents[count:], self.tokens[cut:], self.lengths[count:], self.sizes[count:])


@dataclass(frozen=True)
class DocumentEnds:
    """Ids put before and after each document, or None."""

    bos_id: int | None
    eos_id: int | None


def document_ends(tokenizer: Tokenizer, bos: bool, eos: bool) -> DocumentEnds:
    """The tokenizer's bos and eos, as far as they are wanted. Raises DataError when it lacks one."""
    return DocumentEnds(
        _required(tokenizer.bos_id, "bos") if bos else None, _required(tokenizer.eos_id, "eos") if eos else None
    )


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer, ends: DocumentEnds) -> EncodedBatch:
    """Encodes documents together.

    Raises:
        DataError: A document has no tokens, or the tokenizer gives an id outside its vocabulary.
    """
    ids = tokenizer.encode_batch([document.text for document in documents])
    inner = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    flat = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64, count=int(inner.sum()))
    lengths = inner + (ends.bos_id is not None) + (ends.eos_id is not None)
    if len(lengths) and not lengths.all():
        raise DataError(f"document {documents[int(np.argmin(lengths))].id} has no tokens: drop empty documents before "
                        "tokenizing (cleaning does)")  # fmt: skip
    if len(flat) and (flat.min() < 0 or flat.max() >= tokenizer.vocab_size):
        wrong = int(np.argmax((flat < 0) | (flat >= tokenizer.vocab_size)))
        document = documents[int(np.searchsorted(np.cumsum(inner), wrong, side="right"))]
        raise DataError(
            f"document {document.id}: the tokenizer gave an id outside its vocabulary of {tokenizer.vocab_size:,}"
        )
    sizes = np.fromiter((document.num_bytes for document in documents), dtype=np.int64, count=len(documents))
    return EncodedBatch(documents, _with_ends(flat, lengths, ends), lengths, sizes)


class SourceTable:
    """Counts by source and language, numbered in the order in which they were met."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._numbers: dict[tuple[str, str], int] = {}

    def add(self, batch: EncodedBatch) -> np.ndarray:
        """Counts a batch and gives the number of each document's source, `[D]` int64."""
        names = [(document.source, document.language) for document in batch.documents]
        numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in names]
        for name, tokens, size in zip(names, batch.lengths.tolist(), batch.sizes.tolist(), strict=True):
            self.add_counts(*name, 1, tokens, size)
        return np.array(numbers, dtype=np.int64)

    def add_counts(self, source: str, language: str, documents: int, tokens: int, size: int) -> int:
        """Adds to a source's counts and gives its number."""
        number = self._numbers.setdefault((source, language), len(self._numbers))
        counts = self._counts.setdefault((source, language), [0, 0, 0])
        for place, amount in enumerate((documents, tokens, size)):
            counts[place] += amount
        return number

    def number(self, source: str, language: str) -> int:
        """A source's number; -1 where it was not counted."""
        return self._numbers.get((source, language), -1)

    def rows(self) -> list[SourceTokens]:
        """The counts, by number."""
        return [SourceTokens(*name, *self._counts[name]) for name in self._numbers]


class ShardFile:
    """Writes one shard: its `.bin` as documents come, its `.idx` at the end; a context manager.

    Args:
        tokens_path, index_path: The files to write.
        vocab_size: Decides between uint16 and uint32.

    Attributes:
        facts: After the end: documents, tokens, bytes, and the hash of both files; what `meta.json` says of a shard.
    """

    def __init__(self, tokens_path: Path, index_path: Path, vocab_size: int) -> None:
        self.dtype = token_dtype(vocab_size)
        self.facts: dict[str, Any] = {}
        self._index_path = index_path
        self._rows: list[np.ndarray] = []
        self._tokens = self._bytes = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._file = open(tokens_path, "wb")  # noqa: SIM115 - closed by __exit__

    def add(self, tokens: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, sources: np.ndarray) -> None:
        """Appends documents: their ids end to end, and of each its number of ids, of bytes, and its source."""
        data = np.ascontiguousarray(tokens, dtype=self.dtype).data
        self._file.write(data)
        self._digest.update(data)
        rows = np.stack([np.cumsum(lengths) - lengths + self._tokens, np.cumsum(sizes) - sizes + self._bytes, sources])
        self._rows.append(rows.T.astype("<i8"))
        self._tokens += len(tokens)
        self._bytes += int(sizes.sum())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is not None:
            return
        rows = np.concatenate([*self._rows, np.array([[self._tokens, self._bytes, -1]], dtype="<i8")])
        data = np.ascontiguousarray(rows).data
        self._index_path.write_bytes(data)
        self._digest.update(data)
        self.facts = {"documents": len(rows) - 1, "tokens": self._tokens, "bytes": self._bytes,
                      "hash": self._digest.hexdigest()}  # fmt: skip


def write_meta(
    folder: Path,
    shards: Sequence[Mapping[str, Any]],
    sources: Sequence[SourceTokens],
    vocab_size: int,
    tokenizer_hash: str,
    ends: DocumentEnds,
) -> None:
    """Writes `meta.json`, which makes a folder of shards whole.

    Args:
        shards: Name and facts of each.
        sources: Their counts by source and language, in the order of the numbers in the `.idx` files.
    """
    meta = {"version": VERSION, "dtype": token_dtype(vocab_size).str, "vocab_size": vocab_size,
            "tokenizer_hash": tokenizer_hash, **asdict(ends),
            **{name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")},
            "sources": [asdict(source) for source in sources], "shards": list(shards)}  # fmt: skip
    with replacing(folder / META_FILE) as path:
        path.write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8", errors="backslashreplace")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """How ids of a vocabulary are stored."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _with_ends(flat: np.ndarray, lengths: np.ndarray, ends: DocumentEnds) -> np.ndarray:
    """Puts bos and eos around each document; `lengths` count them already."""
    if len(flat) == lengths.sum():
        return flat
    stops = np.cumsum(lengths)
    tokens = np.empty(int(stops[-1]), dtype=flat.dtype)
    inside = np.ones(len(tokens), dtype=bool)
    for token_id, places in ((ends.bos_id, stops - lengths), (ends.eos_id, stops - 1)):
        if token_id is not None:
            tokens[places] = token_id
            inside[places] = False
    tokens[inside] = flat
    return tokens


def _required(token_id: int | None, name: str) -> int:
    if token_id is None:
        raise DataError(f"the tokenizer has no {name} token: tokenize with {name}=False")
    return token_id
