"""SentencePiece `.model` files: the vocabulary they hold, and encoding in which typed markup stays text."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec  # type: ignore[attr-defined]

from puyulm.errors import TokenizerError
from puyulm.text.settings import TokenizerSettings
from puyulm.text.vocabulary import (
    SPACE_MARK,
    Vocabulary,
    byte_value,
    looks_like_markup,
    space_mark_ids,
    spm_bytes,
)

Piece: Any = ModelProto.SentencePiece

# No text reaches a name with a space in it, since spaces are written "▁".
NUL_STAND_IN = "<the NUL character>"

# The published InternLM2 file calls its chat markers [UNUSED_TOKEN_141] and so on; their names stand in the json
# files beside it. These are for the file alone.
_INTERNLM2_MARKERS = {
    92538: "<|plugin|>", 92539: "<|interpreter|>", 92540: "<|action_end|>", 92541: "<|action_start|>",
    92542: "<|im_end|>", 92543: "<|im_start|>",
}  # fmt: skip

_CHUNK_CHARACTERS = 256


def parse_model(raw: bytes, path: Path) -> ModelProto:
    """Reads a `.model` file.

    Raises:
        TokenizerError: Not a SentencePiece file, cut off, or not of the BPE kind.
    """
    proto = ModelProto()
    try:
        proto.ParseFromString(raw)
    except DecodeError:
        raise TokenizerError(f"{path}: not a SentencePiece model, or cut off; download it again") from None
    if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
        raise TokenizerError(f"{path}: the SentencePiece model is incomplete (cut off?); download it again")
    if proto.trainer_spec.model_type != TrainerSpec.BPE:
        kind = TrainerSpec.ModelType.Name(proto.trainer_spec.model_type)
        raise TokenizerError(f"{path}: a SentencePiece model of kind {kind}; only BPE, the family's kind, is supported")
    return proto


def model_vocabulary(proto: ModelProto, settings: TokenizerSettings) -> Vocabulary:
    """The table of a `.model` file, under the names which the checkpoint's json files give."""
    markers = {i: token.content for i, token in settings.added.items() if token.reserved}
    if _names_of(proto, _INTERNLM2_MARKERS) == [f"[UNUSED_TOKEN_{n}]" for n in range(141, 147)]:
        markers = _INTERNLM2_MARKERS | markers
    ordinary = {i: token.content for i, token in settings.added.items() if i >= len(proto.pieces)}
    size = max(len(proto.pieces), 1 + max([*markers, *ordinary], default=0))
    pieces = [piece.piece for piece in proto.pieces] + [""] * (size - len(proto.pieces))
    names = [markers.get(i) or name or ordinary.get(i, "") for i, name in enumerate(pieces)]
    aliases = {pieces[i]: i for i, name in markers.items() if pieces[i] not in ("", name)}
    special = {i for i, piece in enumerate(proto.pieces) if _is_reserved(piece)} | set(markers)
    data = [name.encode() if i in special or i >= len(proto.pieces) else _text_bytes(proto.pieces[i])
            for i, name in enumerate(names)]  # fmt: skip
    byte_ids = {data[i][0]: i for i, piece in enumerate(proto.pieces) if piece.type == Piece.BYTE}
    return Vocabulary(
        names, data, frozenset(special), aliases, proto.normalizer_spec.add_dummy_prefix, space_mark_ids(byte_ids)
    )


