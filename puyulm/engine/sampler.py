"""Chooses the next token of every sequence in a batch, each by its own parameters.

A row's result depends on nothing but its own logits, parameters and history: not on its neighbours, and not on when it
is drawn, for draws are a function of the seed and of how many tokens were chosen before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puyulm.engine.filters import draw, total, weights
from puyulm.engine.grammar import Matcher
from puyulm.engine.params import SamplingParams
from puyulm.engine.penalties import SeenTokens, ban_, bias_, penalise_
from puyulm.engine.thinking import ThinkingBudget
from puyulm.engine.transfer import upload
from puyulm.engine.uniform import uniforms
from puyulm.errors import GenerationError

# On CPUs so many scores are worked on at once: what comes between then stays in the caches and in the heap.
CPU_BLOCK = 2**20
TOP_LOGPROBS = 20  # alternatives that a single partial sort finds; more of them take a whole one


class RowSampler:
    """What one sequence carries from draw to draw. All of it lives on the host, whatever the logits' device, and can be
    made again from the prompt and the tokens chosen so far (`record` them).

    Attributes:
        drawn: Tokens chosen so far; also the number of the next draw.

    Args:
        prompt: Ids that the repetition penalty counts as seen.
        stop_ids: Ids that end the answer: banned until `min_new_tokens` tokens are out, and where a grammar goes on.
        vocab_size: Width of the logits.
        device: Where the logits live.
        matcher: Of `params.grammar`, fresh; None: the answer is free.
        thinking: Follows the thoughts; None: the answer has none.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        stop_ids: Sequence[int],
        vocab_size: int,
        device: torch.device,
        *,
        matcher: Matcher | None = None,
        thinking: ThinkingBudget | None = None,
    ) -> None:
        self.params = params
        self.drawn = 0
        self.matcher = matcher
        self.thinking = thinking
        self.greedy = params.temperature == 0
        self._stops = np.array([id for id in stop_ids if id < vocab_size], dtype=np.int64)
        self._stop_set = frozenset(stop_ids)
        penalises = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)
        self.seen = SeenTokens(params, prompt) if penalises else None
        self.bias = _bias(params, vocab_size)
        self.seed = 0
        if not self.greedy:
            self.seed = params.seed if params.seed is not None else int(torch.randint(2**63 - 1, ()))
        # Such a row takes the best of the raw logits, and needs none of what follows.
        self._never_edits = not (penalises or self.bias or matcher or (params.min_new_tokens and len(self._stops)))

    @property
    def edits(self) -> bool:
        """Whether this row's logits are changed before the choice."""
        return not self._never_edits

    @property
    def forced(self) -> int | None:
        """The token that comes next whatever the model says: the end of thoughts that have used up their budget."""
        return None if self.thinking is None else self.thinking.forced()

    @property
    def constrained(self) -> bool:
        """Whether the grammar rules the next token; it does not while the model thinks."""
        return self.matcher is not None and not (self.thinking is not None and self.thinking.inside)

    @property
    def finished(self) -> bool:
        """The grammar is complete and has no place for another token, so the answer ends here."""
        return self.constrained and self.matcher is not None and self.matcher.is_finished

    def uniforms(self, count: int, stream: int = 0) -> NDArray[np.float64]:
        """The numbers in [0, 1) that the next `count` draws take; other streams are independent of them (stream 1 for
        the acceptance of drafts, say)."""
        return uniforms([self.seed] * count, range(self.drawn, self.drawn + count), stream)

    def record(self, token: int) -> None:
        """Counts a chosen token.

        Raises:
            GenerationError: The grammar does not allow it.
        """
        constrained = self.constrained
        self.drawn += 1
        if self.seen is not None:
            self.seen.add(token)
        if self.thinking is not None:
            self.thinking.observe(token)
        if self.matcher is None or token in self._stop_set:
            return
        if constrained and self.constrained:
            self.matcher.consume(token)
        elif self.thinking is not None and (rest := self.thinking.take_rest()):
            self.matcher.consume_bytes(rest)

    def fork(self) -> RowSampler:
        """A copy that goes its own way."""
        twin = copy.copy(self)
        twin.seen = None if self.seen is None else self.seen.fork()
        twin.matcher = None if self.matcher is None else self.matcher.fork()
        twin.thinking = None if self.thinking is None else self.thinking.fork()
        return twin

    def ahead(self, draft: Iterable[int]) -> list[RowSampler]:
        """This row as it would stand before each of the next places, if the draft were chosen: itself, then after one
        token of the draft, after two, ... None of them shares state with this row but the first, which is this row.

        The list ends early where the grammar forbids a token of the draft. Sampling at all these places (`sample` with
        `record=False`) and keeping tokens up to the first that differs from the draft gives exactly the tokens that
        one draw at a time would give, greedy or not.
        """
        rows = [self]
        for token in draft:
            twin = rows[-1].fork()
            try:
                twin.record(token)
            except GenerationError:
                break
            rows.append(twin)
        return rows

    def banned(self) -> NDArray[np.int64]:
        """Ids that may not come next: those that would end the answer, or the thoughts, too early."""
        early = self.drawn < self.params.min_new_tokens
        if self.matcher is None:
            return self._stops if early else self._stops[:0]
        if not self.constrained:  # what the grammar asks for has not even begun
            action = None if self.thinking is None else self.thinking.action
            return self._stops if action is None else np.append(self._stops, action)
        free_to_end = self.matcher.may_end and (not early or self.matcher.is_finished)
        return self._stops[:0] if free_to_end else self._stops

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """What the grammar allows next, `[V]`; the ids that end an answer, where it may end.

        Raises:
            GenerationError: It allows nothing, or could not be followed any further.
        """
        assert self.matcher is not None
        mask = self.matcher.mask(vocab_size)
        mask[self._stops] = True
        mask[self.banned()] = False
        if self.thinking is not None and self.thinking.opening is not None:
            mask[self.thinking.opening] = True
        if not mask.any():
            raise GenerationError(
                "the grammar is complete, but no token may end the answer: leave out ignore_eos, or give stop_ids"
                if self.matcher.is_finished
                else "the grammar asks for text that the vocabulary has no token for"
            )
        return mask


