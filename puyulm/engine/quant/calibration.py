"""Text -> the equally long rows of tokens that calibrate a quantisation, and those on which it is judged."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puyulm.errors import ChatError, DataError
from puyulm.model.config import ModelConfig
from puyulm.text.chat import chat_format_for, messages_from_dicts, render
from puyulm.text.tokenizer import Tokenizer

SHORTEST_ROW = 16
SAMPLE_FILE = Path(__file__).with_name("sample.txt")


class DocumentReader:
    """Reads files of text or conversations as token ids, conversations in the checkpoint's own chat format.

    Args:
        config: Of the model.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self._tokenizer, self._config = tokenizer, config

    def read(self, path: Path) -> Iterator[list[int]]:
        """Ids of each document of a `.txt` file (one document), or of a `.jsonl` or `.jsonl.gz` file with a "text" or
        "messages" in each line.

        Raises:
            DataError: The file is missing or damaged, or of another kind; with file and line.
        """
        try:
            if path.suffix == ".txt":
                yield self.encode(path.read_text("utf-8"))
            elif path.name.endswith((".jsonl", ".jsonl.gz")):
                open_text = gzip.open if path.suffix == ".gz" else open
                with open_text(path, "rt", encoding="utf-8") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield self._record(line, f"{path}:{number}")
            else:
                raise DataError(f"{path}: text must be .txt, .jsonl or .jsonl.gz")
        except UnicodeDecodeError:
            raise DataError(f"{path}: not UTF-8 text") from None
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None

    def encode(self, text: str) -> list[int]:
        """Ids of a document, behind a beginning-of-sequence token where the tokenizer has one."""
        return self._tokenizer.encode(text, bos=self._tokenizer.bos_id is not None)

    def _record(self, line: str, where: str) -> list[int]:
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        if isinstance(row, dict) and isinstance(row.get("messages"), list):
            try:
                chat_format = chat_format_for(
                    self._config.family, self._tokenizer, reward_token_id=self._config.reward_token_id
                )
                return render(messages_from_dicts(row["messages"]), self._tokenizer, chat_format).ids
            except ChatError as error:
                raise DataError(f"{where}: {error}") from None
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            return self.encode(row["text"])
        raise DataError(f'{where}: expected {{"text": "..."}} or {{"messages": [...]}}')


def sample_texts() -> list[str]:
    """Short documents of many kinds, in Chinese, English and a few other languages."""
    return SAMPLE_FILE.read_text("utf-8").strip().split("\n\n")


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


def split_rows(rows: Tensor, calibration: int, held_out: int) -> tuple[Tensor, Tensor]:
    """Rows to calibrate on, and rows to judge by, spread over the text. Where there are fewer than both numbers ask
    for, a quarter is held out.

    Raises:
        DataError: There are too few rows for both.
    """
    if len(rows) < 2:
        raise DataError(
            f"the text makes only {len(rows)} row of {rows.shape[1]} tokens, and some must be held out: give more "
            "text, shorter rows (--length), or other text to judge by (--eval-text)"
        )
    count = held_out if len(rows) >= calibration + held_out else min(held_out, max(1, len(rows) // 4))
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    chosen[torch.linspace(0, len(rows) - 1, count + 2)[1:-1].round().long()] = True
    return rows[~chosen], rows[chosen]
