"""The chunked loss against plain cross entropy in double precision."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from puyulm.model import loss as loss_module
from puyulm.model.loss import IGNORE, head_loss, linear_cross_entropy, token_losses


def sample(tokens: int = 300, hidden: int = 8, vocab: int = 50, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    w = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < 0.3] = IGNORE
    return x, w, targets


@pytest.mark.parametrize("chunk_bytes", [1, 2**26])  # 256 tokens a chunk (the least), or all at once
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
    x, w, targets = (t.bfloat16() if t.is_floating_point() else t for t in sample(tokens=256 * 20))
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


def plain(x: Tensor, w: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """What `head_loss` says, in one piece: the sum, and each token's loss."""
    logits = x @ w.T
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    squares = logits.logsumexp(-1).square()[targets != IGNORE]
    return losses.sum() + z_loss * squares.sum(), losses


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("chunk_bytes", [1, 2**26])
def test_z_loss_and_losses_of_tokens_in_double_precision(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, z_loss: float
):
    """Sums are float32, and all else is what the inputs are."""
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    x, w, targets = sample()
    ours, theirs = ([t.clone().requires_grad_() for t in (x, w)] for _ in range(2))
    expected, expected_losses = plain(*theirs, targets, z_loss)
    (expected / 7).backward()
    value, losses = head_loss(*ours, targets, torch.tensor(7.0), z_loss=z_loss)
    value.backward()
    torch.testing.assert_close(value.double() * 7, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.double(), expected_losses.detach(), rtol=1e-5, atol=1e-5)
    assert not losses.requires_grad
    for mine, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, theirs_.grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        again, losses_again = head_loss(*ours, targets, 7.0, z_loss=z_loss)
    torch.testing.assert_close(again, value.detach())
    torch.testing.assert_close(losses_again, losses)


class Threads:
    """A `VocabularyPart` among threads, as ranks would share a head."""

    def __init__(self, start: int, number: int, shared: dict[int, Tensor], barrier: threading.Barrier) -> None:
        self.start, self._number, self._shared, self._barrier = start, number, shared, barrier

    def _gather(self, values: Tensor) -> Tensor:
        self._shared[self._number] = values
        self._barrier.wait()
        gathered = torch.stack([self._shared[number] for number in range(self._barrier.parties)])
        self._barrier.wait()
        return gathered

    def max(self, values: Tensor) -> Tensor:
        return self._gather(values).amax(0)

    def sum(self, values: Tensor) -> Tensor:
        return self._gather(values).sum(0)


@pytest.mark.parametrize("cuts", [[0, 25, 50], [0, 7, 8, 50]])
def test_a_head_in_parts_gives_the_loss_of_the_whole(monkeypatch: pytest.MonkeyPatch, cuts: list[int]):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    x, w, targets = sample()
    x_whole, w_whole = x.clone().requires_grad_(), w.clone().requires_grad_()
    expected, expected_losses = head_loss(x_whole, w_whole, targets, 7.0, z_loss=0.01)
    expected.backward()
    parts = len(cuts) - 1
    barrier, shared = threading.Barrier(parts, timeout=20), {}

    def rank(number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mine, rows = x.clone().requires_grad_(), w[cuts[number] : cuts[number + 1]].clone().requires_grad_()
        part = Threads(cuts[number], number, shared, barrier)
        value, losses = head_loss(mine, rows, targets, 7.0, z_loss=0.01, part=part)
        value.backward()
        with torch.no_grad():
            torch.testing.assert_close(head_loss(mine, rows, targets, 7.0, z_loss=0.01, part=part)[0], value)
        return value.detach(), losses, mine.grad, rows.grad

    with ThreadPoolExecutor(parts) as pool:
        found = list(pool.map(rank, range(parts)))
    for value, losses, _, _ in found:
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(sum(grad for _, _, grad, _ in found), x_whole.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([grad for *_, grad in found]), w_whole.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_what_is_compiled_is_what_is_done_in_place(monkeypatch: pytest.MonkeyPatch, z_loss: float, dtype: torch.dtype):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    compiled = torch.compile(loss_module._gradient, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(loss_module, "_compiled_gradient", lambda: compiled)
    x, w, targets = sample()
    results = []
    for how in (False, True):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        value, losses = head_loss(*leaves, targets, torch.tensor(7.0), z_loss=z_loss, compiled=how)
        value.backward()
        results.append((value.detach(), losses, *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(*results)


def test_no_tokens_give_no_loss_and_no_gradient():
    x, w = torch.zeros(0, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    value, losses = head_loss(x, w, torch.zeros(0, dtype=torch.int64), torch.tensor(1.0), z_loss=0.1)
    value.backward()
    assert value == 0 and losses.shape == (0,)
    assert x.grad.shape == (0, 8) and not w.grad.any()
    with torch.no_grad():
        assert head_loss(x, w, torch.zeros(0, dtype=torch.int64), 1.0)[0] == 0


class Largest(TorchDispatchMode):
    """Remembers the most values that a tensor had."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self.values = max(self.values, tensor.numel())
        return result


def test_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * 256 * 500)
    x, w = torch.randn(1000, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    targets = torch.randint(500, (1000,))
    with Largest() as seen:
        head_loss(x, w, targets, 1000.0, z_loss=0.1)[0].backward()
    assert seen.values <= 256 * 500
    with Largest() as seen:
        F.cross_entropy(x @ w.T, targets).backward()
    assert seen.values >= 1000 * 500


@pytest.mark.parametrize(
    ("tokens", "count"), [(1, 1), (255, 1), (256, 1), (257, 2), (700, 4), (2000, 8), (2048, 8), (1288, 7), (1289, 6)]
)
def test_chunks_are_of_about_one_size(monkeypatch: pytest.MonkeyPatch, tokens: int, count: int):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    chunks = loss_module._chunks(torch.zeros(tokens, 2), torch.zeros(50, 2))
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert sum(sizes) == tokens and len(sizes) == count
    assert max(sizes) <= 256 and max(sizes) - min(sizes) < len(sizes)
