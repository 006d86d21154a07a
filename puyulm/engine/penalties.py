"""Edits of single scores: penalties for tokens already seen, bias, and bans.

What a row has seen is kept as a short list of ids beside their counts, on the host: an edit then touches as many
scores as there are ids, not the whole vocabulary, and one gather and one scatter serve all rows of a batch. No score
is touched twice by one edit, so the order of rows and ids cannot show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puyulm.engine.params import SamplingParams
from puyulm.engine.transfer import upload


class SeenTokens:
    """The distinct tokens of one sequence, and how often each stands in the answer.

    Args:
        prompt: Counts as seen, but not as answer.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        # Without a repetition penalty the prompt does not matter.
        first = list(dict.fromkeys(prompt)) if params.repetition_penalty != 1.0 else []
        self._place = {id: place for place, id in enumerate(first)}
        self._ids = np.array([*first, *[0] * 64], dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self.numbers = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)

    def add(self, token: int) -> None:
        """Counts a token of the answer."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[place] = token
        self._counts[place] += 1

    def fork(self) -> SeenTokens:
        """A copy that goes its own way."""
        twin = object.__new__(SeenTokens)
        twin._place, twin._ids, twin._counts = dict(self._place), self._ids.copy(), self._counts.copy()
        twin.numbers = self.numbers
        return twin

    @property
    def ids(self) -> NDArray[np.int64]:
        """`[distinct]`"""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """`[distinct]`: occurrences in the answer."""
        return self._counts[: len(self._place)]


def penalise_(scores: Tensor, seen: Sequence[tuple[int, SeenTokens]]) -> None:
    """Applies repetition, then presence and frequency penalties in place.

    Args:
        scores: `[B, V]`.
        seen: Rows and what each has seen.
    """
    if not seen:
        return
    lengths = [len(one.ids) for _, one in seen]
    places = _flat([row for row, _ in seen], [one.ids for _, one in seen], scores)
    numbers = np.repeat(np.array([one.numbers for _, one in seen], dtype=np.float32).T, lengths, axis=1)
    all_counts = np.concatenate([one.counts for _, one in seen])
    counts, (repetition, presence, frequency) = upload([all_counts, numbers], scores.device)
    flat = scores.view(-1)
    old = flat[places]
    old = torch.where(old > 0, old / repetition, old * repetition)
    flat[places] = old - presence * (counts > 0) - frequency * counts


def bias_(scores: Tensor, biases: Sequence[tuple[int, NDArray[np.int64], NDArray[np.float32]]]) -> None:
    """Adds to single scores in place.

    Args:
        scores: `[B, V]`.
        biases: Row, its ids (each once), and what to add to each.
    """
    if not biases:
        return
    places = _flat([row for row, _, _ in biases], [ids for _, ids, _ in biases], scores)
    (added,) = upload([np.concatenate([values for _, _, values in biases])], scores.device)
    flat = scores.view(-1)
    flat[places] = flat[places] + added


def ban_(scores: Tensor, bans: Iterable[tuple[int, NDArray[np.int64]]]) -> None:
    """Sets single scores, given as rows and ids of each, to -inf in place."""
    listed = list(bans)
    if listed:
        scores.view(-1)[_flat([row for row, _ in listed], [ids for _, ids in listed], scores)] = -torch.inf


def _flat(rows: Sequence[int], ids: Sequence[NDArray[np.int64]], scores: Tensor) -> Tensor:
    """Places in the flattened scores."""
    starts = np.repeat(np.array(rows, dtype=np.int64) * scores.shape[1], [len(one) for one in ids])
    return upload([starts + np.concatenate(ids)], scores.device)[0]
