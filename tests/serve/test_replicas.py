"""Several servers behind one address, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from puyulm.model.checkpoint import load_config
from tests.engine.adapters import write_adapter
from tests.engine.checkpoints import write_checkpoint
from tests.serve.processes import ENVIRONMENT, Serving, command, serving
from tests.serve.servers import DEADLINE
from tests.waiting import wait_until

pytestmark = pytest.mark.slow  # starts servers many times: minutes

# Plain text: in a conversation random weights may begin a tool call, of which nothing is sent until it ends.
ENDLESS: dict[str, Any] = {"prompt": "hi", "max_tokens": 30_000, "ignore_eos": True, "stream": True, "seed": 1}
SHORT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("replicas"), max_position_embeddings=100_000)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Serving]:
    with serving(model, "--replicas", "2", "--max-body", "100KiB", "--cors", "https://page.example") as started:
        yield started


@contextmanager
def streaming(server: Serving, **fields: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun; leaving the block disconnects."""
    with httpx.stream("POST", f"{server.url}{TEXT}", json=ENDLESS | fields, timeout=DEADLINE) as response:
        lines = response.iter_lines()
        assert response.status_code == 200, response.read()
        assert next(lines).startswith("data: ")
        yield lines


def ready(server: Serving) -> list[str]:
    return list(httpx.get(f"{server.url}/health").json()["replicas"].values())


def messages(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def test_one_address_answers_like_one_server(server: Serving) -> None:
    assert "2 replicas, each with" in server.line and len(server.children) == 2
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)
    assert [one.id for one in client.models.list()] == ["model"]
    whole = client.chat.completions.create(model="model", messages=[{"role": "user", "content": "hi"}], max_tokens=6)
    parts = client.chat.completions.create(
        model="model", messages=[{"role": "user", "content": "hi"}], max_tokens=6, stream=True, temperature=0
    )
    assert whole.usage is not None and whole.usage.completion_tokens <= 6 and len(list(parts)) > 1
    assert httpx.get(f"{server.url}/openapi.json").json()["info"]["title"] == "PuyuLM"


def test_errors_are_those_of_the_protocol(server: Serving) -> None:
    def error(response: httpx.Response, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert len(response.headers.get_list("x-request-id")) == len(response.headers.get_list("date")) == 1
        return response.json()["error"]

    url = f"{server.url}{CHAT}"
    assert error(httpx.post(url, json={}), 400)["param"] == "messages"
    error(httpx.get(url), 405)
    error(httpx.get(f"{server.url}/nothing?a=1"), 404)
    assert "102,400 bytes" in error(httpx.post(url, content=b"x" * 200_000, headers=JSON), 413)["message"]
    error(httpx.post(url, content=b"[" * 50_000, headers=JSON), 400)
    page = httpx.post(url, json=SHORT, headers={"Origin": "https://page.example", "X-Request-Id": "mine"})
    assert page.headers.get_list("access-control-allow-origin") == ["https://page.example"]
    assert page.headers.get_list("x-request-id") == ["mine"]


def test_the_same_beginning_finds_its_cache_and_others_go_elsewhere(server: Serving) -> None:
    def cached(text: str) -> int:
        body = messages(text) | {"max_tokens": 1}
        usage = httpx.post(f"{server.url}{CHAT}", json=body, timeout=DEADLINE).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    texts = [letter * 600 for letter in "abcd"]
    assert all(cached(text) < 100 for text in texts)
    assert all(cached(text + more) >= 512 for more in ("x", "y") for text in texts)
    with streaming(server), streaming(server):  # each has one
        assert server.samples("puyu_requests_running") == [1, 1]
    server.wait_until_free()


def test_metrics_are_merged(server: Serving) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    assert text.count("# TYPE puyu_steps_total counter") == 1
    assert 'puyu_steps_total{replica="0"}' in text and 'puyu_steps_total{replica="1"}' in text
    assert 'puyu_replica_starts_total{replica="1"} 1' in text


def test_who_leaves_frees_the_blocks_of_the_replica(server: Serving) -> None:
    for _ in range(3):
        with streaming(server, n=2):
            assert any(server.samples("puyu_cache_blocks_held"))
        server.wait_until_free()
    body = ENDLESS | {"stream": False}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}{TEXT}", json=body, timeout=0.3)
    server.wait_until_free()


def test_events_come_as_they_are_made(server: Serving) -> None:
    with streaming(server) as lines:
        texts = [line for line, _ in zip(lines, range(40), strict=False) if line]
    assert len(texts) >= 20  # of an answer that does not end


