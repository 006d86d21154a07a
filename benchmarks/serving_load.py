"""Servers under load, and what our scheduler costs.

Load: 64 chat requests at once, of mixed lengths behind one long system prompt, sent to `puyu serve` and to
`transformers serve` with continuous batching: the same model, float32, the same requests, greedy. The servers take
turns, and stand still (SIGSTOP) while the other is asked; every round has other questions behind the same system
prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Row, installed, missing, smaller_is_better

PEER = "transformers serve"
INSTALL = "transformers[serving]>=5.0"
TARGET = 2.0  # requests a second
BOUND_MS = 1.0  # a step of 256 requests, but for the model
MODEL = "smollm2-135m-instruct"
STARTING_SECONDS, ANSWER_SECONDS = 300.0, 900.0

_SYSTEM = "You are an assistant of a library. " + " ".join(
    f"Rule {n}: answer questions about shelf {n} with the title, the author and the year of each book."
    for n in range(1, 13)
)
_TOPICS = ("rivers", "the moon", "bridges", "the history of paper", "bread", "whales", "chess", "volcanoes")


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Attributes:
        requests: All sent at once.
        rounds: Of both servers in turn.
        longest: Tokens of the longest answer.
    """

    requests: int = 64
    rounds: int = 3
    longest: int = 32

    def bodies(self, model: str, number: int) -> list[dict[str, Any]]:
        """The requests of a round."""
        rng = random.Random(number)
        bodies = []
        for _ in range(self.requests):
            topic, count = rng.choice(_TOPICS), rng.randrange(1, 12)
            question = f"Question {rng.randrange(10**9)}: " + " ".join(
                f"Tell me fact {n} about {topic}." for n in range(count)
            )
            messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
            bodies.append({
                "model": model, "messages": messages, "stream": True, "temperature": 0,
                "max_tokens": rng.randrange(self.longest // 3, self.longest + 1),
            })  # fmt: skip
        return bodies


@dataclass(frozen=True)
class Found:
    """One round: requests a second, and seconds to each request's first text."""

    rate: float
    first: Sequence[float]


def run(only: str = "", smoke: bool = False) -> list[Row]:
    """All rows, or those of the groups whose name holds `only`: "scheduler", "load".

    Args:
        smoke: Few requests, one round.
    """
    rows: list[Row] = []
    for name, group in {"scheduler": scheduler_rows, "load": load_rows}.items():
        if only in name:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += group(smoke)
    return rows


def load_rows(smoke: bool = False) -> list[Row]:
    """Requests a second, time to the first text, and what of the prompts our prefix cache held."""
    absent = [module for module in ("transformers", "fastapi", "uvicorn", "openai", "httpx") if not installed(module)]
    if absent:
        return [missing("load: 64 requests at once", "req/s", INSTALL, TARGET)]
    load = Load(6, 1, 8) if smoke else Load()
    with tempfile.TemporaryDirectory(prefix="puyulm-bench-") as name:
        folder = _checkpoint(Path(name))
        found: dict[str, list[Found]] = {"puyulm": [], PEER: []}
        with contextlib.ExitStack() as stack:
            servers = {who: stack.enter_context(Server(_command(who, folder))) for who in found}
            for server in servers.values():
                server.ask(load.bodies(str(folder), 0)[:2])  # starts threads, allocates
            for number in range(load.rounds):
                for who in list(found)[:: 1 if number % 2 == 0 else -1]:
                    found[who].append(servers[who].ask(load.bodies(str(folder), 1 + number)))
            cached = _cached_share(servers["puyulm"].text("/metrics"))
    return _rows(found, load, cached)


def _rows(found: dict[str, list[Found]], load: Load, cached: float) -> list[Row]:
    label = f"load: {load.requests} requests at once"
    pairs = list(zip(found["puyulm"], found[PEER], strict=True))
    rates = [statistics.median(one.rate for one in side) for side in found.values()]
    ratio = statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)
    middle = [(statistics.median(mine.first), statistics.median(theirs.first)) for mine, theirs in pairs]
    latest = [(max(mine.first), max(theirs.first)) for mine, theirs in pairs]
    return [
        Row(f"{label}", "req/s", rates[0], rates[1], PEER, ratio, TARGET),
        smaller_is_better(f"{label}: median time to the first text", "s", middle, PEER, None),
        smaller_is_better(f"{label}: longest time to the first text", "s", latest, PEER, None),
        Row(f"{label}: prompt tokens found in the prefix cache", "%", 100 * cached, None, "", None, None),
    ]


def _checkpoint(folder: Path) -> Path:
    """The small published model in Llama's layout, float32."""
    from puyulm.cli import main

    path = folder / "model"
    if main(["convert", MODEL, str(path), "--layout", "llama", "--dtype", "float32"]):
        raise RuntimeError(f"{MODEL} cannot be had")
    return path


def _command(who: str, folder: Path) -> list[str]:
    if who == "puyulm":
        return [sys.executable, "-m", "puyulm", "serve", str(folder), "--served-model-name", str(folder)]
    return [
        sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder),
        "--continuous-batching", "--device", "cpu", "--dtype", "float32", "--attn-implementation", "sdpa",
    ]  # fmt: skip


