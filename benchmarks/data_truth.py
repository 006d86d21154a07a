"""What the output of both sides is judged by: planted near duplicates, and the sources that pages were made from."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

LEAST_EDITS, MOST_EDITS = 0.005, 0.03  # share of the words that are changed in a planted copy
LEAST_SIMILARITY = 0.7  # InternLM2's threshold: pairs below it need not be found
UNLIKE = 0.3  # two texts more alike than this are not both taken

_WORD = re.compile(r"[㐀-鿿]|[^\W㐀-鿿]+")
_DIRECTIVE = re.compile(r"^\s*\.\. .*$|^\s*:[\w-]+:.*$|^\s*[=\-~^*#\"]{3,}\s*$", re.MULTILINE)
_ROLE = re.compile(r":[\w:+-]+:`([^`]*)`")
_LATIN = re.compile(r"[a-z]{2,}")


@dataclass(frozen=True)
class Planted:
    """Texts of which some are near copies of others, and nothing else is alike.

    Attributes:
        texts: Originals and copies, mixed.
        pairs: (original, copy), numbers of texts.
    """

    texts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]

    def found(self, kept: Collection[int]) -> float:
        """Share of the pairs of which not both were kept."""
        return sum(not (a in kept and b in kept) for a, b in self.pairs) / max(len(self.pairs), 1)

    def lost(self, kept: Collection[int]) -> float:
        """Share of all different texts that were lost: of which neither the original nor a copy was kept."""
        copies = {b: a for a, b in self.pairs}
        originals = {number for number in range(len(self.texts)) if number not in copies}
        left = {copies.get(number, number) for number in kept}
        return len(originals - left) / max(len(originals), 1)


def plant(texts: Sequence[str], seed: int = 0) -> Planted:
    """Adds an edited copy to every second text, after texts that are like another are left out.

    Words (in Chinese, characters) are replaced by others of the text, left out, or doubled. Copies whose sets of
    5-grams of words have a Jaccard similarity below 0.7 are not counted as pairs and not added.
    """
    generator = random.Random(seed)
    originals = unlike(texts)
    items: list[tuple[str, int, bool]] = [(text, number, False) for number, text in enumerate(originals)]
    for number, text in enumerate(originals):
        copy = edited(text, generator)
        if number % 2 == 0 and copy != text and similarity(text, copy) >= LEAST_SIMILARITY:
            items.append((copy, number, True))
    generator.shuffle(items)
    places = {(number, is_copy): place for place, (_, number, is_copy) in enumerate(items)}
    pairs = [(places[number, False], place) for place, (_, number, is_copy) in enumerate(items) if is_copy]
    return Planted(tuple(text for text, _, _ in items), tuple(pairs))


def edited(text: str, generator: random.Random) -> str:
    """A copy with a few words changed."""
    words = list(_WORD.finditer(text))
    if not words:
        return text
    rate = generator.uniform(LEAST_EDITS, MOST_EDITS)
    parts = []
    end = 0
    for match in words:
        word = match.group()
        if generator.random() < rate:
            other = generator.choice(words).group()
            word = generator.choice((other, "", f"{word} {other}"))
        parts += [text[end : match.start()], word]
        end = match.end()
    return "".join([*parts, text[end:]])


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of two texts' sets of 5-grams of words."""
    first, second = shingles(a), shingles(b)
    return len(first & second) / max(len(first | second), 1)


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    """The 5-grams of a text's words, in lower case; a Chinese character is a word."""
    words = _WORD.findall(text.lower())
    return {tuple(words[start : start + n]) for start in range(max(len(words) - n + 1, 1))}


def unlike(texts: Iterable[str]) -> list[str]:
    """Texts in their order, without those of which over 0.3 of the 5-grams are those of one before."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    kept: list[str] = []
    sizes: list[int] = []
    for text in texts:
        grams = shingles(text)
        shared = Counter(number for gram in grams for number in holders.get(gram, ()))
        if any(count / min(len(grams), sizes[number]) > UNLIKE for number, count in shared.items()):
            continue
        for gram in grams:
            holders[gram].append(len(kept))
        kept.append(text)
        sizes.append(len(grams))
    return kept


def agreement(text: str, source: str) -> float:
    """F1 of the words of an extracted text against those of the source that the page was made from (both counted)."""
    plain = _ROLE.sub(r"\1", _DIRECTIVE.sub("", source))
    found, wanted = (Counter(_LATIN.findall(part.lower())) for part in (text, plain))
    return 2 * sum((found & wanted).values()) / max(sum(found.values()) + sum(wanted.values()), 1)
