"""One vocabulary out of two: the first pieces of an existing one, and the Chinese pieces of another.

InternLM2's tokenizer was made so: 60,004 tokens from the top of GPT-4's cl100k, which has few Chinese ones, 32,397
Chinese tokens, and spare ones (report, section 3.2.1). Both vocabularies are of one kind:

- SentencePiece BPE joins the neighbours whose whole has the highest score. The first pieces of the base are taken, its
  ASCII characters and numbers before all; scores are numbered anew in their old order, the Chinese ones behind.
- Byte-level BPE joins by a list of merges. The base's stay first, so that they may join bytes in other ways than the
  Chinese vocabulary does; each Chinese token therefore gets the merge that ends its encoding in the merged vocabulary.
  What cannot be reached by one more merge is left out, and the next token takes its place.

The ids are laid out as `puyulm.text.train` does: three control tokens, 256 bytes, the base, the Chinese, spare tokens,
and the chat markers last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from puyulm.errors import TokenizerError
from puyulm.text.sentencepiece_model import ModelProto, Piece, parse_model
from puyulm.text.settings import TokenizerSettings, read_json
from puyulm.text.tokenizer import Tokenizer, load_from_files
from puyulm.text.tokenizer_json import bos_template, byte_alphabet, byte_level_bytes, byte_level_json
from puyulm.text.train import CHAT_TEMPLATE, FIRST_TOKENS, LAST_TOKENS
from puyulm.text.vocabulary import AddedToken, byte_value, looks_like_markup

_FIRST_PIECE = len(FIRST_TOKENS) + 256
_HAN = ((0x3000, 0x303F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x323AF))


@dataclass(frozen=True)
class MergeReport:
    """What a merged vocabulary is made of.

    Attributes:
        vocab_size: All ids.
        base_tokens: Taken from the base.
        chinese_tokens: Taken from the Chinese one, with the parts that they are built from.
        known: Chinese tokens that the base had already.
        unreachable: Pieces that do not come out when their own text is encoded.
    """

    kind: str
    vocab_size: int
    base_tokens: int
    chinese_tokens: int
    known: int
    unreachable: int

    def __str__(self) -> str:
        return (
            f"{self.kind} tokenizer of {self.vocab_size:,} ids: {self.base_tokens:,} tokens of the base and "
            f"{self.chinese_tokens:,} Chinese ones ({self.known:,} more were in the base)\n"
            f"{self.unreachable:,} tokens do not come out when their own text is encoded"
        )


def is_chinese(text: str) -> bool:
    """Whether a text has a Chinese character, or punctuation of Chinese text."""
    return any(low <= ord(c) <= high for c in text for low, high in _HAN)


def merge_vocabularies(
    base: str | Path, chinese: str | Path, folder: str | Path, *, base_top: int, chinese_top: int, spare_tokens: int = 0
) -> MergeReport:
    """Merges two tokenizers and writes the result as `Tokenizer.load` and `transformers` read it.

    Args:
        base: Folder or file of the tokenizer whose first pieces are taken.
        chinese: The same of the other, of the same kind; of its pieces, those with Chinese are taken, in its order.
        folder: Where to write.
        base_top: Pieces of the base, its bytes and special tokens not counted; characters that its pieces need first.
        chinese_top: Pieces of the other that the base's lack, at most.
        spare_tokens: Unused ids before the chat markers.

    Raises:
        TokenizerError: A tokenizer cannot be read, is of another kind, or has too few pieces.
    """
    if base_top < 1 or chinese_top < 0 or spare_tokens < 0:
        raise TokenizerError("base-top must be 1 or more, chinese-top and spare 0 or more")
    files = [_files(path) for path in (base, chinese)]
    last = [*(f"[UNUSED_TOKEN_{n}]" for n in range(spare_tokens)), *LAST_TOKENS]
    kinds = [next(iter(found)) for found in files]
    if kinds[0] != kinds[1]:
        raise TokenizerError(f"{base} is a {kinds[0]} and {chinese} a {kinds[1]}: merge two of one kind")
    if kinds[0] == "tokenizer.model":
        protos = [
            parse_model(found["tokenizer.model"], Path(path))
            for found, path in zip(files, (base, chinese), strict=True)
        ]
        merged, taken, known = _merge_models(protos[0], protos[1], base_top, chinese_top, last)
        content, size = {"tokenizer.model": bytes(merged.SerializeToString())}, len(merged.pieces)
    else:
        documents = [
            _byte_level(found["tokenizer.json"], path) for found, path in zip(files, (base, chinese), strict=True)
        ]
        document, taken, known, size = _merge_byte_level(documents[0], documents[1], base_top, chinese_top, last)
        content = {"tokenizer.json": json.dumps(document, ensure_ascii=False).encode()}
    first_last = dict(enumerate(FIRST_TOKENS)) | dict(enumerate(last, start=size - len(last)))
    settings = TokenizerSettings(
        bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>", add_bos=True,
        chat_template=CHAT_TEMPLATE, added={i: AddedToken(name, True) for i, name in first_last.items()},
    )  # fmt: skip
    tokenizer = load_from_files(content, Path(folder), settings)
    tokenizer.save(folder)
    kind = "sentencepiece" if kinds[0] == "tokenizer.model" else "bytelevel"
    return MergeReport(kind, size, base_top, taken, known, len(unreachable_tokens(tokenizer)))


def unreachable_tokens(tokenizer: Tokenizer, ids: Iterable[int] | None = None) -> list[int]:
    """The ordinary tokens that spell whole characters and yet do not come out when their own text is encoded.

    Args:
        ids: Which to look at; None: all.
    """
    unreachable = []
    for token_id in range(tokenizer.vocab_size) if ids is None else ids:
        if tokenizer.is_special(token_id) or byte_value(tokenizer.id_to_token(token_id)) is not None:
            continue
        try:
            text = tokenizer.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            continue  # part of a character
        if tokenizer.encode(text, mid_text=True) != [token_id]:
            unreachable.append(token_id)
    return unreachable


def _files(path: str | Path) -> dict[str, bytes]:
    """The file that a tokenizer is merged from: its .model, or else its tokenizer.json."""
    path = Path(path)
    found = [path / "tokenizer.model", path / "tokenizer.json"] if path.is_dir() else [path]
    for file in found:
        if file.is_file() and file.suffix in (".model", ".json"):
            return {f"tokenizer{file.suffix}": file.read_bytes()}
    raise TokenizerError(f"{path}: no tokenizer.model or tokenizer.json there")


def _merge_models(
    base: ModelProto, chinese: ModelProto, base_top: int, chinese_top: int, last: Sequence[str]
) -> tuple[ModelProto, int, int]:
    """The merged file, how many Chinese pieces it took, and how many of those wanted the base had."""
    ranks = _ranks(base)
    if len(ranks) < base_top:
        raise TokenizerError(f"the base has {len(ranks):,} pieces: ask for so many or fewer")
    kept = _with_characters(list(ranks), base_top)
    present = set(kept)
    of_other = {piece: rank for piece, rank in _ranks(chinese).items() if _is_chinese_piece(piece)}
    candidates = [piece for piece in of_other if piece not in present]  # in the order of their ids, too
    behind = 1 + max(ranks.values())
    of_base = {piece: -float(ranks[piece]) for piece in kept}
    while True:  # what the base's pieces make unreachable gives way to the next; mostly twice
        chosen = _with_characters(candidates, chinese_top)
        merged = _model(base, of_base | {piece: -float(behind + of_other[piece]) for piece in chosen}, last)
        lost = _unreachable_pieces(
            merged, range(_FIRST_PIECE + len(of_base), _FIRST_PIECE + len(of_base) + len(chosen))
        )
        if not lost:
            return merged, len(chosen), sum(piece in present for piece in of_other)
        candidates = [piece for piece in candidates if piece not in lost]


def _unreachable_pieces(proto: ModelProto, ids: Iterable[int]) -> set[str]:
    content = bytes(proto.SerializeToString())
    tokenizer = load_from_files({"tokenizer.model": content}, Path(), TokenizerSettings())
    return {proto.pieces[i].piece for i in unreachable_tokens(tokenizer, ids)}


def _model(base: ModelProto, scores: Mapping[str, float], last: Sequence[str]) -> ModelProto:
    """A file with the base's specification and these pieces."""
    merged = ModelProto()
    merged.CopyFrom(base)
    del merged.pieces[:]
    for name, kind in zip(FIRST_TOKENS, (Piece.UNKNOWN, Piece.CONTROL, Piece.CONTROL), strict=True):
        merged.pieces.add(piece=name, score=0.0, type=kind)
    for byte in range(256):
        merged.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=Piece.BYTE)
    for piece, score in scores.items():
        merged.pieces.add(piece=piece, score=score, type=Piece.NORMAL)
    for name in last:
        merged.pieces.add(piece=name, score=0.0, type=Piece.USER_DEFINED)
    spec = merged.trainer_spec
    spec.vocab_size, spec.byte_fallback = len(merged.pieces), True
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, -1
    spec.unk_piece, spec.bos_piece, spec.eos_piece = FIRST_TOKENS
    del spec.control_symbols[:], spec.user_defined_symbols[:]
    spec.user_defined_symbols.extend(last)
    return merged


