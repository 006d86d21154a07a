"""Settings of scorers and of the stage `quality`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Outcome
from puyulm.errors import DataError

DEFAULT_PROMPT = """Rate the text below as training material for a language model, from 0 (useless: advertising, \
noise, broken sentences) to 5 (clear, correct, informative). Answer with the number alone.

Text:
{text}"""


@dataclass(frozen=True)
class JudgeSettings:
    """A language model that scores texts, behind an endpoint that speaks OpenAI's protocol.

    Attributes:
        base_url: Of the endpoint, up to and with `/v1`.
        model: Its name there.
        cache: SQLite file that keeps every answer, so that a resumed run asks nothing twice. It is no `Path`, since a
            file that a stage writes must not be counted among its inputs.
        key_variable: Environment variable that holds the key; none is sent where it is not set.
        prompt: What is asked; `{text}` stands for the text. The answer must be a number, or JSON with a number under
            "score".
        highest: The best answer; answers run from 0 to it and are divided by it.
        max_tokens: Of an answer.
        timeout: Seconds to wait for an answer.
        retries: Further attempts when there is no answer, or one that cannot be read.
        threads: Questions under way at a time, of each worker.
    """

    base_url: str
    model: str
    cache: str
    key_variable: str = "OPENAI_API_KEY"
    prompt: str = DEFAULT_PROMPT
    highest: float = 5.0
    max_tokens: int = 64
    timeout: float = 60.0
    retries: int = 5
    threads: int = 8

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise DataError(f"a judge's base_url must begin with http:// or https://, found {self.base_url!r}")
        if "{text}" not in self.prompt:
            raise DataError("a judge's prompt needs {text} where the text goes")
        if not self.cache:
            raise DataError("a judge needs a cache: the path of an SQLite file, which is made if it is not there")
        if min(self.highest, self.timeout, self.threads, self.max_tokens) <= 0 or self.retries < 0:
            raise DataError("a judge's highest, timeout, threads and max_tokens must be above 0, retries not below")


@dataclass(frozen=True)
class ScorerSettings:
    """One scorer: it writes `scores[name]`, from 0 to 1, and may drop documents by it.

    Attributes:
        name: Of the score, and in the reason for dropping.
        kind: "linear" (made by `puyu data train-scorer`), "fasttext" (.bin or .ftz), "huggingface" (folder of a
            sequence classifier) or "judge".
        path: The model's file or folder; of a judge, none.
        label: The class whose probability is the score. May be left out for a linear scorer (its last label is
            taken) and for a Hugging Face model with one output.
        drop_above, drop_below: Documents with a higher or lower score are dropped; without them the score is only
            recorded.
        languages: Documents in other languages pass without a score; all languages if empty. A linear scorer's file
            may name languages too (see `annotate`): then both must agree. Code goes by its programming language.
        only_sources: Documents of other sources pass without a score; all sources if empty.
        max_characters: Longer texts are scored by their beginning.
        batch_size: Texts at once, of a Hugging Face model.
        judge: Settings of a judge.
    """

    name: str
    kind: Literal["linear", "fasttext", "huggingface", "judge"] = "linear"
    path: Path | None = None
    label: str = ""
    drop_above: float | None = None
    drop_below: float | None = None
    languages: tuple[str, ...] = ()
    only_sources: tuple[str, ...] = ()
    max_characters: int = 10_000
    batch_size: int = 16
    judge: JudgeSettings | None = None

    def __post_init__(self) -> None:
        where = f"the scorer {self.name!r}"
        if not self.name:
            raise DataError("a scorer needs a name: its scores are kept under it")
        if (self.kind == "judge") != (self.judge is not None):
            raise DataError(f"{where}: 'judge' settings go with kind: judge, and only with it")
        if (self.kind == "judge") != (self.path is None):
            raise DataError(f"{where}: kind {self.kind} needs {'no ' if self.kind == 'judge' else 'a '}path")
        if self.kind == "fasttext" and not self.label:
            raise DataError(f"{where}: say which label of the fastText model is the score")
        for bound in (self.drop_above, self.drop_below):
            if bound is not None and not 0 <= bound <= 1:
                raise DataError(f"{where}: scores run from 0 to 1, so a threshold of {bound} cannot be right")
        if self.max_characters < 1 or self.batch_size < 1:
            raise DataError(f"{where}: max_characters and batch_size must be at least 1")


@dataclass(frozen=True)
class QualitySettings:
    """The stage `quality`: scores documents and drops by thresholds (InternLM2 report, section 3.1.1).

    Attributes:
        scorers: Run in order; a document that one drops is not shown to the next.
    """

    scorers: tuple[ScorerSettings, ...] = ()

    def __post_init__(self) -> None:
        check_names(self.scorers)

    def transform(self) -> Callable[[Sequence[Document]], Iterable[Outcome]]:
        """The function from documents to outcomes; models are loaded once a process."""
        from puyulm.data.score.apply import apply_scorers, load_scorers

        scorers = load_scorers(self.scorers)
        return lambda documents: apply_scorers(documents, scorers, "quality")


def check_names(scorers: Sequence[ScorerSettings]) -> None:
    """Raises DataError if two scorers write the same score."""
    names = [scorer.name for scorer in scorers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"two scorers are called {twice!r}: their scores would overwrite each other")
