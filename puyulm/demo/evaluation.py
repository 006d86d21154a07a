"""Evaluates the demo's models: questions with one answer, held-out text by source, needles and RULER.

Everything goes through `puyulm.eval`, whose results, reports and samples are in `evaluation/base` and
`evaluation/tuned`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from puyulm.data.documents import read_documents, replacing
from puyulm.demo.recipe import EvaluationSettings
from puyulm.engine.load import load_chat_model
from puyulm.eval.benchmark import Benchmark, Sample
from puyulm.eval.benchmarks import needle, perplexity, ruler
from puyulm.eval.engine_model import EngineModel
from puyulm.eval.exact import exact_benchmark
from puyulm.eval.report.terminal import interval
from puyulm.eval.results import Result, score
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from puyulm.eval.suite import FINISHED, run_tasks
from puyulm.eval.task import Setting, Task, make_task

MODELS = {"base": "pretrain", "tuned": "sft"}
WHOLE, PART = "held-out.jsonl", "held-out-part.jsonl"
ROLES = 24  # tokens of the chat format around a message
NEEDLE_ANSWER = 64  # tokens
Json = dict[str, Any]


def _of_text(samples: Sequence[Sample]) -> dict[str, float]:
    found = perplexity.summarise(samples)
    return {name: found[name] for name in TEXT.metrics}


TEXT = replace(
    perplexity.BENCHMARK,
    name="text",
    title="Held-out text",
    metrics=("bits_per_byte", "perplexity"),
    summarise=_of_text,
)


def evaluate(folder: Path, settings: EvaluationSettings, window: int) -> Json:
    """Evaluates both models, and prints what they score.

    Args:
        folder: The demo's.
        window: Tokens that the models were trained to see at once.

    Returns:
        The main score of each benchmark, by model; "window" as given; and "context": bits per byte of the base model
        by how many tokens it sees, as (tokens, value and 95 % interval of each source, "": of all).
    """
    out = folder / "evaluation"
    results: Json = {"window": window}
    languages = write_held_out(folder, out, settings.context_bytes)
    for name, place in MODELS.items():
        chat = name == "tuned"
        loaded = load_chat_model(str(folder / place / "model"), needs_chat_format=chat)
        model = EngineModel(loaded, f"demo {name} model")
        try:
            tasks = make_tasks(folder, settings, window, languages, model, chat=chat)
            run = run_tasks(tasks, model, out / name, command="puyu demo")
            assert run is not None
            print(f"{name} model\n" + "\n".join(map(_shown, run.results)), flush=True)
            results[name] = {one.name: one.scores.main.value for one in run.results}
            if name == "base":
                results["context"] = by_context(model, settings.windows, out)
        finally:
            model.close()
    return results


def write_held_out(folder: Path, out: Path, context_bytes: int) -> set[str]:
    """Writes the held-out documents with their sources: all, and the first bytes of each source.

    Returns:
        Their languages.
    """
    left: dict[str, int] = {}
    languages = set()
    documents = read_documents(folder / "corpus" / "valid.jsonl.gz")
    with (
        replacing(out / WHOLE) as whole, replacing(out / PART) as part,
        whole.open("w", encoding="utf-8") as everything, part.open("w", encoding="utf-8") as some,
    ):  # fmt: skip
        for document in documents:
            languages.add(document.language)
            everything.write(_line(document.text, document.source))
            room, content = left.get(document.source, context_bytes), document.text.encode()
            if room:
                some.write(_line(content[:room].decode("utf-8", "ignore"), document.source))
            left[document.source] = max(room - len(content), 0)
    return languages


def make_tasks(
    folder: Path, settings: EvaluationSettings, window: int, languages: set[str], model: EngineModel, *, chat: bool
) -> list[Task]:
    """What a model is asked: a tuned one in its chat format, a base model in plain text."""
    mode = "chat" if chat else "plain"
    questions = exact_benchmark(folder / "tasks" / "held-out.jsonl", folder / "tasks" / "examples.jsonl")
    questions = replace(questions, name="questions", title="Held-out questions")
    lengths = {"lengths": settings.lengths, "reserve": ROLES}
    hidden = ["single_en", *(["single_zh"] if "zh" in languages else [])]
    return [
        make_task(questions, Setting(mode=mode, shots=0 if chat else 2), SourceContext()),
        _reading(TEXT, folder / "evaluation" / WHOLE, window, model),
        make_task(
            needle.BENCHMARK, Setting(mode=mode, max_new_tokens=NEEDLE_ANSWER),
            _options(model, {**lengths, "depths": settings.depths, "answer": NEEDLE_ANSWER}), subsets=hidden,
        ),
        make_task(
            ruler.BENCHMARK, Setting(mode=mode), _options(model, {**lengths, "count": settings.ruler_count}),
            subsets=settings.ruler,
        ),
    ]  # fmt: skip


def by_context(model: EngineModel, windows: tuple[int, ...], out: Path) -> list[list[Any]]:
    """Bits per byte of the same text, read in windows of few or many tokens."""
    found: list[list[Any]] = []
    for window in windows:
        task = _reading(replace(TEXT, name=f"text-{window}"), out / PART, window, model)
        scores = score(task.benchmark, list(run_task(task, model, out / "context" / FINISHED).values()))
        estimates = {"": scores.main, **scores.subsets}
        found.append([window, {source: [one.value, one.low, one.high] for source, one in estimates.items()}])
        print(f"  seeing {window:>5,} tokens  {scores.main.value:.3f} bits per byte", flush=True)
    return found


def _reading(benchmark: Benchmark, text: Path, window: int, model: EngineModel) -> Task:
    return make_task(benchmark, Setting(mode="reading"), _options(model, {"text": [text], "window": window}))


def _options(model: EngineModel, options: Mapping[str, Any]) -> SourceContext:
    return SourceContext(model=model, options=options, offline=True)


def _shown(result: Result) -> str:
    one, unit = result.scores.main, "%" if result.percent else result.scores.metric.replace("_", " ")
    return f"  {result.title:<24}{result.shown(one.value):>6} {unit} ({interval(result, one)}; {one.count:,} asked)"


def _line(text: str, source: str) -> str:
    return json.dumps({"text": text, "domain": source}, ensure_ascii=False) + "\n"
