"""Next-token loss of a language-model head, without ever holding all logits.

For T tokens and a vocabulary of V, plain cross entropy keeps several `[T, V]` float32 tensors: 0.76 GB each at 2,048
tokens of InternLM2's 92,544. Here the head's product, its loss and its gradients are computed a chunk of tokens at a
time in the forward; what is kept for the backward is the gradient of the hidden states and of the head itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

IGNORE = -100
"""Target of tokens that no loss is taken on."""

CHUNK_BYTES, CHUNK_BYTES_CUDA = 30 * 2**20, 2**30
"""Size of one chunk's float32 logits, small beside the model. On a CPU memory of this size stays with the process from
step to step (of 32 MB and more the C library gives it back); a GPU needs many tokens for full speed, since every chunk
reads the head and adds to its gradient."""

LEAST_TOKENS = 256
"""Of a chunk, however large the vocabulary: with fewer, it takes too long to add to the head's gradient."""


Gradient = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
"""See `_gradient`."""


class VocabularyPart(Protocol):
    """Rows `start` and following of a head that is split over ranks, and how ranks combine what each has of them."""

    start: int

    def max(self, values: Tensor) -> Tensor:
        """The element-wise maximum over the ranks of `[T]` values."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over the ranks."""
        ...


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    denominator: float | Tensor,
    *,
    z_loss: float = 0.0,
    part: VocabularyPart | None = None,
) -> Tensor:
    """Cross entropy of `hidden @ weight.T` against `targets`, summed and divided by `denominator`; see `head_loss`."""
    return head_loss(hidden, weight, targets, denominator, z_loss=z_loss, part=part)[0]


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    denominator: float | Tensor,
    *,
    z_loss: float = 0.0,
    part: VocabularyPart | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of `hidden @ weight.T` against `targets`, summed and divided by `denominator`, and token by token.

    Dividing a sum by a count given from outside keeps the loss the same however tokens are split into micro-batches.

    Args:
        hidden: `[T, H]`.
        weight: `[V, H]`, the head, or some rows of it.
        targets: `[T]`, ids of the next tokens, or `IGNORE`.
        denominator: Usually the number of target tokens of the whole step.
        z_loss: Adds `z_loss * log(Z)^2` to each token's part of the sum, where Z is the sum that softmax divides by;
            keeps logits from drifting (PaLM, section 5: 1e-4).
        part: Where `weight` has some rows only, which. The gradient of `hidden` is then of these rows, to be summed
            over the ranks.
        compiled: What is between the matrix products goes through `torch.compile`; a head in parts stays as it is.

    Returns:
        Scalar, float32; and without a gradient `[T]` float32, `-log p(target)`, 0 where the target is `IGNORE`, the
        z-loss left out.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        gradient = _compiled_gradient() if compiled and part is None else partial(_gradient_in_place, part=part)
        return _HeadLoss.apply(hidden, weight, targets, denominator, z_loss, gradient)
    losses, log_z = _token_losses(hidden, weight, targets, part)
    total = losses.sum()
    if z_loss:
        total = total + z_loss * log_z.masked_fill(targets == IGNORE, 0.0).square().sum()
    return total / denominator, losses


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`-log p(target)` of every token, `[T]` float32, 0 where the target is `IGNORE`; no gradient."""
    return _token_losses(hidden, weight, targets, None)[0]


@torch.no_grad()
def _token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, part: VocabularyPart | None
) -> tuple[Tensor, Tensor]:
    losses, log_z = (torch.zeros(len(targets), dtype=torch.float32, device=hidden.device) for _ in range(2))
    for rows in _chunks(hidden, weight):
        _, losses[rows], log_z[rows] = _log_softmax((hidden[rows] @ weight.T).float(), targets[rows], part)
    return losses, log_z


def _log_softmax(logits: Tensor, targets: Tensor, part: VocabularyPart | None) -> tuple[Tensor, Tensor, Tensor]:
    """`[T, V]` logits, which are overwritten -> log probabilities, `-log p(target)` (0 where ignored), and log Z."""
    ignored = targets == IGNORE
    if part is None:
        at = targets.clamp_min(0)[:, None]
        target_logits = logits.gather(-1, at)
        log_probs = torch.log_softmax(logits, dim=-1, out=logits) if logits.is_cpu else logits.log_softmax(-1)
        picked = log_probs.gather(-1, at)
        return log_probs, -picked.squeeze(-1).masked_fill(ignored, 0.0), (target_logits - picked).squeeze(-1)
    peak = part.max(logits.amax(-1))
    log_z = peak + part.sum((logits - peak[:, None]).exp_().sum(-1)).log_()
    at, here = _within(targets, part, logits.shape[-1])
    target_logits = part.sum(logits.gather(-1, at[:, None]).squeeze(-1) * here)
    return logits.sub_(log_z[:, None]), (log_z - target_logits).masked_fill(ignored, 0.0), log_z


def _within(targets: Tensor, part: VocabularyPart | None, size: int) -> tuple[Tensor, Tensor]:
    """Each target's column among the rows of the head that are here, and whether it is one of them."""
    at = targets - (0 if part is None else part.start)
    here = (at >= 0) & (at < size) & (targets != IGNORE)
    return at.clamp(0, size - 1), here


