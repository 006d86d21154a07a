"""Token shards: documents as memory-mapped ids with their boundaries, sources and sizes.

A folder holds, per shard, `00000.bin` (token ids, little-endian uint16 or uint32, documents end to end) and `00000.idx`
(little-endian int64 `[documents + 1, 3]`: first token, first byte of text, source; the last row holds the totals and
-1), and one `meta.json` that tells the dtype, the tokenizer, the sources, and each shard's counts and hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from puyulm.data.documents import Document
from puyulm.data.shard_writer import (
    META_FILE,
    VERSION,
    EncodedBatch,
    ShardFile,
    SourceTable,
    SourceTokens,
    document_ends,
    encode_documents,
    write_meta,
)
from puyulm.errors import DataError
from puyulm.progress import Progress

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 28
BATCH_BYTES = 4_000_000  # of text handed to the tokenizer at once: enough for its threads, little enough for progress
_PROBE = "The year 2024, 浦语 3.14!\n\tdef f(x): return x**2  # ünï 🙂"


class TokenShards:
    """Memory-mapped documents of token ids; `open` makes one.

    Attributes:
        num_documents: Documents in all shards.
        num_tokens: Tokens in all shards, with the bos and eos of each document.
        num_bytes: UTF-8 bytes of all texts; the divisor of bits per byte.
        vocab_size: Of the tokenizer that made them.
        tokenizer_hash: `tokenizer_fingerprint` of that tokenizer.
        bos_id: First token of every document, or None.
        eos_id: Last token of every document, or None.
        sources: Counts by source and language; `document_source` is an index into it.
        token_starts: First token of each document, and the end of the last, over all shards, `[D + 1]` int64.
        byte_starts: The same in UTF-8 bytes of text.
        document_source: Source of each document, `[D]` int64.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], tokens: list[np.ndarray], index: list[np.ndarray]) -> None:
        self.folder = folder
        self.vocab_size: int = meta["vocab_size"]
        self.tokenizer_hash: str = meta["tokenizer_hash"]
        self.bos_id: int | None = meta["bos_id"]
        self.eos_id: int | None = meta["eos_id"]
        self.sources = [SourceTokens(**source) for source in meta["sources"]]
        self.dtype = np.dtype(meta["dtype"])
        self._tokens = tokens
        self._hashes: list[str] = [shard["hash"] for shard in meta["shards"]]
        self._names: list[str] = [shard["name"] for shard in meta["shards"]]
        self.token_starts, self.byte_starts = (_joined(index, column) for column in (0, 1))
        self.document_source = np.concatenate([rows[:-1, 2] for rows in index])
        self._first_document = np.cumsum([0, *(len(rows) - 1 for rows in index)])
        self.num_documents = len(self.document_source)
        self.num_tokens = int(self.token_starts[-1])
        self.num_bytes = int(self.byte_starts[-1])

    @classmethod
    def open(cls, folder: Path) -> TokenShards:
        """Maps the shards of a folder.

        Raises:
            DataError: No shards are there, or a file is missing, truncated or does not fit `meta.json`.
        """
        meta = _read_meta(folder)
        tokens, index = [], []
        for shard in meta["shards"]:
            rows = _map(folder / f"{shard['name']}.idx", np.dtype("<i8"), (shard["documents"] + 1) * 3).reshape(-1, 3)
            ids = _map(folder / f"{shard['name']}.bin", np.dtype(meta["dtype"]), shard["tokens"])
            if (
                rows[0, 0] != 0
                or rows[-1, 0] != len(ids)
                or rows[-1, 1] != shard["bytes"]
                or np.any(np.diff(rows[:, 0]) <= 0)
            ):
                raise DataError(
                    f"{folder / shard['name']}.idx does not fit its tokens: make the shards again (puyu data tokenize)"
                )
            tokens.append(ids)
            index.append(rows)
        return cls(folder, meta, tokens, index)

    def document(self, i: int) -> np.ndarray:
        """Token ids of document `i`, a read-only view."""
        return self.slice(i, 0, int(self.token_starts[i + 1] - self.token_starts[i]))

    @property
    def content_hash(self) -> str:
        """A hash of what the shards hold, in hexadecimal: the same wherever they lie."""
        return hashlib.blake2b("".join(self._hashes).encode(), digest_size=16).hexdigest()

    def slice(self, i: int, start: int, stop: int) -> np.ndarray:
        """Token ids `start` to `stop` within document `i`, a read-only view."""
        shard = int(np.searchsorted(self._first_document, i, side="right")) - 1
        begin = int(self.token_starts[i] - self.token_starts[self._first_document[shard]])
        return self._tokens[shard][begin + start : begin + stop]

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises DataError when these shards were made by another tokenizer."""
        if tokenizer_fingerprint(tokenizer) != self.tokenizer_hash:
            raise DataError(
                f"{self.folder} was made by another tokenizer (vocabulary {self.vocab_size:,}, this one "
                f"{tokenizer.vocab_size:,}): make the shards again (puyu data tokenize)"
            )

    def verify(self) -> None:
        """Reads everything once and raises DataError if a shard's hash differs or an id is outside the vocabulary."""
        with Progress("verifying", total=self.num_tokens * self.dtype.itemsize, unit="B") as progress:
            for name, expected, ids in zip(self._names, self._hashes, self._tokens, strict=True):
                if (
                    _hash_file(self.folder / f"{name}.bin", self.folder / f"{name}.idx") != expected
                    or ids.max() >= self.vocab_size
                ):
                    raise DataError(
                        f"{self.folder / name}.bin or .idx is damaged: make the shards again (puyu data tokenize)"
                    )
                progress.advance(ids.nbytes)


