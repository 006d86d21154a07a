"""Tokenizers side by side on the same text: how densely and how fast they encode, and whether the text comes back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from puyulm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """What one tokenizer made of one stratum of text.

    Attributes:
        tokenizer, stratum: Their names; "all" for all strata together.
        vocab_size: Of the tokenizer.
        bytes, tokens: UTF-8 bytes of text, and ids.
        changed: Segments that do not come back when their ids are decoded.
        seconds: For encoding, on all cores (or OMP_NUM_THREADS and RAYON_NUM_THREADS).
    """

    tokenizer: str
    stratum: str
    vocab_size: int
    bytes: int
    tokens: int
    changed: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        """Higher is denser."""
        return self.bytes / max(self.tokens, 1)

    @property
    def speed(self) -> float:
        """Megabytes of text encoded in a second."""
        return self.bytes / 1e6 / max(self.seconds, 1e-9)


def compare_tokenizers(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, Sequence[str]]) -> list[Encoded]:
    """Encodes every stratum with every tokenizer, once, after a short warm-up.

    Args:
        tokenizers: By the name to show.
        texts: Segments of text by stratum. Half surrogate pairs are no text; leave them out.

    Returns:
        For each stratum, and then for "all", one entry a tokenizer.
    """
    rows: list[Encoded] = []
    for name, tokenizer in tokenizers.items():
        tokenizer.encode_batch([segments[0][:1000] for segments in texts.values() if segments])
        rows += [_encoded(name, tokenizer, stratum, segments) for stratum, segments in texts.items()]
    for name, tokenizer in tokenizers.items():
        mine = [row for row in rows if row.tokenizer == name]
        sums = (sum(row.bytes for row in mine), sum(row.tokens for row in mine), sum(row.changed for row in mine))
        rows.append(Encoded(name, "all", tokenizer.vocab_size, *sums, sum(row.seconds for row in mine)))
    order = {stratum: place for place, stratum in enumerate([*texts, "all"])}
    return sorted(rows, key=lambda row: order[row.stratum])


def comparison_table(rows: Sequence[Encoded]) -> str:
    """The rows as a table: a line a stratum and tokenizer."""
    names = max(len("tokenizer"), *(len(row.tokenizer) for row in rows))
    strata = max(len("text"), *(len(row.stratum) for row in rows))
    lines = [f"{'text':<{strata}}  {'tokenizer':<{names}}{'ids':>9}{'MB':>9}{'bytes/token':>13}{'MB/s':>8}  round trip"]
    for row in rows:
        trip = "exact" if not row.changed else f"{row.changed:,} segments change"
        lines.append(f"{row.stratum:<{strata}}  {row.tokenizer:<{names}}{row.vocab_size:>9,}{row.bytes / 1e6:>9.3f}"
                     f"{row.bytes_per_token:>13.3f}{row.speed:>8.1f}  {trip}")  # fmt: skip
    return "\n".join(lines)


def _encoded(name: str, tokenizer: Tokenizer, stratum: str, segments: Sequence[str]) -> Encoded:
    started = time.perf_counter()
    ids = tokenizer.encode_batch(segments)
    seconds = time.perf_counter() - started
    changed = sum(tokenizer.decode(found) != text for found, text in zip(ids, segments, strict=True))
    size = sum(len(text.encode()) for text in segments)
    return Encoded(name, stratum, tokenizer.vocab_size, size, sum(map(len, ids)), changed, seconds)