def _is_chinese_piece(piece: str) -> bool:
    """Chinese, and without digits: numbers are cut into groups of their own."""
    return is_chinese(piece) and not any(c.isascii() and c.isdigit() for c in piece)


def _ranks(proto: ModelProto) -> dict[str, int]:
    """Ordinary pieces in the file's order, each with the rank of its score.

    The order is that in which they were learned; the score may be another (Llama 2 puts runs of spaces behind all).
    Equal scores are equal ranks, since the leftmost of such pieces joins first: numbers of one length have one score in
    tokenizers of `puyulm.text.train`.
    """
    normal = [piece for piece in proto.pieces if piece.type == Piece.NORMAL and piece.piece not in FIRST_TOKENS]
    scores = sorted({piece.score for piece in normal}, reverse=True)
    rank = {score: place for place, score in enumerate(scores)}
    ranks = {piece.piece: rank[piece.score] for piece in normal}
    whole = [piece.piece for piece in proto.pieces if piece.type == Piece.USER_DEFINED]
    return ranks | {name: len(scores) for name in whole if not looks_like_markup(name) and name not in ranks}


def _with_characters(pieces: Sequence[str], count: int) -> list[str]:
    """The first pieces and the single characters in them, `count` in all or fewer, in their order.

    Training puts characters behind all pieces that it learns from them, and a `tokenizer.json` cannot do without
    them. ASCII characters and numbers come first.
    """
    singles = {piece for piece in pieces if len(piece) == 1}
    basic = [piece for piece in pieces if piece.isascii() and (len(piece) == 1 or piece.isdigit())]
    chosen: set[str] = set()
    for piece in dict.fromkeys([*basic, *pieces]):
        needed = {piece, *(singles.intersection(piece))} - chosen
        if len(chosen) + len(needed) <= count:
            chosen |= needed
        elif len(chosen) == count:
            break
    return [piece for piece in pieces if piece in chosen]


