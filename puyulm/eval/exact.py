"""Exact-answer evaluation: questions with one right answer, answered greedily, compared after normalising.

A tuned model is asked in its chat format and its whole answer counts. A base model, which knows no chat format, is
asked in plain text ("Question: ... Answer:", in the question's language), with solved examples before it where they are
given, and the first line of what it writes counts.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.params import SamplingParams
from puyulm.errors import DataError
from puyulm.model.decoder import Decoder
from puyulm.text.chat import ChatFormat, Message, render
from puyulm.text.tokenizer import Tokenizer

TOTAL = "total"
Z_95 = 1.959963984540054

_PLAIN = {"en": ("Question: ", "\nAnswer:"), "zh": ("问题：", "\n答案：")}
_COMMAS, _SPACES = re.compile(r"\s*[,、]\s*"), re.compile(r"\s+")
_EDGES = " .。!！?？\"'“”‘’"


@dataclass(frozen=True)
class ExactItem:
    """A question with one right answer; `kind` groups items in the report."""

    prompt: str
    answer: str
    kind: str = "items"
    language: str = "en"


@dataclass(frozen=True)
class Sample:
    """One item and what the model made of it."""

    kind: str
    prompt: str
    answer: str
    output: str
    correct: bool
    finish_reason: str


@dataclass(frozen=True)
class Score:
    """Right answers of one kind.

    Attributes:
        low, high: The 95 % interval of the true rate (Wilson's, from the binomial distribution).
    """

    kind: str
    correct: int
    total: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.correct / self.total


@dataclass(frozen=True)
class ExactReport:
    """Scores by kind, the total last, and every sample in the order of the items."""

    scores: list[Score]
    samples: list[Sample]

    @property
    def total(self) -> Score:
        return self.scores[-1]

    def table(self) -> str:
        """The scores as lines of text."""
        width = max(len(score.kind) for score in self.scores)
        return "\n".join(
            f"{score.kind:<{width}}  {score.correct:>5} of {score.total:<5}  {100 * score.rate:5.1f} %"
            f"  (95 %: {100 * score.low:.1f} to {100 * score.high:.1f})"
            for score in self.scores
        )


def read_items(path: Path) -> list[ExactItem]:
    """Items of a jsonl file: `{"prompt", "answer"}`, and where known `"kind"` and `"language"`.

    Raises:
        DataError: The file is missing or empty, or a line is damaged; with file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read items: {path}: {getattr(error, 'strerror', 'not UTF-8')}") from None
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            fields = {name: row[name] for name in ("prompt", "answer", "kind", "language") if name in row}
            item = ExactItem(**fields)
        except (ValueError, TypeError):
            raise DataError(f'{path}:{number}: expected {{"prompt": "...", "answer": "..."}}') from None
        if not all(isinstance(value, str) for value in fields.values()) or not normalise(item.answer):
            raise DataError(
                f"{path}:{number}: prompt, answer, kind and language must be text, and the answer not empty"
            )
        items.append(item)
    if not items:
        raise DataError(f"{path}: no items")
    return items


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    items: Sequence[ExactItem],
    chat_format: ChatFormat | None,
    *,
    examples: Sequence[ExactItem] = (),
    shots: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 64,
) -> ExactReport:
    """Asks a model all items and scores its answers.

    Args:
        chat_format: How to ask; None asks in plain text, for base models.
        examples: Solved items, from which plain-text prompts take the first `shots` of the same kind and language.

    Raises:
        DataError: There are no items, or fewer examples of a kind than `shots`.
    """
    if not items:
        raise DataError("there are no items to answer")
    if chat_format is None:
        prompts = [plain_prompt(item, tokenizer, _shots(item, examples, shots)) for item in items]
        stops = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens, stop=("\n",))
    else:
        prompts = [chat_prompt(item, tokenizer, chat_format) for item in items]
        stop_ids = tuple(sorted(chat_format.stop_ids(tokenizer)))
        stops = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens, stop_ids=stop_ids)
    engine = Engine(model, tokenizer, EngineConfig(max_running=batch_size))
    completions = engine.generate(prompts, stops, progress="answering")
    samples = []
    for item, completion in zip(items, completions, strict=True):
        output = completion.text or ""
        correct = normalise(output) == normalise(item.answer)
        samples.append(Sample(item.kind, item.prompt, item.answer, output, correct, completion.finish_reason))
    return ExactReport(score(samples), samples)


def chat_prompt(item: ExactItem, tokenizer: Tokenizer, chat_format: ChatFormat) -> list[int]:
    """The question as a user's message, up to where the answer begins."""
    return render([Message("user", item.prompt)], tokenizer, chat_format, add_generation_prompt=True).ids


def plain_prompt(item: ExactItem, tokenizer: Tokenizer, examples: Sequence[ExactItem] = ()) -> list[int]:
    """The question in plain text, after solved examples, up to where the answer begins."""
    question, answer = _PLAIN.get(item.language, _PLAIN["en"])
    solved = "".join(f"{question}{example.prompt}{answer} {example.answer}\n\n" for example in examples)
    bos = [tokenizer.bos_id] if tokenizer.bos_id is not None else []
    return [*bos, *tokenizer.encode(f"{solved}{question}{item.prompt}{answer}")]


def normalise(text: str) -> str:
    """What is compared: Unicode forms, case, spaces, the style of commas, and marks at the edges do not count."""
    text = unicodedata.normalize("NFKC", text).casefold().strip(_EDGES + "\n\t")
    return _SPACES.sub(" ", _COMMAS.sub(",", text))


def score(samples: Iterable[Sample]) -> list[Score]:
    """Scores by kind, in the order of their first samples, and the total."""
    correct: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for sample in samples:
        correct.update({sample.kind: sample.correct, TOTAL: sample.correct})
        total.update({sample.kind: 1, TOTAL: 1})
    kinds = [*(kind for kind in total if kind != TOTAL), TOTAL]
    return [Score(kind, correct[kind], total[kind], *wilson_interval(correct[kind], total[kind])) for kind in kinds]


def wilson_interval(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The rates that a binomial count of `correct` in `total` is compatible with.

    Wilson's interval: the rates p with |correct / total - p| <= z sqrt(p (1 - p) / total).
    """
    rate, spread = correct / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def write_report(report: ExactReport, folder: Path) -> None:
    """Writes `scores.json` and `samples.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in report.samples)
    _write(folder / "samples.jsonl", lines)
    scores = [asdict(score) | {"rate": score.rate} for score in report.scores]
    _write(folder / "scores.json", json.dumps(scores, ensure_ascii=False, indent=2) + "\n")


def _shots(item: ExactItem, examples: Sequence[ExactItem], shots: int) -> list[ExactItem]:
    same = [example for example in examples if (example.kind, example.language) == (item.kind, item.language)]
    if len(same) < shots:
        raise DataError(f"{shots} examples are asked for, but '{item.kind}' in {item.language} has {len(same)}")
    return same[:shots]


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
