"""Runs a step: pieces of sequences in, hidden states out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puyulm.engine.paged import KVCache, StepLayout, attention_for
from puyulm.engine.scheduler import Piece
from puyulm.engine.transfer import upload
from puyulm.model.decoder import Decoder

if TYPE_CHECKING:
    from puyulm.engine.gpu.graphs import Decoded, DecodeGraphs


class Runner:
    """A model and the cache it reads.

    Args:
        graphs: Recorded decode steps of this model and cache; None: every step is run operation by operation.
    """

    def __init__(self, model: Decoder, cache: KVCache, graphs: DecodeGraphs | None = None) -> None:
        self.model, self.cache, self.graphs = model, cache, graphs
        self.device = model.embed.weight.device
        self._decoded: Decoded | None = None

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece], tables: np.ndarray) -> Tensor:
        """Final-normed hidden states `[T, H]` of all tokens of the pieces, one piece after another, good until the next
        step."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread: Triton launches where PyTorch stands
        self._decoded = None
        ids, arrays = self._ids(pieces), step_arrays(pieces, tables, self.cache.block_size)
        if self.graphs is not None and self.graphs.suit(pieces):
            self._decoded = self.graphs.run(ids, arrays)
            return self._decoded.hidden
        on_device, *parts = upload([ids, *arrays.parts], self.device)
        return self.forward(on_device, arrays.layout(parts))

    def forward(self, ids: Tensor, layout: StepLayout) -> Tensor:
        """Hidden states of tokens `[T]`."""
        return self.model(ids, layout.positions, attention_for(self.cache, layout))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, H]` -> `[N, V]`, float32, good until the next step."""
        if self._decoded is not None and hidden is self._decoded.hidden:
            return self._decoded.logits
        return self.model.logits(hidden)

    def end(self) -> None:
        """Ends other processes that work for this one."""

    def _ids(self, pieces: Sequence[Piece]) -> NDArray[np.int64]:
        ids: list[int] = []
        for request, start, count in pieces:
            if count == 1 and not request.draft:
                ids.append(request.tokens[start])
            else:
                ids += request.tokens[start : start + count]
                known = len(request.tokens)
                ids += request.draft[max(start - known, 0) : max(start + count - known, 0)]
        return np.array(ids, dtype=np.int64)


class StepArrays(NamedTuple):
    """A `StepLayout` on the host.

    Attributes:
        parts: Its tensors, in their order.
    """

    parts: tuple[NDArray, ...]
    counts: list[int]
    ends: list[int]

    def layout(self, parts: Sequence[Tensor]) -> StepLayout:
        """The layout whose tensors were brought to the device."""
        fields: list[Any] = [*parts, self.counts, self.ends]
        return StepLayout(*fields)


def step_arrays(pieces: Sequence[Piece], tables: np.ndarray, block_size: int) -> StepArrays:
    """Where the tokens of a step are.

    Args:
        tables: `[rows, W]`: block tables; a piece's is the row of its request. They are given anew to every step, since
            they move when they grow.
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
    return StepArrays((positions, reaches, slots, starts, lengths, block_tables), counts, ends)
