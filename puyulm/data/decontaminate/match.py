"""Whether a stretch of a document is text of an item: the words that both have in a row, shingles, and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from puyulm.data.decontaminate.index import Field, Index, Table
from puyulm.data.decontaminate.settings import DecontaminateSettings, Kind
from puyulm.data.decontaminate.streams import Stream, numbers_in, read_streams
from puyulm.data.dedup.minhash import signatures
from puyulm.data.words import Hashes

PIECE = 1 << 20  # characters: a longer document is looked at in pieces
BATCH = 1 << 17  # characters of small documents looked at together: their arrays stay in the cache
OVERLAP = 1 << 14  # of such pieces, so that an item that lies across a joint is whole in one of them
_GAP = 12  # words without a common probe, beyond a third of the field, end a stretch


@dataclass(frozen=True)
class Hit:
    """A stretch of a document that is text of an item.

    Attributes:
        evaluation: Number of the set in the settings.
        item: Name of the item.
        share: Of the field's words that n-grams in the stretch cover; of a near copy, of its shingles.
        near: It is a near copy only.
        start, end: The stretch, in characters of the document.
    """

    evaluation: int
    item: str
    share: float
    near: bool
    start: int
    end: int


@dataclass(frozen=True)
class _Stretch:
    """Words `first` to `last` (exclusive) of a document against words `begin` to `end` of a field."""

    first: int
    last: int
    begin: int
    end: int
    ngrams: int  # of the field, found
    words: int  # of the field, that these n-grams cover


def find_hits(texts: Sequence[str], index: Index, settings: DecontaminateSettings) -> list[list[Hit]]:
    """The hits in each document, in the order of their places; of one item only those that do not overlap."""
    hits: list[list[Hit]] = [[] for _ in texts]
    pieces = [(owner, offset, text[offset : offset + PIECE]) for owner, text in enumerate(texts)
              for offset in range(0, max(len(text) - OVERLAP, 1), PIECE - OVERLAP)]  # fmt: skip
    for some in _by_size(pieces):
        streams = read_streams([piece for _, _, piece in some], [table.kind for table in index.tables])
        for table in index.tables:
            stream = streams[table.kind]
            for text, field_number, words, places in _candidates(table, stream):
                owner, offset, _ = some[text]
                field = index.fields[field_number]
                for stretch in _stretches(words, places, field, table.probe):
                    hit = _judge(stretch, field, stream, text, table.kind, settings)
                    if hit is not None:
                        hits[owner].append(replace(hit, start=hit.start + offset, end=hit.end + offset))
    return [_distinct(found) for found in hits]


def _by_size(pieces: Sequence[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    """Pieces, as many at a time as have about BATCH characters."""
    some: list[tuple[int, int, str]] = []
    size = 0
    for piece in pieces:
        some.append(piece)
        size += len(piece[2])
        if size >= BATCH:
            yield some
            some, size = [], 0
    if some:
        yield some


def containment(field: Hashes, stretch: Hashes, how: str, hashes: int) -> float:
    """Share of one set of shingles that another has: exactly, or from MinHash signatures.

    MinHash estimates the Jaccard similarity J of both sets (Broder 1997); of sets of a and b shingles, the share is
    J / (1 + J) * (a + b) / a.
    """
    if not len(field) or not len(stretch):
        return 0.0
    mine, theirs = np.unique(field), np.unique(stretch)
    if how == "exact":
        return float(np.isin(mine, theirs, assume_unique=True).mean())
    first = np.array([0, len(mine), len(mine) + len(theirs)], dtype=np.int64)
    signed = signatures(np.concatenate([mine, theirs]), first, hashes)
    jaccard = float((signed[0] == signed[1]).mean())
    return min(jaccard / (1 + jaccard) * (len(mine) + len(theirs)) / len(mine), 1.0)


def _candidates(table: Table, stream: Stream) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """(text, field, words, places): where a document and a field have probes in common."""
    texts, words, fields, places = table.find(stream)
    if not len(texts):
        return
    order = np.lexsort((places, words, fields, texts))
    texts, words, fields, places = texts[order], words[order], fields[order], places[order]
    edges = np.flatnonzero((np.diff(texts) != 0) | (np.diff(fields) != 0)) + 1
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), len(texts)], strict=True):
        yield int(texts[start]), int(fields[start]), words[start:end], places[start:end]


def _stretches(words: np.ndarray, places: np.ndarray, field: Field, probe: int) -> Iterator[_Stretch]:
    """Cuts common probes into stretches of about the field's length: at gaps, and where the field begins anew."""
    far = field.words // 3 + _GAP
    last = np.flatnonzero(np.append(np.diff(words) > 0, True))  # of each word, the furthest place in the field
    cuts = (np.diff(words[last]) > far) | (np.diff(places[last]) < -far)
    edges = last[:-1][cuts] + 1
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), len(words)], strict=True):
        some, theirs = words[start:end], places[start:end]
        yield _Stretch(int(some[0]), int(some[-1]) + probe, int(theirs.min()), int(theirs.max()) + probe,
                       *_ngrams(some, theirs, field.ngram, probe))  # fmt: skip


