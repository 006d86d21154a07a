"""Runs a step: pieces of sequences in, hidden states out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from puyulm.engine.paged import KVCache, StepLayout, attention_for
from puyulm.engine.scheduler import Piece
from puyulm.model.decoder import Decoder


class Runner:
    """A model and the cache it reads.

    Args:
        tables: The scheduler's block tables are given anew to every step, since they move when they grow.
    """

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self.device = model.embed.weight.device

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece], tables: np.ndarray) -> Tensor:
        """Final-normed hidden states `[T, H]` of all tokens of the pieces, one piece after another."""
        return self.forward(self._ids(pieces), step_layout(pieces, tables, self.cache.block_size, self.device))

    def forward(self, ids: Tensor, layout: StepLayout) -> Tensor:
        """Hidden states of tokens `[T]`."""
        return self.model(ids, layout.positions, attention_for(self.cache, layout))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, H]` -> `[N, V]`, float32."""
        return self.model.logits(hidden)

    def end(self) -> None:
        """Ends other processes that work for this one."""

    def _ids(self, pieces: Sequence[Piece]) -> Tensor:
        ids: list[int] = []
        for request, start, count in pieces:
            if count == 1 and not request.draft:
                ids.append(request.tokens[start])
            else:
                ids += request.tokens[start : start + count]
                known = len(request.tokens)
                ids += request.draft[max(start - known, 0) : max(start + count - known, 0)]
        return torch.tensor(ids, device=self.device)


def step_layout(pieces: Sequence[Piece], tables: np.ndarray, block_size: int, device: torch.device) -> StepLayout:
    """Where the tokens of a step are, as tensors.

    Args:
        tables: `[rows, W]`: block tables; a piece's is the row of its request.
    """
    counts = [piece.count for piece in pieces]
    ends = [piece.start + piece.count for piece in pieces]
    starts = np.fromiter(itertools.accumulate(counts, initial=0), dtype=np.int32, count=len(counts) + 1)
    rows = np.fromiter((piece.request.row for piece in pieces), dtype=np.intp, count=len(pieces))
    lengths = np.fromiter(ends, dtype=np.int32, count=len(ends))
    reaches = np.fromiter((piece.request.reach for piece in pieces), dtype=np.int64, count=len(pieces))
    width = -(-int(lengths.max()) // block_size)
    block_tables = tables[rows, :width]
    if len(counts) == starts[-1]:
        positions = lengths.astype(np.int64) - 1
        owners = np.arange(len(rows))
    else:
        owners = np.repeat(np.arange(len(rows)), counts)
        positions = np.arange(starts[-1]) - (starts[1:] - lengths)[owners]
        reaches = reaches[owners]
    slots = block_tables[owners, positions // block_size].astype(np.int64) * block_size + positions % block_size

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return StepLayout(
        positions=on_device(positions), reaches=on_device(reaches), slots=on_device(slots),
        query_starts=on_device(starts), lengths=on_device(lengths), block_tables=on_device(block_tables),
        counts=counts, ends=ends,
    )  # fmt: skip
