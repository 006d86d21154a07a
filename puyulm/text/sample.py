"""A bounded random sample of text that may be larger than memory, for training tokenizers."""

from __future__ import annotations

import gzip
import heapq
import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from puyulm.errors import TokenizerError
from puyulm.progress import Progress

_SEGMENT_CHARACTERS = 4000
_HELD_OUT_EVERY = 50
_HELD_OUT_BYTES = 2_000_000


@dataclass(frozen=True)
class Stratum:
    """What was drawn from the texts of one name, such as a language: wanted share, bytes seen and bytes taken."""

    name: str
    share: float
    seen_bytes: int
    sample_bytes: int


@dataclass(frozen=True)
class Sample:
    """Segments of text in their original order, those of one stratum after those of another.

    Attributes:
        segments: What to train on.
        held_out: Other segments, to measure on; empty where there was too little text.
        sample_bytes: Size of `segments` in UTF-8.
        seen_bytes: Size of all the text it was drawn from.
        strata: What each stratum gave; empty where there were none.
    """

    segments: list[str]
    held_out: list[str]
    sample_bytes: int
    seen_bytes: int
    strata: tuple[Stratum, ...] = ()


def draw_sample(texts: Iterable[str], limit_bytes: int, seed: int) -> Sample:
    """Draws segments of a few thousand characters at random, up to `limit_bytes`; all there are, if they fit.

    One segment in fifty is held out. The same texts in the same order, with the same seed, give the same sample.
    """
    return draw_strata(((text, "") for text in texts), {"": 1.0}, limit_bytes, seed)


def draw_strata(texts: Iterable[tuple[str, str]], weights: Mapping[str, float], limit_bytes: int, seed: int) -> Sample:
    """Draws as `draw_sample` does, but from each stratum its share of `limit_bytes`; all there is, if it has less.

    Memory holds the sample alone, however much text there is.

    Args:
        texts: Each with the name of its stratum.
        weights: Of the strata, above 0; texts of others are not taken, though seen.
        limit_bytes: Of the whole sample.
        seed: Of the draw.

    Raises:
        TokenizerError: A weighted stratum has no text.
    """
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    kept = {name: _Reservoir(int(share * limit_bytes), seed) for name, share in shares.items()}
    held_out = {name: _Reservoir(int(share * _HELD_OUT_BYTES), seed) for name, share in shares.items()}
    seen = dict.fromkeys(shares, 0)
    others = 0
    with Progress("reading text", unit="B") as progress:
        for text, name in texts:
            before = others + sum(seen.values())
            for segment in _segments(text):
                if name not in shares:
                    others += len(segment.encode())
                    continue
                is_held_out = (kept[name].count + held_out[name].count) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
                seen[name] += (held_out if is_held_out else kept)[name].add(segment)
            progress.advance(others + sum(seen.values()) - before)
    if missing := [name for name in shares if name and not seen[name]]:
        raise TokenizerError(f"no text of {', '.join(missing)} to draw from: leave its weight out, or add files")
    return Sample(
        [segment for name in shares for segment in kept[name].segments()],
        [segment for name in shares for segment in held_out[name].segments()],
        sum(reservoir.size for reservoir in kept.values()), others + sum(seen.values()),
        tuple(Stratum(name, shares[name], seen[name], kept[name].size) for name in shares if name),
    )  # fmt: skip


def draw_each(texts: Iterable[tuple[str, str]], limit_bytes: int, seed: int) -> dict[str, list[str]]:
    """Segments of every stratum, at most `limit_bytes` of each, drawn at random; strata in the order of their names."""
    reservoirs: dict[str, _Reservoir] = {}
    with Progress("reading text", unit="B") as progress:
        for text, name in texts:
            reservoir = reservoirs.setdefault(name, _Reservoir(limit_bytes, seed))
            progress.advance(sum(reservoir.add(segment) for segment in _segments(text)))
    drawn = {name: reservoir.segments() for name, reservoir in sorted(reservoirs.items())}
    return {name: segments for name, segments in drawn.items() if segments}


@dataclass(frozen=True)
class LabelledText:
    """A text with what its file says of it; empty where it says nothing."""

    text: str
    language: str = ""
    source: str = ""


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file, see `read_labelled_texts`."""
    return (labelled.text for labelled in read_labelled_texts(path))


def read_labelled_texts(path: Path) -> Iterator[LabelledText]:
    """The texts of a file: `.jsonl` has one a line, under "text"; any other is plain text. Either may be gzipped.

    Raises:
        TokenizerError: The file is missing or damaged, or a line has no text; the message names file and line.
    """
    if not path.is_file():
        raise TokenizerError(f"{path}: no such file")
    names_json_lines = path.name.removesuffix(".gz").endswith(".jsonl")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            if names_json_lines:
                yield from (_text_of(line, path, number) for number, line in enumerate(file, 1) if line.strip())
            else:
                while block := file.readlines(1 << 20):
                    yield LabelledText("".join(block))
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TokenizerError(f"{path}: the compressed file is damaged ({error})") from None


def language_of(text: str) -> str:
    """A rough guess: "zh" where a fifth of the characters are Chinese, "code" by its punctuation, else "en"."""
    chinese = sum("\u4e00" <= c <= "\u9fff" for c in text)
    if chinese * 5 > len(text):
        return "zh"
    return "code" if sum(map(text.count, "{}()[];=<>_#\\")) * 25 > len(text) else "en"


class _Reservoir:
    """Keeps the segments that draw the smallest random keys, as many as fit into a number of bytes."""

    def __init__(self, limit_bytes: int, seed: int) -> None:
        self.count = self.size = 0
        self._limit, self._random = limit_bytes, random.Random(seed)
        self._heap: list[tuple[float, int, str, int]] = []  # (-key, position, segment, bytes)

    def add(self, segment: str) -> int:
        size = len(segment.encode())
        heapq.heappush(self._heap, (-self._random.random(), self.count, segment, size))
        self.count += 1
        self.size += size
        while self.size > self._limit and len(self._heap) > 1:
            self.size -= heapq.heappop(self._heap)[3]
        return size

    def segments(self) -> list[str]:
        return [segment for _, _, segment, _ in sorted(self._heap, key=lambda entry: entry[1])]


def _segments(text: str) -> Iterator[str]:
    """Cuts a text at ends of lines, and a very long line anywhere. What is no character is left out."""
    text = text.encode("utf-8", "ignore").decode()
    start = 0
    while start < len(text):
        end = start + _SEGMENT_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _text_of(line: str, path: Path, number: int) -> LabelledText:
    try:
        record = json.loads(line)
        text, labels = record["text"], [record.get(name, "") for name in ("language", "source")]
    except (ValueError, KeyError, TypeError, AttributeError):
        text, labels = None, ["", ""]
    if not isinstance(text, str):
        raise TokenizerError(f'{path}:{number}: not a json object with a string under "text"')
    return LabelledText(text, *(label if isinstance(label, str) else "" for label in labels))
