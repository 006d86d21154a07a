"""`tokenizer.json` files of the Hugging Face library: reading them, and writing one for a SentencePiece model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as LibraryTokenizer

from puyulm.errors import TokenizerError
from puyulm.text.sentencepiece_model import NUL_STAND_IN, ModelProto, Piece
from puyulm.text.settings import TokenizerSettings
from puyulm.text.vocabulary import SPACE_MARK, AddedToken, Vocabulary, byte_value, is_spare, space_mark_ids, spm_bytes

Json = dict[str, Any]


def json_vocabulary(document: Json, settings: TokenizerSettings, path: Path) -> Vocabulary:
    """The table of a parsed `tokenizer.json`.

    Raises:
        TokenizerError: The file lacks parts, or holds another kind of model than BPE.
    """
    model = _bpe_model(document, path)
    pieces: Mapping[str, int] = model["vocab"]
    added = settings.added
    size = 1 + max([*pieces.values(), *added])
    names, data = [""] * size, [b""] * size
    byte_level = _is_byte_level(document)
    for name, i in pieces.items():
        names[i] = name
        data[i] = byte_level_bytes(name) if byte_level else _spm_bytes(name, bool(model.get("byte_fallback")))
    for i, token in added.items():
        names[i], data[i] = token.content, token.content.encode()
    roles = (settings.bos_token, settings.eos_token, settings.pad_token, settings.unk_token, model.get("unk_token"))
    special = {i for i, token in added.items() if token.reserved} | {
        pieces[role] for role in roles if role and role in pieces
    }
    for i in special:
        data[i] = names[i].encode()
    byte_ids = {} if byte_level else {v: i for name, i in pieces.items() if (v := byte_value(name)) is not None}
    return Vocabulary(
        names, data, frozenset(special), prefix_space=_puts_space_first(document),
        space_mark_ids=space_mark_ids(byte_ids),
    )  # fmt: skip


# Characters. The library lets other threads run only while it encodes a batch: megabytes take seconds.
LONG = 20_000


class JsonEncoder:
    """Encodes with the library, but from a copy of the file in which nothing special can be matched.

    Bytes which a byte-level vocabulary lacks (SmolLM2 has no U+0004) are left out by the library.
    """

    def __init__(self, document: Json, vocabulary: Vocabulary, settings: TokenizerSettings, path: Path) -> None:
        ordinary = {i for i, token in settings.added.items() if not token.reserved}
        copy = _without_specials(document, vocabulary, ordinary)
        try:
            self._library = LibraryTokenizer.from_str(json.dumps(copy, ensure_ascii=False))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{path}: not a tokenizer that the tokenizers library can read: {error}") from None

    def encode(self, text: str) -> list[int]:
        if len(text) > LONG:
            return self.encode_batch([text])[0]
        return self._library.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._library.encode_batch_fast(texts, add_special_tokens=False)]


def model_to_json(proto: ModelProto, vocabulary: Vocabulary, bos: str | None) -> Json:
    """A `tokenizer.json` that encodes as the SentencePiece model does.

    A merge is written for every way to build a piece from two others, in the order of the pieces' scores. Left out of
    the library's reach stay the spare tokens, and NUL becomes its byte, as in SentencePiece. Pieces with one and the
    same score (InternLM2 has 2,353) may join in another order than SentencePiece's, which takes the leftmost.

    Args:
        bos: Token put before a text, or None.
    """
    names = [NUL_STAND_IN if name == "\0" else name for name in vocabulary.names]
    ordinary = [i for i, piece in enumerate(proto.pieces)
                if piece.type == Piece.USER_DEFINED and i not in vocabulary.special]  # fmt: skip
    specials = [i for i in sorted(vocabulary.special) if not is_spare(names[i])]
    prefix = [{"type": "Prepend", "prepend": SPACE_MARK}] if vocabulary.prefix_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if vocabulary.prefix_space else []
    to_mark = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    from_mark = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(i, names[i], i in vocabulary.special) for i in sorted(ordinary + specials)],
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, to_mark]},
        "pre_tokenizer": _digit_groups(proto),
        "post_processor": bos_template(bos, vocabulary.ids),
        "decoder": {"type": "Sequence",
                    "decoders": [from_mark, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": names[proto.trainer_spec.unk_id],
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": proto.trainer_spec.byte_fallback, "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(names) if name}, "merges": list(_merges(proto)),
        },
    }  # fmt: skip


def byte_level_json(
    vocab: Mapping[str, int],
    merges: Sequence[Any],
    expressions: Sequence[str],
    added: Mapping[int, AddedToken],
    ignore_merges: bool = False,
) -> Json:
    """A `tokenizer.json` of byte-level BPE.

    Args:
        expressions: Each cuts up what the one before has left; merges stay inside the parts.
        ignore_merges: A part that is a piece of the vocabulary becomes that piece, whatever the merges say.
    """
    splits = [{"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
              for expression in expressions]  # fmt: skip
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(i, token.content, token.special) for i, token in sorted(added.items())],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, to_bytes]},
        "post_processor": None,
        "decoder": to_bytes,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
            "vocab": dict(vocab), "merges": list(merges),
        },
    }  # fmt: skip


def added_token(token_id: int, content: str, special: bool) -> Json:
    """An entry of the list `added_tokens`."""
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special}  # fmt: skip


def bos_template(bos: str | None, ids: Mapping[str, int]) -> Json | None:
    """A post-processor that puts `bos` before every text."""
    if bos is None:
        return None
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": [first, text], "pair": [first, text, *second],
            "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}}}  # fmt: skip


def template_bos(document: Mapping[str, Any]) -> str | None:
    """The token which a file's post-processor puts before every text, or None."""
    for part in _parts(document.get("post_processor")):
        for item in part.get("single", [])[:1] if part.get("type") == "TemplateProcessing" else []:
            if "SpecialToken" in item:
                return str(item["SpecialToken"]["id"])
    return None


