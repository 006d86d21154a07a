"""Checkpoints to resume a run from: whole or absent, and never taken up by another run.

A run's folder holds `checkpoints/step-00000500/`. A checkpoint is written beside, flushed to disk and renamed, so that a
process killed at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from puyulm.errors import TrainError
from puyulm.parallel.world import World
from puyulm.train.course import Skips
from puyulm.train.settings import TrainSettings

FOLDER = "checkpoints"
FILES = ("tensors.safetensors", "state.json")


@dataclass(frozen=True)
class TrainState:
    """How far a run is.

    Attributes:
        step: Steps done, taken or not.
        tokens: Tokens trained on, or left out by steps that were not taken.
        identity: What the run is (flat names to scalars); another identity may not take up the checkpoint.
        phase: Number of the phase of the last step.
        skipped: Steps that were not taken.
        streak: Of them, those at the end of the run so far, in a row.
        skips: Data left out by going back, see `Course.skip`.
        rollbacks: How often the run went back to a checkpoint.
    """

    step: int
    tokens: int
    identity: dict[str, Any]
    phase: int = 0
    skipped: int = 0
    streak: int = 0
    skips: Skips = ()
    rollbacks: int = 0


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, world: World, settings: TrainSettings) -> None:
        self._folder, self._world, self._settings = folder, world, settings

    def newest(self, at_most: int | None = None) -> Path | None:
        """The newest whole checkpoint, or the newest of at most so many steps; the same on all ranks."""
        return self._world.share(latest_checkpoint(self._folder, at_most) if self._world.main else None)

    def save(self, tensors: Mapping[str, Tensor], state: TrainState, *, wait: bool = False) -> Path:
        """Writes a checkpoint, then removes those that need not be kept.

        Args:
            tensors: By name; sharded ones (DTensor) are written by the ranks that have them.
            wait: Return only when it is on disk; else it may be written while the next steps are taken.

        Raises:
            TrainError: It cannot be written (a full disk); earlier checkpoints are as they were.
        """
        folder = self._folder
        target = folder / FOLDER / f"step-{state.step:08d}"
        partial = target.with_name(f".{target.name}.partial")
        if target.exists():  # the same run at the same step has written it
            return target
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / FILES[0])
            (partial / FILES[1]).write_text(json.dumps(asdict(state), indent=2, ensure_ascii=False) + "\n", "utf-8")
            for name in FILES:
                _flush(partial / name)
            os.replace(partial, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainError(
                f"cannot write the checkpoint {target}: {error}; earlier checkpoints are intact"
            ) from error
        _prune(folder, self._settings.keep_checkpoints)
        return target

    @torch.no_grad()
    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> TrainState:
        """Fills the tensors in place.

        Raises:
            TrainError: A file is damaged, or is of another model.
        """
        state = read_state(path)
        try:
            stored = load_file(path / FILES[0])
            for name, target in tensors.items():
                if target.shape != stored[name].shape:
                    raise RuntimeError(f"{name} has shape {list(stored[name].shape)}, the model {list(target.shape)}")
                target.copy_(stored[name])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise TrainError(
                f"the checkpoint {path} cannot be read ({error}); remove it to use the one before"
            ) from error
        return state

    def finish(self) -> None:
        """Waits for what is being written.

        Raises:
            TrainError: It could not be written.
        """


def latest_checkpoint(folder: Path, at_most: int | None = None) -> Path | None:
    """The newest whole checkpoint of a run's folder, or the newest of at most so many steps."""
    whole = [path for path in (folder / FOLDER).glob("step-*") if all((path / name).is_file() for name in FILES)]
    return max((p for p in whole if at_most is None or _step(p) <= at_most), key=lambda path: path.name, default=None)


def remove_leftovers(folder: Path) -> None:
    """Clears what a killed process left half-written or half-removed."""
    for leftover in (folder / FOLDER).glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def read_state(path: Path) -> TrainState:
    """How far the run was at a checkpoint, without its tensors.

    Raises:
        TrainError: The file is damaged.
    """
    try:
        values = json.loads((path / FILES[1]).read_text("utf-8"))
        return TrainState(**values | {"skips": tuple(values.get("skips", ()))})
    except (OSError, ValueError, TypeError) as error:
        raise TrainError(f"the checkpoint {path} cannot be read ({error}); remove it to use the one before") from None


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _prune(folder: Path, keep: int) -> None:
    for path in sorted((folder / FOLDER).glob("step-*"))[:-keep]:
        doomed = path.with_name(f".{path.name}.removed")
        os.replace(path, doomed)  # first out of sight: a half-removed checkpoint must not look whole
        shutil.rmtree(doomed, ignore_errors=True)
