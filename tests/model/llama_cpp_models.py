"""llama.cpp, silent, as the tests want it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

_log: list[Any] = []  # the library calls it for as long as it lives


def load_llama_cpp(path: Path, **options: Any) -> Any:
    """A `llama_cpp.Llama` with a float32 cache, which skips the test where llama-cpp-python is not installed."""
    llama_cpp = pytest.importorskip("llama_cpp")
    if not _log:
        _log.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
        llama_cpp.llama_log_set(_log[0], ctypes.c_void_p(0))
    single = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    options = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "seed": 0} | single | options
    return llama_cpp.Llama(str(path), verbose=False, **options)


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    """`[T, V]` after each token."""
    model.reset()
    model.eval(ids)
    return torch.from_numpy(model.scores[: len(ids)].copy())


def bytes_of(model: Any, token_id: int) -> bytes:
    """What a token adds to a text."""
    import llama_cpp

    buffer = ctypes.create_string_buffer(64)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    size = llama_cpp.llama_token_to_piece(vocab, token_id, buffer, len(buffer), 0, False)
    return buffer.raw[:size]
