"""What the stage `decontaminate` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from puyulm.data.pipeline.stage import StageRun, Transform
from puyulm.errors import DataError

Kind = Literal["text", "math", "code"]

_LEAST = {"min_ngrams": 1, "shingle": 1, "shingle_zh": 1, "shingle_code": 1, "hashes": 2, "margin": 0, "max_cuts": 0,
          "min_left": 0}  # fmt: skip


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set.

    Attributes:
        name: What reports call it.
        paths: Files (.jsonl, .json, .csv, .parquet; the first three also .gz or .zst), or folders of such.
        fields: What to look for, such as ("question", "answer"). Dots lead into nested records and through lists
            ("question.choices.text"); a number is a column of a .csv file without a header. Empty: the first of
            `puyulm.data.decontaminate.items.USUAL_FIELDS` that a record has.
        kind: "math": an item counts only with its own numbers, whatever the words around them; the same words with
            other numbers are a template's other instance. "code": punctuation counts as words.
    """

    name: str
    paths: tuple[Path, ...]
    fields: tuple[str, ...] = ()
    kind: Kind = "text"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise DataError("an evaluation set needs a name")
        if not self.paths:
            raise DataError(f"the evaluation set {self.name} names no files: give paths")


@dataclass(frozen=True)
class DecontaminateSettings:
    """Finds text of evaluation sets in documents.

    A field of an item is found in a document when, in one stretch of it, n-grams of the field cover at least
    `min_share` of the field's words, or `min_ngrams` of its n-grams are there, or the stretch is a near copy. A field
    of fewer words than an n-gram is found as a whole, if it has as many words as a probe; a shorter one is not looked
    for. Words are those of `puyulm.data.words`: case, punctuation and white space do not count, and a Chinese character
    is a word.

    Attributes:
        sets: What must not be trained on.
        ngram: Words of an n-gram (Brown et al. 2020, appendix C, take 13).
        ngram_zh: The same where most words are Chinese characters, of which a word has about 1.8, and for code, where
            punctuation counts as words.
        min_share: Of a field's words. Of a set of the kind "math", also of its numbers.
        min_ngrams: So many n-grams of a long field are enough, whatever their share; None: only the share counts.
        near: How near copies are measured: the share of the field's shingles (shorter n-grams) that a stretch of about
            its length has, counted exactly, or estimated from MinHash signatures of both; "off" looks for none.
        near_share: From which share on a stretch is a near copy.
        shingle, shingle_zh, shingle_code: Words of a shingle. Programs have their short ones in common.
        hashes: Hash functions of a MinHash signature.
        probe, probe_zh: A stretch is looked at when it has so many words in a row of a field.
        action: "drop" the document, "cut" the stretch out of it, or only "mark" it.
        margin: Characters to cut on both sides of a stretch (Brown et al. 2020: 200).
        max_cuts: A document with more stretches is dropped (Brown et al. 2020: 10).
        min_left: A document that cutting leaves with fewer characters is dropped (Brown et al. 2020: 200).
    """

    sets: tuple[EvalSet, ...]
    ngram: int = 13
    ngram_zh: int = 24
    min_share: float = 0.5
    min_ngrams: int | None = 50
    near: Literal["exact", "minhash", "off"] = "exact"
    near_share: float = 0.5
    shingle: int = 3
    shingle_zh: int = 5
    shingle_code: int = 8
    hashes: int = 128
    probe: int = 8
    probe_zh: int = 13
    action: Literal["drop", "cut", "mark"] = "drop"
    margin: int = 200
    max_cuts: int = 10
    min_left: int = 200

    def __post_init__(self) -> None:
        names = [s.name for s in self.sets]
        if not names or len(set(names)) < len(names):
            raise DataError(
                f"decontaminate needs one or more sets of different names, found: {', '.join(names) or 'none'}"
            )
        for name, probe, ngram in (("ngram", self.probe, self.ngram), ("ngram_zh", self.probe_zh, self.ngram_zh)):
            if not 2 <= probe <= ngram:
                raise DataError(
                    f"{name} is {ngram} and its probe {probe}: a probe has 2 words up to those of the n-gram"
                )
        for name in ("min_share", "near_share"):
            if not 0 < getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name)}: give a share above 0, up to 1")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name} is {value}: give {least} or more")
        if self.shingle > self.probe or max(self.shingle_zh, self.shingle_code) > self.probe_zh or self.hashes % 2:
            raise DataError("shingle must not be above the probes, and hashes must be even")

    def transform(self) -> Transform:
        """A function from documents to outcomes; what was found stands in `metadata["contamination"]`.

        Raises:
            DataError: A set's files are missing or damaged, or hold none of the fields.
        """
        from puyulm.data.decontaminate.apply import outcomes
        from puyulm.data.decontaminate.index import load_index

        return partial(outcomes, settings=self, index=load_index(self))

    def run(self, stage: StageRun) -> None:
        """Maps `transform` over the documents and counts hits by set. Raises DataError as `transform` does."""
        from puyulm.data.decontaminate.apply import run_stage

        run_stage(self, stage)
