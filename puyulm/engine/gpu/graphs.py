"""Decode steps recorded once and replayed (CUDA graphs), so that the device never waits for the host to launch them.

A step of single tokens is the same list of kernels whatever the tokens are, as long as their number is the same and the
keys of each are split among as many programs. So it is recorded for a few batch sizes, over inputs and results at fixed
places, when such a batch comes first; a batch is filled up to the next size with rows that read and store nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puyulm.engine.context import context_length
from puyulm.engine.gpu.available import processors, runs_on
from puyulm.engine.paged import KVCache, StepLayout, attention_for
from puyulm.engine.scheduler import Piece
from puyulm.engine.transfer import pack
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder

if TYPE_CHECKING:
    from puyulm.engine.runner import StepArrays

Record = Callable[[Callable[[], None]], Callable[[], object]]
"""Takes work on tensors at fixed places; gives what does it again."""

GRAPH_BYTES = 16 << 20  # that a recorded step takes beside its tensors
FILLER = (0, 0, 1, -1, 0)  # id, position, reach, slot, length of a row that is nobody's


class Decoded(NamedTuple):
    """What a recorded step gives, at places that the next one writes to.

    Attributes:
        hidden: `[R, H]`, final-normed.
        logits: `[R, V]`, float32.
    """

    hidden: Tensor
    logits: Tensor


class DecodeGraphs:
    """Recorded decode steps of a model.

    Args:
        cache: Whose keys the steps read; its attention must be Triton's, which knows rows that are nobody's.
        max_running: The largest batch.
        record: How work is recorded.
    """

    def __init__(self, model: Decoder, cache: KVCache, max_running: int, record: Record) -> None:
        self.model, self.cache, self._record = model, cache, record
        self.sizes = batch_sizes(max_running)
        config, weight = model.config, model.embed.weight
        width = table_width(config, cache.num_blocks, cache.block_size)
        largest, device = self.sizes[-1], weight.device
        self._inputs = torch.zeros(largest, len(FILLER), dtype=torch.int64, device=device)
        self._tables = torch.zeros(largest, width, dtype=torch.int32, device=device)
        self._hidden = torch.empty(largest, config.hidden_size, dtype=weight.dtype, device=device)
        self._logits = torch.empty(largest, config.vocab_size, dtype=torch.float32, device=device)
        self._recorded: dict[tuple[int, int], Callable[[], object]] = {}

    def suit(self, pieces: Sequence[Piece]) -> bool:
        """Whether a step can be replayed: single tokens, after each of which another one is drawn, within
        the context, without adapters."""
        room = self._tables.shape[1] * self.cache.block_size
        return len(pieces) <= self.sizes[-1] and all(
            count == 1 and start < room and request.task == "generate" and request.adapter is None and not request.draft
            for request, start, count in pieces
        )

    def run(self, ids: NDArray[np.int64], step: StepArrays) -> Decoded:
        """Runs a step that suits.

        Args:
            ids: `[R]`.
        """
        count = len(ids)
        size = next(size for size in self.sizes if size >= count)
        longest = longest_of(max(step.ends))
        self._fill(ids, step, size)
        key = (size, self._splits(size, longest))
        replay = self._recorded.get(key)
        if replay is None:
            replay = self._recorded[key] = self._record(lambda: self._work(size, longest))
        replay()
        return Decoded(self._hidden[:count], self._logits[:count])

    def _fill(self, ids: NDArray[np.int64], step: StepArrays, size: int) -> None:
        positions, reaches, slots, _, lengths, tables = step.parts
        rows = np.full((size, len(FILLER)), FILLER, dtype=np.int64)
        for column, values in enumerate((ids, positions, reaches, slots, lengths)):
            rows[: len(ids), column] = values
        pinned = self._inputs.is_cuda
        for target, array in ((self._inputs[:size], rows), (self._tables[: len(ids), : tables.shape[1]], tables)):
            packed, _ = pack([array], pin=pinned)
            target.copy_(packed[: array.nbytes].view(target.dtype).view(array.shape), non_blocking=True)

    def _splits(self, size: int, longest: int) -> int:
        from puyulm.engine.gpu.attend import splits_for

        return splits_for(size * self.cache.config.num_kv_heads, longest, processors(self._inputs.device))

    def _work(self, size: int, longest: int) -> None:
        """The step of a batch: what is recorded."""
        # Rows lie one after another, so that one copy brings any number of them; kernels want columns.
        ids, positions, reaches, slots, lengths = self._inputs[:size].T.contiguous()
        starts = torch.arange(size + 1, dtype=torch.int32, device=ids.device)
        layout = StepLayout(
            positions, reaches, slots, starts, lengths.int(), self._tables[:size], [1] * size, [longest] * size
        )  # fmt: skip
        hidden = self.model(ids, positions, attention_for(self.cache, layout))
        self._hidden[:size].copy_(hidden)
        self._logits[:size].copy_(self.model.head(hidden))  # which widens, as `Decoder.logits` does


def longest_of(longest: int) -> int:
    """The next power of two: a recorded step serves all batches whose longest sequence is below it."""
    return 1 << max(longest - 1, 0).bit_length()


def batch_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, 8, and from there powers of two and what is halfway between, up to `most`."""
    sizes = {1, 2, 4, most}
    for exponent in range(3, most.bit_length() + 1):
        sizes |= {1 << exponent, 3 << exponent}
    return tuple(sorted(size for size in sizes if size <= most))


def table_width(config: ModelConfig, num_blocks: int, block_size: int) -> int:
    """Blocks that one sequence may have."""
    context = context_length(config)
    return num_blocks if context is None else min(num_blocks, -(-context // block_size) + 1)


def graph_bytes(config: ModelConfig, max_running: int, itemsize: int, width: int) -> int:
    """What recorded steps take of the device's memory, about.

    Args:
        itemsize: Of the activations.
        width: Of the block tables.
    """
    inputs_and_results = 8 * len(FILLER) + 4 * width + itemsize * config.hidden_size + 4 * config.vocab_size
    widest = 3 * config.intermediate_size + 2 * config.qkv_size + 4 * config.hidden_size + config.vocab_size
    return max_running * (inputs_and_results + itemsize * widest) + len(batch_sizes(max_running)) * GRAPH_BYTES


def decode_graphs(model: Decoder, cache: KVCache, max_running: int) -> DecodeGraphs | None:
    """Recorded steps where there can be any: for language models on CUDA devices, with Triton's attention."""
    device = model.embed.weight.device
    if device.type != "cuda" or not runs_on(device) or cache.dtype == torch.float64 or model.config.head != "lm":
        return None
    return DecodeGraphs(model, cache, max_running, cuda_recorder())


def cuda_recorder() -> Record:
    """Records with CUDA; all that is recorded shares its working memory, for no two of it ever run at once."""
    pool = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], None]) -> Callable[[], object]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # so that kernels are compiled, and libraries have made up their minds
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            work()
        return graph.replay

    return record