class Server:
    """A server's process, from when it answers until the context is left.

    Raises:
        RuntimeError: It ended, or did not answer in time; the message is what it wrote.
    """

    def __init__(self, command: Sequence[str]) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=os.environ | threads, stdout=self._log,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Server:
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                self._read("/health")
                self._signal(signal.SIGSTOP)
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"a server did not start:\n{self._tail()}") from None
            time.sleep(0.2)

    def __exit__(self, *error: object) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def text(self, path: str) -> str:
        """What it gives for a path."""
        self._signal(signal.SIGCONT)
        text = self._read(path)
        self._signal(signal.SIGSTOP)
        return text

    def ask(self, bodies: Sequence[dict[str, Any]]) -> Found:
        """Sends all requests at once and reads their streams to the end."""
        self._signal(signal.SIGCONT)
        started = time.perf_counter()
        first = asyncio.run(self._ask(bodies))
        found = Found(len(bodies) / (time.perf_counter() - started), first)
        self._signal(signal.SIGSTOP)
        return found

    def _read(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return response.read().decode()

    def _signal(self, number: signal.Signals) -> None:
        """To it and its children, which are a group of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _ask(self, bodies: Sequence[dict[str, Any]]) -> list[float]:
        import httpx

        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS, limits=limits) as client:
            return list(await asyncio.gather(*(self._first_text(client, body) for body in bodies)))

    async def _first_text(self, client: Any, body: dict[str, Any]) -> float:
        started, first = time.perf_counter(), None
        async with client.stream("POST", self.url + "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise RuntimeError(f"status {response.status_code}: {(await response.aread())[:500]!r}\n{self._tail()}")
            async for line in response.aiter_lines():
                if first is None and line.startswith("data: {") and _has_text(line):
                    first = time.perf_counter() - started
        if first is None:
            raise RuntimeError(f"a request got no text:\n{self._tail()}")
        return first

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-3000:]


def _has_text(line: str) -> bool:
    choices = json.loads(line.removeprefix("data: ")).get("choices") or []
    return any((choice.get("delta") or {}).get("content") for choice in choices)


def _cached_share(metrics: str) -> float:
    """Of all prompt tokens, the part that was found in the prefix cache."""
    values = dict(re.findall(r"^(puyu_\w+_tokens)(?:_total)? ([\d.e+]+)$", metrics, re.MULTILINE))
    return float(values["puyu_cached_tokens"]) / max(float(values["puyu_prompt_tokens"]), 1.0)


def scheduler_rows(smoke: bool = False) -> list[Row]:
    """Milliseconds of a step of 256 decoding requests with a model of no cost: what the scheduler takes, and all that
    is not the model (block tables, sampling among few tokens, books)."""
    from puyulm.engine.config import EngineConfig
    from puyulm.engine.engine import Engine
    from puyulm.engine.params import SamplingParams
    from puyulm.model.config import ModelConfig
    from puyulm.model.decoder import Decoder

    running, steps = (8, 10) if smoke else (256, 400)
    config = ModelConfig(
        family="llama", vocab_size=256, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=8, max_position_embeddings=4096, dtype="float32",
    )  # fmt: skip
    engine = Engine(Decoder(config).eval(), config=EngineConfig(memory=256 << 20, max_running=running))
    engine.runner.forward = lambda ids, layout: torch.zeros(len(ids), 8)  # type: ignore[method-assign]
    engine.runner.logits = lambda hidden: torch.zeros(len(hidden), 256)  # type: ignore[method-assign]
    rng = random.Random(0)
    params = SamplingParams(temperature=0, max_new_tokens=steps + 100, ignore_eos=True)
    for _ in range(running):
        engine.submit([rng.randrange(3, 256) for _ in range(rng.randrange(100, 600))], params)
    while any(request.answer_length == 0 for request in [*engine.scheduler.waiting, *engine.scheduler.running]):
        engine.step()
    inside = [0.0]
    engine.scheduler.schedule = _timed(engine.scheduler.schedule, inside)  # type: ignore[method-assign]
    engine.scheduler.computed = _timed(engine.scheduler.computed, inside)  # type: ignore[method-assign]
    whole, scheduling = [], []
    for _ in range(steps):
        inside[0], started = 0.0, time.perf_counter()
        engine.step()
        whole.append(1e3 * (time.perf_counter() - started))
        scheduling.append(1e3 * inside[0])
    label = f"{running} running requests, model of no cost"
    found = statistics.median(scheduling)
    return [
        Row(f"scheduler: {label}", "ms a step", found, BOUND_MS, f"bound of {BOUND_MS:g} ms", BOUND_MS / found, 1.0),
        Row(f"all of a step: {label}", "ms a step", statistics.median(whole), None, "", None, None),
    ]


def _timed(function: Callable[..., Any], total: list[float]) -> Callable[..., Any]:
    """The function, whose seconds are added to `total[0]`."""

    def timed(*args: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args)
        finally:
            total[0] += time.perf_counter() - started

    return timed
