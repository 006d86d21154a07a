"""Text -> the equally long rows of tokens that calibrate a quantisation, and those on which it is judged."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from puyulm.errors import DataError
from puyulm.text.tokenizer import Tokenizer

SHORTEST_ROW = 16


def token_rows(documents: Iterable[Iterable[int]], length: int, max_rows: int, vocab_size: int) -> Tensor:
    """Documents' ids one after another, cut into rows `[R, length]`, R at most `max_rows`; what does not fill a row is
    left out. Where there is less than one row of text, the row is shorter.

    Raises:
        DataError: There is next to no text, or an id is outside the vocabulary.
    """
    ids: list[int] = []
    for document in documents:
        ids += document
        if len(ids) >= length * max_rows:
            break
    if len(ids) < SHORTEST_ROW:
        raise DataError(f"the text has {len(ids)} tokens; give at least {SHORTEST_ROW}, better thousands")
    if max(ids) >= vocab_size:
        raise DataError(f"the text has token {max(ids)}, the model {vocab_size} tokens; is the tokenizer the model's?")
    length = min(length, len(ids))
    rows = min(len(ids) // length, max_rows)
    return torch.tensor(ids[: rows * length]).view(rows, length)


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer) -> Iterable[list[int]]:
    """Ids of each text, behind a beginning-of-sequence token where the tokenizer has one."""
    return (tokenizer.encode(text, bos=tokenizer.bos_id is not None) for text in texts)


def split_rows(rows: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """Rows to calibrate on and rows to judge by: every n-th is held out, so that both see all of the text.

    Raises:
        DataError: There are too few rows for both.
    """
    if len(rows) < 2:
        raise DataError(
            f"the text makes only {len(rows)} row of {rows.shape[1]} tokens, and some must be held out; give more "
            "text, shorter rows, or other text to judge by"
        )
    count = max(1, min(held_out, len(rows) // 2))
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    chosen[torch.linspace(0, len(rows) - 1, count + 2)[1:-1].round().long()] = True
    return rows[~chosen], rows[chosen]
