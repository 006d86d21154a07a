"""Whether a text's earlier part helps to predict what follows, as a language model sees it.

InternLM2 compares the perplexity of a segment with and without the segment before it, and drops texts whose earlier
part makes the later one harder to predict (report, section 3.1.3): pages joined wrongly, fragments, broken layouts.
Only differences count, which cancels how well the model knows the kind of text. The executable definition is
LongWanjuan's (`coherence/`): of each window of 4,096 tokens the last 1,024 are scored, once with all 3,072 tokens
before them and once with 1,024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from puyulm.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from puyulm.model.decoder import Decoder

COHERENCE_FEATURES = (
    "acc_with", "acc_without", "acc_delta", "acc_ratio", "ppl_with", "ppl_without", "ppl_delta", "ppl_ratio",
    "loss_delta", "tokens_per_character", "unique_token_rate",
)  # fmt: skip
"""Names; see `coherence_features` and `token_features`."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """How a text is cut and scored, in tokens.

    Attributes:
        size: Of a window.
        scored: Its last tokens, which are predicted.
        context: Tokens before these when they are predicted without the rest of the window.
    """

    size: int = 4096
    scored: int = 1024
    context: int = 1024

    def __post_init__(self) -> None:
        if not (self.scored > 0 and self.context > 0 and self.scored + self.context < self.size):
            raise DataError(
                f"windows of {self.size} tokens cannot have {self.scored} scored behind {self.context} of context and "
                "more before: give size > scored + context, all above 0"
            )

    def cut(self, tokens: Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """Consecutive whole windows of a text; what is left over is not scored."""
        array = np.asarray(tokens, dtype=np.int64)
        return [array[i : i + self.size] for i in range(0, len(array) - self.size + 1, self.size)]


class WindowScores(NamedTuple):
    """Means over the scored tokens of each of N windows, `[N]` each."""

    loss_with: Floats
    loss_without: Floats
    acc_with: Floats
    acc_without: Floats


def score_windows(
    decoder: Decoder, windows: Sequence[npt.NDArray[np.int64]], sizes: Windows, batch_tokens: int
) -> WindowScores:
    """Scores windows with and without their first part.

    Both variants of as many windows as fit are packed into one forward, one after another without padding.

    Args:
        decoder: In evaluation mode.
        windows: Each of `sizes.size` tokens.
        sizes: What is scored.
        batch_tokens: Tokens of a forward; at least one window is taken.
    """
    import torch

    lengths = (sizes.size - 1, sizes.context + sizes.scored - 1)  # the last token is predicted, never read
    at_once = max(1, batch_tokens // sum(lengths))
    rows = []
    with torch.inference_mode():
        for first in range(0, len(windows), at_once):
            part = np.stack(windows[first : first + at_once])
            losses, hits = _forward(decoder, part, lengths, sizes.scored)
            rows.append(torch.cat([losses, hits], dim=1).cpu().numpy().astype(np.float64))
    scores = np.concatenate(rows) if rows else np.zeros((0, 4))
    return WindowScores(*scores.T)


def coherence_features(scores: WindowScores, first: int, last: int) -> dict[str, float]:
    """Features of the text whose windows are `first` to `last` (exclusive); none where it has no window.

    Returns:
        Means over windows of `acc_with`, `acc_without` (share of tokens that the model ranks first) and of `ppl_with`,
        `ppl_without` (exp of a window's mean loss); `acc_delta` = acc_with - acc_without; `acc_ratio` = acc_delta /
        (acc_with + 1e-5); `ppl_delta` = ppl_without - ppl_with; `ppl_ratio` = ppl_delta / (ppl_without + 1e-5);
        `loss_delta`: the same difference of mean losses, nats a token. Positive: the earlier part helps.
    """
    if first == last:
        return {}
    part = slice(first, last)
    acc_with, acc_without = float(scores.acc_with[part].mean()), float(scores.acc_without[part].mean())
    ppl_with, ppl_without = (
        float(np.exp(scores.loss_with[part]).mean()),
        float(np.exp(scores.loss_without[part]).mean()),
    )
    acc_delta, ppl_delta = acc_with - acc_without, ppl_without - ppl_with
    return {
        "acc_with": acc_with,
        "acc_without": acc_without,
        "acc_delta": acc_delta,
        "acc_ratio": acc_delta / (acc_with + 1e-5),
        "ppl_with": ppl_with,
        "ppl_without": ppl_without,
        "ppl_delta": ppl_delta,
        "ppl_ratio": ppl_delta / (ppl_without + 1e-5),
        "loss_delta": float((scores.loss_without[part] - scores.loss_with[part]).mean()),
    }


def token_features(tokens: Sequence[int], characters: int) -> dict[str, float]:
    """`tokens_per_character` and `unique_token_rate` (different tokens among all) of a text."""
    if not tokens or not characters:
        return {}
    return {"tokens_per_character": len(tokens) / characters, "unique_token_rate": len(set(tokens)) / len(tokens)}


def _forward(
    decoder: Decoder, windows: npt.NDArray[np.int64], lengths: tuple[int, int], scored: int
) -> tuple[Tensor, Tensor]:
    """Mean losses and hits of windows `[N, size]`: `[N, 2]` each, with and without the first part."""
    import torch

    from puyulm.model.attention import PackedAttention

    device = decoder.embed.weight.device
    count = len(windows)
    tokens = [row[-1 - length : -1] for length in lengths for row in windows]  # all long ones, then all short ones
    targets = torch.from_numpy(np.tile(windows[:, -scored:], (2, 1)).reshape(-1)).to(device)
    attention = PackedAttention([len(part) for part in tokens], device)
    hidden = decoder(torch.from_numpy(np.concatenate(tokens)).to(device), attention.positions, attention)
    ends = attention.cu_seqlens[1:].long()
    rows = (ends[:, None] + torch.arange(-scored, 0, device=device)).reshape(-1)
    losses, hits = _losses_and_hits(decoder, hidden[rows], targets)
    return tuple(part.view(2, count, scored).mean(dim=2).T for part in (losses, hits))  # type: ignore[return-value]


def _losses_and_hits(decoder: Decoder, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`-log p(target)`, and 1 where the target is the model's first choice, of every row, `[T]` float64 each."""
    import torch

    losses, hits = [], []
    for some, wanted in _chunks(decoder, hidden, targets):
        logits = decoder.logits(some)
        picked = logits.gather(1, wanted[:, None]).squeeze(1)
        losses.append((torch.logsumexp(logits, dim=1) - picked).double())
        hits.append((logits.argmax(dim=1) == wanted).double())
    return torch.cat(losses), torch.cat(hits)


def _chunks(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows in parts whose logits fit into the memory that a loss takes elsewhere."""
    from puyulm.model.loss import chunk_tokens

    size = chunk_tokens(decoder.config.vocab_size, hidden.is_cpu)
    yield from zip(hidden.split(size), targets.split(size), strict=True)
