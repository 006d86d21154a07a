"""Settings of the stage `dedup`: duplicates leave, of documents, paragraphs or passages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.data.pipeline.stage import StageRun


@dataclass(frozen=True)
class MinHashSettings:
    """Near duplicates: documents of which the estimated Jaccard similarity is at least `threshold`.

    The defaults of `n`, `hashes` and `threshold` are those of InternLM2 (arXiv 2403.17297, section 3.1.1). Its bands
    and rows are not published; 25 bands of 5 rows make candidates of 99 % of the pairs at 0.7 (`s_curve`).

    Attributes:
        n: Words in a shingle; a Chinese character is a word. A shorter document is one shingle.
        hashes: Hash functions, an even number.
        bands, rows: Documents that agree in all rows of a band are compared.
        threshold: Least share of equal hashes that makes a pair duplicates.
    """

    n: int = 5
    hashes: int = 128
    bands: int = 25
    rows: int = 5
    threshold: float = 0.7

    def __post_init__(self) -> None:
        if self.n < 1:
            raise DataError(f"minhash: n is {self.n}: give 1 or more words")
        if self.hashes < 2 or self.hashes % 2:
            raise DataError(f"minhash: hashes is {self.hashes}: give an even number, such as 128")
        if self.bands < 1 or self.rows < 1 or self.bands * self.rows > self.hashes:
            raise DataError(f"minhash: {self.bands} bands of {self.rows} rows need {self.bands * self.rows} hashes, "
                            f"there are {self.hashes}: give fewer bands or rows, or more hashes")  # fmt: skip
        if not 0 < self.threshold <= 1:
            raise DataError(f"minhash: threshold is {self.threshold}: give a similarity above 0, at most 1")


@dataclass(frozen=True)
class ExactSettings:
    """Equal documents.

    Attributes:
        ignore_case: Letters that differ in case only are equal.
        ignore_space: Runs of white space are one space; none at the ends.
    """

    ignore_case: bool = False
    ignore_space: bool = True


@dataclass(frozen=True)
class ParagraphSettings:
    """Paragraphs that occur before, cut from the documents; case and runs of white space do not count.

    Attributes:
        unit: What a paragraph is: text between blank lines, or a line.
        min_characters: Shorter ones stay.
        min_copies: Fewer copies in the corpus stay; boilerplate has many.
        min_left: A document of which less than this many characters is left is dropped.
        max_removed: A document of which more than this share of characters was cut is dropped.
    """

    unit: Literal["paragraph", "line"] = "paragraph"
    min_characters: int = 50
    min_copies: int = 2
    min_left: int = 100
    max_removed: float = 0.5

    def __post_init__(self) -> None:
        if self.min_characters < 1:
            raise DataError(f"paragraphs: min_characters is {self.min_characters}: give 1 or more")
        if self.min_copies < 2:
            raise DataError(f"paragraphs: min_copies is {self.min_copies}: give 2 or more")
        _check_left("paragraphs", self.min_left, self.max_removed)


@dataclass(frozen=True)
class SubstringSettings:
    """Passages that occur before, cut from the documents, found with a suffix array (Lee et al. 2022, section 4.1).

    Attributes:
        min_bytes: Shorter passages stay, in UTF-8 bytes: 50 tokens, as in the paper, are about 200 bytes of English
            and about 160 of Chinese with InternLM2's tokenizer.
        min_left, max_removed: As for paragraphs.
    """

    min_bytes: int = 200
    min_left: int = 100
    max_removed: float = 0.5

    def __post_init__(self) -> None:
        if self.min_bytes < 8:
            raise DataError(f"substring: min_bytes is {self.min_bytes}: give 8 or more")
        _check_left("substring", self.min_left, self.max_removed)


@dataclass(frozen=True)
class DedupSettings:
    """What counts as a duplicate, and which copy stays.

    Attributes:
        method: "minhash" (near duplicates), "exact" (equal documents), "paragraphs" or "substring".
        keep: Which copy stays: the newest (dates of any precision, none is oldest), the first or the longest; of
            equals the first. "substring" always keeps the first.
        memory_mb: Of records that a task holds, in MB. The result does not depend on it, except for "substring",
            which finds passages only within blocks of text of a 32nd of it.
        against: Folder of this stage in an earlier run (same method and settings): documents that are in that crawl
            leave. For minhash and exact.
        minhash, exact, paragraphs, substring: Settings of each method.
    """

    method: Literal["minhash", "exact", "paragraphs", "substring"] = "minhash"
    keep: Literal["newest", "first", "longest"] = "newest"
    memory_mb: float = 1024.0
    against: Path | None = None
    minhash: MinHashSettings = field(default_factory=MinHashSettings)
    exact: ExactSettings = field(default_factory=ExactSettings)
    paragraphs: ParagraphSettings = field(default_factory=ParagraphSettings)
    substring: SubstringSettings = field(default_factory=SubstringSettings)

    def __post_init__(self) -> None:
        if self.memory_mb < 1:
            raise DataError(f"dedup: memory_mb is {self.memory_mb}: give 1 or more")
        if self.against is not None and self.method not in ("minhash", "exact"):
            raise DataError(f"dedup: 'against' works with minhash and exact, not with {self.method}: leave it out")

    @property
    def memory(self) -> int:
        """Bytes of records that a task holds."""
        return int(self.memory_mb * 1e6)

    def run(self, stage: StageRun) -> None:
        """Does the stage's work.

        Raises:
            DataError: An intermediate file is damaged, or `against` holds no earlier run of the same kind.
        """
        if self.method == "paragraphs":
            from puyulm.data.dedup.paragraphs import run_paragraphs

            run_paragraphs(self, stage)
        elif self.method == "substring":
            from puyulm.data.dedup.substring import run_substring

            run_substring(self, stage)
        else:
            from puyulm.data.dedup.documents import run_documents

            run_documents(self, stage)


def _check_left(method: str, min_left: int, max_removed: float) -> None:
    if min_left < 0:
        raise DataError(f"{method}: min_left is {min_left}: give 0 or more characters")
    if not 0 < max_removed <= 1:
        raise DataError(f"{method}: max_removed is {max_removed}: give a share above 0, at most 1")
