"""A tokenizer as the metadata of a GGUF file, so that llama.cpp cuts texts as we do.

llama.cpp joins SentencePiece pieces by their scores, and byte-level pieces by their merges. Of the expressions that
cut a text into words it knows only those with a name (`PRE_TOKENIZERS`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from puyulm.errors import ChatError, TokenizerError
from puyulm.text.formats import chat_format_for
from puyulm.text.gguf_tokenizer import CONTROL, NUL_PIECE, PRE_TOKENIZERS, UNUSED, USER_DEFINED
from puyulm.text.sentencepiece_model import Piece, parse_model
from puyulm.text.vocabulary import is_spare

if TYPE_CHECKING:
    from pathlib import Path

    from puyulm.text.tokenizer import Tokenizer

Fields = dict[str, str | bool | int | list[str] | list[int] | list[float]]
"""Metadata of a GGUF file by key; the type of a value is the type that is stored (whole numbers as uint32)."""

_GPT2 = PRE_TOKENIZERS["gpt-2"][0]
_ADDED_SCORE = -1000.0
_CUTS_AROUND_MATCHES = {"type": "Split", "behavior": "Isolated", "invert": False}


def gguf_tokenizer(tokenizer: Tokenizer, vocab_size: int, family: str, path: Path) -> Fields:
    """The metadata.

    A name that C cannot hold (InternLM2's piece 354 is the NUL character) gets a stand-in that decodes to the same,
    and rows of the model without a token get a name of their own.

    Args:
        vocab_size: Rows of the model's embedding.
        family: `ModelConfig.family`, which with the tokens tells the chat format: its end of an answer is written as
            the end of a text, since llama.cpp stops at one.
        path: Where the tokenizer is from, for error messages.

    Raises:
        TokenizerError: More tokens than rows, or words cut by expressions that llama.cpp has no name for.
    """
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"{path}: the tokenizer has {tokenizer.vocab_size:,} tokens, but the model {vocab_size:,} rows for them"
        )
    files = tokenizer.files
    fields = (
        _sentencepiece(tokenizer, files, path) if "tokenizer.model" in files else _byte_level(tokenizer, files, path)
    )
    tokens, types = _unique(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], vocab_size)
    fields |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if isinstance(scores := fields.get("tokenizer.ggml.scores"), list):
        fields["tokenizer.ggml.scores"] = [*scores, *[_ADDED_SCORE] * (vocab_size - len(scores))]
    ids = {"bos": tokenizer.bos_id, "eos": _end_of_answer(tokenizer, family), "padding": tokenizer.pad_id}
    fields |= {f"tokenizer.ggml.{role}_token_id": i for role, i in ids.items() if i is not None}
    fields |= {"tokenizer.ggml.add_bos_token": tokenizer.add_bos, "tokenizer.ggml.add_eos_token": False}
    return fields | ({"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})


def _end_of_answer(tokenizer: Tokenizer, family: str) -> int | None:
    try:
        stops = chat_format_for(family, tokenizer).stops
    except ChatError:
        stops = ()
    return next((found for marker in stops if (found := marker.find(tokenizer)) is not None), tokenizer.eos_id)


def _sentencepiece(tokenizer: Tokenizer, files: Mapping[str, bytes], path: Path) -> Fields:
    proto = parse_model(files["tokenizer.model"], path)
    count = len(proto.pieces)
    names = [NUL_PIECE if (name := tokenizer.id_to_token(i)) == "\0" else name for i in range(tokenizer.vocab_size)]
    types = [_type(tokenizer, i, proto.pieces[i].type if i < count else USER_DEFINED) for i in range(len(names))]
    types = [Piece.BYTE if name == NUL_PIECE else kind for name, kind in zip(names, types, strict=True)]
    scores = [proto.pieces[i].score if i < count else _ADDED_SCORE for i in range(len(names))]
    fields: Fields = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": names, "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": bool(proto.normalizer_spec.add_dummy_prefix),
    }  # fmt: skip
    return fields | ({"tokenizer.ggml.unknown_token_id": types.index(Piece.UNKNOWN)} if Piece.UNKNOWN in types else {})


def _byte_level(tokenizer: Tokenizer, files: Mapping[str, bytes], path: Path) -> Fields:
    document = json.loads(files["tokenizer.json"])
    if document["model"].get("byte_fallback"):
        raise TokenizerError(
            f"{path}: its tokenizer.json is made from a SentencePiece model; put tokenizer.model beside it"
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    added = {token["id"] for token in document.get("added_tokens") or []}
    kinds = [USER_DEFINED if i in added else Piece.NORMAL for i in range(tokenizer.vocab_size)]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _pre_tokenizer(document, path),
        "tokenizer.ggml.tokens": [tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)],
        "tokenizer.ggml.token_type": [_type(tokenizer, i, kind) for i, kind in enumerate(kinds)],
        "tokenizer.ggml.merges": merges,
    }  # fmt: skip


def _type(tokenizer: Tokenizer, token_id: int, kind: int) -> int:
    if kind in (Piece.UNKNOWN, Piece.BYTE) or not tokenizer.is_special(token_id):
        return kind
    return UNUSED if is_spare(tokenizer.id_to_token(token_id)) else CONTROL


def _unique(tokens: Any, types: Any, size: int) -> tuple[list[str], list[int]]:
    """`size` different names: llama.cpp takes neither empty nor repeated ones."""
    names, kinds, seen = list(tokens), list(types), set[str]()
    for i, name in enumerate(names):
        if not name or name in seen:
            names[i], kinds[i] = f"[PAD{i}]", UNUSED
        seen.add(names[i])
    missing = range(len(names), size)
    return names + [f"[PAD{i}]" for i in missing], kinds + [UNUSED for _ in missing]


def _pre_tokenizer(document: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name for the way a `tokenizer.json` cuts a text into words."""
    expressions = _expressions(document.get("pre_tokenizer"))
    ignore_merges = bool(document["model"].get("ignore_merges"))
    for name, known in PRE_TOKENIZERS.items():
        if expressions == known and ignore_merges == (name == "llama-bpe"):
            return name
    raise TokenizerError(f"{path}: llama.cpp has no name for the way its tokenizer.json cuts a text into words")


def _expressions(part: Mapping[str, Any] | None) -> list[str]:
    """The expressions that each cut up what those before have left; a part of another kind becomes its name."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [expression for inner in part["pretokenizers"] for expression in _expressions(inner)]
    if part["type"] == "ByteLevel" and not part.get("add_prefix_space"):
        return [_GPT2] if part.get("use_regex", True) else []
    if part["type"] == "Digits" and part.get("individual_digits"):
        return [r"\p{N}"]
    if _CUTS_AROUND_MATCHES.items() <= part.items() and "Regex" in part["pattern"]:
        return [part["pattern"]["Regex"].replace("{1,1}", "")]
    return [str(part["type"])]