@cache
def byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table), by character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def byte_level_bytes(name: str) -> bytes:
    """Text bytes of a byte-level piece; a name outside that alphabet is taken as text."""
    alphabet = byte_alphabet()
    return bytes(map(alphabet.__getitem__, name)) if all(c in alphabet for c in name) else name.encode()


def _spm_bytes(name: str, byte_fallback: bool) -> bytes:
    value = byte_value(name) if byte_fallback else None
    return spm_bytes(name) if value is None else bytes([value])


def _bpe_model(document: Json, path: Path) -> Json:
    model = document.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise TokenizerError(f"{path}: has no model with a vocabulary; is this a tokenizer.json?")
    if "merges" not in model:
        raise TokenizerError(f"{path}: a tokenizer of kind {model.get('type')}; only BPE is supported")
    return model


def _parts(component: Json | None) -> Iterator[Json]:
    """A component and, where it is a sequence, what it is made of."""
    if component:
        yield component
        for key in ("normalizers", "pretokenizers", "processors", "decoders"):
            for part in component.get(key, []):
                yield from _parts(part)


def _is_byte_level(document: Json) -> bool:
    parts = [*_parts(document.get("pre_tokenizer")), *_parts(document.get("decoder"))]
    return any(part["type"] == "ByteLevel" for part in parts)


def _puts_space_first(document: Json) -> bool:
    """Whether a space goes before text. Metaspace's "first" is taken as "always", SentencePiece's own way."""
    parts = [*_parts(document.get("normalizer")), *_parts(document.get("pre_tokenizer"))]
    return any(
        part["type"] == "Prepend"
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        or (part["type"] == "ByteLevel" and part.get("add_prefix_space", False))
        for part in parts
    )


def _without_specials(document: Json, vocabulary: Vocabulary, ordinary: Collection[int]) -> Json:
    """The file with its special tokens out of reach, and without what adds a space or tokens before the text."""
    model = document["model"]
    special = {vocabulary.names[i] for i in vocabulary.special}
    # Ids must stay, so the names change: with a space in it, a name cannot be the result of merges.
    vocab = {name + " " if name in special else name: i for name, i in model["vocab"].items()}
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    kept = [[a, b] for a, b in merges if a not in special and b not in special and a + b not in special]
    unknown = model.get("unk_token")
    unknown = unknown + " " if unknown in special else unknown
    tokens = [token for token in document.get("added_tokens") or [] if token["id"] in ordinary]
    copy = json.loads(json.dumps({key: document.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")}))
    for part in [*_parts(copy["normalizer"]), *_parts(copy["pre_tokenizer"])]:
        if part["type"] == "Prepend":
            part["prepend"] = ""
        elif part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    return copy | {
        "version": "1.0", "added_tokens": tokens,
        "model": model | {"unk_token": unknown, "merges": kept,
                          "vocab": vocab | {token["content"]: token["id"] for token in tokens}},
    }  # fmt: skip


def _merges(proto: ModelProto) -> Iterator[list[str]]:
    """Every split of a piece into two pieces, by falling score of the whole."""
    normal = {piece.piece for piece in proto.pieces if piece.type in (Piece.NORMAL, Piece.UNUSED)}
    ranked = sorted((piece for piece in proto.pieces if piece.piece in normal), key=lambda piece: -piece.score)
    for piece in ranked:
        whole = piece.piece
        for cut in range(1, len(whole)):
            if whole[:cut] in normal and whole[cut:] in normal:
                yield [whole[:cut], whole[cut:]]


def _digit_groups(proto: ModelProto) -> Json | None:
    """Cuts numbers from the left, where the model does so by giving all its pieces of two digits one score.

    SentencePiece joins the leftmost of equal scores first; merges have no equal ranks, so a rule must do it.
    """
    scores: dict[int, list[float]] = {2: [], 3: []}
    for piece in proto.pieces:
        if piece.piece.isascii() and piece.piece.isdigit() and len(piece.piece) in scores:
            scores[len(piece.piece)].append(piece.score)
    if len(scores[2]) < 100 or len(set(scores[2])) > 1 or len(set(scores[3])) > 1:
        return None
    pattern = "[0-9]{1,3}" if scores[3] else "[0-9]{1,2}"
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
