"""Fixtures of the text tests: two small tokenizers, trained on made text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from puyulm.text.train import train_tokenizer

_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "model",
    "token",
    "number",
    "water",
    "light",
    "about",
    "people",
    "first",
    "after",
]
_PHRASES = [
    "今天",
    "天气",
    "很好",
    "我们",
    "一起",
    "学习",
    "语言",
    "模型",
    "上海",
    "人工",
    "智能",
    "实验",
    "数字",
    "文字",
]


def made_text(lines: int, seed: int = 0) -> str:
    """English, Chinese and code, line by line."""
    rng = random.Random(seed)
    made = []
    for _ in range(lines):
        words, phrases = rng.choices(_WORDS, k=7), rng.choices(_PHRASES, k=6)
        number = rng.randrange(10 ** rng.randrange(1, 8))
        made.append(" ".join(words).capitalize() + f", {number}.")
        made.append("".join(phrases[:3]) + "，" + "".join(phrases[3:]) + "。")
        made.append(f"    def {words[0]}_{words[1]}(self, x):\n        return self.{words[2]}[x] + {number}\n")
    return "\n".join(made)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained SentencePiece tokenizer of 1,500 ids with two spare tokens."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    train_tokenizer([made_text(400)], 1500, folder, "sentencepiece", spare_tokens=2)
    return folder


@pytest.fixture(scope="session")
def bytelevel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained byte-level tokenizer of 400 ids."""
    folder = tmp_path_factory.mktemp("bytelevel")
    train_tokenizer([made_text(400)], 400, folder, "bytelevel")
    return folder
