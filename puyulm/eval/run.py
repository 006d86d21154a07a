"""Runs a task: asks what is not finished yet, judges what comes back, and keeps every sample."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puyulm.errors import DataError, GenerationError
from puyulm.eval import ask
from puyulm.eval.benchmark import (
    Comparison,
    Generation,
    Likelihood,
    Play,
    Preference,
    Question,
    Reading,
    Sample,
    Verdict,
)
from puyulm.eval.model import Continuation, Judged, LanguageModel, Output, Prompt, PromptError
from puyulm.eval.samples import SampleFile
from puyulm.eval.task import Task
from puyulm.progress import Progress
from puyulm.text.messages import Message

PREFERENCES_AT_ONCE = 64  # questions
JUDGED_AT_ONCE = 128  # answers that an interruption loses at most: they are kept once the judge has spoken
KEPT_END = 16_384  # characters of each end of a prompt that samples keep
VERDICTS_AT_ONCE = 2  # programs and symbolic comparisons run in processes of their own, beside the model

Keep = Callable[[Question, Sample], None]
Todo = Sequence[tuple[Question, int]]  # questions and which repeat


@dataclass(frozen=True)
class Part:
    """Which questions are this process's: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1


def run_task(
    task: Task,
    model: LanguageModel,
    folder: Path,
    *,
    judge: LanguageModel | None = None,
    part: Part | None = None,
    workers: int = VERDICTS_AT_ONCE,
) -> dict[tuple[str, int], Sample]:
    """Asks a task's questions, but for those that are finished in `folder`.

    Args:
        folder: Where samples are kept, for all tasks.
        judge: For benchmarks that a model judges.
        part: With several processes over one folder, this one's share.
        workers: Verdicts at once.

    Returns:
        The samples of this process's questions, by id and repeat.

    Raises:
        GenerationError: The model cannot do what the benchmark needs, or a judge is missing.
    """
    mode, part = task.mode, part or Part()
    if isinstance(mode, Generation) and mode.judge is not None and judge is None:
        raise GenerationError(f"{task.benchmark.name} is judged by a model: name one with --judge")
    needs_judge = judge if isinstance(mode, Generation) and mode.judge is not None else None
    questions = list(task.questions)[part.index :: part.count]
    wanted = [(one, repeat) for one in questions for repeat in range(task.setting.repeats)]
    with SampleFile(folder, task.key(model, needs_judge), task.stamp, part.index) as file:
        found = file.read(questions)
        done = {key: sample for key, sample in found.items() if key[1] < task.setting.repeats}
        todo = [(one, repeat) for one, repeat in wanted if (one.id, repeat) not in done]
        with Progress(task.benchmark.name, len(wanted), "question", initial=len(wanted) - len(todo)) as progress:

            def keep(question: Question, sample: Sample) -> None:
                file.write(question, sample)
                done[sample.id, sample.repeat] = sample
                progress.advance()

            if not todo:
                pass
            elif isinstance(mode, Generation):
                size = len(todo) if needs_judge is None else JUDGED_AT_ONCE
                for first in range(0, len(todo), size):
                    _generate(task, mode, model, needs_judge, todo[first : first + size], keep, workers)
            elif isinstance(mode, Likelihood):
                _choose(task, mode, model, todo, keep)
            elif isinstance(mode, Reading):
                _read(task, mode, model, todo, keep)
            else:
                _prefer(task, mode, model, todo, keep)
    return {(one.id, repeat): done[one.id, repeat] for one, repeat in wanted}


# Generation


@dataclass
class _Asked:
    """A question on its way: what it waits for, and what it got."""

    question: Question
    repeat: int
    prompt: Prompt
    play: Play
    outputs: list[Output] = field(default_factory=list)
    finished: bool = False

    def advance(self, output: Output) -> None:
        """Takes an answer to `prompt`; the next prompt, or the end."""
        self.outputs.append(output)
        try:
            self.prompt = self.play.send(output)
        except StopIteration as end:
            self.outputs, self.finished = list(end.value), True


