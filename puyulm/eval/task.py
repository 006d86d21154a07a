"""A benchmark as it will be run: its questions, examples and settings, and a key that names exactly this."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from puyulm import __version__
from puyulm.errors import DataError
from puyulm.eval import ask
from puyulm.eval.benchmark import Benchmark, Generation, Likelihood, Mode, Preference, Question, Reading
from puyulm.eval.model import LanguageModel, Prompt, Sampling
from puyulm.eval.source import Dataset, Made, SourceContext

MARKS = 64  # tokens of a chat format's marks and system text


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a protocol runs a benchmark.

    Attributes:
        mode: A name from the benchmark's modes.
        shots: Examples in the prompt.
        max_new_tokens: None: the mode's own.
        think: With deep thinking.
        sampling: How answers are drawn.
        repeats: Answers to each question; scores are their mean, and pass@k where the benchmark has it.
    """

    mode: str
    shots: int = 0
    max_new_tokens: int | None = None
    think: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """Questions to be asked, all of them or this process's part.

    Attributes:
        protocol: Name of the protocol that the setting comes from, for tables.
        examples: Of each question's prompt.
        data_hash: Of questions and examples.
    """

    benchmark: Benchmark
    setting: Setting
    protocol: str
    questions: Sequence[Question]
    examples: Callable[[Question], Sequence[Question]]
    data_hash: str
    seed: int = 0

    @property
    def mode(self) -> Mode:
        return self.benchmark.mode(self.setting.mode)

    def prompt(self, question: Question, repeat: int = 0) -> Prompt:
        """Of a benchmark that generates."""
        mode, setting = self.mode, self.setting
        assert isinstance(mode, Generation)
        drawn = setting.sampling
        if drawn.temperature != 0:
            drawn = Sampling(**{**asdict(drawn), "seed": _seed(self.seed, question.id, repeat)})
        return ask.prompt(
            mode, question, self.examples(question),
            max_new_tokens=setting.max_new_tokens, think=setting.think, sampling=drawn,
        )  # fmt: skip

    def shown(self, question: Question) -> str:
        """What the model is given, as text."""
        mode = self.mode
        if isinstance(mode, Generation):
            return self.prompt(question).shown()
        if isinstance(mode, Likelihood):
            texts = ask.continuations(mode, question, self.examples(question))
            same = len({one.context for one in texts}) == 1
            choices = "\n".join(f"-> {one.text}" if same else f"{one.context} -> {one.text}" for one in texts)
            return f"{texts[0].context}\n{choices}" if same else choices
        if isinstance(mode, Reading):
            one = ask.reading(mode, question)
            return one.context + one.text
        assert isinstance(mode, Preference)
        return "\n\n".join("\n".join(turns) for turns in mode.conversations(question))

    def stamp(self, question: Question) -> str:
        """Changes with the question and with what the model is given: the examples, and how the benchmark asks."""
        given = repr(self.prompt(question)) if isinstance(self.mode, Generation) else self.shown(question)
        content = json.dumps(asdict(question), sort_keys=True, ensure_ascii=False, default=str) + given
        return hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:16]

    @cached_property
    def prompts_hash(self) -> str:
        """Of everything that the model is shown: two runs with the same one have asked the same."""
        digest = hashlib.sha256()
        for question in self.questions:
            digest.update(self.shown(question).encode("utf-8", "surrogatepass"))
            digest.update(b"\0")
        return digest.hexdigest()[:16]

    def key(self, model: LanguageModel, judge: LanguageModel | None = None) -> dict[str, Any]:
        """What samples belong to. It does not depend on how many questions there are (`--limit`), so that a run can
        be widened."""
        return {
            "model": model.fingerprint,
            "judge": None if judge is None else judge.fingerprint,
            "task": self.benchmark.name,
            "task_version": self.benchmark.version,
            "protocol": self.protocol,
            "setting": asdict(self.setting) | {"repeats": None},
            "seed": self.seed,
            "version": __version__,
        }


