"""Values on their way from the device to the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Readback(Generic[T]):
    """A queue of small tensors that are read without making the device idle: on a GPU the host looks at a step's values
    when the next step is under way.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._lag = 1 if device.type == "cuda" else 0
        self._waiting: deque[tuple[T, Tensor, torch.cuda.Event | None]] = deque()

    def push(self, what: T, values: Tensor) -> None:
        """Begins to read a tensor; `what` is handed back with its values."""
        event = None
        if values.is_cuda:
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((what, values, event))

    def take(self, *, all: bool = False) -> Iterator[tuple[T, list[float]]]:
        """What may be looked at by now, in order; with `all` everything that was pushed."""
        while len(self._waiting) > (0 if all else self._lag):
            what, values, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            yield what, values.tolist()

    def clear(self) -> None:
        """Forgets what was pushed and not taken."""
        self._waiting.clear()
