"""Temperature, top-k, top-p and min-p, and the draw from what is left, for many rows at once.

All filters come down to one threshold a row: the smallest score that may still be drawn. A row's result therefore
never depends on its neighbours, nor on how a sort orders tied scores. Sums go in a fixed order, chunk by chunk: how a
library splits a long sum among threads depends on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from puyulm.engine.params import SamplingParams
from puyulm.engine.transfer import upload

# A nucleus is nearly always found among this many of the most likely tokens, and nearly always where not among the
# second number of them; then the whole row is sorted.
NUCLEUS_CANDIDATES = 64
MORE_CANDIDATES = 1024
CHUNK = 128  # scores that are summed in one go: of the published vocabularies' sizes a divisor


def filtered(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Applies each row's temperature (above 0), top-k, top-p and min-p.

    Returns:
        `[B, V]`: scores over temperature, -inf where a token may not be drawn.
    """
    scaled = scores / _column(scores, [p.temperature for p in params])
    threshold = _threshold(scaled, _relative(scaled), params)
    return scaled if threshold is None else scaled.masked_fill_(scaled < threshold, -torch.inf)


def weights(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """What is left of each token's likelihood, relative to the most likely one's. `[B, V]` -> `[B, V]`."""
    scaled = scores / _column(scores, [p.temperature for p in params])
    mass = _relative(scaled)
    threshold = _threshold(scaled, mass, params)
    # NaN is less than nothing and stays, so that a broken row is not drawn from as if it were whole.
    return mass if threshold is None else mass.masked_fill_(scaled < threshold, 0.0)


def total(mass: Tensor) -> Tensor:
    """Sums of rows, `[B, V]` -> `[B]`, float64."""
    return _chunked(mass).sum(-1).double().sum(-1)


def draw(mass: Tensor, uniforms: Tensor) -> Tensor:
    """Draws by the inverse of the cumulative distribution in vocabulary order.

    First a chunk is drawn by its mass, and then with what is left of the same uniform number a token in it.

    Args:
        mass: `[B, V]`, need not sum to 1.
        uniforms: `[B]` in [0, 1), float64.

    Returns:
        `[B]` ids. A row that holds a NaN gives any id: its logprob is NaN and tells of it.
    """
    chunks = _chunked(mass)
    chunk, rest = _invert(chunks.sum(-1), uniforms)
    inside = chunks[torch.arange(len(mass), device=mass.device), chunk]
    token, _ = _invert(inside, rest)
    return (chunk * CHUNK + token).clamp_(max=mass.shape[1] - 1)


def _invert(mass: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The place where the cumulative sum passes `uniforms` of the whole, and how far inside its share that is."""
    # Summed in float64: in float32 the sum of many probabilities is off by more than the rarest of them.
    cumulative = mass.cumsum(-1, dtype=torch.float64)
    whole = cumulative[:, -1]
    # Below the whole, whatever rounding does: the place then has a share, and is never one past the end.
    target = (uniforms * whole).minimum(torch.nextafter(whole, torch.zeros_like(whole)))[:, None]
    place = torch.searchsorted(cumulative, target, right=True).clamp_(max=mass.shape[1] - 1)
    share = mass.gather(1, place).double()
    before = cumulative.gather(1, place) - share
    return place.squeeze(1), ((target - before) / share).clamp_(0.0, 1.0).squeeze(1)


def _chunked(mass: Tensor) -> Tensor:
    """`[B, V]` -> `[B, V / CHUNK, CHUNK]`, zeros at the end."""
    if short := -mass.shape[1] % CHUNK:
        mass = torch.nn.functional.pad(mass, (0, short))
    return mass.unflatten(1, (-1, CHUNK))


def _column(like: Tensor, numbers: Sequence[float]) -> Tensor:
    return upload([np.array(numbers, dtype=np.float32)], like.device)[0][:, None]


def _relative(scaled: Tensor) -> Tensor:
    """Likelihoods relative to the most likely token's."""
    return (scaled - scaled.amax(-1, keepdim=True)).exp_()


def _threshold(scaled: Tensor, mass: Tensor, params: Sequence[SamplingParams]) -> Tensor | None:
    """The smallest score that may be drawn, `[B, 1]`; None where all may."""
    threshold = None
    if any(p.min_p > 0 for p in params):
        # A token's likelihood relative to the best one's is exp(score - best): no sum over the row is needed.
        threshold = scaled.amax(-1, keepdim=True) + _column(scaled, [p.min_p for p in params]).log()
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        ranked = _rank_threshold(scaled, mass, params)
        threshold = ranked if threshold is None else threshold.maximum(ranked)
    return threshold


def _rank_threshold(scaled: Tensor, mass: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The smallest score that top-k and top-p keep, `[B, 1]`; -inf where both are off.

    Rows whose nucleus is not found among the best few are tried again, deeper.
    """
    vocab_size, device = scaled.shape[1], scaled.device
    k = np.array([min(p.top_k or vocab_size, vocab_size) for p in params])
    p = np.array([p.top_p for p in params])
    top_k, top_p = (column[:, None] for column in upload([k, p], device))
    # Top-p takes a share of what top-k has left: of the whole row only where there is no top-k.
    whole = total(mass)[:, None] if ((p < 1) & (k == vocab_size)).any() else torch.zeros_like(top_p)
    result = scaled.new_full((len(params), 1), -torch.inf)
    pending = np.nonzero((k < vocab_size) | (p < 1))[0]
    for depth in (NUCLEUS_CANDIDATES, MORE_CANDIDATES, vocab_size):
        depth = min(depth, vocab_size)
        now = pending[(k[pending] <= depth) | (k[pending] == vocab_size)]
        if not len(now):
            continue
        chosen = slice(None) if len(now) == len(scaled) else upload([now], device)[0]
        last, found = _rank(scaled[chosen], depth, top_k[chosen], top_p[chosen], whole[chosen])
        result[chosen] = last
        pending = np.setdiff1d(pending, now[found.squeeze(1).cpu().numpy()])
        if not len(pending):
            break
    return result


def _rank(scaled: Tensor, depth: int, top_k: Tensor, top_p: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """The last score that is kept among the best `depth`, and whether that many were enough to tell, both `[B, 1]`."""
    ranked = scaled.topk(depth, dim=-1).values
    # The running sum goes in float64 from the best down, so that how deep a neighbour's filter goes cannot show in it.
    mass = (ranked - ranked[:, :1]).double().exp_().cumsum(-1)
    has_k = top_k < scaled.shape[1]
    within_k = torch.arange(depth, device=scaled.device) < top_k
    norm = torch.where(has_k, mass.gather(1, top_k.clamp(max=depth) - 1), whole)
    before = torch.nn.functional.pad(mass[:, :-1], (1, 0))
    kept = within_k & ((before < top_p * norm) | (top_p >= 1))
    found = has_k | (mass[:, -1:] >= top_p * norm) | (depth == scaled.shape[1])
    return ranked.gather(1, (kept.sum(-1, keepdim=True) - 1).clamp_(min=0)), found
