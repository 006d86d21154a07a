"""Perplexity and bits per byte of any text, by domain.

Options: `text` (files: .jsonl with "text" and perhaps "domain", gzipped or not, or .txt, each a document; without a
domain it is the file's name), `window` (tokens that the model sees at once), `stride` (tokens of a window that are
judged; those before them are context).

A long text is cut into parts of about `stride` tokens at white space, and each is judged after as many of the tokens
before it as the window has room for. Every byte is judged once: sums over parts are those of the whole text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Question, Reading, Record, Sample
from puyulm.eval.longtext.fill import number_option
from puyulm.eval.longtext.windows import Window, windows
from puyulm.eval.source import Made, SourceContext, read_records

WINDOW = 2048


def subsets(context: SourceContext) -> dict[str, str]:
    """The texts' domains, in the order of the files.

    Raises:
        DataError: There are no files, or they are damaged.
    """
    return {domain: "" for _, domain, _ in _documents(context)}


def make(subset: str, context: SourceContext) -> Iterator[dict[str, Any]]:
    """The windows of a domain's documents.

    Raises:
        DataError: There is no model to count with, or the stride is longer than the window.
    """
    if context.model is None:
        raise DataError("perplexity: its windows are measured in a model's tokens, but there is no model")
    window = number_option(context, "perplexity", "window", min(WINDOW, context.model.context or WINDOW), least=2)
    stride = number_option(context, "perplexity", "stride", max(window // 2, 1))
    if stride >= window:
        raise DataError(f"perplexity: a stride of {stride} leaves no context in a window of {window}: make it shorter")
    for id, domain, text in _documents(context):
        if domain == subset:
            for number, part in enumerate(windows(text, window, stride, context.model.encode)):
                yield {"id": f"{id}/{number}", "window": part}


def _documents(context: SourceContext) -> Iterator[tuple[str, str, str]]:
    """Id, domain and text of each document that has any."""
    paths = context.options.get("text", ())
    paths = [paths] if isinstance(paths, str | Path) else paths
    if not isinstance(paths, Sequence) or not paths:
        raise DataError("perplexity: there is no text: name .jsonl or .txt files with --text")
    for place, path in enumerate(map(Path, paths)):
        name = path.name.split(".")[0]
        for number, row in enumerate(_rows(path)):
            text, domain = row.get("text"), row.get("domain", name)
            if not isinstance(text, str) or not isinstance(domain, str):
                raise DataError(f"{path}: row {number} has no 'text', or it or its 'domain' is not a text")
            if text.strip():
                yield f"{place}/{number}", domain, text


def _rows(path: Path) -> Iterator[Record]:
    if path.suffix.lower() not in (".txt", ".md", ".rst", ""):
        yield from read_records(path)
        return
    try:
        yield {"text": path.read_bytes().decode("utf-8-sig")}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def read(record: Record, subset: str, number: int) -> Question:
    """A window."""
    part: Window = record["window"]
    return Question(record["id"], part.text, subset=subset, extra={"context": part.context, "words": part.words})


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """Ratios of sums: nats per token, word and byte, as perplexities; bits per byte."""
    nats = sum(sample.scores["nats"] for sample in samples)
    tokens = sum(sample.scores["tokens"] for sample in samples)
    size = sum(sample.scores["bytes"] for sample in samples)
    words = sum(sample.extra["words"] for sample in samples)
    return {
        "perplexity": _exp(nats, tokens),
        "bits_per_byte": nats / math.log(2) / size if size else math.nan,
        "byte_perplexity": _exp(nats, size),
        "word_perplexity": _exp(nats, words),
    }


def _exp(nats: float, count: float) -> float:
    if not count:
        return math.nan
    return math.exp(nats / count) if nats / count < 700 else math.inf


BENCHMARK = Benchmark(
    name="perplexity",
    title="Perplexity",
    dimension="text",
    source=Made(make, subsets, data="--text FILE"),
    read=read,
    modes={"reading": Reading(text=lambda question: question.text, context=lambda question: question.extra["context"])},
    metrics=("perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity"),
    summarise=summarise,
    keep=("words",),
    percent=False,
    follows="lm-evaluation-harness's word and byte perplexity, but that windows overlap by window - stride tokens, and "
    "that words are what white space parts (it counts one more for each white space at a text's ends)",
)
