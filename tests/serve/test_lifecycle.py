"""Clients that leave, work that fails, engines that hang, and servers that end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from puyulm.engine.chat_answer import ChatAnswer
from puyulm.engine.config import EngineConfig
from puyulm.serve import chat_request
from puyulm.serve.settings import ServeSettings
from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import DEADLINE, Running, running
from tests.waiting import wait_until

ENDLESS: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "stream": True}
SHORT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("lifecycle"), max_position_embeddings=100_000)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    config = EngineConfig(memory=16 << 20, max_running=4)
    with running(model, ServeSettings(stall_seconds=0.2), config, max_queue=2) as started:
        yield started


@contextmanager
def streaming(server: Running, **fields: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun; leaving the block disconnects."""
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=ENDLESS | fields, timeout=DEADLINE) as response:
        lines = response.iter_lines()
        assert response.status_code == 200, response.read()
        assert next(lines).startswith("data: ")
        yield lines


def ended(server: Running, reason: str) -> float:
    """How many sequences have ended in this way."""
    return server.state.metrics.registry.get_sample_value("puyu_requests_total", {"finish_reason": reason}) or 0.0


def test_streams_that_clients_leave_are_ended_and_free_their_blocks(server: Running) -> None:
    before = ended(server, "aborted")
    for n in (1, 3, 1, 2):
        with streaming(server, n=n) as lines:
            next(line for line in lines if '"content":"' in line and '"role"' not in line)
            assert server.engine.scheduler.pool.held
        server.wait_until_free()
    assert ended(server, "aborted") == before + 7


def test_an_answer_in_one_piece_is_ended_when_its_client_leaves(server: Running) -> None:
    before = ended(server, "aborted")
    for path, body in (
        ("/v1/chat/completions", ENDLESS | {"stream": False}),
        ("/v1/completions", {"prompt": ["a", "b"], "ignore_eos": True}),
        ("/v1/responses", {"input": "hi", "text": {"format": {"type": "text"}}}),
    ):
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head.encode() + data)
            if path == "/v1/responses":
                continue  # leaves at once, whatever has been begun
            wait_until(lambda: server.engine.scheduler.pool.held > 0)
        server.wait_until_free()
    server.wait_until_free()
    assert ended(server, "aborted") >= before + 3


def test_a_full_queue_says_when_to_come_again(server: Running) -> None:
    url = f"{server.url}/v1/chat/completions"
    with ThreadPoolExecutor(2) as pool:
        with streaming(server, n=4):
            waiting = [pool.submit(httpx.post, url, json=SHORT, timeout=DEADLINE) for _ in range(2)]
            wait_until(lambda: len(server.engine.scheduler.waiting) == 2)
            refused = httpx.post(url, json=SHORT)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
            assert not any(one.done() for one in waiting)
        assert [one.result().status_code for one in waiting] == [200, 200]
    server.wait_until_free()


def test_who_leaves_the_queue_is_forgotten(server: Running) -> None:
    with streaming(server, n=4):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json={"prompt": ["a", "b"]}, timeout=0.2)
        wait_until(lambda: not server.engine.scheduler.waiting)
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": ["a", "b", "c"]}).status_code == 429
        wait_until(lambda: not server.engine.scheduler.waiting)  # what had found a place in the queue has left it
    server.wait_until_free()


def test_a_failure_in_one_request_fails_that_one_alone(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(ChatAnswer):
        def push(self, id: int, may_stop: bool = True) -> str:
            if "BAD" in str(self._stop):
                raise RuntimeError("a fault of its own")
            return super().push(id, may_stop)

    monkeypatch.setattr(chat_request, "ChatAnswer", Faulty)
    with streaming(server) as lines:
        bad = httpx.post(f"{server.url}/v1/chat/completions", json=SHORT | {"stop": "BAD"})
        assert bad.status_code == 500
        assert bad.json()["error"]["type"] == "server_error"
        assert "a fault of its own" in bad.json()["error"]["message"]
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=ENDLESS | {"stop": "BAD"}) as response:
            events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        assert response.status_code == 200 and "a fault" in events[-1]["error"]["message"]
        assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT).status_code == 200
        assert "content" in next(line for line in lines if line)  # still being written
    server.wait_until_free()


