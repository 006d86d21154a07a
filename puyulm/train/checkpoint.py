"""Checkpoints to resume a run from: whole or absent, the last few kept, and never taken up by another run.

A run's folder holds `checkpoints/step-00000500/` with `model.safetensors` (parameters by their own names),
`optimizer.safetensors` (`exp_avg.NAME` and so on) and `state.json`. A checkpoint is written beside, flushed to disk and
renamed, so that a process killed at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from puyulm.errors import TrainError

FOLDER = "checkpoints"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class TrainState:
    """How far a run is.

    Attributes:
        step: Optimizer steps done; also the position in the data, since batches are found by their number.
        tokens: Tokens trained on.
        identity: What the run is (flat names to scalars); another identity may not take up the checkpoint.
    """

    step: int
    tokens: int
    identity: dict[str, Any]

    def after(self, tokens: int) -> TrainState:
        """The state after one more step on `tokens` tokens."""
        return replace(self, step=self.step + 1, tokens=self.tokens + tokens)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder."""
    whole = [path for path in (folder / FOLDER).glob("step-*") if all((path / name).is_file() for name in FILES)]
    return max(whole, key=lambda path: path.name, default=None)


def remove_leftovers(folder: Path) -> None:
    """Clears what a killed process left half-written or half-removed."""
    for leftover in (folder / FOLDER).glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState, keep: int
) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep`.

    Raises:
        TrainError: It cannot be written (a full disk); earlier checkpoints are as they were.
    """
    target = folder / FOLDER / f"step-{state.step:08d}"
    partial = target.with_name(f".{target.name}.partial")
    if target.exists():  # the same run at the same step has written it
        return target
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_file(_cpu(_parameters(model)), partial / FILES[0])
        save_file(_cpu(_optimizer_tensors(model, optimizer)), partial / FILES[1])
        (partial / FILES[2]).write_text(json.dumps(asdict(state), indent=2, ensure_ascii=False) + "\n", "utf-8")
        for name in FILES:
            _flush(partial / name)
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainError(f"cannot write the checkpoint {target}: {error}; earlier checkpoints are intact") from error
    _prune(folder, keep)
    return target


def read_state(path: Path) -> TrainState:
    """How far the run was at a checkpoint, without its tensors.

    Raises:
        TrainError: The file is damaged.
    """
    try:
        return TrainState(**json.loads((path / FILES[2]).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainError(f"the checkpoint {path} cannot be read ({error}); remove it to use the one before") from None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Fills the model and the optimizer in place.

    Raises:
        TrainError: A file is damaged, or is of another model.
    """
    state = read_state(path)
    try:
        parameters, moments = load_file(path / FILES[0]), load_file(path / FILES[1])
        _fill(_parameters(model), parameters)
        trained = _trained(model, optimizer)
        for key, value in moments.items():  # key: "exp_avg.layers.0.mlp.down.weight"
            kind, _, name = key.partition(".")
            optimizer.state[trained[name]][kind] = value.to(trained[name].device, copy=True)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise TrainError(f"the checkpoint {path} cannot be read ({error}); remove it to use the one before") from error
    return state


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in optimized}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": value
        for name, parameter in _trained(model, optimizer).items()
        for key, value in optimizer.state[parameter].items()
    }


@torch.no_grad()
def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        if target.shape != values[name].shape:
            raise RuntimeError(f"{name} has shape {list(values[name].shape)}, the model {list(target.shape)}")
        target.copy_(values[name])


def _cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _prune(folder: Path, keep: int) -> None:
    for path in sorted((folder / FOLDER).glob("step-*"))[:-keep]:
        doomed = path.with_name(f".{path.name}.removed")
        os.replace(path, doomed)  # first out of sight: a half-removed checkpoint must not look whole
        shutil.rmtree(doomed, ignore_errors=True)
