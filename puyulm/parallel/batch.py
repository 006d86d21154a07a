"""What one forward and backward works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from puyulm.model.attention import PackedAttention
from puyulm.model.loss import IGNORE


@dataclass(frozen=True)
class MicroBatch:
    """Packed documents on a device.

    Attributes:
        tokens: `[T]` int64.
        targets: `[T]` int64, `IGNORE` where no loss is taken.
        lengths: Tokens of each document; they sum to T.
        num_targets: Tokens with a loss.
        sources: `[T]` int64, where each token is from; None where sources are not told apart.
    """

    tokens: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    num_targets: int
    sources: Tensor | None = None

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        targets: np.ndarray,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        sources: np.ndarray | None = None,
        pad_to: int = 0,
        multiple: int = 1,
    ) -> MicroBatch:
        """Takes a batch to a device, with one more document of ignored tokens where it must be longer.

        Args:
            sources: `[T]` int64, where each token is from.
            pad_to: T is at least this.
            multiple: T is a multiple of this.
        """
        size = max(len(tokens), pad_to)
        filler = -(-size // multiple) * multiple - len(tokens)
        if filler:
            tokens = np.concatenate([tokens, np.zeros(filler, dtype=tokens.dtype)])
            targets = np.concatenate([targets, np.full(filler, IGNORE, dtype=targets.dtype)])
            if sources is not None:
                sources = np.concatenate([sources, np.zeros(filler, dtype=sources.dtype)])
        lengths = (*lengths, filler) if filler else tuple(lengths)
        return cls(
            _to(tokens, device),
            _to(targets, device),
            lengths,
            int(np.count_nonzero(targets != IGNORE)),
            None if sources is None else _to(sources, device),
        )

    @cached_property
    def attention(self) -> PackedAttention:
        """Each document sees itself only."""
        return PackedAttention(self.lengths, self.tokens.device)


def _to(values: np.ndarray, device: torch.device | str) -> Tensor:
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":  # a copy from pinned memory does not make the host wait for the device
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
