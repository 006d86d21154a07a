"""Needles in haystacks, RULER's eight kinds (Hsieh et al., 2024, table 2 and appendix B)."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from puyulm.eval.longtext.fill import Count, Pieces, fill, insert
from puyulm.eval.longtext.words import ADJECTIVES, NOUNS

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = tuple(round(100 * place / 39) for place in range(40))


@dataclass(frozen=True, kw_only=True)
class RulerSample:
    """A made question.

    Attributes:
        text: Up to the question's end.
        prefix: How the answer begins.
        tokens: Of both.
        answers: What is to be found in the output.
        extra: Depth of what is asked, in percent, where it has one.
    """

    text: str
    prefix: str
    tokens: int
    answers: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Needles:
    """A kind of needle task.

    Attributes:
        haystack: What hides the needles.
        key, value: What they are made of.
        keys, values, queries: Different keys, values of each, and keys that are asked for.
    """

    haystack: Literal["noise", "essays", "needles"]
    key: Literal["word", "uuid"] = "word"
    value: Literal["number", "uuid"] = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1


KINDS = {
    "niah_single_1": Needles("noise"),
    "niah_single_2": Needles("essays"),
    "niah_single_3": Needles("essays", value="uuid"),
    "niah_multikey_1": Needles("essays", keys=4),
    "niah_multikey_2": Needles("needles"),
    "niah_multikey_3": Needles("needles", key="uuid", value="uuid"),
    "niah_multivalue": Needles("essays", values=4),
    "niah_multiquery": Needles("essays", keys=4, queries=4),
}


def make(kind: Needles, draw: random.Random, count: Count, room: int, pieces: Pieces | None, what: str) -> RulerSample:
    """A sample of at most `room` tokens, its answer's beginning included.

    Args:
        pieces: The haystack; None where it is made of needles.
        what: For error messages.
    """
    new_key, new_value = _fresh(draw, kind.key), _fresh(draw, kind.value)
    keys = [new_key() for _ in range(kind.keys)]
    values = {key: [new_value() for _ in range(kind.values)] for key in keys}
    needles = [_needle(kind, key, value) for key, own in values.items() for value in own]
    draw.shuffle(needles)
    depths = sorted(draw.sample(DEPTHS, len(needles)))
    asked = draw.sample(keys, kind.queries)
    if pieces is None:
        pieces = Pieces(_distractors(kind, new_key, new_value), count, "\n")
    head, question, prefix = _template(kind, asked)

    def build(number: int) -> str:
        return f"{head}\n{pieces.joint.join(insert(pieces.first(number), needles, depths))}\n{question}"

    def whole(text: str) -> int:
        return count(text + prefix)

    filled = fill(build, whole, room, pieces.fitting(room - whole(build(0))), pieces.mean(), what)
    answers = tuple(value for key in asked for value in values[key])
    asked_depths = [depth for depth, needle in zip(depths, needles, strict=True) if any(one in needle for one in asked)]
    return RulerSample(
        text=filled.text, prefix=prefix, tokens=filled.tokens, answers=answers, extra={"depth": asked_depths[0]}
    )


def _fresh(draw: random.Random, of: str) -> Callable[[], str]:
    """Things that have not been drawn before."""
    seen: set[str] = set()

    def one() -> str:
        while True:
            if of == "word":
                new = f"{draw.choice(ADJECTIVES)}-{draw.choice(NOUNS)}"
            elif of == "number":
                new = str(draw.randrange(10**6, 10**7))
            else:
                new = str(uuid.UUID(int=draw.getrandbits(128), version=4))
            if new not in seen:
                seen.add(new)
                return new
            if of == "word" and len(seen) > len(ADJECTIVES) * len(NOUNS) * 0.9:
                seen.clear()  # a text so long that keys run out
                seen.add(new)

    return one


def _needle(kind: Needles, key: str, value: str) -> str:
    return f"One of the special magic {kind.value}s for {key} is: {value}."


def _distractors(kind: Needles, new_key: Callable[[], str], new_value: Callable[[], str]) -> Iterator[str]:
    while True:
        yield _needle(kind, new_key(), new_value())


def _template(kind: Needles, asked: list[str]) -> tuple[str, str, str]:
    """Instruction, question and answer's beginning, in the singular where one value is asked for."""
    several = kind.queries * kind.values > 1
    names = f"{', '.join(asked[:-1])}, and {asked[-1]}" if len(asked) > 1 else asked[0]
    thing = f"{kind.value}s" if several else kind.value
    some, hidden, what = ("Some", "are", "What are all") if several else ("A", "is", "What is")
    return (
        f"{some} special magic {thing} {hidden} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {thing} afterwards.",
        f"{what} the special magic {thing} for {names} mentioned in the provided text?",
        f" The special magic {thing} for {names} mentioned in the provided text {hidden}",
    )
