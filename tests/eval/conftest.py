"""A tiny checkpoint that all of the evaluation's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from puyulm.model.checkpoint import save_model
from tests.conftest import tiny_decoder
from tests.text.small_tokenizers import CHATML, small_tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, which transformers knows too."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = small_tokenizer(tmp_path_factory.mktemp("tokenizer"), CHATML)
    size = -(-tokenizer.vocab_size // 64) * 64
    eos = tokenizer.token_to_id("<|im_end|>")
    assert eos is not None
    decoder = tiny_decoder(family="llama", vocab_size=size, max_position_embeddings=512, eos_token_ids=(eos,))
    save_model(decoder, folder)
    tokenizer.save(folder)
    return folder
