"""A made demonstration set for an advertisement scorer, in English and Chinese.

The texts are put together from templates. They show how a scorer is trained and give a first round of annotation
something to start from; they are no substitute for labelled pages, on which a scorer for real use must be trained and
measured.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from puyulm.data.score.labelled import Labelled
from puyulm.data.score.seed_templates import (
    CHINESE_ADS,
    CHINESE_OTHERS,
    CHINESE_SLOTS,
    ENGLISH_ADS,
    ENGLISH_OTHERS,
    ENGLISH_SLOTS,
)

ADVERTISEMENT, OTHER = "advertisement", "other"
PARTIAL_SHARE = 0.25  # of the advertisements: they stand behind or before other text, and count all the same

_SLOT = re.compile(r"\{(\w+)\}")


def advertisement_seeds(count: int = 1500, seed: int = 0) -> Iterator[Labelled]:
    """Advertisements and other texts, as many of each in each language.

    Args:
        count: Texts of each label and language.
        seed: Of all choices.
    """
    for language, ads, others, slots, joint in (
        ("en", ENGLISH_ADS, ENGLISH_OTHERS, ENGLISH_SLOTS, " "),
        ("zh", CHINESE_ADS, CHINESE_OTHERS, CHINESE_SLOTS, ""),
    ):
        generator = random.Random(f"{seed} {language}")
        for _ in range(count):
            plain = _sentences(generator.choice(others), slots, generator, 3, 8)
            yield Labelled(joint.join(plain), OTHER, language)
            ad = _sentences([sentence for part in ads for sentence in part], slots, generator, 2, 7)
            if generator.random() < PARTIAL_SHARE:
                rest = _sentences(generator.choice(others), slots, generator, 1, 3)
                ad = [*ad, *rest] if generator.random() < 0.5 else [*rest, *ad]
            yield Labelled(joint.join(ad), ADVERTISEMENT, language)


def _sentences(
    templates: Sequence[str], slots: Mapping[str, Sequence[str]], generator: random.Random, low: int, high: int
) -> list[str]:
    chosen = generator.sample(templates, min(generator.randint(low, high), len(templates)))
    return [_SLOT.sub(lambda match: _filled(match.group(1), slots, generator), template) for template in chosen]


def _filled(name: str, slots: Mapping[str, Sequence[str]], generator: random.Random) -> str:
    if name == "number":
        return str(generator.randint(2, 999))
    return generator.choice(slots[name])