class SentencePieceEncoder:
    """Encodes with the library, but from a copy of the model in which nothing special can be matched.

    The library turns the name of every user-defined piece, typed anywhere, into that piece; in the copy they are
    control pieces, which text never becomes. The NUL character becomes its byte piece, as current versions of the
    library give it (the Hugging Face conversion of InternLM2 gives id 354). A dummy prefix is left to the caller.
    """

    def __init__(self, proto: ModelProto, special: frozenset[int], path: Path) -> None:
        copy = ModelProto()
        copy.CopyFrom(proto)
        for i, piece in enumerate(copy.pieces):
            if piece.piece == "\0":
                piece.piece, piece.type = NUL_STAND_IN, Piece.CONTROL
            elif i in special and piece.type == Piece.USER_DEFINED:
                piece.type = Piece.CONTROL
            elif i in special and piece.type == Piece.NORMAL:
                piece.type = Piece.UNUSED  # still a step towards longer pieces, but never a result
        copy.normalizer_spec.add_dummy_prefix = False
        try:
            self._processor = SentencePieceProcessor(model_proto=copy.SerializeToString())
        except RuntimeError as error:
            raise TokenizerError(f"{path}: SentencePiece refuses the model: {error}") from None
        self._inner_pairs: frozenset[str] | None = None
        rule = proto.normalizer_spec
        keeps_text = not rule.precompiled_charsmap and not rule.remove_extra_whitespaces
        self._may_split = keeps_text and proto.trainer_spec.byte_fallback

    def encode(self, text: str) -> list[int]:
        if len(text) <= _CHUNK_CHARACTERS:
            return self._processor.encode(text)
        return _joined(self._processor.encode(list(self._chunks(text)), num_threads=1))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        chunks: list[str] = []
        ends: list[int] = []
        for text in texts:
            if len(text) <= _CHUNK_CHARACTERS:
                chunks.append(text)
            else:
                chunks += self._chunks(text)
            ends.append(len(chunks))
        distinct = list(dict.fromkeys(chunks))  # prompts begin with the same examples
        known = dict(zip(distinct, self._processor.encode(distinct, num_threads=_threads()), strict=True))
        spans = zip([0, *ends], ends, strict=False)
        return [list(itertools.chain.from_iterable(known[one] for one in chunks[start:end])) for start, end in spans]

    def _chunks(self, text: str) -> Iterator[str]:
        """Cuts a long text where it makes no difference, because the library slows down on long strings.

        BPE only ever joins neighbours into a known piece. Where the characters on both sides of a cut stand next to
        each other in no piece, nothing can be joined across it, so the parts encode on their own as they do together.
        """
        if len(text) <= _CHUNK_CHARACTERS or not self._may_split:
            yield text
            return
        if self._inner_pairs is None:
            words = [piece.piece.replace(" ", SPACE_MARK) for piece in _text_pieces(self._processor)]
            self._inner_pairs = frozenset(word[i : i + 2] for word in words for i in range(len(word) - 1))
        marked, start = text.replace(" ", SPACE_MARK), 0
        while start < len(text):
            end = start + _CHUNK_CHARACTERS
            while end < len(text) and marked[end - 1 : end + 1] in self._inner_pairs:
                end += 1
            yield text[start:end]
            start = end


def _text_pieces(processor: SentencePieceProcessor) -> Iterator[Any]:
    proto = ModelProto()
    proto.ParseFromString(processor.serialized_model_proto())
    return (piece for piece in proto.pieces if piece.type in (Piece.NORMAL, Piece.USER_DEFINED, Piece.UNUSED))


def _is_reserved(piece: Any) -> bool:
    if piece.type in (Piece.USER_DEFINED, Piece.UNUSED):
        return looks_like_markup(piece.piece)
    return piece.type in (Piece.CONTROL, Piece.UNKNOWN)


def _text_bytes(piece: Any) -> bytes:
    value = byte_value(piece.piece) if piece.type == Piece.BYTE else None
    return spm_bytes(piece.piece) if value is None else bytes([value])


def _names_of(proto: ModelProto, ids: Iterable[int]) -> list[str]:
    return [proto.pieces[i].piece for i in ids if i < len(proto.pieces)]


def _joined(parts: list[list[int]]) -> list[int]:
    return parts[0] if len(parts) == 1 else list(itertools.chain.from_iterable(parts))


def _threads() -> int:
    """Threads for a batch: what OMP_NUM_THREADS says (1 in each of many worker processes), else all cores (-1)."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else -1
