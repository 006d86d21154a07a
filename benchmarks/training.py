"""Training steps on a CPU, float32: our train_step against transformers and litgpt, on the same weights and tokens.

A step is forward, backward, clipping by the global norm and a fused AdamW; ours also judges and counts, as in a run.
All contenders of a group take turns in one process. Peers use their fastest attention ("sdpa"); on packed rows they get
the block-diagonal mask and the positions that make their result equal to ours. The target of a group stands beside the
peer that was fastest.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.harness import PEAK_MEMORY, Row, in_child, interleaved, missing, smaller_is_better
from benchmarks.training_contenders import (
    INSTALL,
    OURS,
    TRANSFORMERS,
    Contender,
    Work,
    keeps_documents_apart,
    ours,
    peer,
    present,
    write_shards,
)
from puyulm.data.shards import TokenShards
from puyulm.data.stream import TokenStream
from puyulm.model.config import ModelConfig
from puyulm.parallel.build import build_model
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.flops import training_flops
from puyulm.train.loop import train
from puyulm.train.metrics import METRICS_FILE, read_json_lines
from puyulm.train.phases import Phase, Timeline
from puyulm.train.reading import PhasedRows
from puyulm.train.run import open_run
from puyulm.train.settings import TrainSettings
from puyulm.train.sources import Sources

GEMM = "gemm"
ROUNDS, COMPILED = 5, (False, True)
MEMORY_RUNS = 5
GEMM_SIZE = 2048
LOOP_STEPS, LOOP_BOUND = 12, 3.0


def small(vocab_size: int) -> ModelConfig:
    """20.5 M parameters with 8,192 tokens."""
    return ModelConfig(
        family="llama", vocab_size=vocab_size, hidden_size=384, intermediate_size=1024, num_layers=8, num_heads=6,
        num_kv_heads=6, head_dim=64, max_position_embeddings=4096, dtype="float32",
    )  # fmt: skip


def tiny(vocab_size: int) -> ModelConfig:
    """Next to nothing, to see that all runs."""
    return small(vocab_size).evolve(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=2,
                                    head_dim=16)  # fmt: skip


def run(only: str = "", smoke: bool = False) -> list[Row]:
    """All rows, or those of the groups whose name holds `only`.

    Args:
        smoke: Tiny sizes, few rounds, nothing compiled.
    """
    size, vocab, large = (64, 256, 512) if smoke else (512, 8192, 92_544)
    config = tiny if smoke else small
    compiled, rounds = ((False,), 1) if smoke else (COMPILED, ROUNDS)
    groups: dict[str, Callable[[], list[Row]]] = {
        f"rows of {size}": lambda: row_rows(config(vocab), Work(vocab, 4, size), compiled, rounds),
        f"rows of {4 * size}": lambda: row_rows(config(vocab), Work(vocab, 1, 4 * size), compiled, rounds),
        f"packed {size}": lambda: packed_rows(config(vocab), Work(vocab, 4, size, 4), 1.1, compiled, rounds),
        f"packed {4 * size}": lambda: packed_rows(config(vocab), Work(vocab, 1, 4 * size, 8), 1.3, compiled, rounds),
        "vocabulary": lambda: vocabulary_rows(config(large), Work(large, 4, size), rounds, 1 if smoke else MEMORY_RUNS),
        "loop": lambda: loop_rows(config(vocab), Work(vocab, 4, size), 3 if smoke else LOOP_STEPS),
    }
    rows: list[Row] = []
    for name, group in groups.items():
        if only in name:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found = group()
            for row in found:  # a run takes a while: what is known is not lost when it is interrupted
                values = ["-" if value is None else f"{value:,.4g}" for value in (row.ours, row.ratio)]
                print(f"  {row.name}: {values[0]} {row.unit}, {values[1]} of {row.peer_name}", file=sys.stderr)
            rows += found
            gc.collect()
    return rows


def row_rows(config: ModelConfig, work: Work, compiled: Sequence[bool], rounds: int) -> list[Row]:
    """Rows of one document each: eager against eager, compiled against compiled."""
    contenders = {(name, how): _contender(name, config, how) for name in (OURS, *present()) for how in compiled}
    times = measure(contenders, work, rounds)
    label = f"{work.rows} x {work.length:,} tokens"
    rows = [_peak_row(times[GEMM, False])]
    for how, target in zip(compiled, (1.03, 1.0), strict=False):
        mine = {name: seconds for (name, at), seconds in times.items() if at == how and name != GEMM}
        rows += _against(f"{label}, {'compiled' if how else 'eager'}", work, config, mine, target, times[GEMM, False])
    return rows


def packed_rows(config: ModelConfig, work: Work, target: float, compiled: Sequence[bool], rounds: int) -> list[Row]:
    """Rows of several documents: our eager step against the best peer that keeps them apart, eager or compiled."""
    peers = [name for name in present() if keeps_documents_apart(name)]
    contenders = {(OURS, how): _contender(OURS, config, how) for how in compiled}
    contenders |= {(name, how): _contender(name, config, how) for name in peers for how in compiled}
    times = measure(contenders, work, rounds)
    label = f"{work.rows} x {work.length:,} tokens, {work.documents} documents a row"
    rows = []
    for how in compiled:
        mine = {OURS: times[OURS, how]}
        mine |= {
            f"{name}{' compiled' if at else ''}": seconds for (name, at), seconds in times.items() if name in peers
        }
        name = f"{label}, {'compiled' if how else 'eager'}"
        rows += _against(name, work, config, mine, None if how else target, times[GEMM, False])
    return rows


def vocabulary_rows(config: ModelConfig, work: Work, rounds: int, runs: int) -> list[Row]:
    """The same layers with InternLM2's vocabulary; and the memory of its loss alone."""
    contenders = {(name, False): _contender(name, config, False) for name in (OURS, *present())}
    times = measure(contenders, work, rounds)
    rows = _against(
        f"{work.rows} x {work.length:,} tokens, vocabulary {work.vocab_size:,}, eager", work, config,
        {name: seconds for (name, _), seconds in times.items() if name != GEMM}, 1.2, times[GEMM, False],
    )  # fmt: skip
    name = f"peak memory of the loss, vocabulary {work.vocab_size:,}"
    if TRANSFORMERS not in present():
        return [*rows, missing(name, "MB", INSTALL[TRANSFORMERS], 4.0)]
    sizes = [str(value) for value in (work.tokens, config.hidden_size, work.vocab_size)]
    children = [[in_child(_LOSS_MEMORY, who, *sizes)["megabytes"] for who in ("ours", "peer")] for _ in range(runs)]
    return [*rows, smaller_is_better(name, "MB", [(mine, theirs) for mine, theirs in children], TRANSFORMERS, 4.0)]


