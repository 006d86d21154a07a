"""Many tasks, one after another, with one model: what `puyu eval` does."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from puyulm import __version__
from puyulm.errors import DataError, GenerationError
from puyulm.eval.benchmark import Benchmark, Generation
from puyulm.eval.model import LanguageModel, Sampling
from puyulm.eval.protocols import find_protocol, setting_for
from puyulm.eval.published import model_name, published_for
from puyulm.eval.results import Result, Run, make_result, read_run, write_results, write_run, write_samples
from puyulm.eval.run import Part, run_task
from puyulm.eval.source import Made, SourceContext
from puyulm.eval.task import Setting, Task, make_task, within_context

FINISHED = "finished"  # folder below the results, for samples as they come


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        benchmarks: In this order.
        protocol: A name from `puyulm.eval.protocols.PROTOCOLS`.
        chat: Whether the model is asked through its chat format.
        mode, shots, max_new_tokens, think, repeats, sampling: Instead of the protocol's; None: as it says.
        subsets: Of each benchmark that has them; none: all.
        limit: Questions of each subset.
        context: For the sources.
    """

    benchmarks: Sequence[Benchmark]
    protocol: str
    chat: bool = True
    mode: str | None = None
    shots: int | None = None
    max_new_tokens: int | None = None
    think: bool | None = None
    repeats: int | None = None
    sampling: Sampling | None = None
    subsets: Sequence[str] = ()
    limit: int | None = None
    context: SourceContext = field(default_factory=SourceContext)

    def setting(self, benchmark: Benchmark) -> Setting:
        """The protocol's, with what the plan changes."""
        setting = setting_for(benchmark, find_protocol(self.protocol), self.chat)
        if self.mode is not None and self.mode != setting.mode:
            benchmark.mode(self.mode)
            setting = Setting(mode=self.mode, shots=setting.shots)
        names = ("shots", "max_new_tokens", "think", "repeats", "sampling")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(setting, **given)


def make_tasks(plan: Plan, model: LanguageModel | None, known: Sequence[Task] = ()) -> list[Task]:
    """The tasks of a plan.

    Args:
        model: None before one is loaded: then only tasks whose rows need no tokenizer are made, so that missing files
            show at once.
        known: Tasks that were made then.

    Raises:
        DataError: Rows are missing, of one or several benchmarks: a line for each; or none has a subset of this name.
    """
    _check_subsets(plan)
    tasks: list[Task] = []
    problems: list[str] = []
    for benchmark in plan.benchmarks:
        if made := [task for task in known if task.benchmark.name == benchmark.name]:
            tasks += made
            continue
        if model is None and isinstance(benchmark.source, Made):
            continue
        context = replace(plan.context, model=model)
        own = [one for one in plan.subsets if len(plan.benchmarks) == 1 or one in _subsets(benchmark, context)]
        try:
            setting = plan.setting(benchmark)
            tasks.append(make_task(benchmark, setting, context, protocol=plan.protocol, subsets=own, limit=plan.limit))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return tasks


def check_judge(plan: Plan, judge: str | None) -> None:
    """Raises a GenerationError, before anything is loaded, where a judge is needed and none is named."""
    for benchmark in plan.benchmarks:
        mode = benchmark.mode(plan.setting(benchmark).mode)
        if judge is None and isinstance(mode, Generation) and mode.judge is not None:
            raise GenerationError(
                f"{benchmark.name} is judged by a model: name one with --judge, or the other tasks with --tasks"
            )


def fit(tasks: Sequence[Task], plan: Plan, model: LanguageModel) -> tuple[list[Task], list[str]]:
    """The tasks as this model can do them, and what is to be said about it: one without deep thinking does without,
    where only the protocol asks for it.

    Raises:
        GenerationError: The plan itself asks for deep thinking.
    """
    thoughtful = [task.benchmark.name for task in tasks if task.setting.think]
    if model.thinks or not thoughtful:
        return list(tasks), []
    if plan.think:
        raise GenerationError(f"{model.name} has no deep thinking: leave --think out")

    def without(task: Task) -> Task:  # and without the room for thoughts
        if not task.setting.think:
            return task
        return replace(task, setting=replace(task.setting, think=False, max_new_tokens=plan.max_new_tokens))

    return [without(task) for task in tasks], [f"{model.name} has no deep thinking: {', '.join(thoughtful)} without it"]


