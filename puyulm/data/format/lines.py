"""Files of lines: JSON lines of text, and InternEvo's lines of tokens."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from puyulm.data.documents import Document, open_compressed
from puyulm.data.format.files import READ_ERRORS, read_problem
from puyulm.data.format.pieces import Piece
from puyulm.data.format.quarantine import SAMPLE_BYTES, QuarantineError, Reason, quarantined
from puyulm.data.format.settings import FormatSettings
from puyulm.data.pipeline.counts import Counts, Outcome

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

_BLOCK = 1 << 20
_MOST_NESTED = 100
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TEXTS = ("url", "date", "licence")
_FIELDS = frozenset({"id", "text", "language", "source", "scores", "metadata", "license", *_TEXTS})


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file.

    Attributes:
        start: The byte at which it begins, of the decompressed file.
        data: The line without its end; of a bad one the first 4 KB.
        size: Its bytes, with its end.
        problem: Why it cannot be used, or None.
    """

    start: int
    data: bytes
    size: int
    problem: Reason | None = None


def read_jsonl(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """Documents out of lines of JSON, plain or compressed.

    The text is in the field that the input names. Fields called as a document's are taken as such, the others go into
    its metadata. A line without an id is named by the byte at which it begins.
    """
    return _documents(piece, settings, counts, functools.partial(document_of_record, piece=piece, settings=settings))


def read_internevo(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """Documents out of InternEvo's token files, decoded with the tokenizer of the input.

    `X.bin` holds lines of JSON, `{"tokens": [...]}`; `X.bin.meta` is an array of int32 or int64 `[documents, 2]`, the
    byte at which each line begins and its number of tokens. Negative tokens are those that a loss leaves out, and stand
    for their absolute values. A bos at the start and an eos at the end are taken off.

    Source: InternEvo, tools/tokenizer.py and internlm/data/tokenized/single_dataset.py.

    Raises:
        TokenizerError: The tokenizer cannot be loaded.
    """
    folder = settings.inputs[piece.input].tokenizer
    assert folder is not None  # the settings and `find` see to it
    tokenizer = _tokenizer(folder)
    count_at = _token_counts(piece.path, counts)

    def document(record: dict[str, Any], place: str) -> Document:
        tokens = record.get("tokens")
        if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
            raise QuarantineError(Reason.NO_TOKENS)
        if count_at(int(place[1:])) not in (-1, len(tokens)):
            raise QuarantineError(Reason.WRONG_META)
        return _decoded(tokens, tokenizer, piece, settings, place)

    return _documents(piece, settings, counts, document)


def read_lines(path: Path, start: int, stop: int, limit: int) -> Iterator[Line]:
    """Yields the lines that begin in a range of a file, in order, without empty ones.

    Args:
        path: A plain file, or one in .gz or .zst, of which the range is the whole.
        start, stop: The range, in bytes of the file.
        limit: Longer lines are only reported. Memory stays within about twice this.
    """
    compressed = path.suffix.lower() in (".gz", ".zst")
    try:
        with open_compressed(path, "rb", path.name.lower()) as file:
            position = _next_line(file, start) if start and not compressed else 0
            for line in _lines(file, position, limit):
                if line.start >= stop and not compressed:
                    return
                if line.problem or line.data.strip():
                    yield line
    except OSError:
        yield Line(start, b"", 0, Reason.UNREADABLE)


def document_of_record(record: dict[str, Any], place: str, piece: Piece, settings: FormatSettings) -> Document:
    """A document out of the fields of a line or a row.

    Args:
        record: The fields.
        place: Where it stands in the file ("#" and the byte or the row), which names it if it has no id.
        piece: The part of the file.
        settings: Of the stage; those of the input win over what the record says of source, language and licence.

    Raises:
        QuarantineError: It has no text.
    """
    given = settings.inputs[piece.input]
    text = record.get(given.text_field)
    if not isinstance(text, str):
        raise QuarantineError(Reason.NO_TEXT_FIELD)
    if not text.strip():
        raise QuarantineError(Reason.EMPTY_TEXT)
    said = {name: value for name in _TEXTS if isinstance(value := record.get(name), str)}
    source = given.source or (record["source"] if _is_text(record.get("source")) else piece.source)
    name = record.get(given.id_field)
    name = str(name) if isinstance(name, str | int) and str(name) else piece.name + place
    metadata, scores = record.get("metadata"), record.get("scores")
    rest = {key: value for key, value in record.items() if key not in _FIELDS | {given.text_field, given.id_field}}
    language = record.get("language")
    known_language = isinstance(language, str) and (language == "code" or (len(language) == 2 and language.isalpha()))
    if language and not known_language:
        rest["language"] = language
    return Document(
        id=name if name.startswith(f"{source}:") else f"{source}:{name}", text=text,
        language=given.language or (str(language).lower() if known_language else ""), source=source,
        url=said.get("url") or ("" if name.startswith(f"{source}:") else piece.name),
        date=said.get("date") or given.date,
        licence=given.licence or said.get("licence") or (str(record["license"]) if "license" in record else ""),
        scores=scores if isinstance(scores, dict) else {},
        metadata={**rest, **metadata} if isinstance(metadata, dict) else rest,
    )  # fmt: skip


def _documents(
    piece: Piece, settings: FormatSettings, counts: Counts, make: Callable[[dict[str, Any], str], Document]
) -> Iterator[Outcome]:
    """Documents that `make` (of a record and its place) makes of lines."""
    for line in read_lines(piece.path, piece.start, piece.stop, settings.max_item_bytes):
        counts.add_input(line.size)
        place = f"#{line.start}"
        try:
            yield make(_record(line), place)
        except QuarantineError as error:
            yield quarantined(piece, place, error.reason, line.data)


def _record(line: Line) -> dict[str, Any]:
    if line.problem:
        raise QuarantineError(line.problem)
    try:
        record = json.loads(line.data.decode("utf-8"))
    except UnicodeDecodeError:
        raise QuarantineError(Reason.BROKEN_ENCODING) from None
    except (ValueError, RecursionError):
        raise QuarantineError(Reason.NOT_JSON) from None
    if not isinstance(record, dict) or _is_deep(record):
        raise QuarantineError(Reason.NOT_JSON)
    return record


def _is_deep(value: Any) -> bool:
    """Whether containers stand in one another beyond all use: what copies or writes such a record would give up."""
    level = [value]
    for _ in range(_MOST_NESTED):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _next_line(file: IO[bytes], start: int) -> int:
    """Goes to the first line that begins at `start` or later, and gives its place."""
    file.seek(start - 1)
    position = start - 1
    while block := file.read(_BLOCK):
        if (found := block.find(b"\n")) >= 0:
            file.seek(position + found + 1)
            return position + found + 1
        position += len(block)
    return position


def _lines(file: Any, position: int, limit: int) -> Iterator[Line]:
    """Cuts what is left of a file into lines; `position` is where that begins."""
    parts: list[bytes] = []  # of the line whose end is not read yet, up to the limit
    size = 0
    problem: Reason | None = None
    while True:
        try:
            block = file.read1(_BLOCK)
        except READ_ERRORS as error:
            problem = read_problem(error)
            break
        if not block:
            break
        *ends, rest = block.split(b"\n")
        for end in ends:
            parts.append(end)
            size += len(end) + 1
            yield _line(parts, position, size, limit)
            position += size
            parts, size = [], 0
        if rest and size <= limit:
            parts.append(rest)
        size += len(rest)
    if problem:
        yield Line(position, b"".join(parts)[:SAMPLE_BYTES], size, problem)
    elif size:
        yield _line(parts, position, size, limit)


def _line(parts: list[bytes], position: int, size: int, limit: int) -> Line:
    data = b"".join(parts)
    if size > limit + 1:
        return Line(position, data[:SAMPLE_BYTES], size, Reason.TOO_LARGE)
    return Line(position, data.removeprefix(_BYTE_ORDER_MARK) if position == 0 else data, size)


def _decoded(tokens: list[int], tokenizer: Tokenizer, piece: Piece, settings: FormatSettings, place: str) -> Document:
    given = settings.inputs[piece.input]
    ids = [abs(token) for token in tokens]
    if max(ids) >= tokenizer.vocab_size:
        raise QuarantineError(Reason.UNKNOWN_TOKEN)
    first = 1 if ids[0] == tokenizer.bos_id else 0
    last = len(ids) - 1 if ids[-1] == tokenizer.eos_id and len(ids) > first else len(ids)
    text = tokenizer.decode(ids[first:last])
    if not text.strip():
        raise QuarantineError(Reason.EMPTY_TEXT)
    masked = sum(token < 0 for token in tokens)
    return Document(
        id=f"{piece.source}:{piece.name}{place}", text=text, language=given.language, source=piece.source,
        url=piece.name, date=given.date, licence=given.licence,
        metadata={"tokens": len(tokens), **({"masked_tokens": masked} if masked else {})},
    )  # fmt: skip


def _token_counts(path: Path, counts: Counts) -> Callable[[int], int | None]:
    """A function from the byte at which a line begins to its number of tokens, out of the meta file of `path`.

    It gives None for a line that the meta file does not have, and -1 for all where there is no meta file.
    """
    meta = path.with_name(path.name + ".meta")
    try:
        table = np.load(meta, allow_pickle=False)
        starts, lengths = table[:, 0].astype(np.int64), table[:, -1]
    except (OSError, ValueError, EOFError, IndexError):
        counts.note("token files without a meta file that can be read")
        return lambda _: -1
    # Of files above 2 GiB, int32 holds the lowest bits only; the starts rise, so that the others can be told.
    starts = starts + (np.concatenate([[0], np.cumsum(np.diff(starts) < 0)]) << 32) if len(starts) else starts

    def count_at(start: int) -> int | None:
        row = int(np.searchsorted(starts, start))
        return int(lengths[row]) if row < len(starts) and starts[row] == start else None

    return count_at


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Tokenizer:
    from puyulm.text.tokenizer import Tokenizer

    return Tokenizer.load(folder)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
