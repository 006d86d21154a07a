"""Paged attention on CPUs, kernel by kernel, beside PyTorch's scaled dot product attention.

    python -m benchmarks.cpu_attention

One layer in float32, 2 threads, best of several rounds. Prefill: one sequence, whole, against the causal kernel on
contiguous tensors. Decode: one query a sequence; the layers of a cache larger than the processor's caches take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from puyulm.engine.kv_types import KVType
from puyulm.engine.paged import BLOCK_SIZE, KVCache, PagedAttention, StepLayout, attention_for, block_bytes
from puyulm.model.attention import causal_attention
from puyulm.model.config import ModelConfig

SHAPES = ((12, 12, 64), (32, 4, 64), (16, 8, 128))
"""Heads, key/value heads, head dimension."""

PROMPTS = (512, 4096)
CONTEXTS = (32, 64, 512, 4096, 32768)
BATCH = 8
KV_TYPES: tuple[KVType, ...] = ("model", "int8", "int4")
CACHE_BYTES = 100 << 20
"""More than the processor keeps: what is decoded over comes from memory."""


def config_of(shape: tuple[int, int, int], num_layers: int) -> ModelConfig:
    heads, kv_heads, dim = shape
    return ModelConfig(
        family="internlm2", vocab_size=32, hidden_size=heads * dim, intermediate_size=64, num_layers=num_layers,
        num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, max_position_embeddings=1 << 20,
    )  # fmt: skip


def layout_of(start: int, count: int, sequences: int) -> StepLayout:
    """The same piece of several sequences, whose blocks lie in turn."""
    end = start + count
    blocks = -(-end // BLOCK_SIZE)
    tables = torch.arange(sequences * blocks, dtype=torch.int32).view(blocks, sequences).T.contiguous()
    places = torch.arange(start, end)
    slots = tables[:, places // BLOCK_SIZE].long() * BLOCK_SIZE + places % BLOCK_SIZE
    return StepLayout(
        positions=places.repeat(sequences),
        reaches=torch.full((sequences * count,), end),
        slots=slots.flatten(),
        query_starts=torch.arange(sequences + 1, dtype=torch.int32) * count,
        lengths=torch.full((sequences,), end, dtype=torch.int32),
        block_tables=tables,
        counts=[count] * sequences,
        ends=[end] * sequences,
    )


def qkv(shape: tuple[int, int, int], tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, dim = shape
    return (
        torch.randn(tokens, kv_heads, heads // kv_heads, dim),
        torch.randn(tokens, kv_heads, dim),
        torch.randn(tokens, kv_heads, dim),
    )


def best(run: Callable[[], object], seconds: float = 0.6) -> float:
    """Seconds of the fastest call within a short burst."""
    run()
    fastest, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def rate(run: Callable[[], object], seconds: float = 0.6) -> float:
    """Seconds of a call within the fastest of many short runs of calls, for those too short to be timed alone."""
    start = time.perf_counter()
    run()
    calls = max(1, int(0.01 / (time.perf_counter() - start)))

    def several() -> None:
        for _ in range(calls):
            run()

    return best(several, seconds) / calls


def prefill(shape: tuple[int, int, int], tokens: int) -> Iterator[str]:
    q, k, v = qkv(shape, tokens)
    layout = layout_of(0, tokens, 1)
    blocks = -(-tokens // BLOCK_SIZE)
    work = shape[0] * shape[2] * 2 * tokens * tokens  # both products of the lower triangle
    theirs = best(lambda: causal_attention(q[None], k[None], v[None]))
    for kv_type in KV_TYPES:
        cache = KVCache(config_of(shape, 1), blocks, torch.float32, torch.device("cpu"), kv_type)
        attention = attention_for(cache, layout)
        ours = best(lambda attention=attention: attention(0, q, k, v))  # type: ignore[misc]
        yield (
            f"prefill {tokens:>5} {kv_type:>5}: {ours * 1e3:8.2f} ms {work / ours / 1e9:5.0f} GFLOP/s   "
            f"SDPA {theirs * 1e3:8.2f} ms   {theirs / ours:.2f}x"
        )


def decode(shape: tuple[int, int, int], context: int, batch: int) -> Iterator[str]:
    layout = layout_of(context - 1, 1, batch)
    blocks = batch * -(-context // BLOCK_SIZE)
    q, k, v = qkv(shape, batch)
    theirs = rate(sdpa_decode(shape, context, batch))
    for kv_type in KV_TYPES:
        size = block_bytes(config_of(shape, 1), torch.float32, kv_type) * blocks
        layers = min(64, max(2, CACHE_BYTES // size))
        cache = KVCache(config_of(shape, layers), blocks, torch.float32, torch.device("cpu"), kv_type)
        for store in (*cache.keys, *cache.values):
            store.random_(0, 8) if kv_type != "model" else store.normal_()
        attention, turn = attention_for(cache, layout), cycle(range(layers))
        ours = rate(lambda attention=attention, turn=turn: attention(next(turn), q, k, v))  # type: ignore[misc]
        plain = PagedAttention(cache, layout)
        slow = rate(lambda plain=plain, turn=turn: plain(next(turn), q, k, v), 0.1)  # type: ignore[misc]
        yield (
            f"decode {batch} x {context:>5} {kv_type:>5}: {ours * 1e6:8.1f} us {size / ours / 1e9:5.1f} GB/s   "
            f"SDPA, contiguous float32 {theirs * 1e6:8.1f} us {theirs / ours:5.2f}x   plain {slow * 1e6:8.1f} us"
        )


def sdpa_decode(shape: tuple[int, int, int], context: int, batch: int) -> Callable[[], object]:
    heads, kv_heads, dim = shape
    size = 2 * batch * kv_heads * context * dim * 4
    layers = min(64, max(2, CACHE_BYTES // size))
    stores = [torch.randn(2, batch, kv_heads, context, dim) for _ in range(layers)]
    q, turn = torch.randn(batch, heads, 1, dim), cycle(stores)

    def run() -> Tensor:
        k, v = next(turn)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != kv_heads)

    return run


def main() -> None:
    torch.set_num_threads(2)
    for shape in SHAPES:
        print("{} heads, {} key/value heads, dimension {}".format(*shape))
        for tokens in PROMPTS:
            for line in prefill(shape, tokens):
                print("  " + line, flush=True)
        for context in CONTEXTS:
            for batch in (1, BATCH) if context <= 4096 else (1,):
                for line in decode(shape, context, batch):
                    print("  " + line, flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
