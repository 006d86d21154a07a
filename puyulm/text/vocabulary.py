"""The table behind every tokenizer: what each id is called, which bytes it stands for, and whether it is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

SPACE_MARK = "▁"  # SentencePiece's stand-in for the space (U+2581)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_MARKUP = re.compile(r"<[|/]?\w[^\s<>]*>|\[[A-Z][A-Z_]*\d*\]")
_SPARE = re.compile(r"\[UNUSED_TOKEN_\d+\]|<TOKENS_UNUSED_\d+>")


def looks_like_markup(name: str) -> bool:
    """Whether a token's name is markup, such as `<eoh>`, `<|im_end|>` or `[UNUSED_TOKEN_7]`.

    Published files keep two kinds of pieces in one list: ordinary text that must always be one token (InternLM2's
    full-width letters, "——"), and markup. Only their names tell them apart.
    """
    return _MARKUP.fullmatch(name) is not None


def is_spare(name: str) -> bool:
    """Whether a token is one of the family's unused ids: `[UNUSED_TOKEN_7]`, `<TOKENS_UNUSED_7>`."""
    return _SPARE.fullmatch(name) is not None


@dataclass(frozen=True)
class AddedToken:
    """A token that a checkpoint's json files add to, or lay over, the vocabulary of its model."""

    content: str
    special: bool

    @property
    def reserved(self) -> bool:
        """Whether text that a user typed must never become this token."""
        return self.special or looks_like_markup(self.content)


@dataclass(frozen=True)
class Vocabulary:
    """Ids from 0 to `len(names) - 1`.

    Attributes:
        names: What each id is called in files; "" where an id is not used at all.
        data: The bytes each id stands for in text; for a special token the bytes of its name.
        special: Ids of control tokens and markup, which `Tokenizer.encode` never gives.
        aliases: Older names of some ids (`[UNUSED_TOKEN_145]` for `<|im_end|>`).
        prefix_space: The model was trained with a space put before every stretch of text. (No InternLM 1 or 2 was.)
        space_mark_ids: The ids which spell "▁" in bytes, where the vocabulary uses "▁" to stand for a space; else
            empty. Without them the text "▁" would come back as a space.
    """

    names: Sequence[str]
    data: Sequence[bytes]
    special: frozenset[int]
    aliases: Mapping[str, int] = field(default_factory=dict)
    prefix_space: bool = False
    space_mark_ids: Sequence[int] = ()

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each name and alias. Special tokens win over ordinary ones of the same name."""
        ordered = sorted(range(len(self.names)), key=self.special.__contains__)
        return {**self.aliases, **{self.names[i]: i for i in ordered if self.names[i]}}


class TextEncoder(Protocol):
    """Encodes plain text, knowing of no special tokens. The text holds no lone surrogates, and "▁" only if it may."""

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


def spm_bytes(piece: str) -> bytes:
    """Text bytes of an ordinary SentencePiece piece."""
    return piece.replace(SPACE_MARK, " ").encode()


def byte_value(piece: str) -> int | None:
    """The byte that a piece such as `<0x0A>` stands for, or None."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return int(piece[3:5], 16)
        except ValueError:
            return None
    return None


def space_mark_ids(byte_ids: Mapping[int, int]) -> list[int]:
    """The ids that spell "▁" in bytes, given the id of each byte; empty where a byte has no id."""
    ids = [byte_ids.get(byte) for byte in SPACE_MARK.encode()]
    return [i for i in ids if i is not None] if None not in ids else []


def names_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the names, the longest first; of no names, nothing."""
    longest_first = sorted(set(names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
