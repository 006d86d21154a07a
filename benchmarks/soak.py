"""`python -m benchmarks.soak`: a server under a thousand requests, some of whose clients leave or write nonsense.

Each answer is compared with the one that the same request gets when it is asked alone: greedy answers are the same bits
in any company, so lost or mixed ones show. In the end no block of the cache may be held, and the server's memory must
not have grown from round to round. Exits with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from puyulm.model.presets import DEFAULT_MODEL

QUESTIONS = [f"Tell me {count} things about {what}." for what in ("rivers", "bread", "chess") for count in range(1, 9)]
NONSENSE: list[dict[str, Any]] = [
    {"messages": []}, {"messages": 3}, {"messages": [{"role": "user", "content": "x"}], "temperature": -1},
    {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10**9}, {},
]  # fmt: skip


def body_of(question: str, number: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 4 + number % 13,
        "stream": number % 2 == 0,
    }  # fmt: skip


async def ask(client: httpx.AsyncClient, body: dict[str, Any], leave_after: int | None = None) -> str | None:
    """The answer's text; None for a client that has left."""
    if not body["stream"]:
        answer = await client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        return answer.json()["choices"][0]["message"]["content"]
    text, chunks = "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                chunks += 1
                if leave_after is not None and chunks > leave_after:
                    return None
    return text


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split(" ")[0].split("{")[0] == name)


async def one(client: httpx.AsyncClient, number: int, expected: dict[str, str], seen: Counter[str]) -> None:
    chance = random.Random(number)
    if chance.random() < 0.1:
        answer = await client.post("/v1/chat/completions", json=chance.choice(NONSENSE))
        seen["refused" if 400 <= answer.status_code < 500 else "WRONG: nonsense was answered"] += 1
        return
    question = chance.choice(QUESTIONS)
    body = body_of(question, number)
    leave = chance.randrange(4) if body["stream"] and chance.random() < 0.3 else None
    try:
        text = await ask(client, body, leave)
    except httpx.HTTPError as error:
        seen[f"WRONG: {type(error).__name__} {error}"[:100]] += 1
        return
    right = text is None or text == expected[json.dumps(body, sort_keys=True)]
    seen["left" if text is None else "right" if right else "WRONG: another answer"] += 1


async def soak(url: str, pid: int, requests: int, rounds: int) -> bool:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        expected = {}
        for body in (body_of(question, number) for question in QUESTIONS for number in range(26)):  # all that there are
            expected[json.dumps(body, sort_keys=True)] = await ask(client, body) or ""
        sizes, good = [], True
        for number in range(rounds):
            seen: Counter[str] = Counter()
            await asyncio.gather(*(one(client, number * requests + n, expected, seen) for n in range(requests)))
            while await metric(client, "puyu_requests_running") + await metric(client, "puyu_requests_waiting"):
                await asyncio.sleep(0.05)
            held = await metric(client, "puyu_cache_blocks_held")
            sizes.append(resident(pid))
            good &= held == 0 and not any(kind.startswith("WRONG") for kind in seen)
            print(f"round {number + 1}: {dict(seen)}, {held:.0f} blocks held, {sizes[-1]:.0f} MB", flush=True)
        # The first round fills caches and pools.
        grown = sizes[-1] - sizes[min(1, rounds - 1)]
        print(f"memory grew by {grown:.0f} MB after the second round")
        return good and grown < 0.05 * sizes[0]


def resident(pid: int) -> float:
    """Megabytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="[%(default)s]")
    parser.add_argument("--requests", type=int, default=1000, help="at once, in a round [1000]")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    command = [sys.executable, "-m", "puyulm", "serve", args.model, "--port", "0", "--memory", "512MiB",
               "--max-queue", "100000"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            url = next(word for word in line.split() if word.startswith("http")).removesuffix("/v1")
            print(line.strip(), flush=True)
            good = asyncio.run(soak(url, server.pid, args.requests, args.rounds))
        finally:
            server.send_signal(signal.SIGTERM)
    print("good" if good and server.returncode == 0 else f"NOT GOOD (the server ended with {server.returncode})")
    return 0 if good and server.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
