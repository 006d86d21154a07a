"""Our side of the comparison: the functions that the stages use, and the pipeline as `puyu data run` runs it."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.data_corpus import Page
from benchmarks.data_datatrove import language_model
from puyulm.data.clean.c4 import C4Rules
from puyulm.data.clean.fineweb import FineWebRules
from puyulm.data.clean.settings import CleanSettings
from puyulm.data.dedup.minhash import sign
from puyulm.data.dedup.settings import DedupSettings
from puyulm.data.documents import Document, read_documents
from puyulm.data.format.language import detect_languages
from puyulm.data.format.pages import page_text
from puyulm.data.format.quarantine import QuarantineError
from puyulm.data.format.settings import FormatSettings, InputSettings
from puyulm.data.mixing.settings import TokenizeSettings
from puyulm.data.pipeline.counts import Counts, Dropped
from puyulm.data.pipeline.executor import Executor, ProcessExecutor, SerialExecutor
from puyulm.data.pipeline.recipe import DataRecipe, Step
from puyulm.data.pipeline.run import run_pipeline
from puyulm.data.pipeline.stage import StageRun, batches, run_stage, shards_in
from puyulm.text.tokenizer import Tokenizer

Extractor = Literal["trafilatura", "resiliparse"]

HASHES, N = 128, 5
C4 = C4Rules(min_line_words=3, min_sentences=5)  # of the paper's first versions, as in datatrove


def fast_text(page: Page) -> str:
    """The main text, by our fast extractor."""
    return _text(page, "resiliparse")


def trafilatura_text(page: Page) -> str:
    """The main text, with trafilatura."""
    return _text(page, "trafilatura")


def identifiers() -> dict[str, Callable[[Sequence[str]], list[str]]]:
    """Ways to find the languages of texts, by name."""
    found: dict[str, Callable[[Sequence[str]], list[str]]] = {"pycld2": detect_languages}
    if (model := language_model()) is not None:
        found["fastText"] = functools.partial(detect_languages, detector="fasttext", model=model)
    return found


def kept_by_rules(texts: Sequence[str], language: str) -> list[bool]:
    """Which texts pass the rules of Gopher, C4 and FineWeb, in Chinese our counterparts of them."""
    transform = rules(fineweb=True).transform()
    documents = [Document(str(number), text, language, "bench") for number, text in enumerate(texts)]
    return [not isinstance(outcome, Dropped) for batch in batches(documents) for outcome in transform(batch)]


def rules(fineweb: bool) -> CleanSettings:
    """The families that both sides have, and no others."""
    return CleanSettings(own=None, refinedweb=None, c4=C4, fineweb=FineWebRules() if fineweb else None)


def dedup(shard: Path, out: Path) -> set[int]:
    """Runs the stage `dedup` on one shard in this process; ids of what is kept."""
    _run(DedupSettings(), shard.parent, out, SerialExecutor())
    return {int(document.id) for path in shards_in(out) for document in read_documents(path)}


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures, `[D, 128]`."""
    return sign([Document(str(number), text, "en", "bench") for number, text in enumerate(texts)], N, HASHES)


def encoder(tokenizer: Path) -> Callable[[Sequence[str]], list[list[int]]]:
    """Our batch call."""
    return Tokenizer.load(tokenizer).encode_batch


def tokenize(inputs: Path, tokenizer: Path, out: Path, workers: int) -> None:
    """Runs the stage `tokenize`."""
    executor = ProcessExecutor(workers)
    try:
        _run(TokenizeSettings(tokenizer, bos=False), inputs, out, executor)
    finally:
        executor.close()


def pipeline(warc: Path, out: Path, workers: int, extractor: Extractor) -> dict[str, Any]:
    """The whole pipeline: extraction, language, Gopher and C4, MinHash.

    Returns:
        "seconds" of all, "stages" with their label, seconds, documents and bytes of input, and "kept": addresses.
    """
    recipe = DataRecipe(
        out=out,
        stages=(
            Step(format=_format(extractor, str(warc))),
            Step(clean=rules(fineweb=False)),
            Step(dedup=DedupSettings()),
        ),
        workers=workers,
        task_mb=warc.stat().st_size / 1e6 / (4 * workers),  # a few tasks for each process
    )
    started = time.perf_counter()
    results = run_pipeline(recipe)
    seconds = {"all": time.perf_counter() - started}
    stages = [
        {"label": r.label, "seconds": r.seconds, "documents": r.counts.documents_in, "bytes": r.counts.bytes_in}
        for r in results
    ]
    kept = [document.url for path in shards_in(results[-1].folder) for document in read_documents(path)]
    return {"seconds": seconds, "stages": stages, "kept": kept}


def _text(page: Page, extractor: Extractor) -> str:
    try:
        return page_text(page.content, "utf-8", _format(extractor), Counts())
    except QuarantineError:
        return ""


@functools.cache
def _format(extractor: Extractor, warc: str = "-") -> FormatSettings:
    return FormatSettings((InputSettings((warc,), source="bench"),), extractor=extractor, languages=("en", "zh"))


def _run(settings: Any, inputs: Path, out: Path, executor: Executor) -> None:
    """A stage by itself, as a pipeline would run it: a task a shard."""
    out.mkdir(parents=True)
    run_stage(settings, StageRun("bench", out, shards_in(inputs), inputs, executor, "jsonl.zst", 1))


def main() -> None:
    """Runs the pipeline in a process of its own: `python -m benchmarks.data_ours WARC OUT WORKERS EXTRACTOR`."""
    warc, out, workers, extractor = sys.argv[1:]
    result = pipeline(Path(warc), Path(out), int(workers), "resiliparse" if extractor == "fast" else "trafilatura")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