def _byte_level(content: bytes, path: str | Path) -> dict[str, Any]:
    document = read_json(content, Path(path))
    model = document.get("model") or {}
    if not isinstance(model.get("vocab"), dict) or "merges" not in model or model.get("byte_fallback"):
        raise TokenizerError(f"{path}: not byte-level BPE; of a SentencePiece tokenizer give the .model")
    if not set(byte_alphabet()) <= set(model["vocab"]):
        raise TokenizerError(f"{path}: its vocabulary lacks single bytes, so it is not byte-level BPE")
    return document


def _merge_byte_level(
    base: Mapping[str, Any], chinese: Mapping[str, Any], base_top: int, chinese_top: int, last: Sequence[str]
) -> tuple[dict[str, Any], int, int, int]:
    """The merged file, Chinese tokens taken, how many of those wanted the base had, and the number of ids."""
    special = {token["content"] for token in (*base.get("added_tokens", []), *chinese.get("added_tokens", []))}
    merges = _Merges()
    for a, b in _pairs(base):
        if len(merges.tokens) == base_top:
            break
        if a + b not in special:
            merges.add(a, b)
    if len(merges.tokens) < base_top:
        raise TokenizerError(f"the base has {len(merges.tokens):,} merged tokens: ask for so many or fewer")
    of_base = set(merges.tokens)
    parents = {a + b: (a, b) for a, b in reversed(list(_pairs(chinese))) if a + b not in special}
    whole = _whole_words(base)
    known = 0
    for name in sorted(parents, key=chinese["model"]["vocab"].__getitem__):
        text = byte_level_bytes(name).decode("utf-8", "replace")
        if not _is_chinese_piece(text) or "\ufffd" in text or not whole(text):
            continue
        known += name in of_base
        steps = _steps(name, parents, merges)
        if len(merges.tokens) - base_top + len(steps) <= chinese_top:
            merges.add_reachable(steps)
    names = [*FIRST_TOKENS, *byte_alphabet(), *merges.tokens]
    vocab = {name: i for i, name in enumerate(names)}
    size = len(names) + len(last)
    added = {i: AddedToken(name, True) for i, name in enumerate(FIRST_TOKENS)}
    added |= {i: AddedToken(name, True) for i, name in enumerate(last, start=len(names))}
    document = byte_level_json(vocab, [list(pair) for pair in merges.ranks], [], added)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        document[part] = base.get(part)
    document["post_processor"] = bos_template("<s>", vocab)
    return document, len(merges.tokens) - base_top, known, size


