"""Haystacks: the user's own texts, or made prose where there are none."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from puyulm.errors import DataError
from puyulm.eval.longtext.prose import sentences
from puyulm.eval.source import read_records

MADE = "made prose"
_END = {"en": re.compile(r"(?<=[.!?])\s+"), "zh": re.compile(r"(?<=[。！？])\s*|\n+")}


@dataclass(frozen=True)
class Haystack:
    """Sentences to hide needles among.

    Attributes:
        name: The files, or "made prose".
        documents: Sentences of each document; none: the prose is made.
    """

    name: str
    language: str
    documents: tuple[tuple[str, ...], ...] = ()

    def sentences(self, seed: int | None = None) -> Iterator[str]:
        """Sentences without end: when the texts are through, they begin again.

        Args:
            seed: Shuffles the documents; None: in their order.
        """
        if not self.documents:
            return sentences(self.language, seed or 0)
        order = list(self.documents)
        if seed is not None:
            random.Random(f"haystack/{seed}").shuffle(order)
        return itertools.cycle([one for document in order for one in document])


def load(folder: Path | None, patterns: Sequence[str], language: str) -> Haystack:
    """The haystack of the files in a folder that fit a pattern.

    Files are .txt (a document), or .json and .jsonl with a field "text" (a document a row, or one alone).

    Raises:
        DataError: A file is damaged, or has no text.
    """
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)}) if folder is not None else []
    if not files:
        return Haystack(MADE, language)
    documents = [split(text, language) for file in files for text in _texts(file)]
    documents = [one for one in documents if one]
    if not documents:
        raise DataError(f"{files[0]}: there is no text in it; put in texts, or take the file away for made prose")
    return Haystack(", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else ""), language,
                    tuple(map(tuple, documents)))  # fmt: skip


def split(text: str, language: str) -> list[str]:
    """Sentences of a text, each on one line."""
    return [" ".join(one.split()) for one in _END[language].split(text) if one.strip()]


def _texts(file: Path) -> Iterator[str]:
    if file.suffix == ".txt":
        try:
            yield file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
        return
    for number, row in enumerate(read_records(file)):
        text = row.get("text")
        if not isinstance(text, str):
            raise DataError(f"{file}: row {number} has no 'text'")
        yield text
