"""Broken copies of good texts, so that a fluency scorer can be trained where nobody has labelled anything.

Each copy has one kind of damage as crawls, conversions and machines do it. What such a scorer knows of fluency is what
is damaged here: texts labelled by people are better, and the two can be trained on together.
"""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from puyulm.data.documents import Document, text_hash
from puyulm.data.score.labelled import Labelled, draw

FLUENT, BROKEN = "fluent", "broken"
PIECE_CHARACTERS = (200, 1500)  # of a document that is taken as an example
MIN_CHARACTERS = 80
LONGEST = 200_000  # characters of a document in which pieces are looked for

_CJK = re.compile("[\u3400-\u9fff]")
_WORDS = re.compile(r"[\u3400-\u9fff]{1,2}|[^\s\u3400-\u9fff]+\s*|\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s*")

_LATIN_LIKENESS = {"l": "1", "o": "0", "rn": "m", "m": "rn", "e": "c", "h": "b", "i": "!", "S": "5", "B": "8", "g": "9",
                   "cl": "d", "u": "ii", "fi": "ﬁ", "t": "f", "w": "vv", "I": "|"}  # fmt: skip
_CJK_PAIRS = """
己已 未末 人入 日曰 土士 大太 天夫 白自 千干 刀力 贝见 今令 治冶 晴睛 拔拨 侯候 木本 了子 由田 问间 住往 特持 没设 情清
很根 的旳 是昰 不丕 在任 我找 有冇 这达 中申 来末 上止 个介 到倒 们门 会合 学字 生牛 地他 出岀 发友 年午
"""
_CJK_LIKENESS = {pair[0]: pair[1] for pair in _CJK_PAIRS.split()}
_MOJIBAKE = {"'": "â€™", '"': "â€œ", "-": "â€”", "…": "â€¦", "é": "Ã©", "\u00a0": "Â "}


def shuffled_words(text: str, other: str, generator: random.Random) -> str:
    """Words (of Chinese, runs of one or two characters) in random order within each stretch of about 40."""
    words = _WORDS.findall(text)
    if not _CJK.search(text):
        words = [word.rstrip() + " " for word in words if word.strip()]
    stretches = [words[i : i + 40] for i in range(0, len(words), 40)]
    for stretch in stretches:
        generator.shuffle(stretch)
    return "".join(word for stretch in stretches for word in stretch)


def dropped_characters(text: str, other: str, generator: random.Random) -> str:
    """6 to 20 % of the characters are missing."""
    share = generator.uniform(0.06, 0.2)
    return "".join(c for c in text if generator.random() >= share)


def doubled_characters(text: str, other: str, generator: random.Random) -> str:
    """6 to 20 % of the characters stand two or three times."""
    share = generator.uniform(0.06, 0.2)
    return "".join(c * (generator.choice((2, 2, 3)) if generator.random() < share else 1) for c in text)


def mixed_encodings(text: str, other: str, generator: random.Random) -> str:
    """UTF-8 read as Windows-1252 or GBK, or GBK read as Latin-1; plain ASCII gets the marks of such a past."""
    codecs = generator.choice((("utf-8", "cp1252"), ("utf-8", "gbk"), ("gbk", "latin-1")))
    if not text.isascii():
        return text.encode(codecs[0], "ignore").decode(codecs[1], "replace")
    marked = "".join(_MOJIBAKE.get(c, c) for c in text)
    place = generator.randrange(len(text) + 1)  # one mark at least
    spaced = "".join("Â " if c == " " and generator.random() < 0.1 else c for c in marked[place:])
    return marked[:place] + "Â" + spaced


def scanned(text: str, other: str, generator: random.Random) -> str:
    """As a bad scan is read: letters taken for others, spaces inside words, stray marks, broken lines."""
    share = generator.uniform(0.05, 0.15)
    pieces = []
    position = 0
    while position < len(text):
        pair, single = text[position : position + 2], text[position]
        likeness = _LATIN_LIKENESS.get(pair) or _LATIN_LIKENESS.get(single) or _CJK_LIKENESS.get(single)
        luck = generator.random()
        if likeness and luck < 2 * share:
            pieces.append(likeness)
            position += 2 if pair in _LATIN_LIKENESS else 1
            continue
        pieces.append(single + (generator.choice((" ", " ", "-\n", " . ", "~", "·", "|")) if luck > 1 - share else ""))
        position += 1
    return "".join(pieces)


