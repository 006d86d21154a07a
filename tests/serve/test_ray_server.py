"""`puyu serve --ray`: two replicas of a local Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from puyulm.cli.serve_ray import _reason, placement
from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.load import load_chat_model
from tests.engine.checkpoints import write_checkpoint
from tests.serve.processes import ENVIRONMENT, Serving, command, serving

TEXT = "/v1/completions"
DEADLINE = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("ray"), max_position_embeddings=100_000)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Serving]:
    pytest.importorskip("ray.serve", exc_type=ImportError)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--ray", "--replicas", "2", "--max-running", "2", "--port", str(port), "--api-key", "sk-a")
    with serving(model, *flags) as started:
        yield started
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(DEADLINE) == 0


def ask(server: Serving, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{TEXT}", json=body, headers={"Authorization": "Bearer sk-a"}, timeout=DEADLINE)


@pytest.mark.slow
def test_two_replicas_of_a_local_ray(server: Serving, model: Path) -> None:
    assert "2 replicas on Ray" in server.line
    chat = load_chat_model(str(model), device="cpu")
    engine = Engine(chat.model, chat.tokenizer, EngineConfig(memory=4 << 20))
    params = chat.params.evolve(temperature=0, max_new_tokens=6)
    texts = [f"text {number}" for number in range(16)]
    expected = [
        done.text for done in engine.generate([chat.tokenizer.encode(text, bos=True) for text in texts], params)
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: ask(server, prompt=text, max_tokens=6, temperature=0), texts))
    assert [answer.json()["choices"][0]["text"] for answer in answers] == expected
    assert httpx.post(f"{server.url}{TEXT}", json={"prompt": "a"}, timeout=DEADLINE).status_code == 401
    assert ask(server, prompt="a", max_tokens=-1).status_code == 400


@pytest.mark.slow
def test_streams_come_as_they_are_made_and_end_with_their_clients(server: Serving) -> None:
    body = {"prompt": "hi", "max_tokens": 30_000, "ignore_eos": True, "stream": True, "seed": 1}
    options: Any = {"json": body, "headers": {"Authorization": "Bearer sk-a"}, "timeout": DEADLINE}
    for _ in range(4):  # more than can be written at once
        with httpx.stream("POST", f"{server.url}{TEXT}", **options) as response:
            lines = response.iter_lines()
            texts = [line for line, _ in zip(lines, range(40), strict=False) if line]
        assert len(texts) >= 19
    assert all(ask(server, prompt="a", max_tokens=2).status_code == 200 for _ in range(4))


@pytest.mark.slow
def test_at_the_end_running_answers_are_finished(server: Serving) -> None:
    body = {"prompt": "hi", "max_tokens": 2000, "ignore_eos": True, "stream": True, "seed": 1}
    options: Any = {"json": body, "headers": {"Authorization": "Bearer sk-a"}, "timeout": DEADLINE}
    with httpx.stream("POST", f"{server.url}{TEXT}", **options) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        *_, before, last = lines
    assert '"finish_reason":"length"' in before and last == "data: [DONE]"
    assert server.process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rate-limit", "5/s"], "each replica would count"),
        (["--tensor-parallel", "2"], "--tensor-parallel"),
        (["--port", "0"], "choose a port"),
    ],
)
def test_what_does_not_work_over_machines_is_one_line(model: Path, flags: list[str], says: str) -> None:
    words = command(model, "--port", "8000", *flags, "--ray")
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=DEADLINE)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_replicas_share_machines_evenly() -> None:
    def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": each} for each in resources] + [
            {"Alive": False, "Resources": {"CPU": 1.0}}
        ]

    assert placement("cpu", 4, nodes({"CPU": 8}, {"CPU": 16})) == ({"num_cpus": 4}, "0/2")
    assert placement(None, 3, nodes({"CPU": 2})) == ({"num_cpus": 1}, "0/3")
    assert placement(None, 4, nodes({"CPU": 64, "GPU": 8})) == ({"num_cpus": 1, "num_gpus": 1}, None)
    assert placement("cpu", 1, nodes({"CPU": 64, "GPU": 8})) == ({"num_cpus": 64}, "0/1")


def test_the_cause_is_found_in_the_report_of_ray() -> None:
    report = """Deploying failed: see the logs. Error:
    RuntimeError: Traceback (most recent call last):
      File "lora.py", line 159, in load
        raise {kind}: no adapter")
    {kind}: a/b: holds no adapter: it is empty
    """
    cause = "a/b: holds no adapter: it is empty"
    assert _reason(report.format(kind="puyulm.errors.CheckpointError")) == cause
    assert _reason(report.format(kind="OSError")) == f"OSError: {cause}"
    assert _reason("Deploying failed.\n") == "Deploying failed."


def test_a_model_that_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    words = command(tmp_path, "--port", "8000", "--ray")
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=DEADLINE)
    assert done.returncode == 2 and str(tmp_path) in done.stderr and len(done.stderr.splitlines()) == 1
