"""GPQA and GPQA-Diamond: questions that experts find hard, four choices (Rein et al., 2023).

Data: Idavidrein/gpqa, which asks for an agreement, or the csv files of the authors' zip.
"""

from __future__ import annotations

from puyulm.eval.benchmark import Benchmark, Generation, Likelihood, Mode, Question, Record
from puyulm.eval.choices import LAST_LINE, direct_verdict, last_line_verdict, lettered, letters_of, right_choice
from puyulm.eval.source import Dataset

ANSWERS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def read(record: Record, subset: str, number: int) -> Question:
    """The published rows have the right answer first: row n is turned by n + 1 (mod 4), as OpenCompass does.

    Any fixed order would do; with this one each letter is right equally often.
    """
    texts = [record[name].strip() for name in ANSWERS]
    if not all(texts):
        raise ValueError("a choice is empty")
    turn = (number + 1) % 4
    choices = (*texts[turn:], *texts[:turn])
    id = str(record.get("Record ID") or number)
    return Question(id, record["Question"].strip(), "ABCD"[-turn % 4], "", choices)


def _ask(question: Question) -> str:
    return f"What is the correct answer to this question: {question.text}\nChoices:\n{_choices(question)}\n"


def _choices(question: Question) -> str:
    return lettered(question.choices, "({letter}) {text}")


MODES: dict[str, Mode] = {
    "likelihood": Likelihood(
        context=lambda question: f"{_ask(question)}Answer: ",
        answers=lambda question: [f"({letter})" for letter in letters_of(question)],
        right=right_choice,
    ),
    "chat": Generation(
        prompt=lambda question: (
            f"{LAST_LINE.format(letters='ABCD')}\n\n{question.text}\n\n{lettered(question.choices, '{letter}) {text}')}"
        ),
        solution=lambda question: f"ANSWER: {question.target}",
        verdict=last_line_verdict,
        max_new_tokens=4096,
    ),
    "direct": Generation(
        prompt=lambda question: (
            f'{_ask(question)}Format your response as follows: "The correct answer is (insert answer here)"'
        ),
        solution=lambda question: f"The correct answer is ({question.target})",
        verdict=direct_verdict,
        max_new_tokens=1024,
    ),
}
FOLLOWS = (
    "likelihood: prompt of lm-evaluation-harness (it shuffles by an unset seed; OpenCompass writes 'Answer: B'); chat: "
    "simple-evals' last line, and direct: 'The correct answer is (B)', both as OpenCompass has them, with its order of "
    "choices. 'strict' takes the asked form only"
)


def _benchmark(name: str, title: str, config: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        dimension="exam",
        source=Dataset(
            hub="Idavidrein/gpqa",
            config=config,
            splits={"test": "train"},
            files={"test": [f"{config}.csv", f"dataset/{config}.csv"]},
            page="https://github.com/idavidrein/gpqa",
            gated=True,
            folder="gpqa",
        ),
        read=read,
        metrics=("accuracy", "strict"),
        modes=MODES,
        follows=FOLLOWS,
    )


BENCHMARKS = (
    _benchmark("gpqa", "GPQA", "gpqa_main"),
    _benchmark("gpqa_diamond", "GPQA-Diamond", "gpqa_diamond"),
)
