"""Clients and web pages that would take more than their share: of memory, of threads, of the event loop."""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from puyulm.serve.limits import MAX_BODIES, Bodies, is_local
from puyulm.serve.protocol import MAX_MESSAGES, MAX_PLACE
from puyulm.serve.settings import ServeSettings
from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import DEADLINE, Running, running
from tests.waiting import wait_until

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("overload"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    with running(model, ServeSettings(local=True)) as started:
        yield started


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    told = response.json()["error"]
    assert set(told) == {"message", "type", "param", "code"} and "\n" not in told["message"]
    return told


def begin(url: str, sent: int, length: int) -> socket.socket:
    """A request that has sent a part of its body."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), DEADLINE)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    client.sendall(head.encode() + b" " * sent)
    return client


def test_a_body_that_stops_half_way_is_given_up(model: Path) -> None:
    with running(model, ServeSettings(body_seconds=0.2)) as server, begin(server.url, 10, 100) as client:
        answer = b""
        while part := client.recv(4096):  # until the server closes
            answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert "0.2 seconds" in json.loads(body)["error"]["message"]
        assert httpx.post(f"{server.url}{CHAT}", json=HI).status_code == 200


def test_a_whole_body_has_no_deadline() -> None:
    """What waits for the client to leave reads on behind the body."""

    async def main() -> None:
        left = asyncio.Event()
        messages = iter([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])

        async def receive() -> Message:
            message = next(messages)
            if message["type"] == "http.disconnect":
                await left.wait()
            return message

        body = Bodies(ServeSettings(body_seconds=0.0)).of(receive)
        assert (await body.receive())["body"] == b"{}"
        leaving = asyncio.create_task(body.receive())
        for _ in range(5):
            await asyncio.sleep(0)
        left.set()
        assert (await leaving)["type"] == "http.disconnect"

    asyncio.run(main())


def test_bodies_of_all_requests_have_a_limit_together(model: Path) -> None:
    with running(model, ServeSettings(max_body=3000)) as server:
        clients = [begin(server.url, 2990, 3000) for _ in range(MAX_BODIES)]
        try:
            large = HI | {"user": "x" * 2500}
            wait_until(lambda: httpx.post(f"{server.url}{CHAT}", json=large).status_code == 429)
            refused = httpx.post(f"{server.url}{CHAT}", json=large)
            assert error(refused, 429)["type"] == "rate_limit_error" and refused.headers["retry-after"] == "1"
        finally:
            for client in clients:
                client.close()
        wait_until(lambda: httpx.post(f"{server.url}{CHAT}", json=large).status_code == 200)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True), ("LocalHost:8000", True), ("127.0.0.1:8000", True), ("[::1]:8000", True), ("[::1]", True),
        ("::1", True), ("127.0.0.2", True), ("evil.example:8000", False), ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False), ("192.168.0.1:8000", False), ("0.0.0.0", False), ("", False),
    ],
)  # fmt: skip
def test_hosts(host: str, local: bool) -> None:
    assert is_local(host) is local


def test_a_page_under_another_name_is_refused(server: Running, http: httpx.Client, model: Path) -> None:
    headers = {"Host": "evil.example:8000"}
    for response in (http.get("/v1/models", headers=headers), http.post(CHAT, json=HI, headers=headers)):
        told = error(response, 403)
        assert "--api-key" in told["message"] and "--host" in told["message"]
    assert http.post(CHAT, json=HI).status_code == 200
    with running(model, ServeSettings(api_keys=("k",))) as other:
        asked = httpx.post(f"{other.url}{CHAT}", json=HI, headers=headers | {"Authorization": "Bearer k"})
        assert asked.status_code == 200


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "text/plain; application/json"]
)
def test_what_pages_may_send_without_asking_is_not_read(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    error(http.post(CHAT, content=json.dumps(HI), headers=headers), 415)


def test_json_may_say_more_of_itself(http: httpx.Client) -> None:
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        assert http.post(CHAT, content=json.dumps(HI), headers={"Content-Type": kind}).status_code == 200


def test_hard_grammars_leave_other_requests_alone(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(server.state.grammars, "check", lambda grammar: go_on.wait(DEADLINE))
    with ThreadPoolExecutor(40) as pool:  # more than asyncio has threads
        ruled = [
            pool.submit(httpx.post, f"{server.url}{CHAT}", json=HI | {"regex": "a+"}, timeout=DEADLINE)
            for _ in range(40)
        ]
        try:
            wait_until(lambda: server.state.compiling._work_queue.qsize() >= 38)
            assert http.post(CHAT, json=HI).status_code == 200
            assert not any(one.done() for one in ruled)
        finally:
            go_on.set()
        assert [one.result().status_code for one in ruled] == [200] * 40


def test_too_many_choices(http: httpx.Client) -> None:
    told = error(http.post(CHAT, json=HI | {"choice": [str(number) for number in range(2001)]}), 400)
    assert told["param"] == "choice" and "2,000" in told["message"] and len(told["message"]) < 100


def test_what_cannot_fit_is_not_encoded(server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    state = server.state
    enough = state.max_length * state.longest_token
    texts = {"ascii": "x" * (enough + 1), "wide": "浦" * (enough // 3 + 1)}
    with monkeypatch.context() as patch:
        patch.setattr(state.tokenizer, "encode", lambda *_, **__: 1 // 0)
        for text in texts.values():
            for path, body, param in (
                (CHAT, {"messages": [{"role": "user", "content": text}]}, "messages"),
                ("/v1/completions", {"prompt": text}, "prompt"),
                ("/v1/embeddings", {"input": text}, "input"),
                ("/v1/completions", {"prompt": [1] * (state.max_length + 1)}, "prompt"),
                ("/v1/embeddings", {"input": [1] * (state.max_length + 1)}, "input"),
            ):
                told = error(http.post(path, json=body), 400)
                assert (told["code"], told["param"]) == ("context_length_exceeded", param)
    assert http.post("/tokenize", json={"prompt": texts["ascii"]}).json()["count"] > state.max_length


def test_every_text_has_as_many_tokens_as_is_said_at_least(server: Running) -> None:
    tokenizer = server.state.tokenizer
    longest = max(range(tokenizer.vocab_size), key=lambda id: len(tokenizer.token_bytes(id)))
    for text in (tokenizer.decode([longest] * 9), " " * 500, "浦语 ▁ é\n" * 50, "hello world " * 50):
        assert len(tokenizer.encode(text)) * server.state.longest_token >= len(text.encode())


def test_long_work_is_done_beside_the_event_loop(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def watch(module: str, name: str) -> None:
        really = getattr(importlib.import_module(f"puyulm.serve.{module}"), name)

        def watched(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is not server.thread:
                seen.add(name)
            return really(*arguments, **options)

        monkeypatch.setattr(f"puyulm.serve.{module}.{name}", watched)

    for module, name in (
        ("tokens", "token_text"), ("completions", "text_logprobs"), ("completions", "_echoed"),
        ("chat", "chat_logprobs"), ("scoring", "_encoded"), ("prompts", "JSONResponse"),
    ):  # fmt: skip
        watch(module, name)
    echo = {"prompt": "hello", "echo": True, "logprobs": 1, "max_tokens": 1}
    for path, body, name in (
        ("/tokenize", {"prompt": "hello", "return_token_strs": True}, "token_text"),
        ("/v1/completions", echo, "text_logprobs"),
        ("/v1/completions", echo | {"stream": True}, "_echoed"),
        (CHAT, HI | {"logprobs": True}, "chat_logprobs"),
        ("/v1/embeddings", {"input": "hello"}, "_encoded"),
        ("/pooling", {"input": "hello"}, "_encoded"),
    ):
        seen.clear()
        assert http.post(path, json=body).status_code == 200
        assert name in seen, path
        assert body.get("stream") or "JSONResponse" in seen, path


def test_too_many_messages(http: httpx.Client) -> None:
    many = [{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1)
    assert "10000 items" in error(http.post(CHAT, json={"messages": many}), 400)["message"]
    assert "10000 items" in error(http.post("/v1/responses", json={"input": many}), 400)["message"]


def test_a_place_in_deep_json_is_named_by_its_beginning(http: httpx.Client) -> None:
    surrogate = '{"messages": ' + '{"' + "k" * 5000 + '": "\\ud800"}}'
    deep = '{"messages": [{"a": ' + '{"b": ' * 150 + '"\\ud800"' + "}" * 152
    keys = '{"messages": [{"role": "user", "content": "a", "' + "k" * 5000 + '": "\\ud800"}]}'
    long = '{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"' + "k" * 5000 + '": "much"}}'
    for body in (surrogate, deep, keys, long):
        told = error(http.post(CHAT, content=body, headers={"Content-Type": "application/json"}), 400)
        assert len(told["message"]) < MAX_PLACE + 100 and len(told["param"] or "") <= MAX_PLACE + 3


def test_a_closed_engine_is_no_fault_of_the_request(model: Path) -> None:
    with running(model) as server:
        server.state.engine.close()
        error(httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"}), 503)
        error(httpx.post(f"{server.url}/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "b"}), 503)
