"""Checkpoints to resume a run from: whole or absent, written by all ranks while training goes on, read by any others.

A run's folder holds `checkpoints/step-00000500/`: what `torch.distributed.checkpoint` writes (each rank its own shards,
replicas once), and `state.json`, which comes last and names every file with its size. A checkpoint is written beside,
flushed to disk and renamed, so that processes killed at any moment leave the earlier ones as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from puyulm.errors import TrainError
from puyulm.parallel.world import World
from puyulm.train.course import Skips
from puyulm.train.settings import TrainSettings

FOLDER, STATE_FILE, METADATA_FILE = "checkpoints", "state.json", ".metadata"
WRITE_TIMEOUT = timedelta(minutes=60)


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
    """The checkpoints of one run. All ranks call every method together, with the same arguments but for the tensors.

    Args:
        folder: Of the run, on a file system that all ranks see.
    """

    def __init__(self, folder: Path, world: World, settings: TrainSettings) -> None:
        self._folder, self._world, self._settings = folder, world, settings
        self._host = _HostCopy()
        # Of the writing threads: what they tell each other must not mix with the messages of training steps.
        self._group = dist.new_group(backend="gloo", timeout=WRITE_TIMEOUT) if world.size > 1 else None
        self._thread: threading.Thread | None = None
        self._error: TrainError | None = None
        self._saved: TrainState | None = None
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

    def newest(self, at_most: int | None = None) -> Path | None:
        """The newest whole checkpoint, or the newest of at most so many steps; the same on all ranks.

        One that is damaged is passed over, with a line that says so.
        """
        if not self._world.main:
            return self._world.share(None)
        return self._world.share(latest_checkpoint(self._folder, at_most, tell=_warn))

    def save(self, tensors: Mapping[str, Tensor], state: TrainState, *, wait: bool = False) -> Path:
        """Copies the tensors to host memory and begins to write them, then removes checkpoints that need not be kept.

        Only one is written at a time: the next save waits for the last.

        Args:
            tensors: By name; of sharded ones (DTensor) each rank writes its shards, plain ones of one name are alike on
                all ranks that have them.
            wait: Return only when it is on disk; else it is written while the next steps are taken.

        Raises:
            TrainError: On all ranks: this one (with `wait`) or the last could not be written, for a full disk, say;
                earlier checkpoints are as they were.
        """
        if state != self._saved:
            self.finish()
            self._host.take(tensors)
            self._saved = state
            # A daemon: an interpreter that is told to end at once does not wait for it.
            self._thread = threading.Thread(target=self._write, args=(dict(tensors), state), daemon=True)
            self._thread.start()
        if wait:
            self.finish()
        return checkpoint_path(self._folder, state.step)

    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> TrainState:
        """Fills the tensors in place, however they were spread over ranks when they were saved.

        A rank reads what it needs, one stored piece at a time.

        Raises:
            TrainError: On all ranks: a file is damaged, or is of another model.
        """
        error: Exception | None = None
        try:
            self._saved = read_state(path)
            dcp.load(
                dict(tensors),
                checkpoint_id=path,
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                no_dist=True,  # ranks need nothing of each other to read, and have different names under a pipeline
            )
        except TrainError as caught:
            error = caught
        except (Exception, CheckpointException) as caught:
            error = _unreadable(path, _reason(caught))
        self._world.raise_alike(error)
        assert self._saved is not None
        return self._saved

    def finish(self) -> None:
        """Waits for what is being written.

        Raises:
            TrainError: On all ranks: it could not be written.
        """
        if self._thread is not None:
            self.close()
            error, self._error = self._error, None
            self._world.raise_alike(error)

    def close(self) -> None:
        """Waits for what is being written, without a word to other ranks: they may not be waiting for one."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def discard_after(self, step: int) -> None:
        """Removes checkpoints of later steps, when the run goes back to this one."""
        self.finish()
        if self._world.main:
            for path in _all_checkpoints(self._folder):
                if step_of(path) > step:
                    _remove(path)

    def _write(self, tensors: dict[str, Tensor], state: TrainState) -> None:
        path = checkpoint_path(self._folder, state.step)
        partial, main = path.with_name(f".{path.name}.partial"), self._world.main
        try:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
            metadata = dcp.save(
                tensors,
                storage_writer=_Writer(partial, per_thread_copy_ahead=0),
                planner=_HostPlanner(self._host),
                process_group=self._group,
                no_dist=self._world.size == 1,
            )
            if main:  # all ranks have written and flushed their files
                _complete(partial, path, state, metadata)
        except (Exception, CheckpointException) as error:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
            self._error = TrainError(
                f"cannot write the checkpoint {path}: {_reason(error)}; earlier checkpoints are intact, "
                "and the same command goes on from the last of them"
            )
            return
        if main:
            self._prune(state)

    def _prune(self, state: TrainState) -> None:
        """Removes what need not be kept. The newest from before a row of steps that were not taken stays: the run may
        go back to it."""
        whole = [path for path in _all_checkpoints(self._folder) if damage(path) is None]
        kept = whole[-self._settings.keep_checkpoints :]
        kept += [path for path in whole if step_of(path) <= state.step - state.streak][-1:]
        if self._settings.keep_every is not None:
            kept += [path for path in whole if step_of(path) % self._settings.keep_every == 0]
        for path in whole:
            if path not in kept:
                _remove(path)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where a run's checkpoint of a step is."""
    return folder / FOLDER / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def latest_checkpoint(
    folder: Path, at_most: int | None = None, *, tell: Callable[[str], None] | None = None
) -> Path | None:
    """The newest whole checkpoint of a run's folder, or the newest of at most so many steps.

    Args:
        tell: Called with a line about each newer one that is damaged.
    """
    for path in reversed(_all_checkpoints(folder)):
        if at_most is None or step_of(path) <= at_most:
            problem = damage(path)
            if problem is None:
                return path
            if tell is not None:
                tell(f"the checkpoint {path} is damaged ({problem}) and not used; remove it")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, as far as names, sizes and the index tell; None for a whole one."""
    try:
        recorded = json.loads((path / STATE_FILE).read_text("utf-8"))
        for name, size in recorded["files"].items():
            if (found := (path / name).stat().st_size) != size:
                return f"{name} has {found:,} bytes, not {size:,}"
        if _digest(path / METADATA_FILE) != recorded["index"]:
            return f"{METADATA_FILE} is not what was written"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE_FILE} cannot be read"
    return None


def read_state(path: Path) -> TrainState:
    """How far the run was at a checkpoint, without its tensors.

    Raises:
        TrainError: The file is damaged.
    """
    try:
        values = json.loads((path / STATE_FILE).read_text("utf-8"))["state"]
        return TrainState(**values | {"skips": tuple(values.get("skips", ()))})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, str(error)) from None


def remove_leftovers(folder: Path) -> None:
    """Clears what a killed process left half-written or half-removed."""
    for leftover in (folder / FOLDER).glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


class _HostCopy:
    """A copy of tensors in host memory, which stays allocated from one checkpoint to the next: fresh memory would cost
    more than the copy, pinned memory much more."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._event: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies this rank's part of the tensors; from a GPU in its own time, but before what is launched next."""
        self._event = None
        for name, tensor in tensors.items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            copy = self.tensors.get(name)
            if copy is None or copy.shape != local.shape or copy.dtype != local.dtype:
                copy = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
                self.tensors[name] = copy
            copy.copy_(local, non_blocking=True)
            if local.is_cuda and self._event is None:
                self._event = torch.cuda.Event()
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until the copy is complete."""
        if self._event is not None:
            # A new thread begins on the first GPU; there, waiting would cost each process of a node some memory.
            with torch.cuda.device(self._event.device):
                self._event.synchronize()


class _HostPlanner(DefaultSavePlanner):
    """Plans by the tensors themselves (meshes, placements), and takes the values from their copies."""

    def __init__(self, host: _HostCopy) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._host = host

    def lookup_object(self, index: MetadataIndex) -> Any:
        self._host.wait()
        return self._host.tensors[index.fqn]


class _Writer(dcp.FileSystemWriter):
    """Tells why a file could not be written: an error from within a file is no longer the operating system's."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise OSError(_reason(error)) from None