def test_all_replicas_get_an_adapter_also_one_that_comes_later(server: Serving, model: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", load_config(model))
    load = {"lora_name": "mine", "lora_path": str(folder)}

    def statuses(name: str) -> set[int]:
        return {
            httpx.post(f"{server.url}{CHAT}", json=messages(letter) | {"max_tokens": 1, "model": name}).status_code
            for letter in "abcd"
        }

    missing = httpx.post(f"{server.url}/v1/load_lora_adapter", json=load | {"lora_path": str(tmp_path / "none")})
    assert missing.status_code == 400 and statuses("mine") == {404}
    assert httpx.post(f"{server.url}/v1/load_lora_adapter", json=load).status_code == 200
    assert statuses("mine") == {200}
    os.kill(server.children[0], signal.SIGKILL)
    wait_until(lambda: "starting" in ready(server))
    wait_until(lambda: ready(server) == ["ready"] * 2, 60)
    assert statuses("mine") == {200}
    taken = httpx.post(f"{server.url}/v1/load_lora_adapter", json=load)
    assert taken.status_code == 400 and statuses("mine") == {200}
    assert httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 200
    assert statuses("mine") == {404}


def test_a_killed_replica_loses_what_had_begun_alone_and_comes_back(server: Serving) -> None:
    """Under load: nobody sees anything but an answer, or the event that says it was lost."""
    stop = []

    def ask(number: int) -> list[int]:
        found = []
        while not stop:
            body = messages(f"{number}-{len(found)}" * 200) | {"max_tokens": 8, "temperature": 0}
            found.append(httpx.post(f"{server.url}{CHAT}", json=body, timeout=DEADLINE).status_code)
        return found

    with ThreadPoolExecutor(8) as pool, streaming(server) as first, streaming(server) as second:
        starts = sum(server.samples("puyu_replica_starts_total"))
        asked = [pool.submit(ask, number) for number in range(6)]
        try:
            wait_until(lambda: sum(server.samples("puyu_requests_running")) > 2)
            os.kill(server.children[0], signal.SIGKILL)
            endings = [pool.submit(_until_lost, lines) for lines in (first, second)]
            wait_until(lambda: any(one.done() for one in endings))
            wait_until(lambda: sum(server.samples("puyu_replica_starts_total")) > starts)
            wait_until(lambda: ready(server) == ["ready"] * 2, 60)
            assert sorted(one.done() for one in endings) == [False, True]  # the other one is still written
        finally:
            stop.append(True)
        statuses = [status for one in asked for status in one.result()]
        os.kill(server.children[0], signal.SIGKILL)
        assert all(one.result()["type"] == "server_error" for one in endings)
    assert set(statuses) == {200} and len(statuses) > 6
    assert "is started again" in server.told() and "Traceback" not in server.told()
    wait_until(lambda: ready(server) == ["ready"] * 2, 60)
    server.wait_until_free()


def _until_lost(lines: Iterator[str]) -> dict[str, Any]:
    """The error that ends a stream, which keeps to the form of events to its very end."""
    events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-1])
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert "ask again" in error["message"]
    return error


def test_keys_and_rates_are_counted_once_and_sigterm_drains(model: Path) -> None:
    with serving(model, "--replicas", "2", "--api-key", "sk-a", "--rate-limit", "3/h") as server:
        url, text, key = f"{server.url}{CHAT}", f"{server.url}{TEXT}", {"Authorization": "Bearer sk-a"}
        assert httpx.post(url, json=SHORT).status_code == 401
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        body = ENDLESS | {"max_tokens": 1500}
        with httpx.stream("POST", text, json=body, headers=key, timeout=DEADLINE) as response:
            lines = response.iter_lines()
            next(lines)
            statuses = [httpx.post(url, json=messages(text) | SHORT, headers=key).status_code for text in "abc"]
            assert statuses == [200, 200, 429]
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
            assert httpx.post(url, json=SHORT, headers=key).status_code == 503
            told = [line for line in lines if line]
        assert told[-1] == "data: [DONE]" and '"finish_reason":"length"' in told[-2]
        children = server.children
        assert server.process.wait(DEADLINE) == 0
        assert "Traceback" not in server.told() and not any(_runs(pid) for pid in children)


def test_replicas_end_with_a_router_that_is_killed(model: Path) -> None:
    with serving(model, "--replicas", "2", "--drain-seconds", "0") as server:
        children = server.children
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(_runs(pid) for pid in children))


def test_ctrl_c_twice_cuts_short_what_runs(model: Path) -> None:
    with serving(model, "--replicas", "2") as server, streaming(server) as lines:
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
        server.process.send_signal(signal.SIGINT)
        told = [line for line in lines if line]
        assert told[-1] == "data: [DONE]" and "cut short" in told[-2]
        assert server.process.wait(DEADLINE) == 0
        assert "Traceback" not in server.told()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--replicas", "2", "--lora", "a=/nowhere"], "/nowhere"),
        (["--replicas", "0"], "--replicas"),
        (["--replicas", "2", "--tensor-parallel", "2"], "together"),
    ],
)
def test_what_can_never_start_ends_with_one_line(model: Path, flags: list[str], says: str) -> None:
    done = subprocess.run(command(model, *flags), capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
