"""A tokenizer that needs no file, and small corpora."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from puyulm.data.documents import Document
from puyulm.data.shards import TokenShards, tokenize_documents


class ByteTokenizer:
    """Every byte is a token, behind pad, bos and eos; counts how many texts it was given at once."""

    special_tokens = {"<pad>": 0, "<s>": 1, "</s>": 2}  # noqa: RUF012
    pad_id, bos_id, eos_id = 0, 1, 2

    def __init__(self, vocab_size: int = 259) -> None:
        self.vocab_size = vocab_size
        self.calls: list[int] = []

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        self.calls.append(len(texts))
        return [[byte + 3 for byte in text.encode()] for text in texts]

    def token_bytes(self, token: int) -> bytes:
        return bytes([token - 3]) if 3 <= token < 259 else b""


@pytest.fixture
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


def random_documents(lengths: list[int], seed: int = 0) -> list[Document]:
    """Documents of random letters with the given numbers of bytes."""
    generator = np.random.default_rng(seed)
    texts = [bytes(generator.integers(97, 123, size=n, dtype=np.uint8)).decode() for n in lengths]
    return [
        Document(id=f"d{i}", text=t, language="en" if i % 2 else "zh", source=f"s{i % 3}") for i, t in enumerate(texts)
    ]


@pytest.fixture
def make_shards(tmp_path: Path):
    """(lengths, bos=True, ...) -> (documents, shards)."""

    def make(lengths: list[int], name: str = "shards", **options: object) -> tuple[list[Document], TokenShards]:
        documents = random_documents(lengths)
        return documents, tokenize_documents(documents, ByteTokenizer(), tmp_path / name, **options)

    return make
