"""Setting a threshold by looking at few documents: those nearest to it.

Inside a domain a feature changes slowly with what people think of a document, so it is enough to judge the documents
around a threshold and to move it to where the judgements change (InternLM2 report, section 3.1.3). A round: list the
borderline documents, say of each whether it should be kept, take the suggestion, and run again if it lies at the edge.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from puyulm.data.documents import Document, read_documents, replacing
from puyulm.data.longtext.judge import PREFIX
from puyulm.data.longtext.settings import FEATURES, Bounds, bounds_for
from puyulm.data.pipeline.stage import DROPPED_FOLDER, STAGE_FILE, shards_in
from puyulm.errors import DataError

Bound = Literal["min", "max"]

EXCERPT = 600  # characters from the beginning, the middle and the end of a document


@dataclass(frozen=True)
class Borderline:
    """A document near a threshold.

    Attributes:
        id, source, language, text: Of the document; the text is an excerpt of three places.
        value: The feature's.
        passes: Whether the threshold keeps it.
        keep: What people say: whether it should be kept; None: not judged.
    """

    id: str
    source: str
    language: str
    value: float
    passes: bool
    text: str
    keep: bool | None = None


@dataclass(frozen=True)
class Suggestion:
    """A better threshold.

    Attributes:
        threshold: With the fewest errors on the judged documents; of equals the nearest to the present one.
        errors, errors_before: Judged documents that it, and the present one, keep or drop wrongly.
        judged: How many there are.
        at_edge: It lies outside of what was judged, so the best may be further away: judge again around it.
    """

    threshold: float
    errors: int
    errors_before: int
    judged: int
    at_edge: bool


@dataclass(frozen=True)
class Tuning:
    """What `tune_thresholds` found.

    Attributes:
        feature, domain, bound, threshold: What is tuned: keep from `threshold` up ("min"), or down ("max").
        borderline: Documents nearest to the threshold on both sides, by value.
        suggestion: None where no document is judged.
    """

    feature: str
    domain: str
    bound: Bound
    threshold: float
    borderline: list[Borderline]
    suggestion: Suggestion | None


def tune_thresholds(
    folder: Path,
    feature: str,
    domain: str,
    *,
    judged: Sequence[Borderline] = (),
    bound: Bound | None = None,
    threshold: float | None = None,
    count: int = 20,
) -> Tuning:
    """Lists the borderline documents of a domain, and suggests a threshold from judged ones.

    Args:
        folder: Of a stage `long_context` that recorded its features, or of the run that it belongs to.
        feature: A name such as "ppl_delta".
        domain: "domain/language"; "*" stands for all.
        judged: Documents of an earlier round with `keep` set; others in it are passed over.
        bound: Which of the feature's bounds; None: the one that the stage's settings have, "min" first.
        threshold: Tune around this; None: what the stage's settings have.
        count: Documents on each side.

    Raises:
        DataError: There is no such stage or feature, no threshold to begin with, or no document with the feature.
    """
    if feature not in FEATURES:
        raise DataError(f"no feature is called {feature!r}; they are {', '.join(FEATURES)}")
    if domain.count("/") < 1:
        raise DataError(f"{domain!r} is not 'domain/language', such as web/en or */zh")
    folder, settings = _stage(folder)
    bound, threshold = _start(settings, feature, domain, bound, threshold)
    near = borderline(_documents(folder, domain, settings["domains"]), feature, bound, threshold, count)
    if not near:
        raise DataError(f"{folder} has no document of {domain} with the feature {feature}: is record on, and was it "
                        "computed (ppl_delta and its like need a model)?")  # fmt: skip
    known = [(each.value, each.keep) for each in judged if each.keep is not None]
    suggestion = suggest_threshold(known, bound, threshold) if known else None
    return Tuning(feature, domain, bound, threshold, near, suggestion)


def borderline(
    documents: Iterable[Document], feature: str, bound: Bound, threshold: float, count: int
) -> list[Borderline]:
    """The `count` documents nearest to a threshold on each of its sides, by value; those without the feature do not
    count. Only so many are held in memory.
    """
    sides: dict[bool, list[tuple[float, str, int, Borderline]]] = {True: [], False: []}
    for number, document in enumerate(documents):
        value = document.scores.get(f"{PREFIX}{feature}")
        if value is None:
            continue
        passes = _passes(value, bound, threshold)
        held = sides[passes]
        # Farthest first, so that the heap gives up what is farthest; ids make the choice the same in every run.
        key = (-abs(value - threshold), document.id)
        if len(held) < count or key > held[0][:2]:
            sample = Borderline(document.id, document.source, document.language, value, passes, _excerpt(document.text))
            (heapq.heappush if len(held) < count else heapq.heapreplace)(held, (*key, number, sample))
    return sorted((entry[-1] for held in sides.values() for entry in held), key=lambda each: (each.value, each.id))


def suggest_threshold(judged: Sequence[tuple[float, bool]], bound: Bound, threshold: float) -> Suggestion:
    """The threshold that keeps and drops the fewest judged documents wrongly.

    Args:
        judged: (value, whether to keep) of each; at least one.
        bound: "min" keeps values from the threshold up, "max" up to it.
        threshold: The present one, which also stays if nothing is better.
    """
    values = sorted({value for value, _ in judged})
    beyond = (values[-1] - values[0]) or abs(values[0]) or 1.0
    outer = [values[0] - 0.05 * beyond, values[-1] + 0.05 * beyond]
    cuts = [threshold, *((a + b) / 2 for a, b in pairwise(values)), *outer]

    def errors(cut: float) -> int:
        return sum(_passes(value, bound, cut) != keep for value, keep in judged)

    best = min(cuts, key=lambda cut: (errors(cut), abs(cut - threshold)))
    inside = values[0] < best < values[-1]
    return Suggestion(best, errors(best), errors(threshold), len(judged), not inside)


def write_borderline(path: Path, samples: Iterable[Borderline]) -> None:
    """Writes documents as jsonl, to be judged: set "keep" to true or false."""
    with replacing(path) as partial:
        lines = (json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
        partial.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def read_borderline(path: Path) -> list[Borderline]:
    """Reads what `write_borderline` wrote and people judged.

    Raises:
        DataError: The file is missing, or a line is no such document.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', 'it is not UTF-8 text')}") from None
    samples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            sample = Borderline(**json.loads(line))
            valid = isinstance(sample.value, int | float) and sample.keep in (True, False, None)
        except (ValueError, TypeError):
            valid = False
        if not valid:
            raise DataError(f"{path}, line {number}: expected what tune-long writes, with keep true, false or null")
        samples.append(sample)
    return samples


