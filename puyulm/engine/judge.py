"""What is read from a step's hidden states besides the next token: log-probabilities of prompts, and vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from puyulm.engine.request import Request, TopLogprobs
from puyulm.engine.sampler import most_likely
from puyulm.engine.scheduler import Piece

LOGITS_AT_ONCE = 1 << 24  # elements of logits in memory: 64 MiB in float32


Head = Callable[[Tensor], Tensor]  # [N, H] -> [N, V] logits in float32


class Judged(NamedTuple):
    """Log-probabilities of N tokens, and by place the most likely tokens where they were asked for."""

    logprobs: list[float]
    top: dict[int, TopLogprobs]


@torch.inference_mode()
def judge(hidden: Tensor, targets: Sequence[int], head: Head, vocab_size: int, tops: Sequence[int]) -> Judged:
    """How likely each target is after its hidden state. No more than `LOGITS_AT_ONCE` logits are ever held.

    Args:
        hidden: `[N, H]`, final-normed.
        targets: N ids.
        tops: How many of the most likely tokens each place lists.
    """
    logprobs: list[float] = []
    alternatives: dict[int, TopLogprobs] = {}
    wanted = torch.tensor(targets, device=hidden.device)[:, None]
    step = max(LOGITS_AT_ONCE // vocab_size, 1)
    for rows, ids in zip(hidden.split(step), wanted.split(step), strict=True):
        # Not logsumexp: on CPUs its sum of a row depends on how many rows there are.
        judged = head(rows).log_softmax(-1)
        start = len(logprobs)
        logprobs += judged.gather(1, ids).squeeze(1).tolist()
        found = most_likely(judged, tops[start : start + len(ids)])
        alternatives.update((start + row, TopLogprobs(*best)) for row, best in found.items())
    return Judged(logprobs, alternatives)


def judge_prompts(pieces: Sequence[Piece], hidden: Tensor, head: Head, vocab_size: int) -> None:
    """Gives requests the log-probabilities of their own prompts that they want and that this step makes known.

    Args:
        hidden: `[T, H]` of all pieces.
    """
    places: list[int] = []
    targets: list[int] = []
    tops: list[int] = []
    owners: list[tuple[Request, int]] = []
    offset = 0
    for request, start, count in pieces:
        first = request.unjudged
        if first is not None:
            positions = range(max(first, start + 1), min(start + count, request.prompt_length - 1) + 1)
            places += [offset + position - 1 - start for position in positions]
            targets += [request.tokens[position] for position in positions]
            tops += [request.params.prompt_logprobs or 0] * len(positions)
            owners.append((request, len(positions)))
        offset += count
    if not places:
        return
    judged = judge(hidden[places], targets, head, vocab_size, tops)
    end = 0
    for request, count in owners:
        begin, end = end, end + count
        request.prompt_logprobs += judged.logprobs[begin:end]
        request.prompt_top += [judged.top[place] for place in range(begin, end) if place in judged.top]


def pool(pieces: Sequence[Piece], hidden: Tensor) -> None:
    """Gives requests of the tasks "last" and "mean" their vector as it comes. `[T, H]` of all pieces."""
    offset = 0
    for request, start, count in pieces:
        offset += count
        if request.task in ("generate", "logprobs"):
            continue
        own, last = hidden[offset - count : offset], start + count == len(request.tokens)
        if request.task == "last" and last:
            request.pooled = own[-1].clone()
        elif request.task == "mean":
            # In float64, so that where the prompt was cut into chunks does not show.
            total = own.sum(0, dtype=torch.float64)
            if start > 0 and request.pooled is not None:
                total += request.pooled
            request.pooled = (total / len(request.tokens)).float() if last else total
