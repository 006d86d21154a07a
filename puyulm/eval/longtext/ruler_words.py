"""RULER's counting tasks: common words and frequent words (Hsieh et al., 2024, appendices B and C)."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence

from puyulm.eval.longtext.fill import Count, fill
from puyulm.eval.longtext.ruler_niah import RulerSample
from puyulm.eval.longtext.words import ADJECTIVES, NOUNS, WORDS

COMMON, FREQUENT = 10, 3
ALPHA, ZETA_2 = 2.0, 1.6449340668482264  # the zeta distribution's exponent, and Riemann's zeta of it
CODE_LENGTH, TOKENS_PER_CODE = 6, 50  # letters of a coded word; the longer the text, the more different ones


def make_common(draw: random.Random, count: Count, room: int, guess: int, short: bool, what: str) -> tuple[
    int, RulerSample
]:  # fmt: skip
    """A numbered list in which ten words come often, after a solved example with a short list.

    Args:
        guess: Different words that should fit.
        short: For lengths below 4K: the common words come 6 times and the others once, instead of 30 and 3 times.

    Returns:
        Different words, and the sample.
    """
    words = _common_vocabulary(draw)
    often, seldom = (6, 1) if short else (30, 3)
    example_often, example_seldom = (3, 1) if short else (10, 3)
    seed = draw.getrandbits(64)
    example = [next(words) for _ in range(20 if short else 40)]
    solved = _common_question(example, example_often, example_seldom, seed)
    solved += f"{_COMMON_PREFIX} {_numbered(example[:COMMON])}\n"
    known = [next(words) for _ in range(COMMON)]

    def build(number: int) -> str:
        while len(known) < COMMON + number:
            known.append(next(words))
        return solved + _common_question(known[: COMMON + number], often, seldom, seed + 1)

    def whole(text: str) -> int:
        return count(text + _COMMON_PREFIX)

    each = (whole(build(64)) - whole(build(0))) / 64
    filled = fill(build, whole, room, guess or int((room - whole(build(0))) / each), each, what)
    return filled.pieces, RulerSample(
        text=filled.text, prefix=_COMMON_PREFIX, tokens=filled.tokens, answers=tuple(known[:COMMON])
    )


_COMMON_PREFIX = " Answer: The top 10 words that appear most often in the list are:"


def _common_question(words: Sequence[str], often: int, seldom: int, seed: int) -> str:
    entries = [*(one for one in words[:COMMON] for _ in range(often)), *(list(words[COMMON:]) * seldom)]
    random.Random(seed).shuffle(entries)
    return (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
        f"that appear most often.\n{_numbered(entries)}\nQuestion: What are the 10 most common words in the above list?"
    )


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def _common_vocabulary(draw: random.Random) -> Iterator[str]:
    """Words without repetition: single ones, then pairs of them."""
    words = list(WORDS)
    draw.shuffle(words)
    yield from words
    seen: set[str] = set()
    while len(seen) < len(ADJECTIVES) * len(NOUNS):
        pair = f"{draw.choice(ADJECTIVES)}-{draw.choice(NOUNS)}"
        if pair not in seen:
            seen.add(pair)
            yield pair


def make_frequent(draw: random.Random, count: Count, room: int, guess: int, what: str) -> tuple[int, RulerSample]:
    """Coded words whose frequencies follow a zeta distribution; the most frequent is only dots.

    Args:
        guess: Words that should fit.

    Returns:
        Words, and the sample.
    """
    different = max((room + 100) // TOKENS_PER_CODE, 20)
    codes: dict[str, None] = {}
    while len(codes) < different - 1:
        codes["".join(draw.choices(string.ascii_lowercase, k=CODE_LENGTH))] = None
    vocabulary, seed = ["...", *codes], draw.getrandbits(64)
    prefix = " Answer: According to the coded text above, the three most frequently appeared words are:"

    def build(number: int) -> str:
        text = [word for rank, word in enumerate(vocabulary, 1) for _ in range(int(number / rank**ALPHA / ZETA_2))]
        random.Random(seed).shuffle(text)
        return (
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            f"appeared coded words. {' '.join(text)}\nQuestion: Do not provide any explanation. Please ignore the dots "
            "'....'. What are the three most frequently appeared words in the above coded text?"
        )

    def whole(text: str) -> int:
        return count(text + prefix)

    each = (whole(build(256)) - whole(build(0))) / 256
    filled = fill(build, whole, room, guess or int((room - whole(build(0))) / each), each, what)
    answers = tuple(vocabulary[1 : 1 + FREQUENT])
    return filled.pieces, RulerSample(text=filled.text, prefix=prefix, tokens=filled.tokens, answers=answers)
