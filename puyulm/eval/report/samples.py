"""Samples for the page: packed so that tens of thousands stay usable, and what charts need of them.

The page holds an index of all samples (benchmark, subset, verdict of each run) as plain JSON, and the texts in gzipped
parts that its script unpacks when they are looked at. Long texts lose their middle.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puyulm.eval.benchmark import Sample
from puyulm.eval.results import Result, read_samples

PART = 100  # samples
PROMPT_ENDS, OUTPUT_ENDS = (3000, 5000), (6000, 6000)  # characters that long texts keep
NO_ANSWER, CUT_OFF = 1, 2
Json = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """What charts need of a sample."""

    subset: str
    length: int | None
    depth: float | None
    score: float


@dataclass
class Packed:
    """The samples of a page.

    Attributes:
        index: For the script.
        parts: Gzipped JSON in base64, `PART` samples each.
        points: Of each run and benchmark.
    """

    index: Json
    parts: list[str] = field(default_factory=list)
    points: dict[tuple[int, str], list[Point]] = field(default_factory=dict)


def pack(folders: Sequence[Path], names: Sequence[str], results: Sequence[Sequence[Result]]) -> Packed:
    """Packs the samples of all runs; answers to the same question stand together.

    Args:
        names: Of the runs.
        results: Of each run, those that are shown.

    Raises:
        DataError: Samples are missing or damaged.
    """
    index: Json = {"runs": list(names), "part": PART, "tasks": [], "task": [], "subset": [],
                   "state": [[] for _ in folders], "flags": [[] for _ in folders]}  # fmt: skip
    packed, waiting = Packed(index), []
    for name in dict.fromkeys(result.name for own in results for result in own):
        found = [next((result for result in own if result.name == name), None) for own in results]
        for entry in _entries(packed, folders, name, found):
            waiting.append(entry)
            if len(waiting) == PART:
                packed.parts.append(_packed(waiting))
                waiting = []
    if waiting:
        packed.parts.append(_packed(waiting))
    for kind in ("state", "flags"):
        index[kind] = ["".join(map(str, own)) for own in index[kind]]
    return packed


def _entries(packed: Packed, folders: Sequence[Path], name: str, results: Sequence[Result | None]) -> Iterator[Json]:
    """A benchmark's samples, and their places in the index."""
    index, by_run = packed.index, []
    for run, (folder, result) in enumerate(zip(folders, results, strict=True)):
        by_run.append({} if result is None else _read(folder, result, packed.points.setdefault((run, name), [])))
    first = next(result for result in results if result is not None)
    subsets: dict[str, int] = {}
    task = len(index["tasks"])
    index["tasks"].append({"name": name, "title": first.title, "metric": first.scores.metric,
                           "percent": first.percent})  # fmt: skip
    for key in dict.fromkeys(key for own in by_run for key in own):
        answers = [own.get(key) for own in by_run]
        known = next(one for one in answers if one is not None)
        index["task"].append(task)
        index["subset"].append(subsets.setdefault(known.subset, len(subsets)))
        for run, (sample, result) in enumerate(zip(answers, results, strict=True)):
            index["state"][run].append(_state(sample, result))
            index["flags"][run].append(_flags(sample))
        yield {"id": known.id, "repeat": known.repeat, "prompt": known.prompt, "target": known.target,
               "answers": [_answer(sample, known) for sample in answers]}  # fmt: skip
    index["tasks"][task]["subsets"] = list(subsets)


def _read(folder: Path, result: Result, points: list[Point]) -> dict[tuple[str, int], Sample]:
    """Samples with long texts cut."""
    found = {}
    for sample in read_samples(folder, result):
        found[sample.id, sample.repeat] = Sample(
            id=sample.id, subset=sample.subset, repeat=sample.repeat, prompt=shortened(sample.prompt, PROMPT_ENDS),
            outputs=tuple(shortened(one, OUTPUT_ENDS) for one in sample.outputs), target=_target(sample.target),
            scores=sample.scores, answer=None if sample.answer is None else shortened(str(sample.answer), OUTPUT_ENDS),
            note=shortened(str(sample.note), OUTPUT_ENDS), finish_reason=sample.finish_reason, tokens=sample.tokens,
        )  # fmt: skip
        length, depth = sample.extra.get("length"), sample.extra.get("depth")
        if (score := row_score(sample, result)) is not None:
            points.append(Point(
                sample.subset, length if isinstance(length, int) else None,
                float(depth) if isinstance(depth, int | float) else None, score,
            ))  # fmt: skip
    return found


def shortened(text: str, ends: tuple[int, int]) -> str:
    """A long text without its middle."""
    head, tail = ends
    left_out = len(text) - head - tail
    return text if left_out <= 200 else f"{text[:head]}\n[… {left_out:,} characters …]\n{text[-tail:]}"


def _target(target: Any) -> str:
    """What is right, as text: several on lines of their own."""
    if isinstance(target, list | tuple) and all(isinstance(one, str | int | float) for one in target):
        target = "\n".join(map(str, target))
    text = target if isinstance(target, str) else "" if target is None else json.dumps(target, ensure_ascii=False)
    return shortened(text, OUTPUT_ENDS)


def row_score(sample: Sample, result: Result) -> float | None:
    """The benchmark's score of a sample, or the next of its metrics that samples have; None: none."""
    return next((float(sample.scores[name]) for name in result.scores.metrics if name in sample.scores), None)


def _state(sample: Sample | None, result: Result | None) -> str:
    """1 right, 0 wrong, p in between, s a score that is not a share, - not there."""
    if sample is None or result is None:
        return "-"
    value = row_score(sample, result)
    if value is None or not result.percent:
        return "s"
    return "1" if value >= 1 else "0" if value <= 0 else "p"


def _flags(sample: Sample | None) -> int:
    if sample is None:
        return 0
    return NO_ANSWER * (sample.answer is None) + CUT_OFF * (sample.finish_reason == "length")


def _answer(sample: Sample | None, known: Sample) -> Json | None:
    if sample is None:
        return None
    row: Json = {"outputs": sample.outputs, "answer": sample.answer, "note": sample.note, "tokens": sample.tokens,
                 "finish": sample.finish_reason,
                 "scores": {name: round(float(value), 6) for name, value in sample.scores.items()}}  # fmt: skip
    if sample.prompt != known.prompt:
        row["prompt"] = sample.prompt
    return row


def _packed(rows: Sequence[Mapping[str, Any]]) -> str:
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"), default=str)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "backslashreplace"), 6, mtime=0)).decode()
