"""HumanEval (Chen et al., 2021) and HumanEval+ (Liu et al., 2023): functions to be written from their docstrings.

Data: openai/openai_humaneval or the original HumanEval.jsonl.gz; evalplus/humanevalplus or EvalPlus's own jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.code import complete, find_code, first_block
from puyulm.eval.model import Output
from puyulm.eval.programs import LIMITS, answer_text, need_sandbox, pass_at_more, programs_verdict
from puyulm.eval.source import Dataset
from puyulm.sandbox import Limits

PLUS_LIMITS = Limits(seconds=60.0, cpu_seconds=20.0, memory=4 << 30)  # hundreds of inputs, some of them large

# EvalPlus's inputs come without results: the reference gives them. Floats are compared as numpy.allclose does; of
# HumanEval/32 any root of the polynomial is right.
_PLUS_TEST = """
import copy, json

def _same(found, wanted, tolerance):
    if found == wanted:
        return True
    if isinstance(wanted, (list, tuple)):
        whole = type(found) is type(wanted) and len(found) == len(wanted)
        return whole and all(_same(one, other, tolerance) for one, other in zip(found, wanted))
    if not isinstance(found, (int, float)) or not (isinstance(wanted, float) or tolerance):
        return False
    return abs(found - wanted) <= (tolerance or 1e-6) + 1e-7 * abs(wanted)

def check(candidate):
    space = {{}}
    exec({reference!r}, space)
    for line in {inputs!r}:
        arguments = json.loads(line)
        found = candidate(*copy.deepcopy(arguments))
        if {name!r} == "find_zero":
            assert abs(space["poly"](*copy.deepcopy(arguments), found)) <= {tolerance!r}
        else:
            wanted = space[{name!r}](*copy.deepcopy(arguments))
            assert _same(found, wanted, {tolerance!r}), f"{name}{{tuple(arguments)}}"[:200]
"""


def read(record: Record, subset: str, number: int) -> Question:
    name = str(record["entry_point"])
    test = plus_test(record) if "plus_input" in record else record["test"]  # EvalPlus's rows may have both
    return Question(
        str(record["task_id"]), str(record["prompt"]), str(record["canonical_solution"]),
        extra={"entry_point": name, "test": f"{test}\n\ncheck({name})\n"},
    )  # fmt: skip


def plus_test(record: Record) -> str:
    """A test of EvalPlus's inputs: what the reference returns is right."""
    inputs = [*record["base_input"], *record["plus_input"]]
    return _PLUS_TEST.format(
        reference=record["prompt"] + record["canonical_solution"], inputs=[json.dumps(one) for one in inputs],
        name=record["entry_point"], tolerance=float(record["atol"]),
    )  # fmt: skip


def _judge(question: Question, program: str, lenient: str, limits: Limits) -> Verdict:
    return programs_verdict({"pass@1": program, "lenient pass@1": lenient}, question.extra["test"], limits)


def _verdict_of_text(question: Question, outputs: Sequence[Output], limits: Limits = LIMITS) -> Verdict:
    """What was written goes on where the prompt ends."""
    program = question.text + outputs[-1].text
    return _judge(question, program, program, limits)


def _verdict_of_chat(question: Question, outputs: Sequence[Output], limits: Limits = LIMITS) -> Verdict:
    text, name = answer_text(outputs[-1]), question.extra["entry_point"]
    lenient = complete(question.text, find_code(text, name), name)
    return _judge(question, question.text + first_block(text), lenient, limits)


def _modes(limits: Limits) -> dict[str, Generation]:
    plain = Generation(
        chat=False,
        prompt=lambda question: question.text,
        solution=lambda question: question.target,
        verdict=lambda question, outputs: _verdict_of_text(question, outputs, limits),
        stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        max_new_tokens=512,
    )
    chat = replace(
        plain,
        chat=True,
        prompt=lambda question: f"Complete the following python code:\n{question.text}",
        solution=lambda question: f"```python\n{question.text}{question.target}```",
        verdict=lambda question, outputs: _verdict_of_chat(question, outputs, limits),
        stop=(),
        max_new_tokens=1024,
    )
    return {"plain": plain, "chat": chat}


HUMANEVAL = Benchmark(
    name="humaneval",
    title="HumanEval",
    dimension="code",
    source=Dataset(
        hub="openai/openai_humaneval",
        config="openai_humaneval",
        files={"test": ["HumanEval.jsonl.gz", "HumanEval.jsonl"]},
        page="https://github.com/openai/human-eval",
    ),
    read=read,
    modes=_modes(LIMITS),
    metrics=("pass@1", "lenient pass@1"),
    summarise=pass_at_more,
    needs=need_sandbox,
    follows="tests and pass@k of openai/human-eval; of chats the first fenced block behind the prompt, as OpenCompass "
    "has it (lenient: wherever the function stands). lm-evaluation-harness asks base models as here; its chat variant "
    "begins the answer for the model",
)

HUMANEVAL_PLUS = replace(
    HUMANEVAL,
    name="humaneval_plus",
    title="HumanEval+",
    source=Dataset(
        hub="evalplus/humanevalplus",
        files={"test": [
            "HumanEvalPlus.jsonl.gz", "HumanEvalPlus.jsonl", "HumanEvalPlus-v0.1.10.jsonl.gz",
            "HumanEvalPlus-v0.1.10.jsonl", "HumanEvalPlus-OriginFmt.jsonl.gz", "HumanEvalPlus-OriginFmt.jsonl",
        ]},
        page="https://github.com/evalplus/humanevalplus_release",
    ),
    modes=_modes(PLUS_LIMITS),
    follows=HUMANEVAL.follows + "; tests of EvalPlus, base and plus together, but by processor time instead of "
    "multiples of the reference's",
)  # fmt: skip

BENCHMARKS = (HUMANEVAL, HUMANEVAL_PLUS)
