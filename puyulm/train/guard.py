"""Which steps are taken: those whose loss and gradient are finite and no spike. Decided on the device, by all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from puyulm.train.settings import SpikeSettings


class Guard:
    """Mean and deviation of loss and gradient norm over the steps last taken.

    Window and count are on the device and nothing is read back, so that a verdict costs the host no wait, and does not
    depend on when the host looks. They are made of values that all ranks share: ranks judge alike.

    Args:
        device: Where losses and norms are.
    """

    def __init__(self, settings: SpikeSettings, device: torch.device) -> None:
        self.settings = settings
        self.window = torch.zeros(2, settings.window, dtype=torch.float64, device=device)
        self.taken = torch.zeros((), dtype=torch.int64, device=device)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name; to be filled in place."""
        return {"window": self.window, "taken": self.taken}

    def forget(self) -> None:
        """Empties the window: steps of another phase, on other data, are no measure."""
        self.taken.zero_()

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether a step must not be taken, a scalar bool on the device; a step that is taken enters the window."""
        values = torch.stack((loss, norm)).double()
        bad = ~values.isfinite().all()
        if self.settings.sigma is not None:
            limit = self.window.mean(1) + self.settings.sigma * self.window.std(1)
            bad |= (self.taken >= self.settings.window) & (values > limit).any()
        at = (self.taken % self.settings.window)[None]
        kept = self.window.index_select(1, at)
        self.window.index_copy_(1, at, torch.where(bad, kept, values[:, None]))
        self.taken += (~bad).long()
        return bad
