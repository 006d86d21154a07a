"""Next-token loss of a language-model head, without ever holding all logits.

For T tokens and a vocabulary of V, plain cross entropy keeps several `[T, V]` float32 tensors: 0.76 GB each at 2,048
tokens of InternLM2's 92,544. Here the head's product, its loss and its gradients are computed a chunk of tokens at a
time in the forward; what is kept for the backward is the gradient of the hidden states and of the head itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""Target of tokens that no loss is taken on."""

CHUNK_BYTES = 64 * 2**20
"""Size of one chunk's float32 logits: large enough for full-speed matrix products, small beside the model."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, denominator: float | Tensor) -> Tensor:
    """Cross entropy of `hidden @ weight.T` against `targets`, summed and divided by `denominator`.

    Dividing a sum by a count given from outside keeps the loss the same however tokens are split into micro-batches.

    Args:
        hidden: `[T, H]`.
        weight: `[V, H]`, the head.
        targets: `[T]`, ids of the next tokens, or `IGNORE`.
        denominator: Usually the number of target tokens of the whole step.

    Returns:
        Scalar, float32.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, denominator)
    total = token_losses(hidden, weight, targets).sum()
    return total / denominator


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`-log p(target)` of every token, `[T]` float32, 0 where the target is `IGNORE`; no gradient."""
    losses = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
    for part in _chunks(hidden, weight):
        log_probs = torch.log_softmax((hidden[part] @ weight.T).float(), dim=-1)
        losses[part] = -_pick(log_probs, targets[part])
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, denominator: float | Tensor) -> Tensor:
        # A frozen head (LoRA, a tied embedding that is not trained) needs no gradient of its own.
        # It is a sum over chunks, which half precision would round at every one.
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for part in _chunks(hidden, weight):
            x, target = hidden[part], targets[part]
            logits = (x @ weight.T).float()
            log_probs = torch.log_softmax(logits, dim=-1, out=logits) if logits.is_cpu else logits.log_softmax(-1)
            total -= _pick(log_probs, target).sum()
            # d loss / d logits = (softmax - onehot) / denominator on the tokens that count
            grad = log_probs.exp_()
            counted = target != IGNORE
            rows = torch.arange(len(target), device=target.device)
            grad[rows, target.clamp_min(0)] -= 1.0
            grad.mul_((counted / denominator).to(grad.dtype)[:, None])
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight is not None and grad_weight.dtype == grad.dtype:
                grad_weight.addmm_(grad.T, x)
            elif grad_weight is not None:
                grad_weight += grad.T @ x
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / denominator

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if not (grad_loss.is_cpu and grad_loss.item() == 1.0):  # the usual case on a CPU needs no pass over the head
            grad_hidden = None if grad_hidden is None else grad_hidden * grad_loss.to(grad_hidden.dtype)
            grad_weight = None if grad_weight is None else grad_weight * grad_loss.to(grad_weight.dtype)
        return grad_hidden, grad_weight, None, None


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = max(128, CHUNK_BYTES // (4 * weight.shape[0]))
    return [slice(start, min(start + size, len(hidden))) for start in range(0, len(hidden), size)]


def _pick(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Log probability of each target, `[T]`, 0 where ignored."""
    picked = log_probs.gather(-1, targets.clamp_min(0)[:, None]).squeeze(-1)
    return picked.masked_fill(targets == IGNORE, 0.0)
