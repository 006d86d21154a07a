"""Recorded decode steps: which step takes which record, what lies in its inputs, and the answers of an engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.gpu.graphs import (
    FILLER,
    DecodeGraphs,
    batch_sizes,
    decode_graphs,
    graph_bytes,
    longest_of,
    table_width,
)
from puyulm.engine.paged import KVCache
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Request
from puyulm.engine.runner import Runner, step_arrays
from puyulm.engine.scheduler import Piece
from puyulm.model.config import RopeConfig
from tests.conftest import tiny_config, tiny_decoder

PROMPTS = [[5, 6, 7], list(range(3, 40)), [9], [11, 12, 13, 14, 15]]


class Records:
    """Stands for CUDA's recording: does the work again."""

    def __init__(self) -> None:
        self.made = 0
        self.replayed = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], object]:
        self.made += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def request_of(tokens: int, row: int = 0, **changes: object) -> Request:
    made = Request(0, list(range(3, 3 + tokens)), SamplingParams(max_new_tokens=5), **changes)  # type: ignore[arg-type]
    made.row = row
    return made


def graphs_of(device: torch.device, most: int = 4) -> tuple[DecodeGraphs, Records]:
    model, records = tiny_decoder().to(device), Records()
    cache = KVCache(model.config, 32, torch.float32, device, transposed=False)
    return DecodeGraphs(model, cache, most, records), records


def test_batch_sizes_waste_little() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(6) == (1, 2, 4, 6)
    assert batch_sizes(64) == (1, 2, 4, 8, 16, 24, 32, 48, 64)
    sizes = batch_sizes(200)
    assert sizes[-1] == 200
    assert all(larger <= 1.5 * size + 1 for size, larger in itertools.pairwise(sizes[4:]))


def test_lengths_are_rounded_up() -> None:
    assert [longest_of(length) for length in (1, 2, 3, 64, 65, 1000)] == [1, 2, 4, 64, 128, 1024]


def test_tables_hold_the_longest_sequence() -> None:
    config = tiny_config()
    assert table_width(config, 1000, 16) == 5  # 64 positions
    assert table_width(config, 3, 16) == 3
    assert table_width(config.evolve(rope=RopeConfig(scaling="dynamic", factor=2.0)), 1000, 16) == 1000


def test_memory_grows_with_the_batch() -> None:
    config = tiny_config()
    assert graph_bytes(config, 64, 2, 100) > graph_bytes(config, 8, 2, 100) > 4 * 8 * config.vocab_size


def test_there_are_none_on_a_cpu() -> None:
    model = tiny_decoder()
    cache = KVCache(model.config, 4, torch.float32, torch.device("cpu"))
    assert decode_graphs(model, cache, 4) is None
    assert Engine(model, config=EngineConfig(memory=1 << 20)).runner.graphs is None


def test_only_single_tokens_of_plain_answers_suit() -> None:
    graphs, _ = graphs_of(torch.device("cpu"))
    one = request_of(4)
    assert graphs.suit([Piece(one, 3, 1)] * 4)
    assert not graphs.suit([Piece(one, 3, 1)] * 5)
    assert not graphs.suit([Piece(one, 3, 1), Piece(one, 0, 4)])
    assert not graphs.suit([Piece(request_of(4, task="mean"), 3, 1)])
    assert not graphs.suit([Piece(request_of(4, adapter=object()), 3, 1)])
    assert graphs.suit([Piece(request_of(80), 79, 1)])
    assert not graphs.suit([Piece(request_of(81), 80, 1)])  # beyond what a row of the tables holds
    guessing = request_of(4)
    guessing.draft = [7]
    assert not graphs.suit([Piece(guessing, 3, 1)])


def test_inputs_are_filled_up_with_rows_that_store_nothing() -> None:
    graphs, _ = graphs_of(torch.device("cpu"))
    tables = np.array([[7, 2, 0], [5, 0, 0], [4, 9, 1]], dtype=np.int32)
    pieces = [Piece(request_of(40, 2), 39, 1), Piece(request_of(3, 1), 2, 1), Piece(request_of(18, 0), 17, 1)]
    graphs._inputs.fill_(77)
    graphs._fill(np.array([42, 5, 20]), step_arrays(pieces, tables, 16), 4)
    assert graphs._inputs.tolist() == [
        [42, 39, 45, 1 * 16 + 7, 40], [5, 2, 8, 5 * 16 + 2, 3], [20, 17, 23, 2 * 16 + 1, 18], list(FILLER),
    ]  # fmt: skip
    assert graphs._tables[:3, :3].tolist() == [[4, 9, 1], [5, 0, 0], [7, 2, 0]]


def test_an_engine_gives_the_same_answers_from_records(device: torch.device) -> None:
    pytest.importorskip("triton")
    graphs, records = graphs_of(device)
    model = graphs.model
    params = [SamplingParams(temperature=0, max_new_tokens=count) for count in (6, 3, 5, 7)]
    plain = Engine(tiny_decoder(), config=EngineConfig(memory=1 << 20)).generate(PROMPTS, params)
    config = EngineConfig(memory=1 << 20, max_running=4)
    done = Engine(model, config=config, runner=Runner(model, graphs.cache, graphs)).generate(PROMPTS, params)
    assert [one.ids for one in done] == [one.ids for one in plain]
    for one, other in zip(done, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert records.made == 3  # batches of 4, then 3 among 4, 2, 1
    assert records.replayed == 6
