"""Fixtures shared by all tests: tiny models, and the folder of published files where it exists."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never touch the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command does: see puyulm/cli/__init__.py

import pytest

from puyulm.model.config import ModelConfig, RopeConfig
from puyulm.model.decoder import Decoder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Published files laid beside the checkout, for development; tests that need them skip where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no published files at {folder}")
    return folder


def tiny_config(**changes: object) -> ModelConfig:
    """A two-layer grouped-query model of 64 wide with 128 tokens."""
    config = ModelConfig(
        family="internlm2", vocab_size=128, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=16, max_position_embeddings=64, rope=RopeConfig(theta=10_000.0), dtype="float32",
    )  # fmt: skip
    return config.evolve(**changes)


def tiny_decoder(seed: int = 0, **changes: object) -> Decoder:
    """A tiny decoder with weights large enough that logits differ clearly."""
    decoder = Decoder(tiny_config(initializer_range=0.2, **changes))
    decoder.init_weights(seed)
    return decoder.eval()


@pytest.fixture
def decoder() -> Decoder:
    return tiny_decoder()
