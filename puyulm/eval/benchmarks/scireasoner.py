"""SciReasoner's genome understanding tasks (Wang et al., 2025): does a DNA sequence have a promoter or a binding site?

Data: the folder GUE-test of the archive that OpenCompass publishes. Of SciReasoner's 103 tasks these eleven need no
chemistry library and no folding model to be scored.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Sample, Verdict
from puyulm.eval.extract.letters import plain_text
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

CORE, PROMOTER, FACTOR = "core promoter", "promoter", "transcription factor"
TASKS = {
    "cpd-prom_core_all": CORE,
    "cpd-prom_core_notata": CORE,
    "cpd-prom_core_tata": CORE,
    "pd-prom_300_all": PROMOTER,
    "pd-prom_300_notata": PROMOTER,
    "pd-prom_300_tata": PROMOTER,
    **{f"tf-h-{number}": FACTOR for number in range(5)},
}
_SAID = re.compile(r"\bprediction result is\s+(positive|negative)\b", re.IGNORECASE)
_NO = re.compile(r"\b(?:negative|no|not|cannot|absent|absence|lacks?|fails?)\b", re.IGNORECASE)
_YES = re.compile(
    r"\b(?:positive(?:ly)?|yes|present|presence|detect(?:ed|able)|identif(?:ied|iable)|found|located|contains?|confirms?"
    r"|reveals|exhibits|displays|evident|affirmative|certainly)\b",
    re.IGNORECASE,
)


def read(record: Record, subset: str, number: int) -> Question:
    label = record["meta_data"]["label"].strip().lower()
    if label not in ("positive", "negative"):
        raise ValueError(f"the label '{label}' is neither positive nor negative")
    return Question(f"{subset}/{number}", record["input"].strip(), label, subset)


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """What the answer says, or else what its words mean; a denial counts before an affirmation."""
    text = plain_text(outputs[-1].text)
    if said := _SAID.search(text):
        answer: str | None = said[1].lower()
    else:
        answer = "negative" if _NO.search(text) else "positive" if _YES.search(text) else None
    return Verdict({"accuracy": float(answer == question.target)}, answer)


def summarise(samples: Sequence[Sample]) -> Mapping[str, float]:
    """The mean of the tasks' correlations."""
    by_task: dict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
    for sample in samples:
        by_task[sample.subset][sample.target == "positive", sample.answer == "positive"] += 1
    return {"correlation": sum(map(correlation, by_task.values())) / len(by_task)}


def correlation(counts: Mapping[tuple[bool, bool], int]) -> float:
    """Matthews' correlation (1975) of (is positive, is said to be positive); 0 where one of them is always the same."""
    both, neither = counts.get((True, True), 0), counts.get((False, False), 0)
    missed, false = counts.get((True, False), 0), counts.get((False, True), 0)
    square = (both + false) * (both + missed) * (neither + false) * (neither + missed)
    return (both * neither - false * missed) / math.sqrt(square) if square else 0.0


BENCHMARK = Benchmark(
    name="scireasoner",
    title="SciReasoner (GUE)",
    dimension="science",
    source=Dataset(
        files={
            role: [f"{folder}{{subset}}/{role}/data.json" for folder in ("GUE-test/", "")] for role in ("test", "dev")
        },
        page="http://opencompass.oss-cn-shanghai.aliyuncs.com/datasets/data/SciReasoner.zip",
    ),
    read=read,
    subsets=TASKS,
    examples="dev",
    average="subsets",
    metrics=("correlation", "accuracy"),
    summarise=summarise,
    modes={
        "chat": Generation(
            prompt=lambda question: question.text,
            solution=lambda question: f"The prediction result is {question.target}.",
            verdict=verdict,
            max_new_tokens=2048,
        ),
    },
    follows="OpenCompass: Matthews' correlation where no answer counts as negative; it knows more words of affirmation",
)
