"""Which steps are taken, against statistics computed afresh; and that a step that is not taken leaves no trace."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from puyulm.train.guard import Guard
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import SpikeSettings, TrainSettings
from puyulm.train.step import to_device, train_step
from tests.train.runs import POISON, SPIKE, Counting, poisonable, tiny_model


def judge(guard: Guard, loss: float, norm: float) -> bool:
    return bool(guard.judge(torch.tensor(loss), torch.tensor(norm)))


def reference(values: list[tuple[float, float]], sigma: float | None, window: int) -> list[bool]:
    """The rule of `SpikeSettings`, in plain words."""
    verdicts: list[bool] = []
    taken: list[tuple[float, float]] = []
    for pair in values:
        bad = not all(map(math.isfinite, pair))
        if sigma is not None and len(taken) >= window and not bad:
            last = np.array(taken[-window:])
            bad = any(x > m + sigma * s for x, m, s in zip(pair, last.mean(0), last.std(0, ddof=1), strict=True))
        verdicts.append(bad)
        if not bad:
            taken.append(pair)
    return verdicts


@pytest.mark.parametrize(("sigma", "window"), [(None, 8), (2.0, 8), (3.0, 5), (6.0, 2)])
def test_verdicts_follow_the_rule(sigma: float | None, window: int) -> None:
    rng = np.random.default_rng(window)
    values = [(float(x), float(y)) for x, y in np.float32(rng.normal([3.0, 100.0], [0.1, 20.0], size=(300, 2)))]
    for number in range(20, 300, 17):
        loss, norm = values[number]
        values[number] = ((math.nan, norm), (loss, math.inf), (loss + 2, norm), (loss, 40 * norm))[number % 4]
    guard = Guard(SpikeSettings(sigma=sigma, window=window), torch.device("cpu"))
    found = [judge(guard, *pair) for pair in values]
    assert found == reference(values, sigma, window)
    assert sum(found) >= (8 if sigma is None else 15) and int(guard.taken) == 300 - sum(found)


def test_small_deviations_of_large_values_are_seen() -> None:
    """Squares are not summed: in single precision the deviation would be lost."""
    guard = Guard(SpikeSettings(sigma=4.0, window=16), torch.device("cpu"))
    for step in range(16):
        assert not judge(guard, 1.0, 10_000.0 + (step % 2))
    assert not judge(guard, 1.0, 10_002.0) and judge(guard, 1.0, 10_005.0)


def test_low_values_are_no_spikes() -> None:
    guard = Guard(SpikeSettings(sigma=1.0, window=4), torch.device("cpu"))
    assert not any(judge(guard, loss, 1.0) for loss in (5.0, 4.0, 3.0, 2.0, 0.1, -50.0))


def test_another_phase_is_measured_by_itself() -> None:
    guard = Guard(SpikeSettings(sigma=3.0, window=3), torch.device("cpu"))
    assert not any(judge(guard, loss, 1.0) for loss in (1.0, 1.1, 1.0))
    assert judge(guard, 5.0, 1.0)
    guard.forget()
    assert not any(judge(guard, loss, 1.0) for loss in (5.0, 5.1, 5.0))
    assert judge(guard, 9.0, 1.0)


def test_a_window_taken_up_again_judges_alike() -> None:
    rng = np.random.default_rng(3)
    values = [(float(x), 1.0) for x in rng.normal(3.0, 0.2, size=60)]
    settings = SpikeSettings(sigma=1.5, window=7)
    whole, half = Guard(settings, torch.device("cpu")), Guard(settings, torch.device("cpu"))
    expected = [judge(whole, *pair) for pair in values]
    found = [judge(half, *pair) for pair in values[:31]]
    resumed = Guard(settings, torch.device("cpu"))
    for name, tensor in resumed.state_tensors().items():
        tensor.copy_(half.state_tensors()[name])
    assert found + [judge(resumed, *pair) for pair in values[31:]] == expected
    assert any(expected[31:]) and not all(expected[31:])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", [POISON, SPIKE])
def test_a_step_that_is_not_taken_changes_nothing(kind: int, optimizer: str) -> None:
    """Weights, moments, counts and the window stay as they are, and the next step is as if it had not been."""
    source = Counting(bad={4: kind})
    found = _train(source, [0, 1, 2, 3, 4, 5], optimizer)
    expected = _train(source, [0, 1, 2, 3, 5], optimizer)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def _train(source: Counting, steps: list[int], optimizer: str) -> dict[str, Tensor]:
    model = poisonable(tiny_model(seed=1))
    settings = TrainSettings(optimizer=optimizer)  # type: ignore[arg-type]
    update = Optimizer(dict(model.named_parameters()), settings, model.config)
    guard = Guard(SpikeSettings(sigma=20.0, window=3), torch.device("cpu"))
    for step in steps:
        before = _everything(model, update, guard)
        result = train_step(model, update, guard, to_device(model, [source.batch(step)]), 1e-2, settings)
        after = _everything(model, update, guard)
        same = [name for name in before if torch.equal(before[name], after[name])]
        assert bool(result.values[3]) == (step in source.bad)
        assert len(same) == (len(before) if step in source.bad else 0)
    return _everything(model, update, guard)


def _everything(*parts: object) -> dict[str, Tensor]:
    model, update, guard = parts
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}  # type: ignore[attr-defined]
    for part in (update, guard):
        named |= part.state_tensors()  # type: ignore[attr-defined]
    return {name: tensor.clone() for name, tensor in named.items()}
