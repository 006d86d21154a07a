"""AdamW, and clipping by the global norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from puyulm.train.settings import TrainSettings


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with decoupled decay on matrices; norms, biases and other vectors are not decayed.

    Shared parameters (a tied head) count once; frozen ones (`requires_grad` off) are left out. The fused
    implementation is one pass over the weights: on a CPU four times faster than the default one.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients by `max_norm / norm` where their joint L2 norm is above `max_norm`.

    Nothing is read back from the device: a norm that is not finite makes the gradients so, and shows in the result.

    Returns:
        The norm before scaling, a scalar on the gradients' device.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
