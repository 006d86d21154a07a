"""RULER's variable tracking (Hsieh et al., 2024, appendix B)."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterator

from puyulm.eval.longtext.fill import Count, Pieces, fill, insert
from puyulm.eval.longtext.ruler_niah import DEPTHS, NOISE, RulerSample

HOPS = 4
EXAMPLE_TOKENS = 500  # of the solved example


def make_tracking(draw: random.Random, count: Count, room: int, pieces: Pieces, what: str) -> RulerSample:
    """A chain of five variables with the same value, in noise, after a solved example."""
    names = _names(draw)
    example = _chain(draw, names, count, min(EXAMPLE_TOKENS, room // 3), pieces, what, "")
    solved = f"{example.text}{example.prefix} {' '.join(example.answers)}\n\n"
    return _chain(draw, names, count, room, pieces, what, solved)


def _chain(
    draw: random.Random, names: Iterator[str], count: Count, room: int, pieces: Pieces, what: str, solved: str
) -> RulerSample:
    chain, value = [next(names) for _ in range(HOPS + 1)], str(draw.randrange(10_000, 100_000))
    needles = [f"VAR {chain[0]} = {value}"]
    needles += [f"VAR {later} = VAR {earlier}" for earlier, later in itertools.pairwise(chain)]
    depths = sorted(draw.sample(DEPTHS, len(needles)))
    prefix = (
        f" Answer: According to the chain(s) of variable assignment in the text above, {len(chain)} variables are "
        f"assigned the value {value}, they are:"
    )

    def build(number: int) -> str:
        text = pieces.joint.join(insert(pieces.first(number), needles, depths))
        return (
            f"{solved}Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{text}\n"
            f"Question: Find all variables that are assigned the value {value} in the text above."
        )

    def whole(text: str) -> int:
        return count(text + prefix)

    filled = fill(build, whole, room, pieces.fitting(room - whole(build(0))), pieces.mean(), what)
    return RulerSample(
        text=filled.text, prefix=prefix, tokens=filled.tokens, answers=tuple(chain), extra={"depth": depths[0]}
    )


def _names(draw: random.Random) -> Iterator[str]:
    """Names of five capital letters, no two alike."""
    seen: set[str] = set()
    while True:
        name = "".join(draw.choices(string.ascii_uppercase, k=5))
        if name not in seen:
            seen.add(name)
            yield name


def noise(count: Count) -> Pieces:
    """The same few sentences again and again."""
    return Pieces(itertools.repeat(NOISE), count, "\n")