def _complete(partial: Path, path: Path, state: TrainState, metadata: Metadata) -> None:
    """Makes a written folder a checkpoint: `state.json` last, then the name."""
    sizes: dict[str, int] = {METADATA_FILE: (partial / METADATA_FILE).stat().st_size}
    for piece in (metadata.storage_data or {}).values():
        sizes[piece.relative_path] = max(sizes.get(piece.relative_path, 0), piece.offset + piece.length)
    values = {"state": asdict(state), "files": sizes, "index": _digest(partial / METADATA_FILE)}
    with (partial / STATE_FILE).open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _flush_folder(partial)
    if path.exists():  # damaged, or of a stretch that the run has left by going back
        _remove(path)
    os.replace(partial, path)
    _flush_folder(path.parent)


def _all_checkpoints(folder: Path) -> list[Path]:
    """Whole and damaged ones, by step."""
    found = [path for path in (folder / FOLDER).glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of)


def _remove(path: Path) -> None:
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    with suppress(OSError):
        os.replace(path, doomed)  # first out of sight: a half-removed checkpoint must not look whole
    shutil.rmtree(doomed, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _reason(error: BaseException) -> str:
    """What went wrong in one line: the first rank's error, and of a chain of errors the operating system's."""
    if isinstance(error, CheckpointException):  # which is no Exception
        error = next(iter(error.failures.values()))[0]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _unreadable(path: Path, why: str) -> TrainError:
    return TrainError(f"the checkpoint {path} cannot be read ({why}); remove it to use the one before")


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
