"""Schedule, optimizer, settings and metrics against closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from puyulm.errors import RecipeError
from puyulm.train.metrics import JsonLines, read_json_lines, training_flops
from puyulm.train.optimizer import adamw, clip_gradients, set_learning_rate
from puyulm.train.schedule import learning_rate
from puyulm.train.settings import TrainSettings
from tests.conftest import tiny_config, tiny_decoder


def rates(steps: int, **changes: object) -> list[float]:
    settings = TrainSettings(lr=2.0, min_lr_ratio=0.1, warmup_ratio=0.2, **changes)  # type: ignore[arg-type]
    return [learning_rate(step, steps, settings) for step in range(steps)]


def test_warm_up_is_a_straight_climb() -> None:
    for schedule in ("cosine", "linear", "constant"):
        assert rates(21, schedule=schedule)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_ways_down_end_at_the_minimum_exactly() -> None:
    cosine, linear = rates(21, schedule="cosine"), rates(21, schedule="linear")
    assert cosine[-1] == pytest.approx(0.2, abs=1e-12) and linear[-1] == pytest.approx(0.2, abs=1e-12)
    assert cosine[12] == linear[12] == pytest.approx(1.1)  # half way down: the middle of peak and minimum
    assert cosine[8] == pytest.approx(0.2 + 0.9 * (1 + math.cos(math.pi / 4)))
    assert linear[8] == pytest.approx(2.0 - 0.25 * 1.8)
    assert rates(21, schedule="constant")[4:] == [2.0] * 17


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_shortest_runs_have_a_learning_rate(steps: int) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(steps))
    assert learning_rate(0, steps, TrainSettings(lr=1.0, warmup_ratio=0.0)) == 1.0
    assert learning_rate(steps - 1, steps, TrainSettings(lr=1.0, warmup_ratio=1.0)) == 1.0


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(model, TrainSettings(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if parameter.dim() == 2 else 1.0))


def test_adamw_follows_its_formula() -> None:
    """Two steps by hand: moments with bias correction, decay apart from the gradient."""
    settings = TrainSettings(lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    optimizer = adamw(model, settings)
    expected = model.weight.detach().double()
    m, v = torch.zeros_like(expected), torch.zeros_like(expected)
    for step, lr in ((1, 0.01), (2, 0.005)):
        gradient = torch.randn(3, 4)
        model.weight.grad = gradient.clone()
        set_learning_rate(optimizer, lr)
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        direction = (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
        expected = expected * (1 - lr * 0.3) - lr * direction
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_tied_weights_are_optimized_once_and_frozen_ones_never() -> None:
    decoder = tiny_decoder(tie_embeddings=True)
    decoder.norm.weight.requires_grad_(False)
    optimized = [parameter for group in adamw(decoder, TrainSettings()).param_groups for parameter in group["params"]]
    assert len(optimized) == len(list(decoder.parameters())) - 1
    assert sum(parameter is decoder.embed.weight for parameter in optimized) == 1
    assert not any(parameter is decoder.norm.weight for parameter in optimized)


@pytest.mark.parametrize(("max_norm", "scale"), [(1.0, 1 / 13), (26.0, 1.0)])
def test_clipping_by_the_global_norm(max_norm: float, scale: float) -> None:
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 1))
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])
    norm = clip_gradients([first, second, nn.Parameter(torch.zeros(1))], max_norm)
    assert norm.item() == pytest.approx(13.0)
    torch.testing.assert_close(first.grad, torch.tensor([3.0, 4.0]) * scale)
    torch.testing.assert_close(second.grad, torch.tensor([[12.0]]) * scale)


def test_settings_complain_about_everything_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        TrainSettings(
            steps=1, tokens=2, lr=-1.0, warmup_ratio=2.0, betas=(0.9, 1.0), accumulation=0, clip_norm=math.nan
        )
    for part in ("steps or tokens", "lr must be above 0", "warmup_ratio must be between", "betas", "accumulation",
                 "clip_norm must be above 0, not nan"):  # fmt: skip
        assert part in str(caught.value)


def test_tokens_become_whole_steps() -> None:
    assert TrainSettings(tokens=1001, accumulation=2).total_steps(50) == 11
    assert TrainSettings(steps=7).total_steps(50) == 7
    with pytest.raises(RecipeError, match=r"give settings\.steps or settings\.tokens"):
        TrainSettings().total_steps(50)


def test_a_resumed_metrics_file_has_no_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    first = JsonLines(path, 0)
    assert first.last == {} and read_json_lines(path) == []
    first.append([{"step": step, "loss": 0.1 * step} for step in (1, 2, 3, 4)])
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    second = JsonLines(path, 3)
    assert second.last == {"step": 3, "loss": 0.1 * 3}
    second.append([{"step": 4, "loss": 0.5}])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert read_json_lines(path)[-1] == {"step": 4, "loss": 0.5}


def test_flops_of_a_step() -> None:
    """6 per matrix weight and token, and half of a full attention square, both directions counted."""
    config = tiny_config()
    decoder = tiny_decoder()
    matrices = sum(parameter.numel() for parameter in decoder.parameters() if parameter.dim() == 2)
    weights = matrices - decoder.embed.weight.numel()
    one = training_flops(config, [10])
    assert one == 6 * weights * 10 + 2 * 3 * (4 * 4 * 16 * 10 * 10) / 2
    assert training_flops(config, [10, 10]) == 2 * one
