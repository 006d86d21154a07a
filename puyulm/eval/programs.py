"""Whether programs that a model wrote pass their tests, and how sure that is over several answers (pass@k)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from puyulm.eval.benchmark import Sample, Verdict
from puyulm.eval.model import Output
from puyulm.sandbox import Limits, Outcome, check, run_python

# Official harnesses give 3 s (HumanEval) and 10 s (MBPP) of wall-clock time, which a busy machine makes a lottery.
LIMITS = Limits(seconds=20.0, cpu_seconds=5.0)
MANY_ANSWERS = (10, 100)  # k beyond 1 that are shown where there are so many answers


def need_sandbox() -> None:
    """Raises SandboxError where programs cannot be run; says how to install what is missing."""
    check()


def answer_text(output: Output) -> str:
    """What was answered, and code that the model sent to the interpreter instead of writing it."""
    code = output.message.code if output.message is not None else None
    return output.text if code is None else f"{output.text}\n```python\n{code}\n```"


def programs_verdict(programs: Mapping[str, str], test: str, limits: Limits = LIMITS) -> Verdict:
    """Runs programs, each with the test after it; the same program is run once.

    Args:
        programs: Metric -> program; the first one is shown as the answer.
        test: Source that raises where the program is wrong.

    Raises:
        SandboxError: There is no sandbox.
    """
    outcomes = {
        program: run_python(program, tests=test, limits=limits, packages=True)
        for program in dict.fromkeys(programs.values())
    }
    first = next(iter(programs.values()))
    scores = {metric: float(outcomes[program].status == "ok") for metric, program in programs.items()}
    return Verdict(scores, first, _note(outcomes[first]))


def _note(outcome: Outcome) -> str:
    last = outcome.stderr.strip().rsplit("\n", 1)[-1]
    return outcome.status if outcome.status == "ok" or not last else f"{outcome.status}: {last[:200]}"


def pass_at_k(total: int, correct: int, k: int) -> float:
    """The chance that one of k answers passes, estimated from more answers without bias (Chen et al., 2021).

    1 - C(n - c, k) / C(n, k) of n answers, of which c are correct.
    """
    if not 0 <= correct <= total or not 1 <= k <= total:
        raise ValueError(f"pass@{k} of {correct} in {total} answers")
    return 1.0 - math.comb(total - correct, k) / math.comb(total, k)


def pass_at_more(samples: Sequence[Sample]) -> dict[str, float]:
    """For `Benchmark.summarise`: "pass@10" and "pass@100" beside each "pass@1", where all questions have the answers,
    and pass@n of n answers.

    "pass@1" itself is a mean of all answers, as any other score.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        for metric, score in sample.scores.items():
            if metric.endswith("pass@1"):
                values[metric][sample.id].append(score)
    found = {}
    for metric, questions in values.items():
        answers = list(questions.values())
        fewest = min(map(len, answers))
        for k in sorted({*MANY_ANSWERS, fewest} - {1}):
            if k <= fewest:
                chances = [pass_at_k(len(own), round(sum(own)), k) for own in answers]
                found[metric.removesuffix("1") + str(k)] = math.fsum(chances) / len(chances)
    return found
