"""IFEval: 541 prompts with 834 instructions that a program can check (Zhou et al., 2023).

Data: google/IFEval, or input_data.jsonl of google-research/instruction_following_eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Sample, Verdict
from puyulm.eval.instructions import arguments_of, follows, follows_loosely
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset


def read(record: Record, subset: str, number: int) -> Question:
    """The target is the list of instructions: kind and arguments."""
    pairs = zip(record["instruction_id_list"], record["kwargs"], strict=True)
    instructions = [[kind, arguments_of(kind, arguments)] for kind, arguments in pairs]
    if not instructions:
        raise ValueError("no instructions")
    return Question(str(record["key"]), record["prompt"], instructions)


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Which instructions the answer follows, strictly and loosely."""
    text, instructions = outputs[-1].text, question.target
    strict = [follows(text, kind, arguments) for kind, arguments in instructions]
    loose = [follows_loosely(text, kind, arguments) for kind, arguments in instructions]
    broken = [kind for (kind, _), followed in zip(instructions, strict, strict=True) if not followed]
    return Verdict(
        {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "followed_strict": sum(strict),
            "followed_loose": sum(loose),
            "instructions": len(instructions),
        },
        note="not followed: " + ", ".join(broken) if broken else "",
    )


def summarise(samples: Sequence[Sample]) -> Mapping[str, float]:
    """Accuracies of instructions, whichever prompt they belong to, and means with those of prompts."""

    def total(name: str) -> float:
        return sum(sample.scores[name] for sample in samples)

    strict, loose = (total(f"followed_{how}") / total("instructions") for how in ("strict", "loose"))
    prompts_strict, prompts_loose = (total(f"prompt_{how}") / len(samples) for how in ("strict", "loose"))
    return {
        "instruction_strict": strict,
        "instruction_loose": loose,
        "strict": (prompts_strict + strict) / 2,
        "mean": (prompts_strict + strict + prompts_loose + loose) / 4,
    }


CHAT = Generation(
    prompt=lambda question: question.text,
    solution=lambda question: "",  # there are no examples
    verdict=verdict,
    max_new_tokens=1280,
)

BENCHMARK = Benchmark(
    name="ifeval",
    title="IFEval",
    dimension="instruction",
    source=Dataset(
        hub="google/IFEval",
        splits={"test": "train"},
        files={"test": ["input_data.jsonl"]},
        page="https://github.com/google-research/google-research/tree/master/instruction_following_eval",
    ),
    read=read,
    modes={"chat": CHAT, "plain": replace(CHAT, chat=False)},
    metrics=("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose", "strict", "mean"),
    summarise=summarise,
    follows=(
        "the official checker, which lm-evaluation-harness and OpenCompass carry too; model cards give the first "
        "metric (InternLM3), the mean of all four (InternLM2's report) or of the two strict ones (SmolLM2: 'strict')"
    ),
)
