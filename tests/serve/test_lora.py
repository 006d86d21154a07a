"""LoRA adapters as models of a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from puyulm.engine.engine import Engine
from puyulm.engine.load import load_chat_model
from puyulm.engine.request import Request
from puyulm.errors import GenerationError
from tests.engine.adapters import write_adapter
from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import Running, running
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(folder) as started:
        yield started


@pytest.fixture(scope="module")
def adapters(server: Running, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("adapters")
    return [write_adapter(home / str(seed), server.state.config, seed=seed) for seed in (1, 2)]


def post(server: Running, what: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{what}_lora_adapter", json=body, timeout=30)


def test_adapters_are_models_while_they_are_loaded(server: Running, folder: Path, adapters: list[Path]) -> None:
    prompt = server.state.tokenizer.encode("hello", bos=True)
    params = server.state.params.evolve(temperature=0, max_new_tokens=8)
    loaded = load_chat_model(str(folder), device="cpu")  # apart: adapters hang on the modules of a model
    reference = Engine(loaded.model, loaded.tokenizer, server.engine.config)
    for name, path in zip(("one", "two"), adapters, strict=True):
        reference.load_adapter(name, path)
        assert post(server, "load", lora_name=name, lora_path=str(path)).status_code == 200
    expected = {
        model: reference.generate([prompt], params, adapter=None if model == "model" else model)[0].text
        for model in ("model", "one", "two")
    }
    assert len(set(expected.values())) == 3
    with server.client() as client:
        listed = client.models.list().data
        assert [model.id for model in listed] == ["model", "one", "two"]
        assert [model.parent for model in listed] == [None, "model", "model"]  # type: ignore[attr-defined]
        for model, text in expected.items():
            answer = client.completions.create(model=model, prompt="hello", temperature=0, max_tokens=8)
            assert (answer.choices[0].text, answer.model) == (text, model)
        assert post(server, "unload", lora_name="one").status_code == 200
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="one", prompt="hello", max_tokens=1)
    assert post(server, "unload", lora_name="two").status_code == 200
    assert not server.state.adapters


def test_what_cannot_be_loaded_changes_nothing(server: Running, adapters: list[Path], tmp_path: Path) -> None:
    assert post(server, "load", lora_name="model", lora_path=str(adapters[0])).status_code == 400
    assert post(server, "load", lora_name="x", lora_path=str(tmp_path / "nowhere")).status_code == 400
    assert post(server, "load", lora_name="x", lora_path="x" * 5000).status_code == 400  # no file can be called so
    damaged = write_adapter(tmp_path / "damaged", server.state.config)
    (damaged / "adapter_model.safetensors").write_bytes(b"rubbish")
    refused = post(server, "load", lora_name="x", lora_path=str(damaged))
    assert refused.status_code == 400 and "\n" not in refused.json()["error"]["message"]
    assert post(server, "unload", lora_name="x").status_code == 404
    assert not server.state.adapters
    with server.client() as client:
        assert client.completions.create(model="model", prompt="hello", max_tokens=1).choices


def test_an_answer_outlives_its_adapter(
    server: Running, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """It is unloaded while the answer is written, just before its last token."""
    assert post(server, "load", lora_name="brief", lora_path=str(adapters[0])).status_code == 200
    step, forget = server.engine.step, server.state.adapters.pop

    def last_step() -> list[Request]:
        done = step()
        if done and forget("brief", None) is not None:
            server.engine.unload_adapter("brief")
        return done

    monkeypatch.setattr(server.engine, "step", last_step)
    with server.client() as client:
        answer = client.completions.create(model="brief", prompt="hello", max_tokens=3)
    assert answer.model == "brief" and not server.state.adapters


def test_an_adapter_cannot_be_unloaded_while_it_is_loaded(
    server: Running, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(name: str, folder: str) -> None:
        inside.set()
        assert go_on.wait(30)
        raise GenerationError("it is damaged")

    monkeypatch.setattr(server.engine, "load_adapter", slow)
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(post, server, "load", lora_name="late", lora_path=str(adapters[0]))
        assert inside.wait(30)
        with server.client() as client:
            assert "late" not in [one.id for one in client.models.list().data]
        unloading = pool.submit(post, server, "unload", lora_name="late")
        wait_until(lambda: bool(server.state.changing._waiters) or unloading.done())
        go_on.set()
        assert (loading.result().status_code, unloading.result().status_code) == (400, 404)
    assert not server.state.adapters


def test_adapters_are_not_too_many(server: Running, adapters: list[Path]) -> None:
    server.state.adapters.update({f"adapter {number}": "" for number in range(64)})
    try:
        refused = post(server, "load", lora_name="one more", lora_path=str(adapters[0]))
        assert refused.status_code == 400 and "64 adapters" in refused.json()["error"]["message"]
    finally:
        server.state.adapters.clear()
