"""`puyu serve --tensor-parallel 2`: one model on two processes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.load import load_chat_model
from puyulm.model.checkpoint import load_config
from tests.engine.adapters import write_adapter
from tests.engine.checkpoints import write_checkpoint
from tests.serve.processes import ENVIRONMENT, command, serving
from tests.serve.servers import DEADLINE
from tests.waiting import wait_until

pytestmark = pytest.mark.slow  # starts servers many times

TEXT = "/v1/completions"
ENDLESS: dict[str, Any] = {"prompt": "hi", "max_tokens": 30_000, "ignore_eos": True, "stream": True, "seed": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("split"), max_position_embeddings=100_000)


def test_two_processes_answer_as_one_and_end_together(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", load_config(model))
    chat = load_chat_model(str(model), device="cpu")
    engine = Engine(chat.model, chat.tokenizer, EngineConfig(memory=4 << 20))
    params = chat.params.evolve(temperature=0, max_new_tokens=12)
    prompts = ["hello", "a longer text " * 20]
    ids = [chat.tokenizer.encode(prompt, bos=True) for prompt in prompts]
    expected = [done.text for done in engine.generate(ids, params)]
    with serving(model, "--tensor-parallel", "2") as server:
        [follower] = server.children
        body = {"prompt": prompts, "temperature": 0, "max_tokens": 12}
        answer = httpx.post(f"{server.url}{TEXT}", json=body, timeout=DEADLINE).json()
        assert [choice["text"] for choice in answer["choices"]] == expected
        refused = httpx.post(
            f"{server.url}/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": str(adapter)}, timeout=DEADLINE
        )
        assert refused.status_code == 400 and "split over several processes" in refused.json()["error"]["message"]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE) == 0
        assert server.told() == ""
        with pytest.raises(ProcessLookupError):
            os.kill(follower, 0)


def test_a_server_whose_other_process_dies_says_so_and_ends(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, max_position_embeddings=100_000, intermediate_size=128)
    with serving(model, "--tensor-parallel", "2", "--quantize", "int8") as server:
        with httpx.stream("POST", f"{server.url}{TEXT}", json=ENDLESS, timeout=DEADLINE) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            os.kill(server.children[0], signal.SIGKILL)
            told = [line for line in lines if line]
        assert told[-1] == "data: [DONE]" and '"error"' in told[-2]
        assert server.process.wait(DEADLINE) == 1
        assert "process 1 of 2 has ended (status -9)" in server.told() and "Traceback" not in server.told()


def test_a_follower_does_not_outlive_its_leader(model: Path) -> None:
    with serving(model, "--tensor-parallel", "2") as server:
        [follower] = server.children
        server.process.kill()
        server.process.wait()

        def gone() -> bool:
            try:
                os.kill(follower, 0)
            except ProcessLookupError:
                return True
            stat = subprocess.run(["ps", "-o", "stat=", "-p", str(follower)], capture_output=True, text=True).stdout
            return not stat or "Z" in stat

        wait_until(gone)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tensor-parallel", "0"], "--tensor-parallel"),
        (["--tensor-parallel", "3"], "cannot be split over 3"),
        (["--tensor-parallel", "2", "--memory", "1"], "more memory"),
        (["--tensor-parallel", "2", "--lora", "a=/nowhere"], "leave --tensor-parallel out"),
        (["--tensor-parallel", "2", "--quantize", "int8"], "do not divide the 48 columns"),
    ],
)
def test_what_cannot_be_split_is_one_line(model: Path, flags: list[str], says: str) -> None:
    done = subprocess.run(command(model, *flags), capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