def loop_rows(config: ModelConfig, work: Work, steps: int) -> list[Row]:
    """What a run does besides forward and backward: reading, clipping, updating, judging, logging."""
    model = build_model(config, World.alone())
    inside: list[float] = []
    plain = model.forward_backward

    def timed(*args: object) -> object:
        started = time.perf_counter()
        result = plain(*args)  # type: ignore[arg-type]
        inside.append(time.perf_counter() - started)
        return result

    model.forward_backward = timed  # type: ignore[method-assign, assignment]
    settings = TrainSettings(lr=1e-4, device="cpu", checkpoint_every=steps + 1, prefetch=2)
    with tempfile.TemporaryDirectory(prefix="puyulm-bench-") as name:
        folder = Path(name)
        write_shards(folder / "data", work, steps)
        stream = TokenStream(TokenShards.open(folder / "data"), seed=0, label="data")
        phase = Phase(steps=steps, seq_len=work.length, batch_tokens=work.tokens)
        course = PhasedRows(Timeline([phase], settings), Sources([stream], [[1.0]], []), work.tokens)
        open_run(folder / "run", {})
        train(model, course, settings, folder / "run", identity={}, fill=lambda model: init_weights(model, 0))
        lines = read_json_lines(folder / "run" / METRICS_FILE)
    whole = [line["seconds"] for line in lines]
    # The first steps warm up; at the last a checkpoint is written.
    shares = [100 * (1 - part / all) for part, all in zip(inside, whole, strict=True)][2 if steps > 4 else 1 : -1]
    found = statistics.median(shares)
    label = f"{work.rows} x {work.length:,} tokens, a run: all but forward and backward"
    return [Row(label, "% of step", found, LOOP_BOUND, f"bound of {LOOP_BOUND:g} %", LOOP_BOUND / found, 1.0)]


