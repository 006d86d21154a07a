"""What a run writes down and shows, step by step."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from puyulm.errors import TrainError
from puyulm.parallel.world import World
from puyulm.train import log as log_module
from puyulm.train.checkpoint import TrainState
from puyulm.train.flops import palm_flops, training_flops
from puyulm.train.log import RunLog, memory_gib
from puyulm.train.metrics import StepFigures, read_json_lines
from puyulm.train.screen import LiveScreen, columns_of, fitting, plain_line, status, table_line
from puyulm.train.settings import TrainSettings
from puyulm.train.trackers import TENSORBOARD_FOLDER, EventFile, WeightsAndBiases, checksum
from tests.conftest import tiny_config
from tests.train.runs import CountingCourse, run

CONFIG = tiny_config()


class Course(CountingCourse):
    """Two phases, two sources."""

    def __init__(self, steps: int = 20, sources: Sequence[str] = ("mix/web/train", "mix/code/train")) -> None:
        self.steps, self.sources, self.bits_per_byte_factor = steps, sources, 0.5

    def phase(self, step: int) -> str:
        return "4k" if step < 10 else "32k"


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(log_module.time, "perf_counter", clock)
        yield clock


def open_log(folder: Path, step: int = 0, **settings: Any) -> RunLog:
    made = TrainSettings(**{"device": "cpu", "log_every": 5, "tensorboard": False, **settings})
    return RunLog(folder, CONFIG, Course(), made, World.alone(), TrainState(step, 100 * step, {}), "test")


def take(
    log: RunLog, clock: Clock, step: int, loss: float = 2.0, skipped: bool = False,
    sources: Sequence[Sequence[float]] = ((60.0, 100.0), (40, 40)),
) -> None:  # fmt: skip
    clock.now += 2.0
    flops = training_flops(CONFIG, [40, 60])
    log.step(
        TrainState(step, 100 * step, {}), 1e-3, [loss, 0.5, 80.0, float(skipped), 0.0], sources, 100, flops,
        seq_len=50, data_seconds=0.5,
    )  # fmt: skip


def test_a_row_holds_what_is_known_of_the_step(tmp_path: Path, clock: Clock) -> None:
    log = open_log(tmp_path, peak_tflops=1e-6)
    take(log, clock, 1)
    log.pause()
    clock.now += 50  # a validation: part of no step
    log.pause()
    take(log, clock, 2, loss=math.inf, skipped=True)
    log.close()
    first, second = read_json_lines(tmp_path / "metrics.jsonl")
    assert first["tokens"] == 100 and first["lr"] == 1e-3 and first["loss"] == 2.0 and first["grad_norm"] == 0.5
    assert first["targets"] == 80 and first["phase"] == "4k" and first["bits_per_byte"] == 1.0
    assert first["seconds"] == second["seconds"] == 2.0 and first["data_seconds"] == 0.5
    assert first["tokens_per_second"] == 50
    assert first["mfu"] == pytest.approx(palm_flops(CONFIG, 100, 50) / 2 / 1e6, rel=1e-4)
    assert first["mfu_causal"] == pytest.approx(training_flops(CONFIG, [40, 60]) / 2 / 1e6, rel=1e-4)
    assert first["sources"] == {"web": 1.5, "code": 2.5} and first["source_targets"] == {"web": 40, "code": 40}
    assert "skipped" not in first and second["skipped"] is True and second["loss"] is None
    assert 0.01 < first["memory_gib"] < 64


def test_mfu_is_left_out_where_no_peak_is_known(tmp_path: Path, clock: Clock) -> None:
    log = open_log(tmp_path)
    take(log, clock, 1)
    (row,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert "mfu" not in row and "mfu_causal" not in row and "seconds" in row
    log.close()


def test_mfu_is_of_all_devices(tmp_path: Path, clock: Clock) -> None:
    shares = []
    for size in (1, 4):
        settings = TrainSettings(device="cpu", peak_tflops=1e-6, tensorboard=False)
        alone = World.alone()
        (tmp_path / str(size)).mkdir()
        log = RunLog(tmp_path / str(size), CONFIG, Course(), settings, alone, TrainState(0, 0, {}), "test")
        log._world = World(0, size, torch.device("cpu"), alone.plan)
        take(log, clock, 1)
        shares.append(read_json_lines(tmp_path / str(size) / "metrics.jsonl")[0]["mfu"])
        log.close()
    assert shares[0] == pytest.approx(4 * shares[1], rel=1e-3)


def test_a_source_without_tokens_in_a_step_is_not_in_its_row(tmp_path: Path, clock: Clock) -> None:
    log = open_log(tmp_path)
    take(log, clock, 1, sources=((60.0, 0.0), (40, 0)))
    assert read_json_lines(tmp_path / "metrics.jsonl")[0]["sources"] == {"web": 1.5}
    log.close()


def test_going_back_doubles_no_row_and_keeps_what_happened(tmp_path: Path, clock: Clock) -> None:
    log = open_log(tmp_path, tensorboard=True)
    for step in range(1, 9):
        take(log, clock, step)
    log.validation(TrainState(4, 400, {}), {"loss": 1.0})
    log.validation(TrainState(8, 800, {}), {"loss": 9.0})
    log.event(8, "skipped", "step 8 is not taken")
    log.rewind(TrainState(4, 400, {}))
    assert log.validations is not None and log.validations.last["step"] == 4
    log.event(8, "rollback", "back to step 4", to=4)
    take(log, clock, 5, loss=7.0)
    log.close()
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and rows[-1]["loss"] == 7.0
    assert [row["step"] for row in read_json_lines(tmp_path / "validation.jsonl")] == [4]
    events = read_json_lines(tmp_path / "events.jsonl")
    assert [row["kind"] for row in events] == ["start", "skipped", "rollback"] and events[-1]["to"] == 4
    assert all(row["time"].startswith("20") for row in events)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert sum("loss" in line and "gradient norm" in line for line in lines) == 9  # the log is what really happened


def test_a_resumed_run_says_so(tmp_path: Path, clock: Clock) -> None:
    log = open_log(tmp_path)
    for step in (1, 2, 3):
        take(log, clock, step)
    log.close()
    log = open_log(tmp_path, step=2)
    take(log, clock, 3, loss=5.0)
    log.close()
    assert [row["loss"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == [2.0, 2.0, 5.0]
    kinds = [(row["kind"], row["step"], row["steps"]) for row in read_json_lines(tmp_path / "events.jsonl")]
    assert kinds == [("start", 0, 20), ("resume", 2, 20)]


def test_plain_lines_now_and_then_and_all_in_the_file(
    tmp_path: Path, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    log = open_log(tmp_path, log_every=5, peak_tflops=1e-6)
    for step in range(1, 21):
        take(log, clock, step)
    log.event(20, "stopped", "that is all")
    log.close()
    shown = [line for line in capfd.readouterr().err.splitlines() if "gradient norm" in line]
    assert [line.split(" of ")[0] for line in shown] == [f"test: step {n}" for n in (1, 5, 10, 15, 20)]
    wanted = "(4k)|loss 2.0000 (2.0000 smoothed)|lr 1.00e-3|gradient norm 0.500|50 tokens/s|MFU |(causal |GiB"
    for part in [*wanted.split("|"), "2.00 s (25.0 % waiting for data)", "web 1.500, code 2.500", "30.0 s left"]:
        assert part in shown[1], part
    assert "left" not in shown[-1] and "(32k)" in shown[-1]
    written = (tmp_path / "train.log").read_text().splitlines()
    assert sum("gradient norm" in line for line in written) == 20
    assert written[-1].endswith("that is all") and written[-1][:2] == "20"


def figures(**changes: Any) -> StepFigures:
    values: dict[str, Any] = dict(
        step=123, steps=100_000, tokens=10**9, phase="4k", lr=3e-4, loss=2.34567, smoothed=2.4, grad_norm=0.5,
        targets=100, bits_per_byte=None, tokens_per_second=1_234_567.0, mfu=0.412, mfu_causal=0.398, memory_gib=61.2,
        seconds=1.234, data_seconds=0.02, left=8000.0, sources={"web": (2.3, 50)}, sources_smoothed={"web": 2.31},
    )  # fmt: skip
    return StepFigures(**values | changes)


@pytest.mark.parametrize("width", [20, 40, 80, 100, 140, 200])
def test_a_line_fits_its_terminal(width: int) -> None:
    shown = figures()
    columns = fitting(columns_of(shown), width)
    assert len(table_line(shown, columns)) <= width and len(status(shown, "pretraining", 100_000, width)) <= width
    titles = [column.title for column in columns]
    assert titles[0] == "step"
    if width >= 80:
        assert set(titles) >= {"step", "loss", "norm", "tokens/s", "MFU", "time", "lr", "memory"}
    if width == 140:
        assert set(titles) >= {"causal", "waiting", "smooth", "web"}


def test_extreme_values_stay_in_their_columns() -> None:
    shown = figures(grad_norm=123456.0, loss=11.5, lr=0.0, tokens_per_second=9.9e7, seconds=754.0, mfu=None)
    columns = columns_of(shown)
    assert len(table_line(shown, columns)) == len("  ".join(column.title.rjust(column.width) for column in columns))
    assert "MFU" not in plain_line(figures(mfu=None, mfu_causal=None))
    assert "skipped" in plain_line(figures(skipped=True, loss=math.inf))


def test_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a step under a heading, messages between, and how far it is in the last line."""
    from rich.console import Console

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr("rich.console.Console", lambda **_: Console(file=out, width=100, height=30, force_terminal=True,
                                                                  color_system=None, highlight=False))  # fmt: skip
        patch.setattr("puyulm.train.screen.LINES_PER_SECOND", 1e9)
        screen = LiveScreen("training", 100_000)
        for step in (1, 2, 3):
            screen.step(figures(step=step, skipped=step == 2, phase="4k" if step < 3 else "32k"))
        screen.say("a message [with] brackets")
        with screen.aside():
            out.write("\nothers write here\n")
        screen.step(figures(step=4, phase="32k"))
        assert "32k" in str(screen._status()) and "4 of 100,000" in str(screen._status())
        screen.close()
    lines = out.getvalue().splitlines()
    assert sum(" 2.3457 " in line for line in lines) == 4 and "others write here" in lines
    assert sum("tokens/s" in line for line in lines) >= 2
    assert any("phase 32k" in line for line in lines)
    assert any("training: a message [with] brackets" in line for line in lines)