def _gradient_in_place(
    logits: Tensor, targets: Tensor, factor: Tensor, z_loss: float, part: VocabularyPart | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_gradient`, in few passes over the logits, which are overwritten."""
    log_probs, losses, log_z = _log_softmax(logits.float(), targets, part)
    grad = log_probs.exp_()
    if z_loss:
        grad.mul_((1 + 2 * z_loss * log_z)[:, None])
    at, here = _within(targets, part, grad.shape[-1])
    grad[torch.arange(len(at), device=at.device), at] -= here.to(grad.dtype)
    return grad.mul_(factor[:, None]).to(logits.dtype), losses, log_z


def _gradient(logits: Tensor, targets: Tensor, factor: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of a chunk's logits, `(softmax (1 + 2 z log Z) - onehot) * factor`.

    Args:
        logits: `[T, V]`.
        factor: `[T]`, 0 where the target is ignored.

    Returns:
        The gradient, `-log p(target)` (0 where ignored), and log Z.
    """
    wide, at = logits.float(), targets.clamp_min(0)[:, None]
    log_z = wide.logsumexp(-1, keepdim=True)
    losses = (log_z - wide.gather(-1, at)).masked_fill(targets[:, None] == IGNORE, 0.0)
    grad = (wide - log_z).exp() * (1 + 2 * z_loss * log_z)
    grad = torch.where(torch.arange(logits.shape[-1], device=at.device) == at, grad - 1, grad)
    return (grad * factor[:, None]).to(logits.dtype), losses.squeeze(-1), log_z.squeeze(-1)


@cache
def _compiled_gradient() -> Gradient:
    return torch.compile(_gradient)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        denominator: float | Tensor,
        z_loss: float,
        gradient: Gradient,
    ) -> tuple[Tensor, Tensor]:
        # A frozen head (LoRA, a tied embedding that is not trained) needs no gradient of its own.
        # It is a sum over chunks, which half precision would round at every one.
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        chunks = _chunks(hidden, weight)
        # One place for the logits of all chunks: fresh memory would be cleared by the operating system every time.
        place = hidden.new_empty(chunks[0].stop if chunks else 0, len(weight))
        for rows in chunks:
            x, target = hidden[rows], targets[rows]
            logits = torch.mm(x, weight.T, out=place[: len(x)])
            factor = ((target != IGNORE) / denominator).float()
            grad, losses[rows], log_z = gradient(logits, target, factor, z_loss)
            if z_loss:
                total += z_loss * log_z.masked_fill(target == IGNORE, 0.0).square().sum()
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if grad_weight is not None and grad_weight.dtype == grad.dtype:
                grad_weight.addmm_(grad.T, x)
            elif grad_weight is not None:
                grad_weight += grad.T @ x
        total += losses.sum()
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses)
        return total / denominator, losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if not (grad_loss.is_cpu and grad_loss.item() == 1.0):  # the usual case on a CPU needs no pass over the head
            grad_hidden = None if grad_hidden is None else grad_hidden * grad_loss.to(grad_hidden.dtype)
            grad_weight = None if grad_weight is None else grad_weight * grad_loss.to(grad_weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def chunk_tokens(rows: int, on_cpu: bool) -> int:
    """The most tokens of a chunk, for a head of so many rows."""
    return max(LEAST_TOKENS, (CHUNK_BYTES if on_cpu else CHUNK_BYTES_CUDA) // (4 * rows))


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Parts of the tokens, as equal as can be."""
    tokens = len(hidden)
    least = -(-tokens // chunk_tokens(len(weight), hidden.is_cpu))
    # Of one size where that takes few more: the compiler makes code for each size.
    count = next((count for count in range(least, least + least // 2 + 1) if count and tokens % count == 0), least)
    size = -(-tokens // count) if tokens else 1
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