def _bias(params: SamplingParams, vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    pairs = [(id, value) for id, value in params.logit_bias if id < vocab_size]
    if not pairs:
        return None
    ids, values = zip(*pairs, strict=True)
    return np.array(ids, dtype=np.int64), np.array(values, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was chosen in one step.

    Attributes:
        tokens: One for each row.
        logprobs: The logarithm of each token's probability under the model itself (softmax of the given logits, before
            any penalty, temperature or filter). NaN: the logits hold one; the token means nothing and was not recorded.
        top: Of rows that asked for them, by number: the most likely tokens' ids and their log-probabilities, most
            likely first.
        errors: Of rows that failed, by number: why. Their token and logprob mean nothing and were not recorded.
    """

    tokens: list[int]
    logprobs: list[float]
    top: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)
    errors: dict[int, GenerationError] = field(default_factory=dict)


def sample(logits: Tensor, rows: Sequence[RowSampler], *, record: bool = True) -> Sampled:
    """Draws one token for each row.

    Args:
        logits: `[B, V]`, float32; left unchanged.
        rows: B of them.
        record: Count the tokens in their rows. False looks ahead: see `RowSampler.ahead`.
    """
    result = Sampled([], [])
    step = max(1, CPU_BLOCK // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(rows))
    for start in range(0, len(rows), step):
        _sample_block(logits[start : start + step], rows[start : start + step], start, result)
    if record:
        for index, row in enumerate(rows):
            if index not in result.errors and not math.isnan(result.logprobs[index]):
                try:
                    row.record(result.tokens[index])
                except GenerationError as error:
                    result.errors[index] = error
    return result


def _sample_block(logits: Tensor, rows: Sequence[RowSampler], start: int, result: Sampled) -> None:
    """Samples some rows, which are numbered from `start`, and adds what comes out to the result."""
    scores, errors = edited(logits, rows)
    tokens = _choose(scores, rows)
    # Not logsumexp: on CPUs its sum of a single row depends on the number of threads.
    logprobs = logits.log_softmax(-1)
    # In one tensor, so that the host waits for a device once.
    chosen = torch.stack((tokens.double(), logprobs.gather(1, tokens[:, None]).squeeze(1).double()))
    ids, values = chosen.tolist()
    result.tokens.extend(map(int, ids))
    result.logprobs.extend(values)
    result.errors.update((start + index, error) for index, error in errors.items())
    top = most_likely(logprobs, [row.params.logprobs or 0 for row in rows])
    result.top.update((start + index, found) for index, found in top.items())


def _choose(scores: Tensor, rows: Sequence[RowSampler]) -> Tensor:
    """Tokens, `[B]`."""
    drawing = [index for index, row in enumerate(rows) if not row.greedy]
    every = len(drawing) == len(rows)
    tokens = scores.new_empty(len(rows), dtype=torch.long) if every else scores.argmax(-1)
    if drawing:
        chosen = slice(None) if every else upload([np.array(drawing)], scores.device)[0]
        numbers = uniforms([rows[index].seed for index in drawing], [rows[index].drawn for index in drawing])
        mass = weights(scores[chosen], [rows[index].params for index in drawing])
        tokens[chosen] = draw(mass, upload([numbers], scores.device)[0])
    forced = [(index, id) for index, row in enumerate(rows) if (id := row.forced) is not None]
    if forced:
        places, ids = upload([np.array(forced)], scores.device)[0].T
        tokens[places] = ids
    return tokens


def probabilities(logits: Tensor, rows: Sequence[RowSampler]) -> tuple[Tensor, dict[int, GenerationError]]:
    """The distribution that each row's next token is drawn from, after all penalties and filters.

    Returns:
        `[B, V]`, float32, one-hot for greedy and forced rows; and errors as in `Sampled`.
    """
    scores, errors = edited(logits, rows)
    certain = scores.argmax(-1)
    drawing = []
    for index, row in enumerate(rows):
        if (id := row.forced) is not None:
            certain[index] = id
        elif not row.greedy:
            drawing.append(index)
    result = torch.nn.functional.one_hot(certain, logits.shape[1]).to(logits.dtype)
    if drawing:
        chosen = torch.tensor(drawing, device=logits.device)
        mass = weights(scores[chosen], [rows[index].params for index in drawing])
        result[chosen] = (mass / total(mass)[:, None]).to(logits.dtype)
    return result, errors


def edited(logits: Tensor, rows: Sequence[RowSampler]) -> tuple[Tensor, dict[int, GenerationError]]:
    """Penalties, bias, grammar and bans. `[B, V]` -> `[B, V]`, the same tensor when no row has any; and the errors of
    rows whose grammar failed."""
    errors: dict[int, GenerationError] = {}
    editing = [(index, row) for index, row in enumerate(rows) if row.edits]
    if not editing:
        return logits, errors
    scores = logits.clone(memory_format=torch.contiguous_format)
    penalise_(scores, [(index, row.seen) for index, row in editing if row.seen is not None])
    bias_(scores, [(index, *row.bias) for index, row in editing if row.bias is not None])
    masked, masks, banned = [], [], []
    for index, row in editing:
        if row.forced is not None:
            continue
        if not row.constrained:
            banned.append((index, row.banned()))
            continue
        try:
            masks.append(row.allowed(logits.shape[1]))
            masked.append(index)
        except GenerationError as error:
            errors[index] = error
    ban_(scores, banned)
    if masked:
        forbidden, places = upload([~np.stack(masks), np.array(masked)], scores.device)
        chosen = slice(None) if len(masked) == len(rows) else places
        scores[chosen] = scores[chosen].masked_fill_(forbidden, -torch.inf)
    return scores, errors


def most_likely(logprobs: Tensor, wanted: Sequence[int]) -> dict[int, tuple[list[int], list[float]]]:
    """The most likely tokens of rows of `[B, V]`, as many as each wants: their ids and log-probabilities, by row."""
    found: dict[int, tuple[list[int], list[float]]] = {}
    for few in (True, False):  # so that no row's ties are broken by a sort that another row's number has chosen
        asking = [index for index, count in enumerate(wanted) if count and (count <= TOP_LOGPROBS) == few]
        if not asking:
            continue
        depth = min(TOP_LOGPROBS if few else logprobs.shape[1], logprobs.shape[1])
        values, ids = logprobs[torch.tensor(asking, device=logprobs.device)].topk(depth, dim=-1)
        for index, row_ids, row_values in zip(asking, ids.tolist(), values.tolist(), strict=True):
            found[index] = row_ids[: wanted[index]], row_values[: wanted[index]]
    return found
