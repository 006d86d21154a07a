"""`puyu serve`: its flags, and what it says of wrong ones."""

from __future__ import annotations

import argparse
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from puyulm.cli import main
from puyulm.cli.serve import KEY_VARIABLE, configure, settings_from_args, state_from_args
from tests.engine.adapters import write_adapter
from tests.engine.checkpoints import write_checkpoint
from tests.serve.test_lifecycle import process


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("command"))


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    configure(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rate-limit", "fast"], "60/m"),
        (["--max-body", "much"], "not a size"),
        (["--memory", "all"], "not a size"),
        (["--memory", "1"], "give it more memory"),
        (["--max-queue", "0"], "--max-queue"),
        (["--max-running", "0"], "--max-running"),
        (["--context-length", "512"], "--rope-scaling"),
        (["--context-length", "1"], "--context-length"),
        (["--rope-scaling", "yarn:4"], "rope"),
        (["--rope-scaling", "linear:x"], "rope"),
        (["--chat-format", "nobody"], "unknown chat format"),
        (["--chat-template"], "no chat template"),
        (["--think"], "no thinking mode"),
        (["--lora", "name"], "NAME=PATH"),
        (["--lora", "name=nowhere"], "nowhere"),
        (["--api-key", ""], "--api-key"),
        (["--api-key-file", "nowhere.txt"], "nowhere.txt"),
        (["--ssl-keyfile", "key.pem"], "--ssl-certfile"),
        (["--ssl-certfile", "nowhere.pem"], "nowhere.pem"),
        (["--device", "cuda:99"], "cuda"),
        (["--port", "99999999"], "--port"),
        (["--host", "no.such.host.invalid"], "--host"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(
    model: Path, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    device = [] if "--device" in flags else ["--device", "cpu"]
    assert main(["serve", str(model), "--port", "0", *device, *flags]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.splitlines()[-1].startswith("puyu serve: ")
    assert len([line for line in shown.err.splitlines() if not line.startswith("note: ")]) == 1
    assert shown.out == ""


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "no-such-model", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_keys_come_from_flags_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("b\n\n c \na\n")
    monkeypatch.setenv(KEY_VARIABLE, "d")
    args = parsed("model", "--api-key", "a", "--api-key-file", str(tmp_path / "keys"))
    assert settings_from_args(args).api_keys == ("a", "b", "c", "d")
    monkeypatch.delenv(KEY_VARIABLE)
    assert settings_from_args(parsed("model")).api_keys == ()


def test_flags_reach_the_engine(model: Path, tmp_path: Path) -> None:
    from puyulm.model.checkpoint import load_config

    adapter = write_adapter(tmp_path / "adapter", load_config(model))
    state = state_from_args(
        parsed(
            str(model), "--device", "cpu", "--memory", "1MiB", "--kv-type", "int8", "--max-running", "7",
            "--step-tokens", "64", "--no-prefix-cache", "--rope-scaling", "linear:4", "--context-length", "700",
            "--served-model-name", "a", "--served-model-name", "b", "--lora", f"extra={adapter}", "--max-queue", "3",
        )
    )  # fmt: skip
    try:
        engine = state.engine.engine
        assert (engine.config.memory, engine.config.kv_type, engine.config.prefix_cache) == (1 << 20, "int8", False)
        assert (engine.scheduler.limits.max_running, engine.scheduler.limits.step_tokens) == (7, 64)
        assert (state.config.rope.scaling, state.config.rope.factor) == ("linear", 4.0)
        assert (state.max_length, state.names, list(state.adapters)) == (700, ("a", "b"), ["extra"])
        assert state.engine.max_waiting == 3
    finally:
        state.engine.close()


def test_the_context_is_not_longer_than_what_was_asked_for(model: Path) -> None:
    """A scaling factor stretches positions; it does not multiply a length that was asked for."""
    for flags, longest in (
        ([], 256),
        (["--rope-scaling", "linear:2"], 512),
        (["--rope-scaling", "linear:2", "--context-length", "300"], 300),
        (["--rope-scaling", "dynamic:2.0", "--context-length", "3000"], 3000),
        (["--rope-scaling", "dynamic:2.0", "--memory", "256KiB"], 513),
    ):
        memory = [] if "--memory" in flags else ["--memory", "8MiB"]
        state = state_from_args(parsed(str(model), "--device", "cpu", *flags, *memory))
        state.engine.close()
        assert state.max_length == longest, flags


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_https(model: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate),
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    flags = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    with process(model, *flags) as (_, line, url):
        assert url.startswith("https://127.0.0.1:") and url in line
        trust = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{url}/health", verify=trust).json() == {"status": "ok"}


def test_the_cache_of_a_split_engine_is_that_of_each_process(model: Path) -> None:
    from puyulm.cli.serve import _report

    state = state_from_args(parsed(str(model), "--device", "cpu", "--memory", "1MiB"))
    try:
        assert "in each process" in _report(state, split=True).facts
        assert "process" not in _report(state, split=False).facts
    finally:
        state.engine.close()


@pytest.mark.parametrize(
    ("flags", "local"),
    [([], True), (["--host", "::1"], True), (["--host", "0.0.0.0"], False), (["--api-key", "k"], False)],
)
def test_only_a_server_for_this_machine_without_a_key_looks_at_names(
    model: Path, flags: list[str], local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUYU_API_KEY", raising=False)
    assert settings_from_args(parsed(str(model), *flags)).local is local
