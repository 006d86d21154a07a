"""MATH, MATH-500 and AIME."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks import aime, math
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.benchmarks.choice_files import write_jsonl
from tests.eval.fakes import FakeModel, guesser, oracle, task_of, value

pytest.importorskip("math_verify")
OPENINGS = ("If the system of equations is so", "Terrell usually lifts two of", "Find the domain of the expression of",
            "If $\\det \\mathbf{A} = 2$ and so")  # fmt: skip


def problem(n: int, kind: str, text: str = "") -> dict[str, str]:
    return {
        "problem": text or f"How much is ${n}/7$?", "level": "Level 2", "type": kind,
        "solution": f"Dividing, we get $\\boxed{{\\frac{{{n}}}{{7}}}}$.",
    }  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    """In the original layout: a file a problem, of two subjects."""
    for role in ("test", "train"):
        for kind in ("Algebra", "Counting & Probability"):
            folder = tmp_path / "data/math" / role / kind.lower().replace("& ", "and_").replace(" ", "_")
            folder.mkdir(parents=True)
            for n in range(10, 15):
                (folder / f"{n}.json").write_text(json.dumps(problem(n, kind)))
            for n, opening in enumerate(OPENINGS if role == "train" and kind == "Algebra" else ()):
                (folder / f"9{n}.json").write_text(json.dumps(problem(n + 1, kind, opening)))
    return SourceContext(data_dir=tmp_path / "data", offline=True)


@pytest.mark.parametrize(("mode", "shots"), [("plain", 4), ("chat", 0), ("chat", 4)])
def test_known_models(context: SourceContext, tmp_path: Path, mode: str, shots: int) -> None:
    task = task_of(math.MATH, context, mode, shots=shots)
    assert len(task.questions) == 10
    assert value(task, oracle(task), tmp_path / "a") == value(task, oracle(task), tmp_path / "a", "symbolic") == 1.0
    assert value(task, guesser(), tmp_path / "b") == 0.0
    always = FakeModel(lambda prompt: "So $\\boxed{11/7}$.")
    assert value(task, always, tmp_path / "c") == value(task, always, tmp_path / "c", "symbolic") == 2 / 10


def test_the_four_examples_of_the_prompt_serve_every_subject(context: SourceContext) -> None:
    task = task_of(math.MATH, context, "plain", shots=4)
    for question in task.questions:
        assert [one.text for one in task.examples(question)] == [OPENINGS[place] for place in (2, 3, 1, 0)]
    shown = task.shown(task.questions[0])
    assert shown.count("Problem:\n") == 5 and shown.endswith("\n\nSolution:")
    assert "Final Answer: The final answer is $\\frac{3}{7}$. I hope it is correct.\n\nProblem:" in shown
    subjects = ["counting_and_probability", "algebra"]
    more = task_of(math.MATH, context, "plain", shots=6, subsets=subjects)
    found = more.examples(more.questions[-1])
    assert {one.subset for one in found} == {more.questions[-1].subset} and len(found) == 6


def test_math500_on_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    task = task_of(math.MATH500, context, "chat")
    assert len(task.questions) == 500 and len({one.subset for one in task.questions}) == 7
    assert value(task, oracle(task), tmp_path / "a") == value(task, oracle(task), tmp_path / "a", "string") == 1.0
    assert value(task, guesser(), tmp_path / "b") == 0.0


@pytest.mark.parametrize(
    ("target", "text", "string", "symbolic"),
    [
        ("\\frac{1}{2}", "So \\boxed{\\dfrac12}", 1, 1),
        ("\\frac{1}{2}", "So \\boxed{0.5}", 0, 1),
        ("2\\sqrt{2}", "The final answer is $\\sqrt{8}$.", 0, 1),
        ("12", "12", 0, 1),
        ("\\text{Evelyn}", "**Answer:** Evelyn", 1, 1),
        ("5", "The answer is 6.", 0, 0),
        ("5", "I have no idea", 0, 0),
        ("5", "", 0, 0),
        ("5", "Let me think about \\boxed{", 0, 0),
    ],
)
def test_answers(target: str, text: str, string: int, symbolic: int) -> None:
    question, outputs = Question("0", "?", target), [Output(text=text)]
    assert math.as_text(question, outputs).scores == {"accuracy": string, "symbolic": symbolic}
    assert math.symbolic(question, outputs).scores == {"accuracy": symbolic, "string": string}


@pytest.mark.parametrize("change", [{"type": "Cooking"}, {"solution": "no box"}, {"type": None}, {"problem": 5}])
def test_damaged_rows(tmp_path: Path, change: dict[str, object]) -> None:
    write_jsonl(tmp_path / "math/test.jsonl", [problem(1, "Algebra") | change])
    with pytest.raises(DataError, match="math: 'test' row 0 of 'algebra' is not as published"):
        task_of(math.MATH, SourceContext(data_dir=tmp_path, offline=True), "chat")


def aime_context(folder: Path) -> SourceContext:
    write_jsonl(folder / "aime24/test.jsonl", [{"problem": f"Find {n}.", "answer": f"{n:03}"} for n in range(30)])
    for part in ("I", "II"):
        rows = [{"question": f"Find {part} {n}.", "answer": str(n)} for n in range(15)]
        write_jsonl(folder / f"aime25/aime2025-{part}.jsonl", rows)
    return SourceContext(data_dir=folder, offline=True)


@pytest.mark.parametrize("benchmark", aime.BENCHMARKS, ids=lambda one: one.name)
def test_aime(tmp_path: Path, benchmark: object) -> None:
    assert isinstance(benchmark, type(aime.AIME24))
    context = aime_context(tmp_path / "data")
    for mode in benchmark.modes:
        task = task_of(benchmark, context, mode)
        assert len(task.questions) == 30
        assert value(task, oracle(task), tmp_path / mode) == value(task, oracle(task), tmp_path / mode, "strict") == 1
    task = task_of(benchmark, context, "chat")
    right = (1 if benchmark.name == "aime24" else 2) / 30
    assert value(task, FakeModel(lambda prompt: "\\boxed{007}"), tmp_path / "c") == pytest.approx(right)
    assert value(task, guesser(), tmp_path / "d") == 0.0


@pytest.mark.parametrize(
    ("text", "accuracy", "strict"),
    [("\\boxed{73}", 1, 1), ("\\boxed{m+n = 73}", 1, 1), ("The answer is 073.", 1, 0), ("\\boxed{73^\\circ}", 1, 1),
     ("\\boxed{\\frac{73}{2}}", 0, 0), ("so 74", 0, 0), ("", 0, 0)],
)  # fmt: skip
def test_aime_answers(text: str, accuracy: int, strict: int) -> None:
    found = aime.verdict(Question("0", "?", 73), [Output(text=text)])
    assert found.scores == {"accuracy": accuracy, "strict": strict}


@pytest.mark.parametrize(
    "row", [{"problem": "x"}, {"answer": "5"}, {"problem": "x", "answer": "5/2"}, {"problem": "x", "answer": "1000"}]
)
def test_damaged_aime_rows(tmp_path: Path, row: dict[str, str]) -> None:
    write_jsonl(tmp_path / "aime24/test.jsonl", [row])
    with pytest.raises(DataError, match="aime24: 'test' row 0 is not as published"):
        task_of(aime.AIME24, SourceContext(data_dir=tmp_path, offline=True), "chat")