def _pairs(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for merge in document["model"]["merges"]:
        a, b = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield a, b


def _steps(name: str, parents: Mapping[str, tuple[str, str]], merges: _Merges) -> list[str]:
    """A token and the tokens it is built from, as far as they are missing; parts first."""
    if name in merges.known or len(name) == 1:
        return []
    if name not in parents:
        return [name]
    a, b = parents[name]
    return list(dict.fromkeys([*_steps(a, parents, merges), *_steps(b, parents, merges), name]))


def _whole_words(document: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a text is one word for the file's pre-tokenizer: merges do not cross from word to word."""
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import models

    bare = json.loads(LibraryTokenizer(models.BPE()).to_str()) | {"pre_tokenizer": document.get("pre_tokenizer")}
    library = LibraryTokenizer.from_str(json.dumps(bare))
    splitter = library.pre_tokenizer
    return lambda text: splitter is None or len(splitter.pre_tokenize_str(text)) == 1


class _Merges:
    """Merges in their order, and the tokens that they make."""

    def __init__(self) -> None:
        self.ranks: dict[tuple[str, str], int] = {}
        self.tokens: dict[str, None] = {}
        self.known: set[str] = set(byte_alphabet())

    def add(self, a: str, b: str) -> None:
        """Adds a merge of two tokens that are there."""
        if a in self.known and b in self.known and (a, b) not in self.ranks:
            self.ranks[a, b] = len(self.ranks)
            self.tokens.setdefault(a + b)
            self.known.add(a + b)

    def add_reachable(self, names: Sequence[str]) -> None:
        """Adds each token by the merge of the two parts into which its bytes are encoded now; all, or none of them."""
        added: list[str] = []
        for name in names:
            parts = self.encode(name)
            if len(parts) != 2:
                for last in added:
                    self.ranks.popitem()
                    del self.tokens[last]
                    self.known.remove(last)
                return
            self.add(*parts)
            added.append(name)

    def encode(self, name: str) -> list[str]:
        """The tokens of a word: of all pairs of neighbours, the one of the lowest rank is joined, again and again."""
        parts = list(name)
        while len(parts) > 1:
            ranked = [(self.ranks.get(pair, len(self.ranks)), i) for i, pair in enumerate(pairwise(parts))]
            rank, place = min(ranked)
            if rank == len(self.ranks):
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return parts
