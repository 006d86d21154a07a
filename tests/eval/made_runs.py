"""Runs as `puyu eval` writes them, with made questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from puyulm.eval.benchmark import Benchmark, Dimension, Sample
from puyulm.eval.results import Result, Run, score, write_run, write_samples
from puyulm.eval.source import Dataset
from puyulm.eval.task import Setting

SCRIPT = '</script><script>document.title = "taken over"</script><img src=x onerror="document.title=1">\u202e\x1b[31m'


def benchmark(
    name: str = "gsm8k", *, title: str = "", dimension: Dimension = "mathematics",
    subsets: Mapping[str, str] | None = None, average: Any = "rows", metrics: tuple[str, ...] = ("accuracy",),
    percent: bool = True, summarise: Callable[[Sequence[Sample]], Mapping[str, float]] | None = None,
) -> Benchmark:  # fmt: skip
    """A definition without rows and modes."""
    return Benchmark(
        name=name, title=title or name.upper(), dimension=dimension, source=Dataset(hub="", splits={"test": "test"}),
        read=lambda record, subset, number: None, modes={}, subsets=subsets or {"": ""}, average=average,
        metrics=metrics, percent=percent, summarise=summarise,
    )  # fmt: skip


def sample(id: str, value: float, subset: str = "", *, metric: str = "accuracy", **changes: Any) -> Sample:
    """A judged answer."""
    facts: dict[str, Any] = {
        "repeat": 0, "prompt": f"[user]\nHow much is {id}?\n[assistant]\n", "outputs": (f"It is {id}.",), "target": id,
        "answer": id, "finish_reason": "stop", "tokens": 5, **changes,
    }  # fmt: skip
    return Sample(id=id, subset=subset, scores={metric: value}, **facts)


def result(known: Benchmark, samples: Sequence[Sample], folder: Path, **changes: Any) -> Result:
    """Of samples, which are written to the folder."""
    facts: dict[str, Any] = {
        "protocol": "internlm3", "setting": Setting(mode="chat", shots=4), "published": {"Model-A": 70.5},
        "data_hash": "d" * 16, "prompts_hash": "p" * 16, "seconds": 61.0, **changes,
    }  # fmt: skip
    return Result(
        name=known.name, title=known.title, dimension=known.dimension, percent=known.percent, average=known.average,
        follows=known.follows, scores=score(known, samples), samples=write_samples(samples, folder, known.name),
        tokens=sum(one.tokens for one in samples), **facts,
    )  # fmt: skip


def write(folder: Path, results: Sequence[Result], model: str = "org/model_a") -> Run:
    """A run of these results, on disk."""
    run = Run(
        model=model, fingerprint="f" * 16, command=f"puyu eval {model} --out runs", date="2026-01-02T03:04:05+00:00",
        versions={"puyulm": "0.1.0", "torch": "2.11.0"}, results=tuple(results),
    )  # fmt: skip
    write_run(run, folder)
    return run


def answers(skill: float, seed: int, count: int = 200, subset: str = "") -> list[Sample]:
    """Right with this probability; some are cut off, and one holds a script."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        cut = number % 20 == 7
        made.append(sample(
            str(number), 0.0 if cut else float(draw.random() < skill), subset, answer=None if cut else str(number),
            outputs=(SCRIPT if number == 3 else f"一共是 {number}。",), finish_reason="length" if cut else "stop",
        ))  # fmt: skip
    return made


def full_run(folder: Path, skill: float = 0.7, seed: int = 0, model: str = "org/model_a") -> Run:
    """All that a report draws: three dimensions, groups, lengths, needles, ratings."""
    subjects = {"algebra": "STEM", "physics": "STEM", "law": "social"}
    exam = benchmark("mmlu", title="MMLU", dimension="exam", subsets=subjects, average="subsets")
    questions = [
        sample(f"{subject}/{one.id}", one.scores["accuracy"], subject, prompt=f"Question\nAnswer:\n->  A\n->  {mark}",
               outputs=("-1.250000", "-0.500000"), answer="B")
        for mark, (place, subject) in zip("BCD", enumerate(subjects), strict=True)
        for one in answers(skill, seed + place, 30 + 10 * place)
    ]  # fmt: skip
    ruler = benchmark("ruler", title="RULER", dimension="long context", average="subsets")
    draw = random.Random(seed)
    long = [
        sample(f"{task}/{name}/{n}", float(draw.random() < skill + 0.3 - 0.1 * place), f"{task}/{name}",
               extra={"length": length})
        for place, (name, length) in enumerate({"4K": 4096, "8K": 8192, "16K": 16384}.items())
        for task in ("vt", "cwe") for n in range(10)
    ]  # fmt: skip
    needle = benchmark("needle", title="Needle", dimension="long context", subsets={"en": "", "zh": ""})
    needles = [
        sample(f"{kind}/{length}/{depth}", min(1.0, skill + depth / 200), kind,
               extra={"length": length, "depth": float(depth)})
        for kind in ("en", "zh") for length in (1024, 2048) for depth in (0, 50, 100)
    ]  # fmt: skip
    talk = benchmark("mt_bench", title="MT-Bench", dimension="instruction", metrics=("rating",), percent=False)
    rated = [sample(str(n), 5.0 + n % 4, metric="rating", target=None, answer=None) for n in range(12)]
    return write(folder, [
        result(exam, questions, folder, setting=Setting(mode="likelihood", shots=5)),
        result(benchmark(title="GSM8K"), answers(skill, seed), folder), result(ruler, long, folder),
        result(needle, needles, folder), result(talk, rated, folder),
    ], model)  # fmt: skip