def tokenize_documents(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    bos: bool = True,
    eos: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    total_bytes: int | None = None,
    label: str = "tokenizing",
) -> TokenShards:
    """Writes documents as token shards; `folder` changes only when all of them are written.

    Args:
        documents: In the order in which they are stored.
        tokenizer: Encodes their texts in batches.
        folder: Receives the shards; earlier shards there are replaced.
        bos: Begin each document with the tokenizer's bos.
        eos: End each document with its eos.
        shard_tokens: A new shard begins when the current one has as many.
        total_bytes: Bytes of text in all, for the progress bar.
        label: What the progress bar says.

    Raises:
        DataError: There are no documents, `folder` holds something else, or the tokenizer lacks bos or eos.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / META_FILE).is_file():
        raise DataError(f"{folder} holds other files than token shards: choose another folder")
    ends = document_ends(tokenizer, bos, eos)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    sources, shards = SourceTable(), []
    try:
        with Progress(label, total=total_bytes, unit="B") as progress:
            encoded = (encode_documents(batch, tokenizer, ends) for batch in _batches(documents, progress))
            for number, batches in enumerate(_shards_of(encoded, shard_tokens)):
                name = f"{number:05d}"
                with ShardFile(partial / f"{name}.bin", partial / f"{name}.idx", tokenizer.vocab_size) as shard:
                    for batch in batches:
                        shard.add(batch.tokens, batch.lengths, batch.sizes, sources.add(batch))
                shards.append({"name": name, **shard.facts})
        if not shards:
            raise DataError(
                "no documents to tokenize: the side is empty; take more text, or another validation fraction"
            )
        write_meta(partial, shards, sources.rows(), tokenizer.vocab_size, tokenizer_fingerprint(tokenizer), ends)
        _replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TokenShards.open(folder)


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """A hash of what a tokenizer does: its tokens' bytes, its special tokens, and how it encodes a probe.

    It does not depend on the file format that the tokenizer was loaded from.
    """
    digest = hashlib.blake2b(digest_size=16)
    special = sorted(tokenizer.special_tokens.items())
    digest.update(json.dumps([tokenizer.vocab_size, special, tokenizer.encode_batch([_PROBE])[0]]).encode())
    for i in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(i)
        digest.update(len(piece).to_bytes(4, "little") + piece)
    return digest.hexdigest()


def _batches(documents: Iterable[Document], progress: Progress) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.num_bytes
        if size >= BATCH_BYTES:
            yield batch
            progress.advance(size)
            batch, size = [], 0
    if batch:
        yield batch
        progress.advance(size)


def _shards_of(batches: Iterable[EncodedBatch], shard_tokens: int) -> Iterator[Iterator[EncodedBatch]]:
    """Cuts a stream of batches after each document that makes a shard full; to be read in order."""
    waiting = iter(batches)
    rest: EncodedBatch | None = next(waiting, None)

    def shard() -> Iterator[EncodedBatch]:
        nonlocal rest
        room = shard_tokens
        while rest is not None and room > 0:
            full = int(np.searchsorted(np.cumsum(rest.lengths), room)) + 1  # documents up to the one that fills it
            batch, left = rest.split(full)
            room -= len(batch.tokens)
            yield batch
            rest = left if left.documents else next(waiting, None)

    while rest is not None:
        yield shard()


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if meta["version"] != VERSION:
            raise DataError(
                f"{path} has version {meta['version']}, expected {VERSION}: make the shards again (puyu data tokenize)"
            )
        needed = ("dtype", "vocab_size", "tokenizer_hash", "bos_id", "eos_id", "sources", "shards")
        if not all(name in meta for name in needed) or not meta["shards"]:
            raise KeyError(next((name for name in needed if name not in meta), "shards"))
    except FileNotFoundError:
        raise DataError(
            f"no token shards at {folder} ({META_FILE} is missing): make them with puyu data tokenize"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): make the shards again (puyu data tokenize)") from error
    return meta


def _map(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray:
    expected = count * dtype.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        state = "is missing" if found is None else f"has {found:,} bytes, expected {expected:,}"
        raise DataError(f"{path} {state}: make the shards again (puyu data tokenize)")
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def _joined(index: list[np.ndarray], column: int) -> np.ndarray:
    """The starts of all shards' documents as one sequence, and its end."""
    parts, offset = [], 0
    for rows in index:
        parts.append(rows[:-1, column] + offset)
        offset += int(rows[-1, column])
    return np.concatenate([*parts, [offset]]).astype(np.int64)


def _replace_folder(partial: Path, folder: Path) -> None:
    """Renames `partial` to `folder`; earlier shards there move aside first and are removed last."""
    earlier = folder.with_name(f".{folder.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.rename(earlier)
    partial.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def _hash_file(*paths: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
