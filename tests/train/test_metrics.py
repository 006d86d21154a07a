"""Files that grow by lines, smoothed losses, and the count of operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from puyulm.errors import TrainError
from puyulm.model.attention import PackedAttention
from puyulm.model.config import ModelConfig
from puyulm.model.presets import preset
from puyulm.parallel.estimate import flops_per_token
from puyulm.parallel.world import World
from puyulm.train.flops import find_peak, known_peak, measured_peak, palm_flops, training_flops
from puyulm.train.metrics import AppendFile, JsonLines, Smoothed, read_json_lines, short_names
from tests.conftest import tiny_config, tiny_decoder


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_json_lines(path)]


def weights(config: ModelConfig) -> float:
    """Weights that a token is multiplied with: 6 operations each in a forward and backward pass."""
    return flops_per_token(config, 0) / 6


def test_no_step_appears_twice_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = JsonLines(path, 0)
    rows.append([{"step": step, "loss": step / 7} for step in range(1, 8)])
    rows.close()
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # killed within a line
    again = JsonLines(path, 5)
    assert again.last == {"step": 5, "loss": 5 / 7}
    again.append([{"step": 6, "loss": 0.5}])
    assert steps(path) == [1, 2, 3, 4, 5, 6] and read_json_lines(path)[-1]["loss"] == 0.5
    assert JsonLines(tmp_path / "new.jsonl", 5).last == {}


def test_a_line_that_looks_whole_but_has_no_end_is_half_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert steps(path) == [1]
    rows = JsonLines(path, 2)
    rows.append([{"step": 2}])
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bytes(30) + b'\n[1]\n{"loss": 2}\n{"step": 2}\n\xff\xfe\n')
    assert steps(path) == [1, 2]
    rows = JsonLines(path, 2)
    rows.append([{"step": 3}])
    rows.close()
    assert steps(path) == [1, 2, 3]


def test_a_row_is_in_the_file_at_once(tmp_path: Path) -> None:
    rows = JsonLines(tmp_path / "m.jsonl", 0)
    rows.append([{"step": 1}])
    assert steps(tmp_path / "m.jsonl") == [1]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with pytest.raises(TrainError, match="cannot write to /dev/full: No space left"):
        AppendFile(Path("/dev/full"), keep=0).write(b"x\n")


def test_a_log_goes_on_in_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("whole\nhal")
    AppendFile(path).write(b"next\n")
    assert path.read_text() == "whole\nhal\nnext\n"


def test_means_are_weighted_by_tokens() -> None:
    mean = Smoothed()
    assert mean.value is None
    mean.add(3.0 * 10, 10)
    assert mean.value == pytest.approx(3.0)
    mean.add(float("inf"), 5)
    mean.add(0.0, 0)
    assert mean.value == pytest.approx(3.0)
    for _ in range(1000):
        mean.add(1.0 * 1, 1)
        mean.add(2.0 * 99, 99)
    assert mean.value == pytest.approx(1.99, abs=0.01)
    for _ in range(600):  # of one token each, after those of a hundred
        mean.add(5.0, 1)
    assert mean.value == pytest.approx(5.0, abs=0.15)


@pytest.mark.parametrize(("names", "short"), [
    (["mix/web/train", "mix/code/train"], ["web", "code"]),
    (["x/a", "x/b/a"], ["a", "b/a"]),
    (["/data/web"], ["web"]),
    (["web", "code"], ["web", "code"]),
    (["a/x/1", "a/y/1", "a/y/2"], ["x/1", "y/1", "y/2"]),
    ([], []),
])  # fmt: skip
def test_short_names(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


def test_operations_of_the_matrices_are_those_that_are_run() -> None:
    """Against PyTorch's own count of a forward pass: 2 a weight and token; the attention is counted apart."""
    decoder = tiny_decoder()
    tokens = torch.arange(32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention = PackedAttention([32])
        decoder.logits(decoder(tokens, attention.positions, attention))
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in counts.items() if str(name) in ("aten.mm", "aten.addmm"))
    assert products == 2 * weights(decoder.config) * 32


def test_operations_of_known_models() -> None:
    """Figures that others publish: InternLM2-1.8B has 1.70e9 weights in matrices and 1.26e10 operations a token at
    4,096 tokens (PaLM)."""
    config = preset("internlm2-1.8b").config
    assert weights(config) == pytest.approx(1.70e9, rel=0.005)
    assert palm_flops(config, 1, 4096) == pytest.approx(1.26e10, rel=0.01)
    whole = training_flops(config, [4096])
    assert palm_flops(config, 4096, 4096) - whole == pytest.approx(6 * 24 * 2048 * 4096**2)
    quarter = 6 * 24 * 2048 * 4096**2 / 4
    assert whole - training_flops(config, [1024] * 4) == pytest.approx(3 * quarter)


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989),
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A800-SXM4-80GB", 312), ("NVIDIA A10", 125),
    ("NVIDIA L40S", 362), ("NVIDIA L40", 181), ("NVIDIA L4", 121), ("NVIDIA GeForce RTX 4090", 165.2),
    ("NVIDIA B200", 2250), ("NVIDIA GH200 480GB", 989), ("NVIDIA H20", 148),
    ("NVIDIA A10G", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ("NVIDIA GeForce RTX 3090 Ti", None), ("Tesla T4", None), ("AMD Instinct MI300X", None),
])  # fmt: skip
def test_peaks_of_gpus_by_name(name: str, peak: float | None) -> None:
    assert known_peak(name) == peak


def test_a_cpu_is_measured_only_where_steps_are_long() -> None:
    alone = World.alone()
    assert find_peak(alone, "float32", 1e9, None) is None
    assert find_peak(alone, "float32", 1e9, 0.5) == 0.5
    assert find_peak(World(0, 2, torch.device("cpu"), alone.plan), "float32", 1e12, None) is None
    assert 1e-4 < measured_peak(size=128, rounds=2) < 100


def test_reward_models_have_a_head_of_one_row() -> None:
    tiny = tiny_config()
    reward = tiny.evolve(head="reward")
    assert weights(tiny) - weights(reward) == tiny.hidden_size * (tiny.vocab_size - 1)
