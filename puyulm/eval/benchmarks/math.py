r"""MATH: competition mathematics (Hendrycks et al., 2021), and MATH-500 of it (Lightman et al., 2023).

Data: MATH from a copy on the hub, or the original folders (one file a problem) or one file; MATH-500 from
HuggingFaceH4/MATH-500, or the original jsonl.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from puyulm.eval import mathematics
from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.mathematics import final_answer, last_boxed, same_text, stated_answer
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

SUBJECTS = dict.fromkeys(
    ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
     "precalculus"), ""
)  # fmt: skip
# The four training problems of Minerva's prompt (Lewkowycz et al., 2022, appendix), by how they begin.
_OPENINGS = ("Find the domain of the expression", "If $\\det \\mathbf{A} = 2$ and", "Terrell usually lifts two",
             "If the system of equations")  # fmt: skip
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def read(record: Record, subset: str, number: int) -> Question | None:
    """Of MATH (type, level as a text) or MATH-500 (subject, answer, unique_id); None: another subject's.

    Minerva's four problems are of every subject: their place is in the prompt.
    """
    subject = re.sub(r"\W+", "_", (record.get("subject") or record["type"]).replace("&", "and")).lower()
    problem = record["problem"].strip()
    if subject not in SUBJECTS:
        raise ValueError(f"the subject '{subject}' is none of MATH's")
    if subject != subset and not problem.startswith(_OPENINGS):
        return None
    answer = record.get("answer") or last_boxed(record["solution"])
    if not answer:
        raise ValueError("the solution has no \\boxed{} answer")
    return Question(
        str(record.get("unique_id") or f"{subset}/{number}"), problem, str(answer), subset,
        extra={"solution": record["solution"].strip(), "level": str(record["level"])},
    )  # fmt: skip


def pick(known: Sequence[Question], question: Question, count: int) -> Sequence[Question]:
    """Minerva's problems in their order, as far as they are there; then the first of the subject."""
    chosen = [one for one in known if one.text.startswith(_OPENINGS)]
    chosen.sort(key=lambda one: [one.text.startswith(opening) for opening in _OPENINGS], reverse=True)
    others = (one for one in known if not one.text.startswith(_OPENINGS))
    return [*chosen, *itertools.islice(others, max(count - len(chosen), 0))][:count]


def as_text(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Minerva's rule decides: equal texts after normalisation. Symbolic equality is the second score."""
    return _verdict(question, outputs, "string")


def symbolic(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Symbolic equality decides. Minerva's rule is the second score."""
    return _verdict(question, outputs, "symbolic")


def _verdict(question: Question, outputs: Sequence[Output], by: str) -> Verdict:
    """What is boxed or named as the answer, as a text; and what a reader takes for it, as mathematics."""
    text = outputs[-1].text
    stated, answer = stated_answer(text), final_answer(text)
    string = float(stated is not None and same_text(question.target, stated))
    if answer is None:
        return Verdict({"accuracy": 0.0, _other(by): 0.0}, None, "no answer was found")
    found = mathematics.compare(question.target, answer)
    scores = {"string": string, "symbolic": float(found.equal)}
    return Verdict({"accuracy": scores[by], _other(by): scores[_other(by)]}, answer, found.note)


def _other(by: str) -> str:
    return "symbolic" if by == "string" else "string"


def _solution(question: Question) -> str:
    answer = question.target
    return f" {question.extra['solution']}\nFinal Answer: The final answer is ${answer}$. I hope it is correct."


def _modes(verdict: Callable[[Question, Sequence[Output]], Verdict]) -> dict[str, Generation]:
    chat = Generation(
        prompt=lambda question: f"{question.text}\n{BOXED}",
        solution=lambda question: question.extra["solution"],
        verdict=verdict,
        max_new_tokens=2048,
    )
    plain = replace(
        chat, prompt=lambda question: f"Problem:\n{question.text}\n\nSolution:", solution=_solution, chat=False,
        stop=("Problem:",), max_new_tokens=1024,
    )  # fmt: skip
    return {"chat": chat, "plain": plain}


MATH = Benchmark(
    name="math",
    title="MATH",
    dimension="mathematics",
    source=Dataset(
        hub="DigitalLearningGmbH/MATH-lighteval",
        splits={"test": "test", "train": "train"},
        files={
            role: [f"{role}/*/*.json", f"{role}.jsonl", f"{role}.json", f"MATH/{role}/*/*.json"]
            for role in ("test", "train")
        },
        page="https://github.com/hendrycks/math",
    ),
    read=read,
    subsets=SUBJECTS,
    examples="train",
    pick=pick,
    metrics=("accuracy", "symbolic"),
    modes=_modes(as_text),
    needs=mathematics.require,
    follows=(
        "plain: Minerva's four examples and its equality of texts, as OpenCompass and lm-evaluation-harness have them; "
        "chat: OpenCompass, boxed answers. Mean over all problems"
    ),
)

MATH500 = replace(
    MATH,
    name="math500",
    title="MATH-500",
    source=Dataset(
        hub="HuggingFaceH4/MATH-500",
        files={"test": ["test.jsonl", "math_splits/test.jsonl"]},
        page="https://github.com/openai/prm800k",
    ),
    examples=(),
    pick=None,
    metrics=("accuracy", "string"),
    modes=_modes(symbolic),
    follows="OpenCompass: boxed answers, symbolic equality by math-verify",
)

BENCHMARKS = (MATH, MATH500)
