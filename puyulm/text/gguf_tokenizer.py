"""The tokenizer inside a GGUF file, written as the file it was made from: a `.model` or a `tokenizer.json`.

llama.cpp stores two kinds: "llama", a SentencePiece model with its scores, and "gpt2", byte-level BPE with merges,
of which only the name of the pre-tokenizer is kept. The regular expressions behind those names are llama.cpp's
(src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puyulm.errors import CheckpointError, TokenizerError
from puyulm.text.sentencepiece_model import ModelProto, Piece, TrainerSpec
from puyulm.text.settings import TokenizerSettings
from puyulm.text.tokenizer_json import bos_template, byte_level_json
from puyulm.text.vocabulary import AddedToken, byte_value

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Name of a pre-tokenizer -> expressions, each cutting up what the one before has left. "llama-bpe" also takes a word
# that is a piece as it stands, whatever its merges say.
PRE_TOKENIZERS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "starcoder": [r"\p{N}", _GPT2],
    "llama-bpe": [_LLAMA3],
    "smaug-bpe": [_LLAMA3],
    "qwen2": [_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")],
}

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # of tokenizer.ggml.token_type, whose numbers are SentencePiece's

# Stands for the piece "\0", which no C string can hold. llama.cpp reads the number of a byte piece from its place in
# the name; no text reaches a name with a space in it.
NUL_PIECE = "<0x00> NUL"


def read_gguf(path: Path) -> tuple[dict[str, bytes], TokenizerSettings]:
    """Reads a GGUF file's tokenizer.

    Returns:
        The file that it stands for, by name, and its settings.

    Raises:
        TokenizerError: The file is damaged, has no tokenizer, or one of a kind that is not supported.
    """
    from puyulm.model.gguf import open_gguf  # the reader brings NumPy and the gguf library along

    try:
        fields = open_gguf(path).fields
        metadata = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
        metadata["architecture"] = fields["general.architecture"].contents()
    except (CheckpointError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise TokenizerError(str(error) if isinstance(error, CheckpointError) else f"{path}: {error!r}") from None
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("llama", "gpt2") or "tokenizer.ggml.tokens" not in metadata:
        found = f"a tokenizer of kind {kind!r}" if kind else "no tokenizer"
        raise TokenizerError(f"{path}: the file holds {found}; 'llama' (SentencePiece) and 'gpt2' (BPE) are supported")
    settings = _settings(metadata, add_bos=kind == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe")
    if kind == "llama":
        return {"tokenizer.model": _model(metadata).SerializeToString()}, settings
    return {"tokenizer.json": json.dumps(_byte_level(metadata, settings, path), ensure_ascii=False).encode()}, settings


def _settings(metadata: Mapping[str, Any], add_bos: bool) -> TokenizerSettings:
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    bos, eos, pad, unk = (
        tokens[i] if (i := metadata.get(f"tokenizer.ggml.{role}_token_id", -1)) in range(len(tokens)) else None
        for role in ("bos", "eos", "padding", "unknown")
    )
    added = {i: AddedToken(tokens[i], kind == CONTROL) for i, kind in enumerate(types)
             if kind in (CONTROL, USER_DEFINED)}  # fmt: skip
    return TokenizerSettings(
        bos_token=bos, eos_token=eos, pad_token=pad, unk_token=unk,
        add_bos=metadata.get("tokenizer.ggml.add_bos_token", add_bos),
        chat_template=metadata.get("tokenizer.chat_template"),
        added=added,
    )  # fmt: skip


def _byte_level(metadata: Mapping[str, Any], settings: TokenizerSettings, path: Path) -> dict[str, Any]:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise TokenizerError(
            f"{path}: its pre-tokenizer {name!r} is not known (known: {known}); use the original files"
        )
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    document = byte_level_json(
        vocab, metadata.get("tokenizer.ggml.merges", []), PRE_TOKENIZERS[name], settings.added,
        ignore_merges=name == "llama-bpe",
    )  # fmt: skip
    bos = settings.bos_token if settings.add_bos else None
    return document | {"post_processor": bos_template(bos, vocab)}


def _model(metadata: Mapping[str, Any]) -> ModelProto:
    tokens = list(metadata["tokenizer.ggml.tokens"])
    scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    types = metadata.get("tokenizer.ggml.token_type") or list(map(_guess_type, tokens))
    if metadata["architecture"] == "internlm2" and tokens[354:355] == ["🐉"]:
        tokens[354] = "\0"  # llama.cpp cannot hold this piece and puts an emoji in its place
    if NUL_PIECE in tokens:
        index = tokens.index(NUL_PIECE)
        tokens[index], types = "\0", [*types[:index], Piece.NORMAL, *types[index + 1 :]]
    proto = ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size = TrainerSpec.BPE, len(tokens)
    spec.byte_fallback = Piece.BYTE in types
    for role, name in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        setattr(
            spec, f"{role}_id", types.index(Piece.UNKNOWN) if role == "unk" else -1 if token_id is None else token_id
        )
    rule = proto.normalizer_spec
    rule.name, rule.remove_extra_whitespaces = "identity", False
    rule.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    return proto


def _guess_type(token: str) -> int:
    if token in ("<s>", "</s>"):
        return CONTROL
    return Piece.UNKNOWN if token == "<unk>" else Piece.NORMAL if byte_value(token) is None else Piece.BYTE
