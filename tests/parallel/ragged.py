"""One forward and backward of micro-batches of different sizes, which every plan pads in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.model.config import ModelConfig
from puyulm.parallel.plan import ParallelPlan
from puyulm.train.step import to_device
from tests.parallel.ranks import assert_near, filled_model, random_batch, whole_weights

TOKENS = (64, 50, 33, 61, 40, 63, 64, 39)


@dataclass(frozen=True)
class Ragged:
    """What a rank measured: its part of the loss, whole gradients, and the losses of its tokens in each micro-batch,
    when they were trained on and when they were validated on."""

    loss: float
    grads: dict[str, np.ndarray]
    trained: list[np.ndarray]
    validated: list[np.ndarray]


def measure_ragged(config: ModelConfig, plan: ParallelPlan) -> Ragged:
    """Runs a rank's share of the micro-batches, with validation before, which must change nothing, and after."""
    model = filled_model(config, plan)
    share = len(TOKENS) // model.world.plan.data_size
    numbers = range(model.world.data_rank * share, (model.world.data_rank + 1) * share)
    batches = to_device(model, [ragged_batch(config.vocab_size, number) for number in numbers])
    before = model.token_losses(batches[:1])
    loss, trained = model.forward_backward(batches, 321.0, 1e-3)
    grads = whole_weights((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    validated = model.token_losses(batches)
    assert all(first.equal(again) for first, again in zip(before, validated, strict=False))
    return Ragged(float(loss), grads, [x.numpy() for x in trained], [x.numpy() for x in validated])


def ragged_batch(vocab_size: int, number: int) -> PackedBatch:
    """Some have a target everywhere, some only at the beginning: of ranks that share its tokens, most have none."""
    batch = random_batch(vocab_size, number, TOKENS[number])
    if number % 4 == 0:
        batch.targets[:] = batch.tokens
    if number % 4 == 1:
        batch.targets[10:] = IGNORE
    return batch


def assert_same_ragged(found: Sequence[Ragged], expected: Ragged, context: int = 1) -> None:
    """Together, the ranks have the loss, the gradients and the token losses of one process.

    Args:
        context: Ranks that share the tokens of a micro-batch.
    """
    assert sum(rank.loss for rank in found) == pytest.approx(expected.loss, rel=1e-5)
    for rank in found:
        for name, grad in rank.grads.items():
            assert_near(grad, expected.grads[name], 1e-5, f"gradient of {name}")
    assert set().union(*(rank.grads for rank in found)) == set(expected.grads)
    for kind in ("trained", "validated"):
        counted = [losses for rank in found if (losses := getattr(rank, kind))]
        groups = [counted[start : start + context] for start in range(0, len(counted), context)]
        rows = [np.concatenate(parts) for group in groups for parts in zip(*group, strict=True)]
        for row, wanted in zip(rows, getattr(expected, kind), strict=True):
            np.testing.assert_allclose(row[: len(wanted)], wanted, rtol=1e-5, atol=1e-5, err_msg=kind)
            assert not row[len(wanted) :].any(), f"a loss of padding, {kind}"
