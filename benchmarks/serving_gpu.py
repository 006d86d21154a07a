"""Answering on one Hopper GPU: InternLM2's 1.8B and 7B with random weights, in bfloat16 and with weights of 4 bits.

- Batch 1: what share of the memory's bandwidth decoding uses: bytes of weights times tokens per second. The limit is
  what a plain copy or sum reaches on the same device in the same minute.
- Batches of 64 and 256: new tokens per second of whole runs, prompts included, against transformers' continuous
  batching (`generate_batch`) on the same shapes in bfloat16. One contender after another, since each fills the memory.
- A million tokens with a cache of 4 bits: the prompt's time is added up from chunks that are measured at some places of
  the sequence and lie on straight lines between them; what the cache holds before a chunk is random codes.

On a CPU `--smoke` runs the same code with a tiny model.
"""

from __future__ import annotations

import functools
import gc
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from benchmarks.harness import Row, installed, missing
from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.gpu.available import runs_on
from puyulm.engine.gpu.graphs import decode_graphs
from puyulm.engine.load import GROUP_SIZE
from puyulm.engine.paged import BLOCK_SIZE, KVCache
from puyulm.engine.params import SamplingParams
from puyulm.engine.quant.linear import quantize_in_place
from puyulm.engine.request import Request
from puyulm.engine.runner import Runner
from puyulm.engine.scheduler import Piece
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.hf_config import config_to_json
from puyulm.model.presets import preset

PEER = "transformers generate_batch"
BATCH_TARGET = 3.0
ROUNDS = 3
FIRST_ID = 3  # those below may end an answer


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        share: Of the bandwidth that decoding one sequence shall use, in percent.
        batches: Sizes of batches.
        prompt, new: Tokens of each sequence.
    """

    name: str
    config: ModelConfig
    bits: Literal["bf16", "int4"]
    share: float | None = None
    batches: tuple[int, ...] = (64, 256)
    prompt: int = 256
    new: int = 256


class Found(NamedTuple):
    """A peer's rate, None where it failed, and what is to be said about it."""

    rate: float | None
    note: str


@dataclass(frozen=True)
class Long:
    """A sequence of a million tokens.

    Attributes:
        chunk: Tokens of the prompt in one forward.
        places: Where in the prompt chunks are measured.
        new: Tokens that are decoded behind it.
    """

    name: str
    config: ModelConfig
    length: int = 1_000_000
    chunk: int = 4096
    places: int = 9
    new: int = 32


def cases(smoke: bool) -> list[Case]:
    """What is measured in batches."""
    small, large = preset("internlm2-1_8b").config, preset("internlm2-7b").config
    full = [
        Case("1.8B bf16", small, "bf16", share=80.0),
        Case("1.8B int4", small, "int4"),
        Case("7B bf16", large, "bf16", share=80.0),
        Case("7B int4", large, "int4"),
    ]
    return [replace(case, config=_tiny(case.config), batches=(2, 3), prompt=5, new=4) for case in full if smoke] or full


def long_case(smoke: bool) -> Long:
    """The long sequence."""
    full = Long("7B-1M", preset("internlm2_5-7b-chat-1m").config)
    return replace(full, config=_tiny(full.config), length=200, chunk=32, places=3, new=2) if smoke else full


def _tiny(config: ModelConfig) -> ModelConfig:
    return config.evolve(
        hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=512
    )


def run(only: str = "", smoke: bool = False) -> list[Row]:
    """All rows, or those of the cases whose name holds `only`."""
    if not smoke and not torch.cuda.is_available():
        raise SystemExit("serving_gpu needs a CUDA device, and PyTorch finds none; --smoke runs a tiny model on a CPU")
    device = torch.device("cpu") if smoke else torch.device("cuda", torch.cuda.current_device())
    rows: list[Row] = []
    for case in cases(smoke):
        if only in case.name:
            rows += _told(case.name, lambda case=case: case_rows(case, device))  # type: ignore[misc]
    long = long_case(smoke)
    if only in long.name:
        rows += _told(long.name, lambda: long_rows(long, device))
    return rows


