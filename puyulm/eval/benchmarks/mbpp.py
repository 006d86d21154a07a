"""MBPP, sanitized (Austin et al., 2021): short Python functions from a sentence and three tests.

Data: google-research-datasets/mbpp, configuration "sanitized", or the original sanitized-mbpp.json, which holds all
splits: tasks 11 to 510 are the test, tasks 2, 3 and 4 the examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.code import between_marks, find_code, first_block, parse
from puyulm.eval.model import Output
from puyulm.eval.programs import answer_text, need_sandbox, pass_at_more, programs_verdict
from puyulm.eval.source import Dataset

EXAMPLES = (2, 3, 4)
TEST = range(11, 511)


def read(record: Record, subset: str, number: int) -> Question:
    tests = [str(one) for one in record["test_list"]]
    imports = [str(one) for one in record["test_imports"]]
    code = str(record["code"]).replace("\r\n", "\n").strip()
    if not tests:
        raise ValueError("there are no tests")
    return Question(
        str(int(record["task_id"])), str(record["prompt"]).strip(), code,
        extra={"tests": tests, "imports": imports, "name": function_name(code, tests)},
    )  # fmt: skip


def belongs(role: str, record: Record) -> bool:
    """Whether a record of the original file is one of a role's; `read` says what is wrong with one without a number."""
    return record.get("task_id", TEST[0]) in (EXAMPLES if role == "prompt" else TEST)


def function_name(code: str, tests: Sequence[str]) -> str:
    """The function that the tests call: of those in the reference, the last one that they name."""
    names = re.findall(r"^def\s+(\w+)", code, re.MULTILINE)
    used = [name for name in names if any(re.search(rf"\b{name}\b", test) for test in tests)]
    return used[-1] if used else ""


def _ask(question: Question) -> str:
    tests = "\n".join(question.extra["tests"])
    return (
        f"You are an expert Python programmer, and here is your task: {question.text} "
        f"Your code should pass these tests:\n\n{tests}\n"
    )


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The code between the marks, or in the first block."""
    text = answer_text(outputs[-1])
    marked = between_marks(text)
    strict = first_block(marked)
    lenient = strict if parse(strict) is not None else find_code(marked, question.extra["name"])
    test = "\n".join([*question.extra["imports"], *question.extra["tests"]])
    return programs_verdict({"pass@1": strict.strip("\n"), "lenient pass@1": lenient.strip("\n")}, test)


CHAT = Generation(
    prompt=_ask,
    solution=lambda question: f"[BEGIN]\n{question.target}\n[DONE]",
    verdict=verdict,
    max_new_tokens=512,
)
PLAIN = replace(
    CHAT,
    chat=False,
    prompt=lambda question: f"{_ask(question)}[BEGIN]\n",
    solution=lambda question: f"{question.target}\n[DONE]",
    stop=("[DONE]",),
)

BENCHMARK = Benchmark(
    name="mbpp",
    title="MBPP (sanitized)",
    dimension="code",
    source=Dataset(
        hub="google-research-datasets/mbpp",
        config="sanitized",
        splits={"test": "test", "prompt": "prompt"},
        files={"test": ["sanitized-mbpp.json"], "prompt": ["sanitized-mbpp.json"]},
        belongs=belongs,
        page="https://github.com/google-research/google-research/tree/master/mbpp",
    ),
    read=read,
    examples="prompt",
    modes={"plain": PLAIN, "chat": CHAT},
    metrics=("pass@1", "lenient pass@1"),
    summarise=pass_at_more,
    needs=need_sandbox,
    follows="prompt of the paper with its three examples, 257 test tasks, as OpenCompass has it (which puts quotes "
    "around the examples' code); lm-evaluation-harness uses the 500 tasks that were not sanitized",
)