def test_checksums_of_records() -> None:
    """CRC-32C of the nine digits is 0xE3069283 (RFC 3720, B.4, and any catalogue); masked as TFRecord does."""
    masked = checksum(b"123456789")
    turned = (masked - 0xA282EAD8) & 0xFFFFFFFF
    assert (turned >> 17 | turned << 15) & 0xFFFFFFFF == 0xE3069283


def records(path: Path) -> list[bytes]:
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == checksum(data[:8])
        found.append(data[12 : 12 + length])
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == checksum(found[-1])
        data = data[16 + length :]
    return found


def test_event_files_are_whole_after_every_step(tmp_path: Path) -> None:
    events = EventFile(tmp_path, 0)
    (file,) = (tmp_path / TENSORBOARD_FOLDER).iterdir()
    for step in range(1, 4):
        events.write(step, {"loss": 1.5, "sources/web": 2.0})
        assert len(records(file)) == 1 + step
    assert b"brain.Event:2" in records(file)[0]
    assert b"sources/web" in records(file)[-1] and struct.pack("<f", 1.5) in records(file)[-1]
    events.close()


def test_tensorboard_reads_the_files(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = EventFile(tmp_path, 0)
    for step in (1, 2, 3, 300):
        first.write(step, {"loss": step / 4})
    first.close()
    again = EventFile(tmp_path, 2)
    again.write(3, {"loss": 9.0})
    again.close()
    files = accumulator.EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER))
    files.Reload()
    assert [(event.step, event.value) for event in files.Scalars("loss")] == [(1, 0.25), (2, 0.5), (3, 9.0)]