def measure(
    contenders: Mapping[tuple[str, bool], Contender], work: Work, rounds: int
) -> dict[tuple[str, bool], list[float]]:
    """Seconds of each contender's steps, and of a matrix product among them, after seeing that their losses agree."""
    steps = {key: contender(work) for key, contender in contenders.items()}
    losses = {key: float(step()) for key, step in steps.items()}
    if max(losses.values()) - min(losses.values()) > 1e-3:
        raise RuntimeError(f"the contenders do not do the same: {losses}")
    a, b = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    out = torch.empty(GEMM_SIZE, GEMM_SIZE)
    return interleaved({**steps, (GEMM, False): lambda: torch.mm(a, b, out=out)}, rounds)


def _contender(name: str, config: ModelConfig, compiled: bool) -> Contender:
    return ours(config, compiled=compiled) if name == OURS else peer(name, config, compiled=compiled)


def _peak(gemm_seconds: Sequence[float]) -> float:
    """GFLOP/s."""
    return 2.0 * GEMM_SIZE**3 / min(gemm_seconds) / 1e9


def _peak_row(gemm_seconds: Sequence[float]) -> Row:
    name = f"matrix product {GEMM_SIZE:,}^3, float32, the best: this machine's peak"
    return Row(name, "GFLOP/s", _peak(gemm_seconds), None, "", None, None)


def _against(
    name: str, work: Work, config: ModelConfig, times: Mapping[str, Sequence[float]], target: float | None,
    gemm_seconds: Sequence[float],
) -> list[Row]:  # fmt: skip
    """A row for every peer, and one of the share of the peak that we and the best reach."""
    peers = sorted((other for other in times if other != OURS), key=lambda other: statistics.median(times[other]))
    mine = times[OURS]
    rows = []
    for other in peers:
        ratio = statistics.median(theirs / own for own, theirs in zip(mine, times[other], strict=True))
        ours_rate, peer_rate = (work.tokens / statistics.median(seconds) for seconds in (mine, times[other]))
        rows.append(Row(name, "tok/s", ours_rate, peer_rate, other, ratio, target if other == peers[0] else None))
    rows += [missing(name, "tok/s", INSTALL[other], None) for other in INSTALL if other not in present()]
    operations = training_flops(config, work.lengths) / 1e9 / _peak(gemm_seconds)
    shares = [100 * operations / statistics.median(times[who]) for who in (OURS, *peers[:1])]
    name = f"{name}: share of the peak"
    if not peers:
        return [*rows, Row(name, "%", shares[0], None, "", None, None)]
    return [*rows, Row(name, "%", shares[0], shares[1], peers[0], shares[0] / shares[1], None)]


_LOSS_MEMORY = (
    """
import json, sys
import torch
torch.set_num_threads(2)
"""
    + PEAK_MEMORY
    + """
tokens, size, vocab = map(int, sys.argv[2:])
hidden = torch.randn(tokens, size, requires_grad=True)
head = torch.randn(vocab, size).mul_(0.02).requires_grad_()
targets = torch.randint(vocab, (tokens,))
if sys.argv[1] == "ours":
    from puyulm.model.loss import linear_cross_entropy
    loss = lambda: linear_cross_entropy(hidden, head, targets, tokens)
else:
    from transformers.loss.loss_utils import ForCausalLMLoss
    loss = lambda: ForCausalLMLoss((hidden @ head.T)[None], None, vocab, shift_labels=targets[None])
before = status("VmRSS")
loss().backward()
print(json.dumps({"megabytes": status("VmHWM") - before}))
"""
)