def test_a_failing_step_fails_its_requests_and_the_next_ones_are_served(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine.runner, "run", fail)
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=SHORT)
        assert answer.status_code == 500 and "no memory" in answer.json()["error"]["message"]
    assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT).status_code == 200
    server.wait_until_free()


def test_health_tells_an_engine_that_hangs(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, run = threading.Event(), server.engine.runner.run

    def hang(*args: Any) -> Any:
        go_on.wait(DEADLINE)
        return run(*args)

    def health() -> httpx.Response:
        return httpx.get(f"{server.url}/health")

    assert health().json() == {"status": "ok"}
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(server.engine.runner, "run", hang)
        asked = pool.submit(httpx.post, f"{server.url}/v1/chat/completions", json=SHORT, timeout=DEADLINE)
        wait_until(lambda: health().status_code == 503)
        assert health().json()["status"] == "stalled"
        go_on.set()
        assert asked.result().status_code == 200
    assert health().status_code == 200


def test_reading_a_long_text_does_not_hold_up_the_others(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on, encode = threading.Event(), threading.Event(), server.state.tokenizer.encode

    def slow(text: str, **options: Any) -> list[int]:
        if text == "long":
            reading.set()
            assert go_on.wait(DEADLINE)
        return encode(text, **options)

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(server.state.tokenizer, "encode", slow)
        asked = pool.submit(
            httpx.post, f"{server.url}/v1/completions", json={"prompt": "long", "max_tokens": 1}, timeout=DEADLINE
        )
        assert reading.wait(DEADLINE)
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT).status_code == 200
        assert not asked.done()
        go_on.set()
        assert asked.result().status_code == 200


def test_what_can_never_fit_is_refused_and_does_not_hold_up_the_others(model: Path) -> None:
    with running(model, config=EngineConfig(memory=64 << 10, max_running=4)) as server:
        limit = server.state.cache_tokens
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=SHORT | {"max_tokens": limit + 5})
        assert refused.status_code == 400
        assert f"{limit + 1:,}" in refused.json()["error"]["message"]
        whole = httpx.post(
            f"{server.url}/v1/chat/completions", json=ENDLESS | {"stream": False, "temperature": 0}, timeout=DEADLINE
        )
        assert whole.json()["usage"]["total_tokens"] == limit + 1
        server.wait_until_free()


def test_a_dead_engine_is_told_and_nobody_waits_for_it(model: Path) -> None:
    with running(model) as server:
        server.state.engine.close()
        assert httpx.get(f"{server.url}/health").json() == {"status": "dead"}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=SHORT).status_code == 503


@contextmanager
def process(model: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`puyu serve` as users run it, its first line, and its address."""
    code = "from puyulm.cli import main; raise SystemExit(main())"
    words = [
        sys.executable,
        "-c",
        code,
        "serve",
        str(model),
        "--port",
        "0",
        "--memory",
        "16MiB",
        "--device",
        "cpu",
        *flags,
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            if " at http" not in line:
                child.kill()
            assert " at http" in line, child.communicate()
            yield child, line, line.split(" at ")[1].split("/v1")[0]
        finally:
            child.kill()


def test_sigterm_lets_running_answers_finish(model: Path) -> None:
    with process(model, "--served-model-name", "mine") as (child, line, url):
        assert line.startswith("serving mine at http://127.0.0.1:") and "cache of" in line
        body = ENDLESS | {"max_tokens": 1500}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=DEADLINE) as response:
            lines = response.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{url}/health").status_code == 503)
            assert httpx.get(f"{url}/health").json()["status"] == "draining"
            refused = httpx.post(f"{url}/v1/chat/completions", json=SHORT)
            assert refused.status_code == 503 and refused.headers["retry-after"]
            told = [line for line in lines if line]
        assert told[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in told[-2]
        assert child.wait(DEADLINE) == 0


def test_the_deadline_of_the_end_is_kept(model: Path) -> None:
    with process(model, "--drain-seconds", "0") as (child, _, url):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=ENDLESS, timeout=DEADLINE) as response:
            lines = response.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            told = [line for line in lines if line]
        assert "cut short" in told[-2] and told[-1] == "data: [DONE]"
        assert child.wait(DEADLINE) == 0
        assert child.stderr is not None and "Traceback" not in child.stderr.read()
