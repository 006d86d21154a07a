"""Programs in the sandbox, and pass@k."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.eval.benchmark import Sample
from puyulm.eval.model import Output
from puyulm.eval.programs import answer_text, pass_at_k, pass_at_more, programs_verdict
from puyulm.text.messages import Message


def official(n: int, c: int, k: int) -> float:
    """The formula as it is published (Chen et al., 2021, figure 3), in floats."""
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@given(st.data())
def test_pass_at_k_equals_the_published_formula(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 200))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - prod((Fraction(n - c - i, n - i) for i in range(k)), start=Fraction(1))  # all k drawn are wrong
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-15)
    assert pass_at_k(n, c, k) == pytest.approx(official(n, c, k), abs=1e-12)


def test_pass_at_k_counts_subsets() -> None:
    for n, c in itertools.product(range(1, 7), range(7)):
        for k in range(1, n + 1):
            if c <= n:
                drawn = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))
    for bad in ((3, 4, 1), (3, 1, 4), (3, 1, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*bad)


def samples(passed: dict[str, list[int]]) -> list[Sample]:
    return [
        Sample(id, "", repeat, "", (), None, {"pass@1": float(score), "lenient pass@1": 1.0, "other": 0.0})
        for id, scores in passed.items() for repeat, score in enumerate(scores)
    ]  # fmt: skip


def test_more_answers_give_more_scores() -> None:
    assert pass_at_more(samples({"a": [1], "b": [0]})) == {}
    assert pass_at_more(samples({"a": [1] * 10, "b": [0] * 9})).keys() == {"pass@9", "lenient pass@9"}
    found = pass_at_more(samples({"a": [1] + [0] * 19, "b": [0] * 20}))
    assert found == {"pass@10": pytest.approx(0.25), "pass@20": 0.5, "lenient pass@10": 1.0, "lenient pass@20": 1.0}
    assert set(pass_at_more(samples({"a": [0] * 100}))) == {
        "pass@10", "pass@100", "lenient pass@10", "lenient pass@100",
    }  # fmt: skip


def test_verdicts() -> None:
    right, wrong = "def f(): return 1\n", "def f(): return 2\n"
    found = programs_verdict({"pass@1": wrong, "lenient pass@1": right}, "assert f() == 1, 'not one'")
    assert found.scores == {"pass@1": 0.0, "lenient pass@1": 1.0}
    assert found.answer == wrong and found.note == "failed: AssertionError: not one"
    assert programs_verdict({"pass@1": right}, "assert f() == 1").note == "ok"
    assert programs_verdict({"pass@1": "import os\nos._exit(0)"}, "pass").note == "exit"
    assert programs_verdict({"pass@1": "def f(:"}, "pass").note.startswith("error: SyntaxError")
    assert programs_verdict({"pass@1": "import numpy"}, "pass").note == "ok"


def test_code_sent_to_the_interpreter_is_an_answer() -> None:
    message = Message("assistant", "Here:", code="x = 1")
    assert answer_text(Output(text="Here:", message=message)) == "Here:\n```python\nx = 1\n```"
    assert answer_text(Output(text="Here:", message=Message("assistant", "Here:"))) == "Here:"
