"""What the methods of quantisation want to know of the inputs of a matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputStatistics:
    """Inputs `[T, K]` of a matrix over the calibration text.

    Attributes:
        mean: `[K]`, mean magnitude of each channel.
        largest: `[K]`, largest magnitude.
        moments: `[K, K]`, second moments (the mean of x x^T), or None where they were not asked for.
    """

    mean: Tensor
    largest: Tensor
    moments: Tensor | None

    def require_moments(self) -> Tensor:
        assert self.moments is not None
        return self.moments

    def scaled(self, scales: Tensor) -> InputStatistics:
        """The same of inputs divided by scales `[K]`."""
        moments = None if self.moments is None else self.moments / (scales[:, None] * scales)
        return InputStatistics(self.mean / scales, self.largest / scales, moments)


class Gatherer:
    """Takes inputs chunk by chunk."""

    def __init__(self, *, moments: bool) -> None:
        self._with_moments = moments
        self._count = 0
        self._sum = self._largest = self._moments = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        """Counts inputs `[T, K]` in."""
        inputs = inputs.float()
        magnitude = inputs.abs()
        first = not self._count
        self._count += len(inputs)
        self._sum = magnitude.sum(0) + (0 if first else self._sum)
        self._largest = magnitude.amax(0) if first else torch.maximum(self._largest, magnitude.amax(0))
        if self._with_moments and first:
            self._moments = inputs.T @ inputs
        elif self._with_moments:
            self._moments.addmm_(inputs.T, inputs)

    def statistics(self) -> InputStatistics:
        moments = self._moments / self._count if self._with_moments else None
        return InputStatistics(self._sum / self._count, self._largest, moments)


def gather(chunks: Iterable[Tensor], *, moments: bool) -> InputStatistics:
    """Statistics of inputs that come in chunks `[T, K]`."""
    gatherer = Gatherer(moments=moments)
    for chunk in chunks:
        gatherer.add(chunk)
    return gatherer.statistics()