def _generate(
    task: Task, mode: Generation, model: LanguageModel, judge: LanguageModel | None, todo: Todo, keep: Keep,
    workers: int,
) -> None:  # fmt: skip
    """Rounds: in each, every question that still plays is asked once. Verdicts are given beside the next answers."""
    waiting, asked = list(todo), list[_Asked]()
    judging: list[_Asked] = []
    with ThreadPoolExecutor(max_workers=workers) as threads:
        verdicts: deque[Future[None]] = deque()

        def finished(one: _Asked) -> None:
            if judge is not None:
                judging.append(one)
            else:
                while verdicts and verdicts[0].done():  # an error shows now, not at the end
                    verdicts.popleft().result()
                verdicts.append(threads.submit(lambda: keep(one.question, _judged_sample(task, mode, one))))

        try:
            while waiting or asked:
                free = len(waiting) if mode.at_once is None else mode.at_once - len(asked)
                asked += [_begin(task, mode, question, repeat) for question, repeat in waiting[:free]]
                del waiting[:free]
                _round(task, mode, model, asked, threads, finished)
                asked = [one for one in asked if not one.finished]
            if judge is not None:
                _ask_judge(task, mode, judge, judging, keep)
            for verdict in verdicts:
                verdict.result()
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            for one in asked:  # what plays may hold a process
                one.play.close()


def _round(
    task: Task, mode: Generation, model: LanguageModel, asked: Sequence[_Asked], threads: ThreadPoolExecutor,
    finished: Callable[[_Asked], None],
) -> None:  # fmt: skip
    """Asks each once; `finished` gets those that it brought to their end."""
    if mode.play is None:

        def come(index: int, output: Output) -> None:
            asked[index].advance(output)
            finished(asked[index])

        with _naming(task, lambda index: asked[index].question):
            model.generate([one.prompt for one in asked], come)
        return
    outputs: dict[int, Output] = {}
    with _naming(task, lambda index: asked[index].question):
        model.generate([one.prompt for one in asked], outputs.__setitem__)
    # What plays between two turns (a program, a tool) may take its time.
    list(threads.map(lambda index: asked[index].advance(outputs[index]), range(len(asked))))
    for one in asked:
        if one.finished:
            finished(one)


def _begin(task: Task, mode: Generation, question: Question, repeat: int) -> _Asked:
    prompt = task.prompt(question, repeat)
    play = _once(prompt) if mode.play is None else mode.play(question, prompt)
    return _Asked(question, repeat, next(play), play)


def _once(prompt: Prompt) -> Play:
    return [(yield prompt)]


def _judged_sample(task: Task, mode: Generation, one: _Asked) -> Sample:
    assert mode.verdict is not None
    return _sample(task, one, mode.verdict(one.question, one.outputs))


def _ask_judge(task: Task, mode: Generation, judge: LanguageModel, finished: Sequence[_Asked], keep: Keep) -> None:
    assert mode.judge is not None
    asked = [list(mode.judge.prompts(one.question, one.outputs)) for one in finished]
    owners = [owner for owner, own in enumerate(asked) for _ in own]
    firsts = list(itertools.accumulate(map(len, asked), initial=0))
    answers: dict[int, Output] = {}
    left = [len(own) for own in asked]

    def answered(index: int, output: Output) -> None:
        owner = owners[index]
        answers[index] = output
        left[owner] -= 1
        if not left[owner]:
            one = finished[owner]
            own = [answers[place] for place in range(firsts[owner], firsts[owner + 1])]
            assert mode.judge is not None
            keep(one.question, _sample(task, one, mode.judge.verdict(one.question, one.outputs, own), own))

    with _naming(task, lambda index: finished[owners[index]].question, "for the judge: "):
        judge.generate([prompt for own in asked for prompt in own], answered)


def _sample(task: Task, one: _Asked, verdict: Verdict, judged: Sequence[Output] = ()) -> Sample:
    outputs = one.outputs
    extra = {**_kept(task, one.question), "characters": sum(len(output.text) for output in outputs)}
    if any(output.reasoning for output in outputs):
        extra["reasoning"] = [output.reasoning for output in outputs]
    if judged:
        extra["judge"] = [output.text for output in judged]
    return Sample(
        id=one.question.id, subset=one.question.subset, repeat=one.repeat, prompt=_ends(one.prompt.shown()),
        outputs=tuple(output.text for output in outputs), target=one.question.target, scores=dict(verdict.scores),
        answer=verdict.answer, note=verdict.note, finish_reason=outputs[-1].finish_reason if outputs else "",
        tokens=sum(output.tokens for output in outputs), extra=extra,
    )  # fmt: skip


# Likelihood, reading, preference


