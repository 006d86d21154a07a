"""A bounded random sample of text that may be larger than memory, for training tokenizers."""

from __future__ import annotations

import gzip
import heapq
import json
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from puyulm.errors import TokenizerError
from puyulm.progress import Progress

_SEGMENT_CHARACTERS = 4000
_HELD_OUT_EVERY = 50
_HELD_OUT_BYTES = 2_000_000


@dataclass(frozen=True)
class Sample:
    """Segments of text in their original order.

    Attributes:
        segments: What to train on.
        held_out: Other segments, to measure on; empty where there was too little text.
        sample_bytes: Size of `segments` in UTF-8.
        seen_bytes: Size of all the text it was drawn from.
    """

    segments: list[str]
    held_out: list[str]
    sample_bytes: int
    seen_bytes: int


def draw_sample(texts: Iterable[str], limit_bytes: int, seed: int) -> Sample:
    """Draws segments of a few thousand characters at random, up to `limit_bytes`; all there are, if they fit.

    One segment in fifty is held out. The same texts in the same order, with the same seed, give the same sample.
    """
    kept, held_out = _Reservoir(limit_bytes, seed), _Reservoir(_HELD_OUT_BYTES, seed)
    seen = 0
    with Progress("reading text", unit="B") as progress:
        for text in texts:
            before = seen
            for segment in _segments(text):
                is_held_out = (kept.count + held_out.count) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
                seen += (held_out if is_held_out else kept).add(segment)
            progress.advance(seen - before)
    return Sample(kept.segments(), held_out.segments(), kept.size, seen)


def read_texts(path: Path) -> Iterator[str]:
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
                    yield "".join(block)
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


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise TokenizerError(f'{path}:{number}: not a json object with a string under "text"')
    return text