def repeated_phrases(text: str, other: str, generator: random.Random) -> str:
    """One or two phrases come again and again, as from a machine that is stuck or a page filled for search engines."""
    sentences = [s for s in _SENTENCE_END.split(text) if s.strip()]
    if not sentences:
        return text
    for _ in range(generator.randint(1, 2)):
        words = _WORDS.findall(generator.choice(sentences))
        start = generator.randrange(len(words))
        phrase = "".join(words[start : start + generator.randint(3, 8)])
        for _ in range(generator.randint(3, 6)):
            sentences.insert(generator.randrange(len(sentences) + 1), phrase * generator.randint(1, 3))
    return " ".join(sentences) if not _CJK.search(text) else "".join(sentences)


def truncated_joins(text: str, other: str, generator: random.Random) -> str:
    """Pieces cut in the middle of sentences, of this text and another, joined without regard to sense."""
    pieces: list[str] = []
    for source in (text, other or text):
        position = generator.randrange(20)
        while position < len(source):
            length = generator.randint(8, 60)
            pieces.append(source[position : position + length].strip())
            position += length + generator.randint(5, 60)
    generator.shuffle(pieces)
    joint = "" if _CJK.search(text) else " "
    return joint.join(pieces)[: max(len(text), MIN_CHARACTERS)]


DAMAGES: tuple[Callable[[str, str, random.Random], str], ...] = (
    shuffled_words, dropped_characters, doubled_characters, mixed_encodings, scanned, repeated_phrases, truncated_joins,
)  # fmt: skip
"""All kinds of damage: `(text, another text, generator) -> damaged text`."""


def fluency_examples(documents: Iterable[Document], seed: int = 0) -> Iterator[Labelled]:
    """For each document a piece of it, labelled "fluent", and a broken copy of the piece, labelled "broken".

    Both carry the document's id as their group, so that a split keeps them together. What is chosen depends on the
    document, the one before it and the seed alone. Code and documents of under 80 characters are left out.

    Args:
        documents: Good texts, in any natural language; English and Chinese are what the damages are made for.
        seed: Of all choices.
    """
    other = ""
    for document in documents:
        if document.language == "code" or len(document.text.strip()) < MIN_CHARACTERS:
            continue
        generator = random.Random(draw(f"{document.id}:{text_hash(document.text)}", seed))
        piece = _piece(document.text, generator)
        broken = _damaged(piece, other, generator)
        group = document.id or text_hash(document.text)
        label = partial(Labelled, language=document.language, group=group, id=document.id)
        yield label(piece, FLUENT)
        if broken.strip() and broken != piece:
            yield label(broken, BROKEN)
        other = piece


def sample_documents(documents: Iterable[Document], count: int, seed: int = 0) -> list[Document]:
    """A random sample of documents of natural language, in random order; it depends on their ids and the seed alone.

    Only `count` documents are in memory at a time, cut to their first 200,000 characters.
    """
    heap: list[tuple[int, int, Document]] = []
    for place, document in enumerate(documents):
        if document.language == "code":
            continue
        number = -draw(document.id, seed)  # the largest leaves the heap first
        if len(heap) == count and (number, place) < heap[0][:2]:
            continue
        heapq.heappush(heap, (number, place, replace(document, text=document.text[:LONGEST])))
        if len(heap) > count:
            heapq.heappop(heap)
    return [document for _, _, document in sorted(heap, key=lambda item: item[:2], reverse=True)]


def _damaged(piece: str, other: str, generator: random.Random) -> str:
    """A copy with one kind of damage, in all of it or in a part of at least 40 %."""
    damage = generator.choice(DAMAGES)
    share = generator.choice((0.4, 0.7, 1.0))
    start = generator.randrange(max(1, round(len(piece) * (1 - share)) + 1))
    end = start + round(len(piece) * share)
    return piece[:start] + damage(piece[start:end], other, generator) + piece[end:]


def _piece(text: str, generator: random.Random) -> str:
    """A stretch of a text that begins and ends with a sentence, if sentences are to be found."""
    text = text.strip()
    length = generator.randint(*PIECE_CHARACTERS)
    if len(text) <= length:
        return text
    starts = _starts(text, length)
    start = generator.choice(starts)
    ends = [match.start() for match in _SENTENCE_END.finditer(text, start + length // 2, start + length)]
    return text[start : ends[-1] if ends else start + length].strip()


def _starts(text: str, length: int) -> Sequence[int]:
    region = text[: max(1, min(len(text) - length, LONGEST))]
    return [0, *(match.end() for match in _SENTENCE_END.finditer(region) if match.end() < len(region))]
