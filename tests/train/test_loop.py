"""The loop: what it learns, what it writes, and that stopping it at any time changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.errors import TrainError
from puyulm.model.decoder import Decoder
from puyulm.train import loop
from puyulm.train.checkpoint import latest_checkpoint
from puyulm.train.loop import batch_loss, train, train_step
from puyulm.train.metrics import read_json_lines
from puyulm.train.optimizer import adamw
from puyulm.train.run import open_run
from puyulm.train.settings import TrainSettings
from tests.conftest import tiny_decoder
from tests.train.runs import IDENTITY, Counting, measure, pack, run, run_all

CPU = torch.device("cpu")
CURVE = ("step", "tokens", "lr", "loss", "grad_norm")


def curve(folder: Path) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in CURVE) for row in read_json_lines(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    latest = latest_checkpoint(folder)
    assert latest is not None
    return load_file(latest / "model.safetensors") | load_file(latest / "optimizer.safetensors")


def assert_same_run(folder: Path, other: Path) -> None:
    assert curve(folder) == curve(other)
    assert read_json_lines(folder / "validation.jsonl") == read_json_lines(other / "validation.jsonl")
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_learns_and_writes_a_line_a_step(tmp_path: Path) -> None:
    result = run(tmp_path, steps=40, validate=measure, eval_every=15, lr=1e-2)
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert rows[-1]["lr"] == pytest.approx(1e-3) and max(row["lr"] for row in rows) == pytest.approx(1e-2)
    assert all(row["tokens_per_second"] > 0 and row["gflop_per_second"] > 0 for row in rows)
    assert rows[-1]["tokens"] == result.tokens == sum(len(Counting().batch(step).tokens) for step in range(40))
    assert [row["step"] for row in read_json_lines(tmp_path / "validation.jsonl")] == [15, 30, 40]
    assert result.validation.keys() == {"loss"} and result.steps == 40
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000036", "step-00000040"]


def test_bits_per_byte_of_a_loss(tmp_path: Path) -> None:
    open_run(tmp_path, IDENTITY)
    train(tiny_decoder(), Counting(), TrainSettings(device="cpu"), tmp_path, steps=1, identity=IDENTITY,
          bits_per_byte_factor=0.25)  # fmt: skip
    (row,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert row["bits_per_byte"] == row["loss"] / 4


@pytest.mark.parametrize("split", [2, 3, 6])
def test_accumulation_changes_nothing_but_rounding(split: int) -> None:
    """Micro-batches with very different numbers of target tokens give the loss and gradients of the whole."""
    whole = _first_step(split=1)
    parts = _first_step(split=split)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6) and parts[1] == pytest.approx(whole[1], rel=1e-5)


def _first_step(split: int) -> tuple[float, float]:
    decoder, settings = tiny_decoder(), TrainSettings(clip_norm=1e9)
    batches = [Counting(split=split).batch(i) for i in range(split)]
    assert split == 1 or len({batch.num_targets for batch in batches}) > 1
    loss, norm = train_step(decoder, adamw(decoder, settings), batches, settings, CPU)
    return float(loss), float(norm)


def test_the_loss_is_the_mean_over_target_tokens() -> None:
    decoder = tiny_decoder()
    batch = Counting().batch(0)
    losses = []
    for tokens, targets in zip(*(np.split(x, np.cumsum(batch.lengths)[:-1]) for x in (batch.tokens, batch.targets)),
                               strict=True):  # fmt: skip
        one = PackedBatch(tokens, targets, [len(tokens)], 0)
        losses.append(batch_loss(decoder, one, 1.0, CPU, torch.float32).item())
    together = batch_loss(decoder, batch, batch.num_targets, CPU, torch.float32).item()
    assert together == pytest.approx(sum(losses) / batch.num_targets, rel=1e-6)


def test_tokens_without_loss_are_left_out_of_the_head() -> None:
    """The sparse path (few targets) gives the loss and the gradients of the dense one."""
    batch = Counting().batch(1)
    few = PackedBatch(
        batch.tokens, np.where(np.arange(len(batch.targets)) % 3, IGNORE, batch.targets), batch.lengths, 0
    )
    gradients = []
    for threshold in (0.0, 1.0):
        decoder = tiny_decoder()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "SPARSE", threshold)
            batch_loss(decoder, few, few.num_targets, CPU, torch.float32).backward()
        gradients.append([parameter.grad for parameter in decoder.parameters()])
    for dense, sparse in zip(*gradients, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-7)


def test_bfloat16_forward_stays_near_float32() -> None:
    decoder, batch = tiny_decoder(), Counting().batch(2)
    exact = batch_loss(decoder, batch, batch.num_targets, CPU, torch.float32).item()
    loss = batch_loss(decoder, batch, batch.num_targets, CPU, torch.bfloat16)
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.02) and loss.item() != exact
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in decoder.parameters())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run_all(folder)
    return folder


@dataclass(frozen=True)
class ActAt(Counting):
    """Does something when asked for one batch."""

    at: int = 0
    action: Callable[[], object] = lambda: None

    def batch(self, step: int) -> PackedBatch:
        if step == self.at:
            self.action()
        return super().batch(step)


def pull_the_plug() -> None:
    raise RuntimeError("pulled the plug")


def test_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path, whole: Path) -> None:
    for step in (3, 6, 10, 15):  # not where checkpoints are: the steps since the last one are done again
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run_all(tmp_path, source=ActAt(at=step, action=pull_the_plug))
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)
    assert [row[0] for row in curve(tmp_path)] == list(range(1, 18))


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path, whole: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.train.runs", str(tmp_path), "10"], cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"  # before step 11
    process.kill()
    process.communicate()
    assert _latest(tmp_path) == "step-00000008"
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_saves(
    tmp_path: Path, whole: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, source=ActAt(at=9, action=lambda: signal.raise_signal(number)))
    printed = capfd.readouterr().err
    assert "stopping after this step" in printed and "stopped after step 10" in printed
    assert _latest(tmp_path) == "step-00000010"
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_second_signal_stops_at_once(tmp_path: Path, whole: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, source=ActAt(at=9, action=twice))
    assert _latest(tmp_path) == "step-00000008"
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_signal_in_the_last_step_ends_the_command_with_the_run_complete(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, source=ActAt(at=16, action=lambda: signal.raise_signal(signal.SIGINT)))
    assert_same_run(tmp_path, whole)
    run_all(tmp_path, source=ActAt(at=0, action=pull_the_plug))  # trains no further
    assert_same_run(tmp_path, whole)


def test_a_signal_in_the_last_validation_ends_the_command(tmp_path: Path) -> None:
    def interrupted(decoder: Decoder) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return measure(decoder)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, steps=3, validate=interrupted)
    assert _latest(tmp_path) == "step-00000003"
    assert run(tmp_path, steps=3, validate=_never).steps == 3


def _latest(folder: Path) -> str:
    latest = latest_checkpoint(folder)
    assert latest is not None
    return latest.name


def test_a_finished_run_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path, steps=5, validate=measure)
    again = run(tmp_path, steps=5, validate=_never, source=ActAt(at=0, action=pull_the_plug))
    assert again == first and "already trained" in capsys.readouterr().err


def _never(decoder: Decoder) -> dict[str, float]:
    raise AssertionError("validated again")


def test_a_validation_that_was_missed_is_made_up_for(tmp_path: Path, whole: Path) -> None:
    run_all(tmp_path)
    lines = (tmp_path / "validation.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "validation.jsonl").write_text("".join(lines[:-1]) + lines[-1][:9])  # killed while writing it
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, log_every: int) -> None:
    def poison() -> None:
        with torch.no_grad():
            decoder.norm.weight[0] = float("nan")

    decoder = tiny_decoder()
    settings = TrainSettings(checkpoint_every=4, log_every=log_every, device="cpu")
    with pytest.raises(TrainError) as caught:
        train(decoder, ActAt(at=6, action=poison), settings, tmp_path, steps=20, identity=IDENTITY)
    assert "step 7: the loss is nan" in str(caught.value) and "settings.lr" in str(caught.value)
    assert str(latest_checkpoint(tmp_path)) in str(caught.value)
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path).values())


def test_batches_without_targets_are_an_error(tmp_path: Path) -> None:
    class Empty(Counting):
        def batch(self, step: int) -> PackedBatch:
            return pack([np.array([5]), np.array([6])])

    with pytest.raises(TrainError, match="no token to learn from"):
        run(tmp_path, steps=1, source=Empty())


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(tmp_path, steps=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
