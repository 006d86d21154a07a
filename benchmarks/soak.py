"""`python -m benchmarks.soak`: a server under a thousand requests at once, of whose clients some leave or write
nonsense.

Each answer is compared with the one that the same request gets when it is asked alone: greedy answers are the same bits
in any company, so lost or mixed ones show. After each round no block of the cache may be held, and the server's memory
must not grow from round to round. With `--replicas` one of them is killed in the middle of one more round: others
answer for it, only streams that it had begun are lost, and it comes back. Exits with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from puyulm.model.presets import DEFAULT_MODEL

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTIONS = [f"Tell me {count} things about {what}." for what in ("rivers", "bread", "chess") for count in range(1, 9)]
SYSTEM = {"role": "system", "content": "You know much and say little. " * 20}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
NONSENSE: list[tuple[str, Any]] = [
    (CHAT, {"messages": []}), (CHAT, {"messages": 3}), (CHAT, {}), (CHAT, []), (TEXT, {"prompt": [-1]}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "temperature": -1}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10**9}),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}}),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}), ("/v1/nothing", {}),
    (TEXT, {"prompt": "x", "model": "?"}),
]  # fmt: skip
LEAVING, WRITING_NONSENSE = 0.15, 0.1  # shares of the clients
WRONG = "WRONG"
# A server ends idle connections after 5 seconds, perhaps just when one is used again.
LIMITS = httpx.Limits(max_connections=None, keepalive_expiry=2)


@dataclass(frozen=True)
class Ask:
    """A request and, once it was asked alone, its answer."""

    path: str
    body: dict[str, Any]
    expected: Any = None


class Lost(Exception):
    """A stream that ended with an error, as those of a replica that was killed do."""


def asks(tools: bool) -> list[Ask]:
    """Requests of several kinds and lengths.

    Args:
        tools: The model's format has a way to call them.
    """
    found = []
    for number, question in enumerate(QUESTIONS):
        common: dict[str, Any] = {"temperature": 0, "max_tokens": 4 + number % 13}
        chat: dict[str, Any] = common | {"messages": [{"role": "user", "content": question}]}
        found += [
            Ask(CHAT, chat),
            Ask(CHAT, chat | {"messages": [SYSTEM, *chat["messages"]], "n": 1 + number % 2}),
            Ask(CHAT, chat | {"stop": ["e", "the\n"], "logit_bias": {"5": 2}, "presence_penalty": 0.5}),
            Ask(TEXT, common | {"prompt": question * (1 + number % 5), "stop": [" a"]}),
            Ask(
                CHAT,
                chat | {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            ),
        ]
        if tools:
            found.append(Ask(CHAT, chat | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 40}))
    return found


async def answer_of(
    client: httpx.AsyncClient, ask: Ask, leave_after: int | None = None, *, stream: bool = False
) -> Any:
    """What a request gets, streamed or not in the same form; None for a client that has left.

    Raises:
        Lost: The answer broke off, with an error that says so.
    """
    if not stream:
        response = await client.post(ask.path, json=ask.body)
        if response.status_code in (502, 503):
            raise Lost(response.text)
        response.raise_for_status()
        return [_choice(choice, choice.get("message", choice)) for choice in response.json()["choices"]]
    choices: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    events = 0
    async with client.stream("POST", ask.path, json=ask.body | {"stream": True}) as response:
        if response.status_code in (502, 503):
            raise Lost(str(response.status_code))
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise Lost(event["error"]["message"])
            for choice in event["choices"]:
                whole, message = choices.setdefault(
                    choice["index"], ({}, {"content": "", "text": "", "tool_calls": []})
                )
                whole["finish_reason"] = choice["finish_reason"]
                _add(message, choice.get("delta", choice))
            events += 1
            if leave_after is not None and events > leave_after:
                return None
    if not _is_end(line):
        raise ValueError("a stream ended without its last event")
    return [_choice(*choices[index]) for index in sorted(choices)]


def _is_end(line: str) -> bool:
    return line in ("", "data: [DONE]")


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key in ("content", "text"):
        message[key] += delta.get(key) or ""
    for call in delta.get("tool_calls") or []:
        if call["index"] == len(message["tool_calls"]):
            message["tool_calls"].append({"function": {"name": call["function"]["name"], "arguments": ""}})
        message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"].get("arguments") or ""


def _choice(choice: dict[str, Any], message: dict[str, Any]) -> Any:
    calls = [
        (call["function"]["name"], _read(call["function"]["arguments"])) for call in message.get("tool_calls") or []
    ]
    return [message.get("content") or message.get("text") or "", calls, choice["finish_reason"]]


def _read(arguments: str) -> Any:
    """A stream has the blanks that the model wrote, a whole answer has not."""
    try:
        return json.loads(arguments)
    except ValueError:  # cut by its length
        return arguments


async def one(client: httpx.AsyncClient, chance: random.Random, known: list[Ask], seen: Counter[str]) -> None:
    """What one client does, counted by how it ended."""
    try:
        if chance.random() < WRITING_NONSENSE:
            path, body = chance.choice(NONSENSE)
            status = (await client.post(path, json=body)).status_code
            seen["refused" if 400 <= status < 500 else "lost" if status in (502, 503) else f"{WRONG}: {status}"] += 1
            return
        ask, stream = chance.choice(known), chance.random() < 0.5
        if chance.random() < LEAVING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if stream else chance.random()):
                    await answer_of(client, ask, chance.randrange(4), stream=stream)
            seen["left"] += 1
            return
        answer = await answer_of(client, ask, stream=stream)
        seen["right" if answer == ask.expected else f"{WRONG}: {answer} for {ask.expected}"[:200]] += 1
    except Lost:
        seen["lost"] += 1
    except Exception as error:
        seen[f"{WRONG}: {type(error).__name__} {error}"[:200]] += 1


async def metric(client: httpx.AsyncClient, name: str) -> float:
    """Summed over replicas."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split(" ")[0].split("{")[0] == name)


async def soak(url: str, pids: list[int], requests: int, rounds: int, victim: int | None = None) -> bool:
    """Whether all was well.

    Args:
        pids: Processes whose memory is looked at.
        victim: A replica to be killed in one more round.
    """
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=LIMITS) as client:
        tools = (await client.post(CHAT, json=asks(True)[-1].body)).status_code == 200
        known = [Ask(ask.path, ask.body, await answer_of(client, ask)) for ask in asks(tools)]
        sizes, good = [], True
        for number in range(rounds + (victim is not None)):
            kills = number == rounds
            seen: Counter[str] = Counter()
            clients = [one(client, random.Random(number * requests + n), known, seen) for n in range(requests)]
            working = asyncio.gather(*clients)
            if kills:
                assert victim is not None
                while sum(seen.values()) < requests // 4:
                    await asyncio.sleep(0.01)
                os.kill(victim, signal.SIGKILL)
            await working
            async with asyncio.timeout(120):
                while kills and set((await client.get("/health")).json()["replicas"].values()) != {"ready"}:
                    await asyncio.sleep(0.1)
                # A client that has left is noticed a moment later.
                while held := await metric(client, "puyu_cache_blocks_held"):
                    await asyncio.sleep(0.05)
            good &= not any(kind.startswith(WRONG) for kind in seen) and (kills or "lost" not in seen)
            if not kills:
                sizes.append(sum(resident(pid) for pid in pids))
            what = "round with a killed replica" if kills else f"round {number + 1}"
            print(f"{what}: {dict(seen)}, {held:.0f} blocks held, {sizes[-1]:.0f} MB", flush=True)
    # The first round fills caches and pools.
    grown = sizes[-1] - sizes[min(1, rounds - 1)]
    print(f"memory grew by {grown:.0f} MB after the second round")
    return good and grown <= 0.05 * sizes[0]


def resident(pid: int) -> float:
    """Megabytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def served(model: str, replicas: int, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's address, and its process, which is ended after."""
    command = [sys.executable, "-m", "puyulm", "serve", model, "--port", "0", "--max-queue", "100000",
               "--replicas", str(replicas), *flags]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            print(line.strip(), flush=True)
            yield next(word for word in line.split() if word.startswith("http")).removesuffix("/v1"), server
        finally:
            server.send_signal(signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="[%(default)s]")
    parser.add_argument("--requests", type=int, default=1000, help="at once, in a round [1000]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1, help="above 1 one of them is killed in a last round")
    parser.add_argument("--url", help="of a server that runs, whose memory and processes are left alone")
    args = parser.parse_args()
    if args.url:
        good = asyncio.run(soak(args.url, [], args.requests, args.rounds))
    else:
        with served(args.model, args.replicas, "--memory", "512MiB") as (url, server):
            replicas = children(server.pid) if args.replicas > 1 else []
            pids, victim = [server.pid, *replicas], replicas[0] if replicas else None
            good = asyncio.run(soak(url, pids, args.requests, args.rounds, victim))
        good &= server.returncode == 0
    print("good" if good else "NOT GOOD")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
