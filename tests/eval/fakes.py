"""Models whose answers are known, so that arithmetic says what they must score."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from puyulm.eval import ask
from puyulm.eval.benchmark import Benchmark, Generation, Likelihood, Preference, Question, Sample
from puyulm.eval.model import Continuation, Judged, OnJudged, OnOutput, Output, Prompt
from puyulm.eval.protocols import PROTOCOLS, setting_for
from puyulm.eval.results import Scores, score
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Setting, Task, make_task
from puyulm.text.messages import Message


class FakeModel:
    """Answers by functions. Ids are characters' code points."""

    name, fingerprint, thinks, context = "fake", "fake", True, None

    def __init__(
        self,
        answer: Callable[[Prompt], str] = lambda prompt: "",
        likelihood: Callable[[Continuation], float] = lambda one: 0.0,
        reward: Callable[[Sequence[Message]], float] = lambda messages: 0.0,
    ) -> None:
        self.answer, self.likelihood, self.reward_of = answer, likelihood, reward
        self.asked = 0

    def generate(self, prompts: Sequence[Prompt], on_output: OnOutput) -> None:
        for index, prompt in enumerate(prompts):
            self.asked += 1
            text = self.answer(prompt)
            on_output(index, Output(text=text, tokens=len(text)))

    def judge(self, continuations: Sequence[Continuation], on_judged: OnJudged) -> None:
        for index, one in enumerate(continuations):
            self.asked += 1
            on_judged(index, Judged(self.likelihood(one), max(len(one.text), 1)))

    def reward(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        return [self.reward_of(messages) for messages in conversations]

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def close(self) -> None:
        pass


def oracle(task: Task) -> FakeModel:
    """Knows every answer: writes the solution, finds the right choice the most likely one, likes the first best."""
    mode = task.mode
    if isinstance(mode, Generation):
        answers = {task.prompt(question).shown(): mode.solution(question) for question in task.questions}
        return FakeModel(answer=lambda prompt: answers.get(prompt.shown(), ""))
    if isinstance(mode, Likelihood):
        right = {
            ask.continuations(mode, question, task.examples(question))[mode.right(question)]
            for question in task.questions
        }
        return FakeModel(likelihood=lambda one: 0.0 if one in right else -1000.0)
    assert isinstance(mode, Preference)
    best = {tuple(mode.conversations(question)[0]) for question in task.questions}
    return FakeModel(reward=lambda messages: float(tuple(one.content for one in messages) in best))


def guesser(seed: int = 0) -> FakeModel:
    """Finds any choice as likely as any other, and writes nothing."""
    draw = random.Random(seed)
    return FakeModel(likelihood=lambda one: draw.random())


def task_of(
    benchmark: Benchmark, context: SourceContext, mode: str | None = None, *, shots: int = 0,
    limit: int | None = None, subsets: Sequence[str] = (),
) -> Task:  # fmt: skip
    """A task in a mode, or as the newest protocol has it for chat models."""
    setting = setting_for(benchmark, PROTOCOLS["internlm3"], True) if mode is None else Setting(mode=mode, shots=shots)
    return make_task(benchmark, setting, context, limit=limit, subsets=subsets)


def scored(task: Task, model: FakeModel, folder: object, judge: FakeModel | None = None) -> Scores:
    """Runs a task with a model, in a folder."""
    from pathlib import Path

    samples: Mapping[tuple[str, int], Sample] = run_task(task, model, Path(str(folder)), judge=judge)
    return score(task.benchmark, list(samples.values()))


def value(task: Task, model: FakeModel, folder: object, metric: str | None = None) -> float:
    """One score of it."""
    return scored(task, model, folder).metrics[metric or task.benchmark.metrics[0]].value


__all__ = ["FakeModel", "Question", "guesser", "oracle", "scored", "task_of", "value"]
