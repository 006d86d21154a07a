"""A small byte-level tokenizer with any special tokens, made in a moment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as LibraryTokenizer

from puyulm.text.tokenizer import Tokenizer

CHATML = ("<|im_start|>", "<|im_end|>")
ACTIONS = ("<|action_start|>", "<|action_end|>", "<|plugin|>", "<|interpreter|>")
TEXT = (
    'What is the weather?\n\n{"name": "get_weather", "parameters": {"city": "上海"}}\n```python\nprint(1)\n```\n:\n' * 3
)


def small_tokenizer(
    folder: Path, specials: Sequence[str], *, chat_template: str | None = None, bos: str = "<s>", eos: str = "</s>"
) -> Tokenizer:
    """Trains a tokenizer of some 300 ids; its special tokens come first, beginning with bos and eos."""
    folder.mkdir(parents=True, exist_ok=True)
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys([bos, eos, *specials]))
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(names) + 60,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(name, special=True) for name in names],
        show_progress=False,
        max_token_length=6,
    )
    library.train_from_iterator([TEXT], trainer)
    library.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "add_bos_token": False}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)
