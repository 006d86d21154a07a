"""The libraries of single stages, called by themselves: trafilatura, datasketch, rensa, tokenizers."""

# mypy: disable-error-code="import-not-found,import-untyped"

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.data_corpus import Page

HASHES, N = 128, 5

_WORD = re.compile(r"[㐀-鿿]|[^\W㐀-鿿]+")


def trafilatura_text(page: Page) -> str:
    """The main text, without comments as on our side, by one call with a page's bytes."""
    import trafilatura

    return trafilatura.extract(page.content, include_comments=False) or ""


def datasketch_signatures(texts: Sequence[str]) -> np.ndarray:
    """Signatures `[D, 128]` of sets of 5-grams of words; the fastest of the hashes in the standard library."""
    import zlib

    from datasketch import MinHash

    found = []
    for grams in _shingles(texts):
        minhash = MinHash(num_perm=HASHES, hashfunc=zlib.crc32)
        minhash.update_batch(gram.encode() for gram in grams)
        found.append(minhash.digest())
    return np.stack(found)


def rensa_signatures(texts: Sequence[str]) -> np.ndarray:
    """The same by rensa's fast kind."""
    from rensa import RMinHash

    found = []
    for grams in _shingles(texts):
        minhash = RMinHash(num_perm=HASHES, seed=1)
        minhash.update(list(grams))
        found.append(minhash.digest())
    return np.array(found, dtype=np.uint32)


def train_tokenizer(texts: Sequence[str], vocabulary: int, path: Path) -> Path:
    """A byte-level BPE `tokenizer.json` to measure with."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def library_encoder(path: Path) -> Callable[[Sequence[str]], list[list[int]]]:
    """The library's own batch call, the one without offsets."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return lambda texts: [
        encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    ]


def _shingles(texts: Sequence[str]) -> Iterator[set[str]]:
    for text in texts:
        words = _WORD.findall(text.lower())
        yield {" ".join(words[start : start + N]) for start in range(max(len(words) - N + 1, 1))}