def run_tasks(
    tasks: Sequence[Task],
    model: LanguageModel,
    out: Path,
    *,
    judge: LanguageModel | None = None,
    part: Part | None = None,
    barrier: Callable[[], None] = lambda: None,
    command: str = "",
    on_result: Callable[[Result], None] = lambda result: None,
) -> Run | None:
    """Runs tasks and writes results after each, so that an interruption loses none.

    Args:
        out: Folder for results and samples.
        part: This process's share, where several work on the same folder.
        barrier: Waits for the other processes.
        command: As typed, for the record.
        on_result: Called after each task.

    Returns:
        The run; None in all processes but the first.
    """
    part = part or Part()
    run = _begun(Run(
        model=model_name(model.name), fingerprint=model.fingerprint, judge="" if judge is None else judge.name,
        command=command, date=_now(), versions=_versions(), results=(),
    ), out)  # fmt: skip
    for task in (within_context(one, model) for one in tasks):
        begun = time.monotonic()
        if part.index == 0:
            _announce(task)
        samples = run_task(task, model, out / FINISHED, judge=judge, part=part)
        barrier()
        if part.index == 0:
            if part.count > 1:  # all that the others have written
                samples = run_task(task, model, out / FINISHED, judge=judge)
            file = write_samples(list(samples.values()), out, task.benchmark.name)
            published, seconds = published_for(task.benchmark.name), time.monotonic() - begun
            result = make_result(task, list(samples.values()), file, published=published, seconds=seconds)
            run = replace(run, date=_now(), results=_with(run.results, result))
            write_results(run, out)
            on_result(result)
        barrier()
    if part.index > 0:
        return None
    write_run(run, out)
    return run


def _subsets(benchmark: Benchmark, context: SourceContext) -> set[str]:
    """Names of subsets and of their groups."""
    source = benchmark.source
    of_options = source.subsets if isinstance(source, Made) else None
    subsets = benchmark.subsets if of_options is None else of_options(context)
    return {*subsets, *subsets.values()} - {""}


def _check_subsets(plan: Plan) -> None:
    if len(plan.benchmarks) == 1:
        return  # `make_task` says which there are
    known = set().union(*(_subsets(benchmark, plan.context) for benchmark in plan.benchmarks))
    for name in plan.subsets:
        if name not in known:
            raise DataError(f"--subset: none of the tasks has a subset '{name}'")


def _announce(task: Task) -> None:
    count, setting = len(task.questions), task.setting
    questions = f"{count:,} question" + ("s" if count != 1 else "")
    print(f"{task.benchmark.name}: {questions}, {setting.shots}-shot {setting.mode}", file=sys.stderr, flush=True)


def _begun(run: Run, out: Path) -> Run:
    """With the results of the same model that lie in the folder already: other tasks' stay beside the new ones."""
    try:
        found = read_run(out)
    except DataError:
        return run
    if found.fingerprint != run.fingerprint:
        return run
    command = run.command if found.command == run.command else f"{found.command}\n{run.command}"
    return replace(run, results=found.results, judge=run.judge or found.judge, command=command)


def _with(results: Sequence[Result], result: Result) -> tuple[Result, ...]:
    """A result in the place of the last one of its benchmark; the time of a run that went on is that of both parts."""
    for place, before in enumerate(results):
        if before.name == result.name:
            if all(getattr(before, name) == getattr(result, name) for name in ("data_hash", "prompts_hash", "setting")):
                result = replace(result, seconds=before.seconds + result.seconds)
            return (*results[:place], result, *results[place + 1 :])
    return (*results, result)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    return {
        "puyulm": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "platform": sys.platform,
    }  # fmt: skip
