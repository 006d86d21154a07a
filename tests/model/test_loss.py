"""The chunked loss against plain cross entropy in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from puyulm.model import loss as loss_module
from puyulm.model.loss import IGNORE, linear_cross_entropy, token_losses


def sample(tokens: int = 300, hidden: int = 8, vocab: int = 50, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    w = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < 0.3] = IGNORE
    return x, w, targets


@pytest.mark.parametrize("chunk_bytes", [1, 2**26])  # 128 tokens a chunk (the least), or all at once
def test_value_and_gradients(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    x, w, targets = sample()
    x64, w64 = x.clone().requires_grad_(), w.clone().requires_grad_()
    expected = F.cross_entropy(x64 @ w64.T, targets, ignore_index=IGNORE, reduction="sum") / 7.0
    (3 * expected).backward()
    x32, w32 = x.float().requires_grad_(), w.float().requires_grad_()
    loss = linear_cross_entropy(x32, w32, targets, 7.0)
    (3 * loss).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(x32.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w32.grad.double(), w64.grad, rtol=1e-4, atol=1e-4)


def test_without_gradients_it_gives_the_same_value():
    x, w, targets = (t.float() if t.is_floating_point() else t for t in sample())
    with torch.no_grad():
        value = linear_cross_entropy(x, w, targets, torch.tensor(2.0))
    trained = linear_cross_entropy(x.requires_grad_(), w, targets, torch.tensor(2.0))
    torch.testing.assert_close(value, trained.detach())
    losses = token_losses(x, w, targets)
    assert losses.shape == (300,)
    assert torch.equal(losses == 0, targets == IGNORE)
    torch.testing.assert_close(losses.sum() / 2, value)


def test_a_frozen_head_gets_no_gradient():
    x, w, targets = (t.float() if t.is_floating_point() else t for t in sample())
    x.requires_grad_()
    linear_cross_entropy(x, w, targets, 1.0).backward()
    assert x.grad is not None
    assert w.grad is None


def test_only_ignored_targets_give_zero_loss_and_zero_gradient():
    x, w, _ = sample()
    x.requires_grad_()
    loss = linear_cross_entropy(x, w, torch.full((300,), IGNORE), 1.0)
    loss.backward()
    assert loss == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_sums_over_micro_batches_equal_the_whole():
    x, w, targets = (t.float() if t.is_floating_point() else t for t in sample())
    whole = linear_cross_entropy(x, w, targets, 210.0)
    parts = sum(linear_cross_entropy(x[s], w, targets[s], 210.0) for s in (slice(0, 17), slice(17, 300)))
    torch.testing.assert_close(whole, parts)


def test_a_probability_that_underflows_still_has_a_finite_loss():
    x = torch.tensor([[200.0, 0.0]], requires_grad=True)
    w = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss = linear_cross_entropy(x, w, torch.tensor([1]), 1.0)
    assert loss == 400.0


def test_half_precision_heads_sum_their_gradient_in_float32(monkeypatch: pytest.MonkeyPatch):
    """Many chunks must not round more than one does."""
    x, w, targets = (t.bfloat16() if t.is_floating_point() else t for t in sample(tokens=128 * 40))
    errors = []
    exact = w.double().requires_grad_()
    F.cross_entropy(x.double() @ exact.T, targets, ignore_index=IGNORE, reduction="sum").backward()
    for chunk_bytes in (1, 2**26):
        monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
        half = w.clone().requires_grad_()
        linear_cross_entropy(x, half, targets, 1.0).backward()
        assert half.grad.dtype == torch.bfloat16
        errors.append((half.grad.double() - exact.grad).abs().mean())
    assert errors[0] < 1.2 * errors[1]