def _choose(task: Task, mode: Likelihood, model: LanguageModel, todo: Todo, keep: Keep) -> None:
    asked = [ask.continuations(mode, question, task.examples(question)) for question, _ in todo]
    flat = [(owner, place) for owner, own in enumerate(asked) for place in range(len(own))]
    judged: list[dict[int, Judged]] = [{} for _ in asked]

    def come(index: int, result: Judged) -> None:
        owner, place = flat[index]
        judged[owner][place] = result
        if len(judged[owner]) == len(asked[owner]):
            question, repeat = todo[owner]
            results = [judged[owner][place] for place in range(len(asked[owner]))]
            keep(question, _choice_sample(task, mode, question, repeat, asked[owner], results))

    with _naming(task, lambda index: todo[flat[index][0]][0]):
        model.judge([asked[owner][place] for owner, place in flat], come)


def _choice_sample(
    task: Task, mode: Likelihood, question: Question, repeat: int, asked: Sequence[Continuation],
    results: Sequence[Judged],
) -> Sample:  # fmt: skip
    texts = list(mode.answers(question))
    best, right = _most_likely(results, texts, mode.by), mode.right(question)
    others = {name: float(_most_likely(results, texts, by) == right) for name, by in mode.others.items()}
    return Sample(
        id=question.id, subset=question.subset, repeat=repeat, prompt=_ends(task.shown(question)),
        outputs=tuple(f"{result.logprob:.6f}" for result in results), target=texts[right].strip(),
        scores={mode.metric: float(best == right), **others}, answer=texts[best].strip(), finish_reason="stop",
        extra={**_kept(task, question), "chosen": best, "right": right},
    )  # fmt: skip


def _most_likely(results: Sequence[Judged], texts: Sequence[str], by: Comparison) -> int:
    lengths: Mapping[Comparison, Callable[[int], int]] = {
        "sum": lambda place: 1,
        "bytes": lambda place: len(texts[place].encode()),
        "characters": lambda place: len(texts[place]),
        "tokens": lambda place: results[place].tokens,
    }
    return max(range(len(results)), key=lambda place: results[place].logprob / max(lengths[by](place), 1))


def _read(task: Task, mode: Reading, model: LanguageModel, todo: Todo, keep: Keep) -> None:
    asked = [ask.reading(mode, question) for question, _ in todo]

    def come(index: int, result: Judged) -> None:
        question, repeat = todo[index]
        text = asked[index].text
        scores: Mapping[str, float] = {
            "nats": -result.logprob, "tokens": result.tokens, "bytes": len(text.encode()), "characters": len(text),
        }  # fmt: skip
        keep(question, Sample(
            question.id, question.subset, repeat, _ends(task.shown(question)), (), question.target, scores,
            extra=_kept(task, question),
        ))  # fmt: skip

    with _naming(task, lambda index: todo[index][0]):
        model.judge(asked, come)


def _prefer(task: Task, mode: Preference, model: LanguageModel, todo: Todo, keep: Keep) -> None:
    for first in range(0, len(todo), PREFERENCES_AT_ONCE):
        now = todo[first : first + PREFERENCES_AT_ONCE]
        asked = [mode.conversations(question) for question, _ in now]
        rewarded = iter(model.reward([_messages(turns) for one in asked for turns in one]))
        for (question, repeat), turns in zip(now, asked, strict=True):
            if len(turns) < 2:
                raise DataError(f"{task.benchmark.name}: question '{question.id}' has nothing to compare")
            rewards = list(itertools.islice(rewarded, len(turns)))
            margin = rewards[0] - max(rewards[1:])  # none is no preference
            keep(question, Sample(
                id=question.id, subset=question.subset, repeat=repeat, prompt=_ends(task.shown(question)),
                outputs=tuple(f"{one:.6f}" for one in rewards), target=question.target,
                scores={"accuracy": float(margin > 0)}, finish_reason="stop",
                extra={**_kept(task, question), "margin": margin},
            ))  # fmt: skip


@contextlib.contextmanager
def _naming(task: Task, question: Callable[[int], Question], who: str = "") -> Iterator[None]:
    """Says which question it was that a model could not take."""
    try:
        yield
    except PromptError as error:
        raise GenerationError(f"{task.benchmark.name}: question '{question(error.index).id}': {who}{error}") from None


def _ends(text: str) -> str:
    """A prompt as samples keep it: of a long context its two ends."""
    if len(text) <= 2 * KEPT_END:
        return text
    return f"{text[:KEPT_END]}\n[... {len(text) - 2 * KEPT_END:,} characters ...]\n{text[-KEPT_END:]}"


def _kept(task: Task, question: Question) -> dict[str, Any]:
    return {name: question.extra[name] for name in task.benchmark.keep if name in question.extra}


def _messages(turns: Sequence[str]) -> list[Message]:
    return [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(turns)]
