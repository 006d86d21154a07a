"""Settings of the stage `safe`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Dropped, Outcome
from puyulm.data.safe.masking import PLACEHOLDERS, Kind
from puyulm.data.score.settings import ScorerSettings, check_names
from puyulm.errors import DataError


@dataclass(frozen=True)
class WordListSettings:
    """A list of words, and how many of them a text may hold.

    The rule is careful on purpose: one bad word makes no bad text, and a list without care removes medicine, law and
    news with what it is meant for.

    Attributes:
        path: UTF-8 text, one word or phrase a line; `#` begins a comment.
        name: In the reason for dropping; the file's name without its ending if empty.
        languages: Of the documents that it is for; all if empty.
        min_distinct: So many different words within 10,000 characters drop a document.
        max_density: More occurrences per 1,000 characters drop it too, ...
        min_occurrences: ... where there are at least so many: in a short text one word is dense.
    """

    path: Path
    name: str = ""
    languages: tuple[str, ...] = ()
    min_distinct: int = 5
    max_density: float = 5.0
    min_occurrences: int = 3

    def __post_init__(self) -> None:
        if self.min_distinct < 1 or self.min_occurrences < 1 or self.max_density <= 0:
            raise DataError(f"the word list {self.path}: min_distinct and min_occurrences must be at least 1, "
                            "max_density above 0")  # fmt: skip

    @property
    def label(self) -> str:
        """What reasons call the list."""
        return self.name or self.path.stem


@dataclass(frozen=True)
class SafeSettings:
    """The stage `safe`: block lists, masking of personal data, scorers (InternLM2 report, section 3.1.1).

    In this order: domains, addresses, word lists, masking, scorers. Scorers see the masked text, so that nothing
    personal goes to a judge.

    Attributes:
        domains: Files of domains, one a line; subdomains count too. Plain, .gz or .zst.
        urls: Files of address prefixes, one a line, that end where a part of the address ends.
        url_words: Files of words that speak against an address in which they stand whole.
        min_url_words: So many different ones drop a document.
        words: Word lists.
        mask: What to mask in natural language; `resident_id_15`, `passport` and `plate` are more often wrong.
        mask_code: What to mask in code, where long numbers are seldom personal.
        placeholders: Other placeholders, by kind, than `<email>`, `<phone>`, `<id_number>`, `<bank_card>`,
            `<ip_address>`, `<key>`, `<passport>` and `<number_plate>`.
        scorers: Toxicity, pornography and the like.
    """

    domains: tuple[Path, ...] = ()
    urls: tuple[Path, ...] = ()
    url_words: tuple[Path, ...] = ()
    min_url_words: int = 2
    words: tuple[WordListSettings, ...] = ()
    mask: tuple[Kind, ...] = ("key", "email", "ip", "resident_id", "ssn", "bank_card", "phone")
    mask_code: tuple[Kind, ...] = ("key", "email", "ip")
    placeholders: dict[str, str] = field(default_factory=dict)
    scorers: tuple[ScorerSettings, ...] = ()

    def __post_init__(self) -> None:
        check_names(self.scorers)
        if unknown := next((kind for kind in self.placeholders if kind not in PLACEHOLDERS), None):
            raise DataError(f"a placeholder for {unknown!r}: kinds are {', '.join(PLACEHOLDERS)}")
        if self.min_url_words < 1:
            raise DataError(f"min_url_words is {self.min_url_words}: give 1 or more")
        labels = [words.label for words in self.words]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise DataError(f"two word lists are called {twice!r}: give one of them another name")

    def transform(self) -> Callable[[Sequence[Document]], Iterable[Outcome]]:
        """The function from documents to outcomes; lists and models are loaded once a process."""
        from puyulm.data.safe.filters import AddressFilter, WordFilter, mask_document
        from puyulm.data.score.apply import apply_scorers, load_scorers

        addresses = AddressFilter(self)
        words = [WordFilter(each) for each in self.words]
        placeholders = {**PLACEHOLDERS, **self.placeholders}
        scorers = load_scorers(self.scorers)

        def outcomes(documents: Sequence[Document]) -> Iterator[Outcome]:
            reasons = addresses.reasons(documents)
            for i, document in enumerate(documents):
                reasons[i] = reasons[i] or next((reason for each in words if (reason := each.reason(document))), None)
            kept = [mask_document(d, self, placeholders) for d, r in zip(documents, reasons, strict=True) if r is None]
            rest = iter(apply_scorers(kept, scorers, "safe"))
            for document, reason in zip(documents, reasons, strict=True):
                yield next(rest) if reason is None else Dropped(document, reason)

        return outcomes