def _stage(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The stage's folder and its settings; of a run's folder, its last such stage."""
    candidates = [folder, *sorted(folder.glob("[0-9]*-*"), reverse=True)]
    for candidate in candidates:
        try:
            facts = json.loads((candidate / STAGE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if facts.get("kind") == "long_context":
            return candidate, dict(facts["settings"])
    raise DataError(f"no stage long_context at {folder}: give the folder of one, or of a run that has one")


def _start(
    settings: dict[str, Any], feature: str, domain: str, bound: Bound | None, threshold: float | None
) -> tuple[Bound, float]:
    thresholds = {
        key: {name: Bounds(**each) for name, each in bounds.items()} for key, bounds in settings["thresholds"].items()
    }
    name, _, language = domain.rpartition("/")
    present = bounds_for(thresholds, name, language).get(feature)
    low, high = (present.min, present.max) if present is not None else (None, None)
    bound = bound or ("max" if low is None and high is not None else "min")
    known = low if bound == "min" else high
    if threshold is None and known is None:
        raise DataError(f"the stage has no {bound} for {feature} of {domain}: say where to begin with --threshold")
    return bound, float(known if threshold is None else threshold)  # type: ignore[arg-type]  # one of them is known


def _documents(folder: Path, domain: str, domains: dict[str, str]) -> Iterator[Document]:
    name, _, language = domain.rpartition("/")
    for path in [*shards_in(folder), *shards_in(folder / DROPPED_FOLDER)]:
        for document in read_documents(path):
            if language in ("*", document.language) and name in ("*", domains.get(document.source, document.source)):
                yield document


def _passes(value: float, bound: Bound, threshold: float) -> bool:
    return value >= threshold if bound == "min" else value <= threshold


def _excerpt(text: str) -> str:
    if len(text) <= 3 * EXCERPT:
        return text
    middle = (len(text) - EXCERPT) // 2
    return "\n[...]\n".join([text[:EXCERPT], text[middle : middle + EXCERPT], text[-EXCERPT:]])
