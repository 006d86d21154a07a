"""Checkpoints to resume from: whole or absent, and never another run's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from puyulm.errors import TrainError
from puyulm.model.decoder import Decoder
from puyulm.train.checkpoint import (
    TrainState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from puyulm.train.optimizer import adamw
from puyulm.train.run import fingerprint, flatten, open_run
from puyulm.train.settings import TrainSettings
from tests.conftest import tiny_decoder


def trained(seed: int = 0, **changes: object) -> tuple[Decoder, torch.optim.AdamW]:
    """A decoder and an optimizer with moments."""
    decoder = tiny_decoder(seed, **changes)
    optimizer = adamw(decoder, TrainSettings())
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return decoder, optimizer


def save(folder: Path, step: int, keep: int = 2, identity: dict[str, object] | None = None) -> Path:
    state = TrainState(step=step, tokens=10 * step, identity=identity or {})
    return save_checkpoint(folder, *trained(step), state, keep)


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_of_weights_and_moments(tmp_path: Path, tied: bool) -> None:
    decoder, optimizer = trained(1, tie_embeddings=tied)
    state = TrainState(step=7, tokens=70, identity={"seed": 1, "betas": [0.9, 0.95]})
    path = save_checkpoint(tmp_path, decoder, optimizer, state, keep=1)
    other, fresh = trained(2, tie_embeddings=tied)
    assert load_checkpoint(path, other, fresh) == state
    for ours, theirs in zip(decoder.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert optimizer.state[ours].keys() == fresh.state[theirs].keys() >= {"step", "exp_avg", "exp_avg_sq"}
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, fresh.state[theirs][key]) and value.dtype == fresh.state[theirs][key].dtype


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 100):
        save(tmp_path, step, keep=3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000002", "step-00000030", "step-00000100"]  # fmt: skip
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000100"
    assert latest_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_that_lacks_a_file_is_not_picked(tmp_path: Path, name: str) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    (newer / name).unlink()
    assert latest_checkpoint(tmp_path) == older


def test_a_full_disk_is_one_clear_error_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainError, match=r"cannot write the checkpoint .*step-00000002.*No space left.*intact"):
        save(tmp_path, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == [older]


def test_leftovers_of_a_killed_process_are_cleared_and_never_picked(tmp_path: Path) -> None:
    path = save(tmp_path, 1, identity={"a": 1})
    for name in (".step-00000002.partial", ".step-00000000.removed"):
        os.makedirs(tmp_path / "checkpoints" / name)
        (tmp_path / "checkpoints" / name / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == path
    open_run(tmp_path, {"a": 1})
    assert list((tmp_path / "checkpoints").iterdir()) == [path]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 3)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainError, match=r"step-00000003 cannot be read .*; remove it to use the one before"):
        load_checkpoint(path, *trained())


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    with pytest.raises(TrainError, match=r"cannot be read \(.*has shape"):
        load_checkpoint(path, *trained(intermediate_size=64))


def test_another_recipe_may_not_take_up_a_run(tmp_path: Path) -> None:
    identity = {"lr": 0.1, "betas": (0.9, 0.95), "data": "abc"}
    open_run(tmp_path, identity)
    open_run(tmp_path, {"anything": 1})  # nothing is there yet
    save(tmp_path, 1, identity=identity)
    open_run(tmp_path, identity)
    with pytest.raises(TrainError) as caught:
        open_run(tmp_path, {"lr": 0.2, "betas": (0.9, 0.95), "wd": 1})
    for part in ("lr is 0.2, was 0.1", 'data is null, was "abc"', "wd is 1, was null", "--overwrite", str(tmp_path)):
        assert part in str(caught.value)
    assert latest_checkpoint(tmp_path) is not None
    open_run(tmp_path, {"lr": 0.2}, overwrite=True)
    assert latest_checkpoint(tmp_path) is None


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