def _ngrams(words: np.ndarray, places: np.ndarray, ngram: int, probe: int) -> tuple[int, int]:
    """How many of the field's n-grams are there, and how many of its words they cover.

    An n-gram is there where enough probes follow each other on both sides.
    """
    diagonal = places - words
    order = np.lexsort((places, diagonal))
    places, diagonal = places[order], diagonal[order]
    begins = np.flatnonzero(np.concatenate([[True], (np.diff(diagonal) != 0) | (np.diff(places) != 1)]))
    lengths = np.diff(np.append(begins, len(places))) - (ngram - probe)
    covered = np.zeros(int(places.max()) + probe, dtype=bool)
    found = np.zeros(len(covered), dtype=bool)
    for begin, length in zip(places[begins].tolist(), lengths.tolist(), strict=True):
        if length > 0:
            found[begin : begin + length] = True
            covered[begin : begin + length + ngram - 1] = True
    return int(found.sum()), int(covered.sum())


def _judge(
    stretch: _Stretch, field: Field, stream: Stream, text: int, kind: Kind, settings: DecontaminateSettings
) -> Hit | None:
    share = stretch.words / field.words
    enough = settings.min_ngrams is not None and stretch.ngrams >= settings.min_ngrams
    near = not (share >= settings.min_share or enough)
    if near:
        stretch, share = _near_copy(stretch, field, stream, text, kind, settings)
        if share < settings.near_share:
            return None
    if kind == "math" and not _same_numbers(stretch, field, stream, text, settings.min_share):
        return None
    start, end = stream.span(text, stretch.first, stretch.last)
    return Hit(field.evaluation, field.item, round(min(share, 1.0), 4), near, start, end)


def _near_copy(
    stretch: _Stretch, field: Field, stream: Stream, text: int, kind: Kind, settings: DecontaminateSettings
) -> tuple[_Stretch, float]:
    """The stretch, made as long as the field, and the share of the field's shingles that it has."""
    if settings.near == "off":
        return stretch, 0.0
    count = int(stream.words.counts[text])
    first = max(stretch.first - stretch.begin, 0)
    last = min(stretch.last + field.words - stretch.end, count)
    longer = replace(stretch, first=first, last=last, begin=0, end=field.words)
    n = settings.shingle_code if kind == "code" else settings.shingle_zh if field.dense else settings.shingle
    mine = field.stream.shingles(field.text, 0, field.words, n)
    theirs = stream.shingles(text, first, last, n)
    return longer, containment(mine, theirs, settings.near, settings.hashes)


def _same_numbers(stretch: _Stretch, field: Field, stream: Stream, text: int, least: float) -> bool:
    """Whether the numbers among the words of the stretch are those of the field, one by one, and enough of all.

    Before the first and behind the last word, the document may have further numbers ("12. Janet has ..."), but must
    have those of the field that stand next to it. A template's opening without a number proves nothing.
    """
    ours = _numbers(stream, text, stretch.first, stretch.last)
    theirs = _numbers(field.stream, field.text, stretch.begin, stretch.end)
    before = theirs[0] if stretch.begin == 0 else []
    after = theirs[2] if stretch.end == field.words else []
    compared = len(before) + len(theirs[1]) + len(after)
    return (
        compared >= least * len(numbers_in(field.stream.texts[field.text]))
        and ours[1] == theirs[1]
        and ours[0][len(ours[0]) - len(before) :] == before
        and ours[2][: len(after)] == after
    )


def _numbers(stream: Stream, text: int, first: int, last: int) -> tuple[list[str], list[str], list[str]]:
    """The numbers before some words (back to the next other word), among them, and behind them."""
    content, count = stream.texts[text], int(stream.words.counts[text])
    start, end = stream.span(text, first, last)
    left = stream.span(text, first - 1, first)[1] if first else 0
    right = stream.span(text, last, last + 1)[0] if last < count else len(content)
    return numbers_in(content[left:start]), numbers_in(content[start:end]), numbers_in(content[end:right])


def _distinct(hits: Sequence[Hit]) -> list[Hit]:
    """Of hits of one item that overlap (its fields, its repetitions), the one with the largest share."""
    kept: list[Hit] = []
    by_item: dict[tuple[int, str], list[Hit]] = {}
    for hit in sorted(hits, key=lambda hit: (-hit.share, hit.start, hit.end)):
        others = by_item.setdefault((hit.evaluation, hit.item), [])
        if all(hit.end <= other.start or hit.start >= other.end for other in others):
            others.append(hit)
            kept.append(hit)
    return sorted(kept, key=lambda hit: (hit.start, hit.end, hit.evaluation, hit.item))
