"""RewardBench: 2,985 pairs of a chosen and a rejected answer, for reward models (Lambert et al., 2024).

Data: allenai/reward-bench, split `filtered`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from puyulm.eval.benchmark import Benchmark, Generation, Preference, Question, Record, Sample, Verdict
from puyulm.eval.judging import COMPARE, JUDGE_TOKENS, comparison_prompts, read_choice
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

CHAT, HARD, SAFETY, REASONING = "Chat", "Chat Hard", "Safety", "Reasoning"
MATHEMATICS = "math-prm"
SUBSETS = {
    **dict.fromkeys(("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard"), CHAT),
    **dict.fromkeys(("mt-bench-easy", "mt-bench-med"), CHAT),
    **dict.fromkeys(("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst"), HARD),
    **dict.fromkeys(("llmbar-adver-GPTOut", "llmbar-adver-manual"), HARD),
    **dict.fromkeys(("refusals-dangerous", "refusals-offensive", "xstest-should-refuse"), SAFETY),
    **dict.fromkeys(("xstest-should-respond", "donotanswer"), SAFETY),
    MATHEMATICS: REASONING,
    **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"), REASONING),
}


def read(record: Record, subset: str, number: int) -> Question | None:
    """The target is the chosen answer."""
    if record["subset"] not in SUBSETS:
        raise ValueError(f"unknown subset '{record['subset']}'")
    if not all(isinstance(record[name], str) for name in ("prompt", "chosen", "rejected")):
        raise ValueError("prompt, chosen and rejected must be texts")
    if record["subset"] != subset:
        return None
    extra = {"rejected": record["rejected"]}
    return Question(f"{subset}/{number}", record["prompt"], record["chosen"], subset, extra=extra)


def summarise(samples: Sequence[Sample]) -> Mapping[str, float]:
    """The mean of the sections. A section is the mean of its pairs; in reasoning, mathematics (447 pairs) weighs as
    much as all code (984)."""
    parts: dict[str, dict[bool, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        parts[SUBSETS[sample.subset]][sample.subset == MATHEMATICS].append(sample.scores["accuracy"])
    sections = [[sum(own) / len(own) for own in section.values()] for section in parts.values()]
    return {"score": sum(sum(means) / len(means) for means in sections) / len(sections)}


def _chosen_is_first(question: Question) -> bool:
    return hashlib.sha256(question.id.encode()).digest()[0] % 2 == 0


def _pair(question: Question) -> str:
    """Both answers, in an order that is drawn for each question once and for all."""
    chosen_first, chosen_second = comparison_prompts(question.text, question.target, question.extra["rejected"])
    return (chosen_first if _chosen_is_first(question) else chosen_second).messages[-1].content


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Whether a model that judges chose the chosen answer; a tie or no choice is worth a half."""
    choice = read_choice(outputs[-1].text)
    right = "A" if _chosen_is_first(question) else "B"
    return Verdict({"accuracy": float(choice == right) if choice in ("A", "B") else 0.5}, choice)


BENCHMARK = Benchmark(
    name="rewardbench",
    title="RewardBench",
    dimension="preference",
    source=Dataset(hub="allenai/reward-bench", splits={"test": "filtered"}, files={"test": ["filtered.jsonl"]}),
    read=read,
    subsets=SUBSETS,
    modes={
        "reward": Preference(
            conversations=lambda question: [
                [question.text, question.target],
                [question.text, question.extra["rejected"]],
            ]
        ),
        "chat": Generation(
            system=COMPARE,
            prompt=_pair,
            solution=lambda question: f"[[{'A' if _chosen_is_first(question) else 'B'}]]",
            verdict=verdict,
            max_new_tokens=JUDGE_TOKENS,
        ),
    },
    metrics=("score", "accuracy"),
    summarise=summarise,
    follows="the published sections and weights, without the prior test sets; equal rewards are no preference",
)
