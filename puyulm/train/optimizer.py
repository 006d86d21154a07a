"""The optimizers: fused AdamW that clips and skips without looking at the device, and Muon for matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from puyulm.train.settings import TrainSettings


class Optimizer:
    """AdamW with decoupled decay on matrices; norms, biases and other vectors are not decayed.

    Clipping and skipping are part of the update: gradients are multiplied with `scale` on the way, and with `skip` set
    nothing changes. Both are read on the device.

    Args:
        parameters: By name; shared ones once, frozen ones are left out.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> None:
        self.settings = settings
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.steps = torch.zeros((), device=next(iter(self.parameters.values())).device)
        self.moments = {
            f"{kind}.{name}": torch.zeros_like(p, dtype=getattr(torch, settings.state_dtype))
            for name, p in self.parameters.items()
            for kind in ("exp_avg", "exp_avg_sq")
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name; to be filled in place."""
        return {"step": self.steps, **self.moments}

    def zero_grad(self) -> None:
        """Frees the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, scale: Tensor, skip: Tensor) -> None:
        """One update.

        Args:
            scale: Scalar that gradients are multiplied with.
            skip: Scalar bool; where true nothing changes.
        """
        settings, found = self.settings, skip.to(torch.float32)
        self.steps += 1 - found
        for decay, names in ((settings.weight_decay, self._matrices(True)), (0.0, self._matrices(False))):
            names = [name for name in names if self.parameters[name].grad is not None]
            if not names:
                continue
            torch._fused_adamw_(
                [_local(self.parameters[name]) for name in names],
                [_local(self.parameters[name].grad) for name in names],
                [_local(self.moments[f"exp_avg.{name}"]) for name in names],
                [_local(self.moments[f"exp_avg_sq.{name}"]) for name in names],
                [],
                [self.steps] * len(names),
                lr=lr, beta1=settings.betas[0], beta2=settings.betas[1], weight_decay=decay, eps=settings.eps,
                amsgrad=False, maximize=False, grad_scale=1 / scale, found_inf=found,
            )  # fmt: skip

    def _matrices(self, wanted: bool) -> Iterable[str]:
        return [name for name, parameter in self.parameters.items() if (parameter.dim() >= 2) == wanted]


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
