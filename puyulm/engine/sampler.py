"""Chooses the next token of every sequence in a batch, each by its own parameters.

All filters come down to one threshold a row: the smallest score that may still be drawn. A row's result therefore
never depends on its neighbours, nor on how a sort orders tied scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from puyulm.engine.params import SamplingParams

# A nucleus is nearly always found among this many of the most likely tokens; when it is not, the whole row is sorted.
NUCLEUS_CANDIDATES = 512


class RowSampler:
    """What one sequence carries from draw to draw.

    Args:
        prompt: Ids that the repetition penalty counts as seen.
        stop_ids: Ids banned until `min_new_tokens` tokens are out.
        vocab_size: Width of the logits.
        device: Where the logits live.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        stop_ids: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.params = params
        self.drawn = 0
        self.banned = [id for id in stop_ids if id < vocab_size] if params.min_new_tokens else []
        self.seen: Tensor | None = None
        if params.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.seen[torch.tensor(list(prompt), dtype=torch.long, device=device)] = True
        # The draws are made on the CPU, whatever the device: equal seeds then give equal draws everywhere.
        self._generator: torch.Generator | None = None
        if params.temperature > 0:
            seed = params.seed if params.seed is not None else int(torch.randint(2**63 - 1, ()))
            self._generator = torch.Generator().manual_seed(seed)

    def uniform(self) -> float:
        """The next draw from [0, 1)."""
        return torch.rand((), dtype=torch.float64, generator=self._generator).item()

    def record(self, token: int) -> None:
        """Counts a chosen token."""
        self.drawn += 1
        if self.seen is not None:
            self.seen[token] = True


def sample(logits: Tensor, rows: Sequence[RowSampler]) -> tuple[list[int], list[float]]:
    """Draws one token for each row and records it there.

    Args:
        logits: `[B, V]`, float32; left unchanged.
        rows: B of them.

    Returns:
        The tokens, and the logarithm of each one's probability under the model itself (softmax of the given logits,
        before any penalty, temperature or filter).
    """
    scores = _ban(penalised(logits, rows), rows)
    tokens = scores.argmax(-1)
    drawing = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    if drawing:
        uniforms = torch.tensor([rows[index].uniform() for index in drawing], dtype=torch.float64)
        params = [rows[index].params for index in drawing]
        if len(drawing) == len(rows):
            tokens = _draw(filtered(scores, params), uniforms.to(logits.device))
        else:
            chosen = torch.tensor(drawing, device=logits.device)
            tokens[chosen] = _draw(filtered(scores[chosen], params), uniforms.to(logits.device))
    logprobs = logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)
    ids = tokens.tolist()
    for row, token in zip(rows, ids, strict=True):
        row.record(token)
    return ids, logprobs.tolist()


def penalised(logits: Tensor, rows: Sequence[RowSampler]) -> Tensor:
    """Applies each row's repetition penalty. `[B, V]` -> `[B, V]`, the same tensor when no row has one."""
    if all(row.seen is None for row in rows):
        return logits
    none = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    seen = torch.stack([none if row.seen is None else row.seen for row in rows])
    penalty = logits.new_tensor([row.params.repetition_penalty for row in rows])[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _ban(scores: Tensor, rows: Sequence[RowSampler]) -> Tensor:
    banning = [index for index, row in enumerate(rows) if row.banned and row.drawn < row.params.min_new_tokens]
    if not banning:
        return scores
    scores = scores.clone()
    for index in banning:
        scores[index, rows[index].banned] = -torch.inf
    return scores


def filtered(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Applies each row's temperature (above 0), top-k, top-p and min-p.

    Returns:
        `[B, V]`: scores over temperature, -inf where a token may not be drawn.
    """
    scores = scores / scores.new_tensor([p.temperature for p in params])[:, None]
    threshold = scores.new_full((len(params), 1), -torch.inf)
    if any(p.min_p > 0 for p in params):
        # A token's likelihood relative to the first is exp(score - best): no sum over the row is needed.
        min_p = scores.new_tensor([p.min_p for p in params])[:, None]
        threshold = scores.amax(-1, keepdim=True) + min_p.log()
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        threshold = threshold.maximum(_rank_threshold(scores, params))
    return scores.masked_fill(scores < threshold, -torch.inf)


def _rank_threshold(scores: Tensor, params: Sequence[SamplingParams], whole: bool = False) -> Tensor:
    """The smallest score that top-k and top-p keep, `[B, 1]`; `whole` sorts rows to the end."""
    vocab_size = scores.shape[1]
    depth = max((p.top_k or NUCLEUS_CANDIDATES) for p in params if p.top_k or p.top_p < 1)
    depth = vocab_size if whole else min(depth, vocab_size)
    # In float64, so that how deep the neighbours' filters go cannot show in a sum's last digit.
    ranked = scores.topk(depth, dim=-1).values.double()
    top_k = torch.tensor([min(p.top_k or vocab_size, vocab_size) for p in params], device=scores.device)[:, None]
    top_p = scores.new_tensor([p.top_p for p in params], dtype=torch.float64)[:, None]
    within_k = torch.arange(depth, device=scores.device) < top_k
    # Top-p is a share of what top-k has left: of the whole row only where there is no top-k.
    norm = ranked.masked_fill(~within_k, -torch.inf).logsumexp(-1, keepdim=True)
    if any(p.top_p < 1 and not p.top_k for p in params):
        best = scores.amax(-1, keepdim=True)
        whole_row = best.double() + (scores - best).exp().sum(-1, keepdim=True, dtype=torch.float64).log()
        norm = torch.where(top_k < vocab_size, norm, whole_row)
    mass = (ranked - norm).exp().cumsum(-1)
    if depth < vocab_size:
        undecided = (top_k == vocab_size) & (top_p < 1) & (mass[:, -1:] < top_p)
        if undecided.any():
            return _rank_threshold(scores, params, whole=True)
    before = torch.cat((torch.zeros_like(mass[:, :1]), mass[:, :-1]), dim=-1)
    kept = within_k & (before < top_p)
    last = ranked.gather(1, kept.sum(-1, keepdim=True) - 1).to(scores.dtype)
    off = (top_k == vocab_size) & (top_p >= 1)
    return last.masked_fill(off, -torch.inf)


def _draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Draws by the inverse of the cumulative distribution in vocabulary order. `[B, V]`, `[B]` in [0, 1) -> `[B]`."""
    # Summed in float64: in float32 the sum of 100,000 probabilities is off by more than the rarest of them.
    cumulative = (scores - scores.amax(-1, keepdim=True)).exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    target = (uniforms * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    # Clamped for rows that hold a NaN, which nothing is right of: the token's logprob is NaN then and tells of it.
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1).clamp_(max=scores.shape[1] - 1)
