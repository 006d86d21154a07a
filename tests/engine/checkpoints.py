"""A tiny checkpoint with a tokenizer and a chat format, on disk."""

from __future__ import annotations

from pathlib import Path

from puyulm.model.checkpoint import save_model
from tests.conftest import tiny_decoder
from tests.text.small_tokenizers import ACTIONS, CHATML, small_tokenizer


def write_checkpoint(folder: Path, **changes: object) -> Path:
    """An InternLM2 of random weights with 256 positions and byte-level tokens."""
    tokenizer = small_tokenizer(folder / "tokenizer", (*CHATML, *ACTIONS))
    shape = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256, "eos_token_ids": (1,)}
    save_model(tiny_decoder(seed=2, **(shape | changes)), folder / "model")
    tokenizer.save(folder / "model")
    return folder / "model"
