"""MT-Bench: 80 questions of two turns in eight categories, judged from 1 to 10 (Zheng et al., 2023).

Data: question.jsonl of FastChat, or HuggingFaceH4/mt_bench_prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Judge, Play, Question, Record, Verdict
from puyulm.eval.judging import RATE, RATE_BY_REFERENCE, ask_judge, conversation, rating_prompt, read_rating
from puyulm.eval.model import Output, Prompt
from puyulm.eval.source import Dataset
from puyulm.text.messages import Message

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
BY_REFERENCE = ("reasoning", "math", "coding")  # of the others the judge sees no reference answer
_SECOND = " Judge the assistant's answer to the second question; the first is shown for its context."


def read(record: Record, subset: str, number: int) -> Question | None:
    """Of the original file (turns) or the hub's (prompt). The target is the reference answers, where there are any."""
    category, turns = record["category"], list(record["turns"] if "turns" in record else record["prompt"])
    if category not in CATEGORIES:
        raise ValueError(f"unknown category '{category}'")
    if len(turns) != 2 or not all(isinstance(turn, str) for turn in turns):
        raise ValueError("not two turns")
    if category != subset:
        return None
    id = str(record["question_id"] if "question_id" in record else record["prompt_id"])
    references = list(record.get("reference") or []) if category in BY_REFERENCE else []
    return Question(id, turns[0], references if len(references) == 2 else None, subset, extra={"turns": turns})


def play(question: Question, prompt: Prompt) -> Play:
    """The second turn follows the model's own first answer."""
    first = yield prompt
    earlier = (*prompt.messages, Message("assistant", first.text))
    second = yield replace(prompt, messages=(*earlier, Message("user", question.extra["turns"][1])))
    return [first, second]


def ask(question: Question, outputs: Sequence[Output]) -> Sequence[Prompt]:
    """Each turn is judged by itself, the second with the whole conversation in sight."""
    turns, answers, references = question.extra["turns"], [output.text for output in outputs], question.target
    first = rating_prompt(turns[0], answers[0], references[0] if references else None)
    shown = conversation(turns, answers)
    if references:
        shown = f"[Reference answers]\n{conversation(turns, references)}\n\n[The assistant's answers]\n{shown}"
    return [first, ask_judge((RATE_BY_REFERENCE if references else RATE) + _SECOND, shown)]


def verdict(question: Question, outputs: Sequence[Output], judgements: Sequence[Output]) -> Verdict:
    """Ratings of both turns and their mean; a judgement without a rating does not count.

    "unread" is the share of such judgements.
    """
    ratings = {f"turn_{turn}": read_rating(one.text) for turn, one in enumerate(judgements, 1)}
    found = {name: rating for name, rating in ratings.items() if rating is not None}
    scores = {"score": sum(found.values()) / len(found), **found} if found else {}
    unread = 1 - len(found) / len(ratings)
    return Verdict({**scores, "unread": unread}, note="" if found else "the judge gave no rating")


BENCHMARK = Benchmark(
    name="mt_bench",
    title="MT-Bench",
    dimension="instruction",
    source=Dataset(
        hub="HuggingFaceH4/mt_bench_prompts",
        splits={"test": "train"},
        files={"test": ["question.jsonl"]},
        page="https://github.com/lm-sys/FastChat/tree/main/fastchat/llm_judge/data/mt_bench",
    ),
    read=read,
    subsets=dict.fromkeys(CATEGORIES, ""),
    modes={
        "chat": Generation(
            prompt=lambda question: question.text,
            solution=lambda question: question.target[0] if question.target else "",
            play=play,
            judge=Judge(prompts=ask, verdict=verdict),
            max_new_tokens=1024,
        )
    },
    metrics=("score", "turn_1", "turn_2", "unread"),
    percent=False,
    follows=(
        "single-answer grading of the paper, with our wording of its prompts; references are those of the questions' "
        "file, where FastChat's runs show GPT-4's answers; greedy, where FastChat samples by category"
    ),
)
