"""Whether a model has seen GSM8K: its loss on the test set, the training set, and a look-alike (InternLM2 report 5.4).

The look-alike is Skywork/mock_gsm8k_test, written by GPT-4 after the models were trained. A test loss far below the
reference's hints at a test set that was trained on; far above the training set's, at training on the training set.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from puyulm.eval.benchmark import Benchmark, Question, Reading, Record, Sample
from puyulm.eval.benchmarks import gsm8k
from puyulm.eval.source import Dataset, Made, SourceContext

_REFERENCE = Dataset(
    hub="Skywork/mock_gsm8k_test",
    files={"test": ["mock_gsm8k_test.jsonl", "test.jsonl"]},
    page="https://huggingface.co/datasets/Skywork/mock_gsm8k_test",
)


def make(subset: str, context: SourceContext) -> Iterator[Mapping[str, Any]]:
    """Rows of a set; GSM8K's own are those of the benchmark gsm8k, in its folder."""
    if subset == "reference":
        return _REFERENCE.records("contamination", "", "test", context)
    return gsm8k.BENCHMARK.source.records("gsm8k", "", subset, context)


def read(record: Record, subset: str, number: int) -> Question:
    """Question and answer as they are published (question, answer), or both in one (text)."""
    text = record["text"] if "text" in record else f"{record['question']} {record['answer']}"
    if not isinstance(text, str) or not text.strip():
        raise ValueError("there is no text")
    return Question(f"{subset}/{number}", text, subset=subset)


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean loss: nats per token of each sample, then the mean of samples. d1 = test - reference, d2 = test - train."""
    losses: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        losses[sample.subset].append(sample.scores["nats"] / max(sample.scores["tokens"], 1))
    means = {subset: sum(own) / len(own) for subset, own in losses.items()}
    return {
        "loss": sum(means.values()) / len(means) if means else math.nan,
        "d1": means.get("test", math.nan) - means.get("reference", math.nan),
        "d2": means.get("test", math.nan) - means.get("train", math.nan),
    }


BENCHMARK = Benchmark(
    name="contamination",
    title="GSM8K contamination",
    dimension="text",
    source=Made(make, data="openai/gsm8k, Skywork/mock_gsm8k_test"),
    read=read,
    subsets={"test": "", "train": "", "reference": ""},
    modes={"reading": Reading(text=lambda question: question.text)},
    metrics=("loss", "d1", "d2"),
    summarise=summarise,
    percent=False,
    follows="the InternLM2 report and OpenCompass: losses per sample of question and answer in one text",
)
