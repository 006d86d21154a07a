"""BIG-Bench Hard: 27 tasks with published chains of thought (Suzgun et al., 2022).

Data: lukaemon/bbh, or the original json files. The published prompts (three solved examples a task) are files of the
original repository, cot-prompts/TASK.txt; they are needed in any case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.answers import after_answer_is
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

CHOICE, FREE = "multiple choice", "free form"
TASKS = dict.fromkeys(
    (
        "date_understanding", "disambiguation_qa", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
        "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
        "penguins_in_a_table", "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection",
        "snarks", "temporal_sequences", "tracking_shuffled_objects_five_objects",
        "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects",
    ), CHOICE,
) | dict.fromkeys(
    (
        "boolean_expressions", "causal_judgement", "dyck_languages", "formal_fallacies", "multistep_arithmetic_two",
        "navigate", "object_counting", "sports_understanding", "web_of_lies", "word_sorting",
    ), FREE,
)  # fmt: skip
_OPTION = re.compile(r"\(([A-Z])\)")


def read(record: Record, subset: str, number: int) -> Question:
    """Both have the same fields. A few published answers are an option's text: they become its letter."""
    text, target = record["input"].strip(), record["target"].strip()
    if TASKS[subset] == CHOICE and not _OPTION.fullmatch(target):
        option = re.search(rf"^(\([A-Z]\)) {re.escape(target)}$", text, re.MULTILINE)
        target = option[1] if option else target
    prompt = record["prompt"].rsplit("-----\n", 1)[-1].strip()  # before the line: a note to those who collect data
    if "Q:" not in prompt:
        raise ValueError("its prompt file holds no examples")
    return Question(f"{subset}/{number}", text, target, subset, extra={"prompt": prompt})


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """What stands behind "answer is": the first letter in parentheses, or the text. Strict: nothing else may."""
    text = outputs[-1].text.split("\nQ:", 1)[0]
    stated = after_answer_is(text)
    choice = TASKS[question.subset] == CHOICE
    answer = _letter(stated or text) if choice else stated
    if choice and answer is None:
        answer = stated
    return Verdict(
        {"accuracy": _same(question, answer), "strict": float(stated is not None and stated == question.target)}, answer
    )


def _letter(text: str) -> str | None:
    found = _OPTION.findall(text) or re.findall(r"\b([A-Z])\b", text)
    return f"({found[0]})" if found else None


def _same(question: Question, answer: str | None) -> float:
    return float(answer is not None and _form(answer) == _form(question.target))


def _form(answer: str) -> str:
    """Case, commas between words, and what follows yes, no, true or false do not count."""
    text = answer.strip().rstrip(".").strip("*`\"' ")
    if found := re.match(r"(yes|no|true|false|valid|invalid)\b", text, re.IGNORECASE):
        text = found[1]
    if not re.search(r"\d\s*,\s*\d", text):
        text = text.replace(",", " ")
    return " ".join(text.casefold().split())


def _header(question: Question) -> str:
    return f"Follow the given examples and answer the question.\n{question.extra['prompt']}"


PLAIN = Generation(
    header=_header,
    prompt=lambda question: f"Q: {question.text}\nA: Let's think step by step.",
    solution=lambda question: f"\nSo the answer is {question.target}.",
    verdict=verdict,
    chat=False,
    stop=("Q:",),
    max_new_tokens=512,
)
_ENDING = " And you must give your final answer by starting with 'So the answer is'"

BENCHMARK = Benchmark(
    name="bbh",
    title="BBH",
    dimension="reasoning",
    source=Dataset(
        hub="lukaemon/bbh",
        config="{subset}",
        files={"test": ["{subset}.json", "bbh/{subset}.json"]},
        texts={"prompt": ["{subset}.cot.txt", "cot-prompts/{subset}.txt"]},
        page="https://github.com/suzgunmirac/BIG-Bench-Hard",
    ),
    read=read,
    subsets=TASKS,
    average="subsets",
    metrics=("accuracy", "strict"),
    modes={
        "chat": replace(PLAIN, prompt=lambda question: PLAIN.prompt(question) + _ENDING, chat=True, stop=()),
        "plain": PLAIN,
    },
    follows=(
        "OpenCompass: the published prompt before each question (in chats in the same message), the mean of tasks. "
        "lm-evaluation-harness takes what stands behind \"the answer is\" to the letter ('strict') and the mean of rows"
    ),
)  # fmt: skip