def within_context(task: Task, model: LanguageModel) -> Task:
    """With fewer examples for questions whose prompts would not fit the model's context: the first ones go.

    Room is left for the answer, at most a quarter of the context.
    """
    limit = model.context
    if limit is None or not task.setting.shots:
        return task
    mode, known = task.mode, dict[str, Sequence[Question]]()

    def fits(question: Question, examples: Sequence[Question]) -> bool:
        own = replace(task, examples=lambda _: examples)
        if isinstance(mode, Generation):
            prompt = own.prompt(question)
            text, room = prompt.shown(), min(prompt.max_new_tokens, limit // 4)
        else:
            assert isinstance(mode, Likelihood)
            text, room = max((a.context + a.text for a in ask.continuations(mode, question, examples)), key=len), 0
        if len(text) + room + MARKS <= limit:  # hardly a token is shorter than a character
            return True
        return len(model.encode(text)) + room + MARKS <= limit

    def examples_for(question: Question) -> Sequence[Question]:
        if question.id not in known:
            examples = task.examples(question)
            while examples and not fits(question, examples):
                examples = examples[1:]
            known[question.id] = examples
        return known[question.id]

    return replace(task, examples=examples_for)


def make_task(
    benchmark: Benchmark,
    setting: Setting,
    context: SourceContext,
    *,
    protocol: str = "",
    subsets: Sequence[str] = (),
    limit: int | None = None,
) -> Task:
    """Reads a benchmark's rows.

    Args:
        subsets: Which to take, or groups of them; none: all.
        limit: Questions of each subset, the first ones.

    Raises:
        DataError: Rows are missing or damaged, or there are too few examples.
    """
    if isinstance(benchmark.source, Made) and benchmark.source.subsets is not None:
        benchmark = replace(benchmark, subsets=benchmark.source.subsets(context))
    mode = benchmark.mode(setting.mode)
    names = {**benchmark.subsets, **dict.fromkeys(benchmark.subsets.values())}
    if unknown := [one for one in subsets if one not in names]:
        known = ", ".join(one for one in names if one) or "none"
        raise DataError(f"{benchmark.name}: no subset '{unknown[0]}'; known: {known}")
    chosen = [one for one, group in benchmark.subsets.items() if not subsets or one in subsets or group in subsets]
    try:
        questions = [one for subset in chosen for one in read_questions(benchmark, subset, "test", context, limit)]
    except DataError as error:
        raise DataError(f"{error}{_there(benchmark, chosen, context)}") from None
    if not questions:
        raise DataError(f"{benchmark.name}: no questions")
    _check_ids(benchmark, questions)
    examples = _examples(benchmark, setting, chosen, context) if not isinstance(mode, Reading | Preference) else {}
    pick = benchmark.pick or (lambda known, question, count: known[:count])
    texts = {subset: {(one.text, one.choices) for one in known} for subset, known in examples.items()}

    def examples_for(question: Question) -> Sequence[Question]:
        if not setting.shots or not examples:
            return ()
        known = examples[question.subset]
        if (question.text, question.choices) in texts[question.subset]:  # an example may be the question itself
            known = [one for one in known if (one.text, one.choices) != (question.text, question.choices)]
        return pick(known, question, setting.shots)

    digest = hashlib.sha256()
    for one in [*questions, *(example for known in examples.values() for example in known)]:
        text = json.dumps(asdict(one), sort_keys=True, ensure_ascii=False, default=str)
        digest.update(text.encode("utf-8", "surrogatepass"))
    return Task(
        benchmark=benchmark, setting=setting, protocol=protocol, questions=questions, examples=examples_for,
        data_hash=digest.hexdigest()[:16], seed=context.seed,
    )  # fmt: skip


def read_questions(
    benchmark: Benchmark, subset: str, role: str, context: SourceContext, limit: int | None = None
) -> list[Question]:
    """The questions of a subset.

    Raises:
        DataError: A row lacks a field, or has one of the wrong kind.
    """
    questions: list[Question] = []
    for number, record in enumerate(benchmark.source.records(benchmark.name, subset, role, context)):
        if limit is not None and len(questions) >= limit:
            break
        try:
            question = benchmark.read(record, subset, number)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            where = f"'{role}' row {number}" + (f" of '{subset}'" if subset else "")
            raise DataError(f"{benchmark.name}: {where} is not as published: {reason}") from None
        if question is not None:
            questions.append(question)
    return questions


def _examples(
    benchmark: Benchmark, setting: Setting, subsets: Sequence[str], context: SourceContext
) -> Mapping[str, Sequence[Question]]:
    """Solved questions by subset."""
    if not setting.shots:
        return {}
    if not benchmark.examples:
        raise DataError(f"{benchmark.name}: there are no examples for its prompts: --shots 0")
    found: dict[str, Sequence[Question]] = {}
    for subset in subsets:
        if isinstance(benchmark.examples, str):
            found[subset] = read_questions(benchmark, subset, benchmark.examples, context)
        else:
            found[subset] = [one for one in benchmark.examples if one.subset in ("", subset)]
        if (there := len(found[subset])) < setting.shots:
            of = f" of '{subset}'" if subset else ""
            raise DataError(f"{benchmark.name}: {setting.shots} examples are asked for, but{of} there are {there}")
    return found


def _there(benchmark: Benchmark, subsets: Sequence[str], context: SourceContext) -> str:
    """Which subsets can be asked, where some cannot."""
    there = benchmark.source.there(benchmark.name, subsets, context) if isinstance(benchmark.source, Dataset) else []
    return f"; those that are there: --subset {','.join(there)}" if 0 < len(there) < len(subsets) else ""


def _check_ids(benchmark: Benchmark, questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(f"{benchmark.name}: two questions have the id '{question.id}'")
        seen.add(question.id)


def _seed(seed: int, id: str, repeat: int) -> int:
    """The same for the same question, whatever else is asked."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id}:{repeat}".encode()).digest()[:7], "big")