class FakeWandb(types.ModuleType):
    """What of wandb is used."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.finished, self.fails, self.id = 0, fails, "abc123"

    def init(self, **arguments: Any) -> FakeWandb:
        if self.fails:
            raise RuntimeError("no network")
        self.inits.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log(self, row: dict[str, float]) -> None:
        self.logged.append(row)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_figures_and_goes_on_with_the_same_run(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (tmp_path / "recipe.yaml").write_text("settings: {lr: 0.1}\n")
    for begin in (0, 1):
        log = open_log(tmp_path, step=begin, wandb="family")
        take(log, clock, begin + 1)
        log.validation(TrainState(begin + 1, 1, {}), {"bits_per_byte": 0.9})
        log.close()
    assert [(init["project"], init["id"], init["config"]) for init in wandb.inits] == [
        ("family", None, {"settings": {"lr": 0.1}}), ("family", "abc123", {"settings": {"lr": 0.1}})]  # fmt: skip
    assert wandb.logged[0]["step"] == 1 and wandb.logged[0]["loss"] == 2.0 and wandb.logged[0]["sources/code"] == 2.5
    assert wandb.logged[1] == {"step": 1, "validation/bits_per_byte": 0.9} and wandb.finished == 2


def test_wandb_that_is_missing_or_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainError, match=r"pip install 'puyulm\[wandb\]'"):
        open_log(tmp_path, wandb="family")
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(fails=True))
    with pytest.raises(TrainError, match=r"no network.*WANDB_MODE=offline"):
        WeightsAndBiases("family", tmp_path, 0, {})


def test_only_the_main_process_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    world = World.alone()
    other = World(1, 1, world.device, world.plan)
    log = RunLog(tmp_path, CONFIG, Course(), TrainSettings(), other, TrainState(0, 0, {}), "test")
    log.step(TrainState(1, 100, {}), 1e-3, [1, 1, 1, 0, 0], [[1, 1], [1, 1]], 100, 1.0)
    log.event(1, "skipped", "x")
    log.validation(TrainState(1, 100, {}), {"loss": 1.0})
    log.rewind(TrainState(0, 0, {}))
    log.close()
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr().err == ""


def test_memory_of_this_process() -> None:
    before = memory_gib(torch.device("cpu"))
    held = torch.ones(2**27)
    assert memory_gib(torch.device("cpu")) - before == pytest.approx(0.5, abs=0.1) and held[0] == 1


def test_a_run_of_the_loop_writes_all_files(tmp_path: Path) -> None:
    run(tmp_path, steps=5, checkpoint_every=2)
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and all(
        row["data_seconds"] <= row["seconds"] for row in rows
    )
    kinds = [row["kind"] for row in read_json_lines(tmp_path / "events.jsonl")]
    assert kinds == ["start", "checkpoint", "checkpoint", "checkpoint"]
    assert len(records(next((tmp_path / TENSORBOARD_FOLDER).iterdir()))) == 6
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