def _told(name: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """A run takes a while: what is known is not lost when it is interrupted."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    rows = measure()
    for row in rows:
        print(f"  {row.name}: {row.ours} {row.unit}, {row.peer_name} {row.peer}", file=sys.stderr, flush=True)
    return rows


def case_rows(case: Case, device: torch.device) -> list[Row]:
    """Our figures of a case, and those of the peer."""
    _free(device)
    limit = bandwidth(device)
    model = random_model(case.config, device, case.bits)
    read = weight_bytes(model) / 1e9
    label = f"{case.name} decode, batch 1"
    single = _decode_rate(model, case, device)
    share = 100 * read * single / limit
    bound = "" if case.share is None else f"{case.share:g} % of {limit:,.0f} GB/s"
    ratio = None if case.share is None else share / case.share
    rows = [
        Row(label, "tok/s", single, limit / read, f"{limit:,.0f} GB/s and nothing else", single * read / limit, None),
        Row(f"{label}: share of the bandwidth", "%", share, case.share, bound, ratio, case.share and 1.0),
    ]
    ours = {batch: _throughput(model, case, batch) for batch in case.batches}
    del model
    _free(device)
    names = {batch: f"{case.name}, batch {batch}, {case.prompt} + {case.new} tokens" for batch in case.batches}
    if not installed("transformers"):
        return rows + [missing(names[batch], "new tok/s", "transformers>=5.0", BATCH_TARGET) for batch in case.batches]
    for batch in case.batches:
        found, note = peer_throughput(case.config, batch, case.prompt, case.new, device)
        _free(device)
        ratio = None if found is None else ours[batch] / found
        rows.append(Row(names[batch], "new tok/s", ours[batch], found, f"{PEER} bf16{note}", ratio, BATCH_TARGET))
    return rows


def bandwidth(device: torch.device) -> float:
    """GB/s that the memory gives, by the better of a copy and a sum."""
    count = 1 << 31 if device.type == "cuda" else 1 << 20
    source = torch.zeros(count, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copying = min(_seconds(lambda: target.copy_(source), device) for _ in range(10))
    words = source.view(torch.float32)
    summing = min(_seconds(lambda: words.sum(), device) for _ in range(10))
    return max(2 * source.nbytes / copying, source.nbytes / summing) / 1e9


def random_model(config: ModelConfig, device: torch.device, bits: Literal["bf16", "int4"]) -> Decoder:
    """Made on the device."""
    with torch.device("meta"):
        model = Decoder(config)
    model = model.to(torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    if bits == "int4":
        quantize_in_place(model, 4, GROUP_SIZE)
    if not runs_on(device):
        return model
    from puyulm.engine.gpu.pack import pack_for_gpu

    return pack_for_gpu(model)


def weight_bytes(model: Decoder) -> int:
    """Bytes that are read for a token: all of the weights, but of the embedding only a row."""
    parts = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return sum(part.nbytes for name, part in parts.items() if not name.startswith("embed."))


def _decode_rate(model: Decoder, case: Case, device: torch.device) -> float:
    """Tokens per second of one sequence, the first one left out; the median of several rounds."""
    engine = Engine(model, config=EngineConfig(memory=_cache_bytes(case, 1), max_running=1, prefix_cache=False))
    prompts = _prompts(case.config, 1, case.prompt)
    rates = []
    for number in range(ROUNDS + 1):
        first = _seconds(lambda: engine.generate(prompts, _params(1)), device)
        whole = _seconds(lambda: engine.generate(prompts, _params(case.new)), device)
        if number:  # the first round compiles and records
            rates.append((case.new - 1) / max(whole - first, 1e-9))
    return statistics.median(rates)


def _throughput(model: Decoder, case: Case, batch: int) -> float:
    """New tokens per second of whole runs."""
    device = model.embed.weight.device
    config = EngineConfig(memory=_cache_bytes(case, batch), max_running=batch, prefix_cache=False)
    engine, prompts = Engine(model, config=config), _prompts(case.config, batch, case.prompt)
    engine.generate(prompts, _params(case.new))  # compiles and records
    times = [_seconds(lambda: engine.generate(prompts, _params(case.new)), device) for _ in range(ROUNDS)]
    return batch * case.new / statistics.median(times)


@functools.cache
def peer_throughput(config: ModelConfig, batch: int, prompt: int, new: int, device: torch.device) -> Found:
    """New tokens per second of whole runs by transformers. What a call costs by itself, as a call for a single token
    shows, is left out."""
    import transformers

    # InternLM2 as transformers knows it: a Llama, whose q, k and v are rows of one matrix of ours.
    shape = transformers.LlamaConfig(**config_to_json(config, "llama"))
    with device:
        model: Any = transformers.AutoModelForCausalLM.from_config(
            shape, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    model.eval()
    settings = transformers.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it advises at every call
    prompts = _prompts(config, batch, prompt)

    def answer(prompts: list[list[int]], new: int) -> int:
        # The manager is kept, so that what is timed does not begin with its making.
        answers = model.generate_batch(
            inputs=prompts, generation_config=settings, persistent_manager=True, max_new_tokens=new
        )
        return sum(len(one.generated_tokens) for one in answers.values())

    try:
        if (made := answer(prompts, new)) != batch * new:
            raise RuntimeError(f"{made} tokens instead of {batch * new}")
        fixed = min(_seconds(lambda: answer(prompts[:1], 1), device) for _ in range(ROUNDS))
        whole = statistics.median(_seconds(lambda: answer(prompts, new), device) for _ in range(ROUNDS))
    except Exception as error:  # a peer that fails is a row, not an end
        return Found(None, f": {type(error).__name__}: {error}"[:100])
    return Found(batch * new / max(whole - fixed, 1e-3), "")


def long_rows(case: Long, device: torch.device) -> list[Row]:
    """Time and memory of a long sequence."""
    _free(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = random_model(case.config, device, "bf16")
    length = case.length + case.new
    num_blocks = -(-length // BLOCK_SIZE)
    cache = KVCache(case.config, num_blocks, model.embed.weight.dtype, device, "int4")
    for codes in (*cache.keys, *cache.values):
        codes.random_(0, 256)
    for scales in (*cache.key_scales, *cache.value_scales):
        scales.uniform_(0.01, 0.02)
    request = Request(0, [FIRST_ID] * length, SamplingParams(max_new_tokens=1))
    request.row = 0
    runner = Runner(model, cache, decode_graphs(model, cache, 1))
    tables = np.arange(num_blocks, dtype=np.int32)[None]

    starts = np.arange(0, case.length, case.chunk)
    measured = starts[np.linspace(0, len(starts) - 1, case.places).astype(int)]
    seconds = []
    for start in measured:
        piece = Piece(request, int(start), int(min(case.chunk, case.length - start)))
        times = [_seconds(lambda piece=piece: runner.run([piece], tables), device) for _ in range(1 + ROUNDS)]  # type: ignore[misc]
        seconds.append(statistics.median(times[1:]))
    prefill = float(np.interp(starts, measured, seconds).sum())

    def decode() -> None:
        for place in range(case.length, length):
            runner.logits(runner.run([Piece(request, place, 1)], tables)).argmax(-1).tolist()

    decode()
    rate = case.new / statistics.median(_seconds(decode, device) for _ in range(ROUNDS))
    name = f"{case.name}, {case.length:,} tokens, int4 cache"
    rows = [
        Row(f"{name}: prefill, added up from {case.places} chunks", "s", prefill, None, "", None, None),
        Row(f"{name}: decode, batch 1", "tok/s", rate, None, "", None, None),
    ]
    if device.type == "cuda":
        rows.append(Row(f"{name}: memory", "GB", torch.cuda.max_memory_allocated() / 1e9, None, "", None, None))
    return rows


def _cache_bytes(case: Case, batch: int) -> int:
    """Room for all sequences at once."""
    config = case.config
    blocks = -(-(case.prompt + case.new) // BLOCK_SIZE) + 1
    return batch * blocks * BLOCK_SIZE * 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2


def _prompts(config: ModelConfig, batch: int, length: int) -> list[list[int]]:
    ids = np.random.default_rng(batch).integers(FIRST_ID, config.vocab_size, (batch, length))
    return [list(map(int, row)) for row in ids]


def _params(new: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_new_tokens=new, ignore_eos=True)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
