"""Packed batches: documents laid end to end, each seen by itself alone; and those of a validation, in order.

Batches to train on are rows of a mixture (`puyulm.data.stream`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from puyulm.data.shards import TokenShards

IGNORE = -100  # target of a token whose prediction is not scored; what the loss ignores


@dataclass(frozen=True)
class PackedBatch:
    """Some tokens, what follows each, and which of them belong together.

    Attributes:
        tokens: `[T]` int64.
        targets: `[T]` int64, the next token of the same document, or -100 at its last token.
        lengths: Length of each sample, in order; they sum to T. A sample attends only to itself.
        num_bytes: UTF-8 bytes of the documents whose last token is here: exact when summed over whole documents.
        sources: `[T]` int64, where each token is from, an index into the course's names; None where they are not told
            apart.
    """

    tokens: np.ndarray
    targets: np.ndarray
    lengths: list[int]
    num_bytes: int
    sources: np.ndarray | None = None

    @property
    def num_targets(self) -> int:
        """Number of tokens whose prediction is scored."""
        return int(np.count_nonzero(self.targets != IGNORE))


def document_batches(
    shards: TokenShards, seq_len: int, rows_per_batch: int, max_tokens: int | None = None
) -> Iterator[PackedBatch]:
    """Batches of every document once, in order, for validation; the last batch is what remains.

    A document longer than `seq_len` is read in windows that overlap by half: a window predicts only what the one before
    has not, so that every prediction but those at a document's beginning sees at least half a window of text.

    Args:
        shards: The documents.
        seq_len: Tokens in a window.
        rows_per_batch: A batch has at most `rows_per_batch * seq_len` tokens.
        max_tokens: Stop after the document that reaches as many tokens. Always whole documents, so that the sums of
            `num_bytes` and of the loss belong together.
    """
    samples: list[_Sample] = []
    size = seen = 0
    for document in range(shards.num_documents):
        for sample in _windows(shards, document, seq_len):
            if size + len(sample.tokens) > rows_per_batch * seq_len:
                yield _joined(samples)
                samples, size = [], 0
            samples.append(sample)
            size += len(sample.tokens)
        seen += int(shards.token_starts[document + 1] - shards.token_starts[document])
        if max_tokens is not None and seen >= max_tokens:
            break
    if samples:
        yield _joined(samples)


def _windows(shards: TokenShards, document: int, seq_len: int) -> Iterator[_Sample]:
    """A document's windows; targets that an earlier window has are left out."""
    ids = shards.document(document).astype(np.int64)
    targets = np.append(ids[1:], IGNORE)
    predicted = start = 0
    while predicted < len(ids):
        end = min(start + seq_len, len(ids))
        fresh = targets[start:end].copy()
        fresh[: predicted - start] = IGNORE
        size = int(shards.byte_starts[document + 1] - shards.byte_starts[document]) if end == len(ids) else 0
        yield _Sample(ids[start:end], fresh, size)
        predicted, start = end, start + max(1, seq_len // 2)


@dataclass(frozen=True)
class _Sample:
    tokens: np.ndarray
    targets: np.ndarray
    num_bytes: int


def _joined(samples: list[_Sample]) -> PackedBatch:
    return PackedBatch(
        tokens=np.concatenate([sample.tokens for sample in samples]),
        targets=np.concatenate([sample.targets for sample in samples]),
        lengths=[len(sample.tokens) for sample in samples],
        num_bytes=sum(sample.num_bytes for sample in samples),
    )
