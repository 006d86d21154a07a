"""Conversations as training samples: rendered, cut where too long, and packed so that none sees another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.errors import ChatError, DataError
from puyulm.progress import Progress
from puyulm.text.chat import ChatFormat, messages_from_dicts, render
from puyulm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """One conversation up to its last trained token.

    Attributes:
        tokens: `[S]` int64.
        targets: `[S]` int64: the next token where the model is trained to produce it, else -100.
    """

    tokens: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Samples:
    """Rendered conversations, and what happened to those that did not fit.

    Attributes:
        cut: Longer than a row, and cut at its end.
        dropped: Longer than a row, and left out: nothing to train on was left of them, or dropping was asked for.
        untrained: Left out because no message of theirs is trained on.
    """

    samples: list[Sample]
    cut: int = 0
    dropped: int = 0
    untrained: int = 0

    def summary(self, seq_len: int) -> str:
        """One or two lines that say how much there is and what was lost."""
        tokens = sum(len(sample.tokens) for sample in self.samples)
        trained = sum(int((sample.targets != IGNORE).sum()) for sample in self.samples)
        text = f"{len(self.samples):,} conversations, {tokens:,} tokens, {trained:,} of them trained"
        if self.cut or self.dropped:
            too_long = self.cut + self.dropped
            text += f"\n{too_long:,} longer than {seq_len:,} tokens: {self.cut:,} cut, {self.dropped:,} dropped"
        if self.untrained:
            text += f"\n{self.untrained:,} dropped: no message of an assistant to train on"
        return text


def read_conversations(files: Iterable[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of jsonl files, each with its place (`file:line`).

    Raises:
        DataError: A file is missing, or a line is no JSON object with a list of messages.
    """
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read conversations: {file}: {getattr(error, 'strerror', 'not UTF-8')}") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
                raise DataError(f'{file}:{number}: expected {{"messages": [{{"role": ..., "content": ...}}, ...]}}')
            yield f"{file}:{number}", row


def load_samples(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    seq_len: int,
    on_long: Literal["cut", "drop"] = "cut",
) -> Samples:
    """Renders all conversations of jsonl files (`{"messages": [...], "tools": [...]}`, OpenAI's form).

    Raises:
        DataError: A row is damaged (with its file and line), or nothing is left to train on.
    """
    samples: list[Sample] = []
    cut = dropped = untrained = 0
    with Progress("rendering conversations", unit="row") as progress:
        for place, row in read_conversations(files):
            try:
                rendered = render(messages_from_dicts(row["messages"]), tokenizer, chat_format, tools=row.get("tools"))
            except ChatError as error:
                raise DataError(f"{place}: {error}") from None
            sample = make_sample(rendered.ids, rendered.mask)
            if sample is not None and len(sample.tokens) > seq_len:
                sample = make_sample(rendered.ids, rendered.mask, seq_len) if on_long == "cut" else None
                cut, dropped = cut + (sample is not None), dropped + (sample is None)
            elif sample is None:
                untrained += 1
            if sample is not None:
                samples.append(sample)
            progress.advance()
    result = Samples(samples, cut, dropped, untrained)
    if not samples:
        raise DataError(f"{', '.join(map(str, files))}: nothing to train on: {result.summary(seq_len)}")
    return result


def make_sample(ids: Sequence[int], mask: Sequence[bool], limit: int | None = None) -> Sample | None:
    """Inputs and targets of one rendered conversation; None when no token is trained on.

    What follows the last trained token teaches nothing and is left out.

    Args:
        limit: Keep at most so many input tokens.
    """
    trained = np.asarray(mask, dtype=bool)[1:]
    if limit is not None:
        trained = trained[:limit]
    if not trained.any():
        return None
    size = int(trained.nonzero()[0][-1]) + 1
    array = np.asarray(ids, dtype=np.int64)
    return Sample(array[:size], np.where(trained[:size], array[1 : size + 1], IGNORE))


class ConversationBatches:
    """Endless packed batches, each found by its number: every epoch is all samples once, in an order of its own.

    A batch is as many whole samples as fit into `rows_per_batch * seq_len` tokens. They lie one after another and
    attend only to themselves; nothing is padded.
    """

    def __init__(self, samples: Sequence[Sample], seq_len: int, rows_per_batch: int, seed: int) -> None:
        self._samples, self._seed = samples, seed
        self.seq_len, self._capacity = seq_len, seq_len * rows_per_batch
        self._lengths = np.array([len(sample.tokens) for sample in samples])
        if self._lengths.max() > self._capacity:
            raise DataError(f"a sample has {self._lengths.max():,} tokens, a batch room for {self._capacity:,}")
        self._first = [0]  # number of each epoch's first batch, as far as known
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])

    def batch(self, step: int) -> PackedBatch:
        """Batch number `step`, from 0."""
        while self._first[-1] <= step:
            self._first.append(self._first[-1] + len(self._epoch(len(self._first) - 1)))
        epoch = int(np.searchsorted(self._first, step, side="right")) - 1
        return self._pack(self._epoch(epoch)[step - self._first[epoch]])

    def batches_in(self, epochs: int) -> int:
        """Batches of the first epochs together."""
        while len(self._first) <= epochs:
            self._first.append(self._first[-1] + len(self._epoch(len(self._first) - 1)))
        return self._first[epochs]

    def in_order(self) -> Iterator[PackedBatch]:
        """Every sample once, in the order of the files, for validation."""
        return map(self._pack, self._fill(np.arange(len(self._samples))))

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        if self._plan[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._samples))
            self._plan = (epoch, self._fill(order))
        return self._plan[1]

    def _fill(self, order: np.ndarray) -> list[np.ndarray]:
        """Cuts an order of samples into batches."""
        ends = np.cumsum(self._lengths[order])
        batches, start, used = [], 0, 0
        while start < len(order):
            stop = int(np.searchsorted(ends, used + self._capacity, side="right"))
            batches.append(order[start:stop])
            start, used = stop, int(ends[stop - 1])
        return batches

    def _pack(self, indices: np.ndarray) -> PackedBatch:
        samples = [self._samples[i] for i in indices]
        return PackedBatch(
            tokens=np.concatenate([sample.tokens for sample in samples]),
            targets=np.concatenate([sample.targets for sample in samples]),
            lengths=[len(sample.tokens) for sample in samples],
            num_bytes=0,
        )
