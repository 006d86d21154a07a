"""Checkpoints to resume from: whole or absent, written while training goes on, and never another run's."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puyulm.errors import TrainError
from puyulm.parallel.world import World
from puyulm.train import checkpoint
from puyulm.train.checkpoint import Checkpoints, TrainState, damage, latest_checkpoint, read_state
from puyulm.train.run import fingerprint, flatten, open_run
from puyulm.train.settings import TrainSettings


def some_tensors(seed: int, size: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.a.weight": torch.randn(size, 3, generator=generator),
        "optimizer.a.weight": torch.randn(4, generator=generator).bfloat16(),
        "optimizer.step": torch.tensor(float(seed)),
        "guard.window": torch.randn(2, 4, generator=generator, dtype=torch.float64),
    }


def checkpoints(folder: Path, **settings: object) -> Checkpoints:
    return Checkpoints(folder, World.alone(), TrainSettings(**settings))  # type: ignore[arg-type]


def state_of(step: int, identity: dict[str, object] | None = None, **values: int) -> TrainState:
    return TrainState(step=step, tokens=10 * step, identity=identity or {}, **values)


def save(folder: Path, step: int, **settings: object) -> Path:
    return checkpoints(folder, **settings).save(some_tensors(step), state_of(step), wait=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_round_trip_of_tensors_and_state(tmp_path: Path) -> None:
    tensors = some_tensors(1)
    state = TrainState(
        step=7, tokens=70, identity={"seed": 1, "betas": [0.9, 0.95]}, phase=1, skipped=3, streak=2, skips=(4, 5),
        rollbacks=1,
    )  # fmt: skip
    path = checkpoints(tmp_path).save(tensors, state, wait=True)
    others = some_tensors(2)
    places = {name: tensor.data_ptr() for name, tensor in others.items()}
    assert checkpoints(tmp_path).load(path, others) == state == read_state(path)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]) and others[name].data_ptr() == places[name]
    assert latest_checkpoint(tmp_path) == path and damage(path) is None


class Held:
    """A function that waits to be let go, and says when it was called."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function, self.called, self.go = function, threading.Event(), threading.Event()

    def __call__(self, *arguments: object) -> object:
        self.called.set()
        assert self.go.wait(60)
        return self._function(*arguments)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is what was there when `save` was called, and nobody sees it before it is whole."""
    tensors_held, files_held = Held(checkpoint._Writer.write_data), Held(os.fsync)
    monkeypatch.setattr(checkpoint._Writer, "write_data", lambda *arguments: tensors_held(*arguments))
    monkeypatch.setattr(checkpoint.os, "fsync", files_held)
    of_run, tensors = checkpoints(tmp_path), some_tensors(1)
    path = of_run.save(tensors, state_of(1))
    assert tensors_held.called.wait(60)
    for tensor in tensors.values():
        tensor.zero_()  # the next step, in place
    tensors_held.go.set()
    assert files_held.called.wait(60)
    assert names(tmp_path) == [".step-00000001.partial"] and latest_checkpoint(tmp_path) is None
    files_held.go.set()
    of_run.finish()
    assert latest_checkpoint(tmp_path) == path
    of_run.load(path, tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in some_tensors(1).items())


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(os.fsync)
    monkeypatch.setattr(checkpoint.os, "fsync", held)
    of_run = checkpoints(tmp_path)
    of_run.save(some_tensors(1), state_of(1))
    assert held.called.wait(60)
    second = threading.Thread(target=of_run.save, args=(some_tensors(2), state_of(2)))
    second.start()
    assert names(tmp_path) == [".step-00000001.partial"]  # the second has not begun, or the first would be named
    held.go.set()
    second.join()
    assert "step-00000001" in names(tmp_path)
    of_run.finish()
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    for step in (1, 2):
        tensors = some_tensors(9)
        of_run.load(tmp_path / "checkpoints" / f"step-0000000{step}", tensors)
        assert torch.equal(tensors["model.a.weight"], some_tensors(step)["model.a.weight"])


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 100):
        save(tmp_path, step, keep_checkpoints=3)
    assert names(tmp_path) == ["step-00000002", "step-00000030", "step-00000100"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000100"
    assert latest_checkpoint(tmp_path, at_most=99) == tmp_path / "checkpoints" / "step-00000030"
    assert latest_checkpoint(tmp_path, at_most=1) is None
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_every_so_many_steps_one_is_kept_for_good(tmp_path: Path) -> None:
    for step in range(10, 100, 10):
        save(tmp_path, step, keep_checkpoints=1, keep_every=40)
    assert names(tmp_path) == ["step-00000040", "step-00000080", "step-00000090"]


def test_the_one_from_before_a_row_of_bad_steps_is_kept(tmp_path: Path) -> None:
    of_run = checkpoints(tmp_path, keep_checkpoints=1)
    for step, streak in ((10, 0), (20, 0), (30, 7), (40, 17)):
        of_run.save(some_tensors(step), state_of(step, streak=streak), wait=True)
    assert names(tmp_path) == ["step-00000020", "step-00000040"]
    of_run.save(some_tensors(50), state_of(50), wait=True)
    assert names(tmp_path) == ["step-00000050"]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json"])
def test_a_damaged_checkpoint_is_not_picked(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    whole = (newer / name).read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:]
    for content in (None, whole[:-2], whole[: len(whole) // 2], b"") + ((flipped,) if name == ".metadata" else ()):
        (newer / name).unlink() if content is None else (newer / name).write_bytes(content)
        assert latest_checkpoint(tmp_path) == older
        assert checkpoints(tmp_path).newest() == older
        (line,) = capsys.readouterr().err.splitlines()
        assert str(newer) in line and name in line and "remove it" in line
    (newer / name).write_bytes(whole)
    assert latest_checkpoint(tmp_path) == newer


def test_damaged_ones_do_not_count_among_those_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep_checkpoints=3)
    (tmp_path / "checkpoints" / "step-00000003" / "__0_0.distcp").write_bytes(b"")
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    save(tmp_path, 3, keep_checkpoints=2)  # the run comes by again: the damaged one is replaced
    assert names(tmp_path) == ["step-00000002", "step-00000003"] and latest_checkpoint(tmp_path) is not None
    (tmp_path / "checkpoints" / "step-00000003" / "state.json").unlink()
    save(tmp_path, 4, keep_checkpoints=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_full_disk_is_one_clear_error_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    older, left, flush = save(tmp_path, 1), [calls], os.fsync

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    of_run = checkpoints(tmp_path)
    of_run.save(some_tensors(2), state_of(2))
    with pytest.raises(TrainError, match=r"cannot write the checkpoint .*step-00000002: .*No space left.*intact"):
        of_run.save(some_tensors(3), state_of(3))
    assert list((tmp_path / "checkpoints").iterdir()) == [older]
    of_run.finish()  # said once


def test_a_file_that_grows_too_large_is_the_operating_systems_error(tmp_path: Path) -> None:
    """As on a full disk, the write itself fails, in the middle of a tensor."""
    import resource

    older, of_run = save(tmp_path, 1), checkpoints(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainError, match=r"cannot write the checkpoint .*step-00000002: .*File too large.*intact"):
            of_run.save(some_tensors(2, size=100_000), state_of(2), wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "checkpoints").iterdir()) == [older]


def test_leftovers_of_a_killed_process_are_cleared_and_never_picked(tmp_path: Path) -> None:
    path = checkpoints(tmp_path).save(some_tensors(1), state_of(1, {"a": 1}), wait=True)
    for name in (".step-00000002.partial", ".step-00000000.removed"):
        os.makedirs(tmp_path / "checkpoints" / name)
        (tmp_path / "checkpoints" / name / "__0_0.distcp").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == path
    open_run(tmp_path, {"a": 1})
    assert list((tmp_path / "checkpoints").iterdir()) == [path]


def test_reading_a_damaged_file_names_the_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    whole = (path / "__0_0.distcp").read_bytes()
    (path / "__0_0.distcp").write_bytes(bytes(len(whole)))  # of the right size
    with pytest.raises(TrainError, match=r"step-00000003 cannot be read .*; remove it to use the one before"):
        checkpoints(tmp_path).load(path, some_tensors(1))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    with pytest.raises(TrainError, match=r"cannot be read \(.*[Ss]ize mismatch"):
        checkpoints(tmp_path).load(path, some_tensors(3, size=6))
    with pytest.raises(TrainError, match=r"cannot be read \(.*model\.b"):
        checkpoints(tmp_path).load(path, {"model.b": torch.zeros(2)})


def test_another_recipe_may_not_take_up_a_run(tmp_path: Path) -> None:
    identity = {"lr": 0.1, "betas": (0.9, 0.95), "data": "abc"}
    open_run(tmp_path, identity)
    open_run(tmp_path, {"anything": 1})  # nothing is there yet
    checkpoints(tmp_path).save(some_tensors(1), state_of(1, identity), wait=True)
    open_run(tmp_path, identity)
    with pytest.raises(TrainError) as caught:
        open_run(tmp_path, {"lr": 0.2, "betas": (0.9, 0.95), "wd": 1})
    for part in ("lr is 0.2, was 0.1", 'data is null, was "abc"', "wd is 1, was null", "--overwrite", str(tmp_path)):
        assert part in str(caught.value)
    assert latest_checkpoint(tmp_path) is not None
    open_run(tmp_path, {"lr": 0.2}, overwrite=True)
    assert latest_checkpoint(tmp_path) is None


def test_a_phase_to_come_may_be_changed(tmp_path: Path) -> None:
    identity = {"phases.0.lr": 1, "phases.1.lr": 2, "phases.2.lr": 3}
    checkpoints(tmp_path).save(some_tensors(1), state_of(1, identity, phase=1), wait=True)
    open_run(tmp_path, identity | {"phases.2.lr": 4, "phases.3.lr": 5})
    with pytest.raises(TrainError, match=r"phases\.1\.lr is 4, was 2"):
        open_run(tmp_path, identity | {"phases.1.lr": 4})


def test_fingerprints_see_names_sizes_and_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puyulm.train.run.FINGERPRINT_BYTES", 4)
    file = tmp_path / "a"
    seen = set()
    for content in (b"0123456789ab", b"1123456789ab", b"0123456789aX", b"0123456789abc"):
        file.write_bytes(content)
        seen.add(fingerprint(file))
    seen.add(fingerprint(tmp_path))  # a folder of one file: the same as that file
    assert len(seen) == 4
    seen.add(fingerprint(file.rename(tmp_path / "b")))
    assert len(seen) == 5


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": None}) == {"a.b.c": 1, "a.d": [2], "e": None}
