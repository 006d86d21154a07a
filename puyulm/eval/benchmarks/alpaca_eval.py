"""AlpacaEval 2.0: 805 instructions, answers compared with GPT-4-turbo's by a judge (Dubois et al., 2024).

Data: alpaca_eval_gpt4_baseline.json of tatsu-lab/alpaca_eval; beside it, for the published length control,
df_gamed.csv of the same place.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Generation, Judge, Question, Record, Sample, Verdict
from puyulm.eval.length_control import GamedAnswers, length_controlled
from puyulm.eval.model import Output, Prompt
from puyulm.eval.source import Dataset, Made, SourceContext, read_records
from puyulm.text.messages import Message

DATA = Dataset(
    hub="tatsu-lab/alpaca_eval",
    config="alpaca_eval_gpt4_baseline",
    splits={"test": "eval"},
    files={"test": ["alpaca_eval_gpt4_baseline.json"]},
    page="https://huggingface.co/datasets/tatsu-lab/alpaca_eval",
)
GAMED = "df_gamed.csv"
FIRST, SECOND = "m", "M"  # names of the two answers: they hold no order and are single tokens

_SYSTEM = "You compare the answers of language models, as a careful human reader would, and name the better one."
_ASK = """Here is an instruction and what two models, {first} and {second}, answered; the order means nothing.

[Instruction]
{instruction}
[End of instruction]

[Answer of {first}]
{one}
[End of the answer of {first}]

[Answer of {second}]
{other}
[End of the answer of {second}]

Which answer is better, by its quality and by how well it does what the instruction says? Write the name of that model \
and nothing else, not even a quotation mark or a space: {first} or {second}."""


def rows(subset: str, context: SourceContext) -> Iterator[Mapping[str, Any]]:
    """The published rows, each with its difficulty and the gamed answers to it where they are known."""
    known = _gamed(context)
    for number, record in enumerate(DATA.records("alpaca_eval", subset, "test", context)):
        if known and number not in known:
            raise DataError(f"alpaca_eval: {GAMED} knows nothing about row {number}: it belongs to other instructions")
        yield {**record, **known.get(number, {})}


def _gamed(context: SourceContext) -> dict[int, dict[str, Any]]:
    """Of each row: how difficult it is, and how gamed answers of known length did."""
    file = None if context.data_dir is None else context.data_dir / "alpaca_eval" / GAMED
    if file is None or not file.is_file():
        return {}
    found: dict[int, dict[str, Any]] = defaultdict(lambda: {"difficulty": 0.0, "gamed": []})
    for number, row in enumerate(read_records(file), 1):
        try:
            own = found[int(float(row["index"]))]
            own["difficulty"] = float(row["instruction_difficulty"])
            own["gamed"].append([float(row["std_delta_len"]), float(row["preference"])])
        except (KeyError, ValueError):
            raise DataError(f"{file}: row {number} is not as published") from None
    return dict(found)


def read(record: Record, subset: str, number: int) -> Question:
    """The target is the recorded answer."""
    if not isinstance(record["output"], str):
        raise ValueError("output must be a text")
    extra = {name: record[name] for name in ("dataset", "difficulty", "gamed") if name in record}
    return Question(str(number), record["instruction"], record["output"], extra=extra)


def _model_is_first(question: Question) -> bool:
    return hashlib.sha256(question.text.encode()).digest()[0] % 2 == 0


def ask(question: Question, outputs: Sequence[Output]) -> Sequence[Prompt]:
    """One comparison, in an order that is drawn for each instruction once and for all."""
    answers = [outputs[-1].text, question.target]
    one, other = answers if _model_is_first(question) else reversed(answers)
    text = _ASK.format(first=FIRST, second=SECOND, instruction=question.text, one=one, other=other)
    return [Prompt(messages=(Message("system", _SYSTEM), Message("user", text)), max_new_tokens=1, top_logprobs=5)]


def first_is_better(judgement: Output) -> float | None:
    """How likely the judge is to name the first answer, among its two names; None: it names neither.

    Without log-probabilities it is what the judge wrote: 0 or 1.
    """
    if not judgement.top_logprobs:
        name = judgement.text.strip()
        return float(name == FIRST) if name in (FIRST, SECOND) else None
    weights = dict.fromkeys((FIRST, SECOND), 0.0)
    for token, logprob in judgement.top_logprobs.items():
        if (name := token.strip()) in weights:
            weights[name] += math.exp(logprob)
    total = sum(weights.values())
    return weights[FIRST] / total if total > 0 else None


def verdict(question: Question, outputs: Sequence[Output], judgements: Sequence[Output]) -> Verdict:
    """How likely the model's answer is the better one, and by how many characters the recorded one is longer."""
    first = first_is_better(judgements[0])
    longer = len(question.target) - len(outputs[-1].text)
    if first is None:
        return Verdict({"unread": 1.0, "longer": longer}, note="the judge named neither answer")
    wins = first if _model_is_first(question) else 1 - first
    discrete = 0.5 if wins == 0.5 else float(wins > 0.5)
    scores = {"win_rate": wins, "discrete_win_rate": discrete, "first_place": first, "longer": longer, "unread": 0.0}
    return Verdict(scores, f"{wins:.3f}")


def summarise(samples: Sequence[Sample]) -> Mapping[str, float]:
    """The length-controlled win rate."""
    read = [sample for sample in samples if "win_rate" in sample.scores]
    if not read:
        return {"lc_win_rate": math.nan}
    difficulty, gamed = None, None
    if all("gamed" in sample.extra for sample in read):
        difficulty = np.array([sample.extra["difficulty"] for sample in read])
        answers = [(*pair, sample.extra["difficulty"]) for sample in read for pair in sample.extra["gamed"]]
        gamed = GamedAnswers(*np.array(answers).reshape(-1, 3).T)
    wins = np.array([sample.scores["win_rate"] for sample in read])
    longer = np.array([sample.scores["longer"] for sample in read])
    return {"lc_win_rate": length_controlled(wins, longer, difficulty, gamed)}


BENCHMARK = Benchmark(
    name="alpaca_eval",
    title="AlpacaEval 2.0",
    dimension="instruction",
    source=Made(rows, data="tatsu-lab/alpaca_eval"),
    read=read,
    modes={
        "chat": Generation(
            prompt=lambda question: question.text,
            solution=lambda question: question.target,
            judge=Judge(prompts=ask, verdict=verdict),
            max_new_tokens=2048,
        )
    },
    metrics=("lc_win_rate", "win_rate", "discrete_win_rate", "first_place", "unread"),
    summarise=summarise,
    keep=("difficulty", "gamed"),
    follows=(
        "the official weighting by log-probabilities and, with df_gamed.csv in the data folder, its length control; "
        "without, its regression on length alone; our wording of the judge's prompt"
    ),
)
