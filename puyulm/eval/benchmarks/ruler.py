"""RULER: 13 synthetic tasks at any length, made with the model's own tokenizer (Hsieh et al., 2024).

Options: `lengths` (tokens, answer included; 4K to 128K by default, any up to 1M and beyond), `count` (samples of each
task and length), `reserve` (tokens of a length that are left to the chat format).

The paper hides needles in Paul Graham's essays: put them into DATA_DIR/ruler as essays*.txt or essays*.json; without
them the haystack is made prose, and the samples say so. qa_1 and qa_2 need the official files of SQuAD 2.0
(dev-v2.0.json) and HotpotQA (hotpot_dev_distractor_v1.json) there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.longtext import haystack, ruler_documents, ruler_niah, ruler_tracking, ruler_words
from puyulm.eval.longtext.fill import Count, Pieces, counter, number_option, number_options
from puyulm.eval.longtext.ruler_niah import RulerSample
from puyulm.eval.model import Output
from puyulm.eval.source import Made, SourceContext

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
COUNT = 100  # the paper has 500, OpenCompass 100
RESERVE = 128  # tokens of system text and role marks
NEEDLE_TASKS = tuple(ruler_niah.KINDS)
TASKS = (*NEEDLE_TASKS, "vt", "cwe", "fwe", "qa_1", "qa_2")
NEW_TOKENS = {**dict.fromkeys(NEEDLE_TASKS, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
QA_FILES = {
    "qa_1": (("dev-v2.0.json", "squad.json"), "SQuAD 2.0", "https://rajpurkar.github.io/SQuAD-explorer"),
    "qa_2": (("hotpot_dev_distractor_v1.json", "hotpotqa.json"), "HotpotQA", "https://hotpotqa.github.io"),
}
ESSAYS = ("essays*.txt", "essays*.json", "essays*.jsonl", "PaulGrahamEssays.json")
Make = Callable[[random.Random, int], RulerSample]  # with random choices, which sample


def length_name(length: int) -> str:
    """4096 -> "4K", 1048576 -> "1M", 5000 -> "5000"."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if length >= unit and length % unit == 0:
            return f"{length // unit}{name}"
    return str(length)


def subsets(context: SourceContext) -> dict[str, str]:
    """TASK/LENGTH, shown by task.

    Raises:
        DataError: An option is wrong.
    """
    lengths = number_options(context, "ruler", "lengths", LENGTHS, least=256)
    return {f"{task}/{length_name(length)}": task for length in lengths for task in TASKS}


def make(subset: str, context: SourceContext) -> Iterator[dict[str, Any]]:
    """Samples of a task and length.

    Raises:
        DataError: Files are missing, or the length is too short for the task.
    """
    task, _, name = subset.partition("/")
    lengths = number_options(context, "ruler", "lengths", LENGTHS, least=256)
    length = next(one for one in lengths if length_name(one) == name)
    reserve = number_option(context, "ruler", "reserve", RESERVE, least=0)
    count, room = counter(context, "ruler"), length - reserve - NEW_TOKENS[task]
    hay, one_sample = _maker(task, length, count, room, context)
    for number in range(number_option(context, "ruler", "count", COUNT)):
        sample = one_sample(random.Random(f"ruler/{context.seed}/{subset}/{number}"), number)
        yield {
            "number": number, "text": sample.text, "prefix": sample.prefix, "answers": list(sample.answers),
            "extra": {"task": task, "length": length, "tokens": sample.tokens, "haystack": hay, **sample.extra},
        }  # fmt: skip


def _maker(task: str, length: int, count: Count, room: int, context: SourceContext) -> tuple[str, Make]:
    """What the haystack is, and what makes a sample."""
    what, folder = f"ruler {task}/{length_name(length)}", None
    if context.data_dir is not None:
        folder = context.data_dir / "ruler"
    if task in NEEDLE_TASKS:
        kind = ruler_niah.KINDS[task]
        if kind.haystack == "needles":
            return "needles", lambda draw, _: ruler_niah.make(kind, draw, count, room, None, what)
        if kind.haystack == "noise":
            name, pieces = "noise", ruler_tracking.noise(count)
        else:
            essays = haystack.load(folder, ESSAYS, "en")
            name, pieces = essays.name, Pieces(essays.sentences(), count, " ")
        return name, lambda draw, _: ruler_niah.make(kind, draw, count, room, pieces, what)
    if task == "vt":
        pieces = ruler_tracking.noise(count)
        return "noise", lambda draw, _: ruler_tracking.make_tracking(draw, count, room, pieces, what)
    if task == "cwe":
        return "words", _remembering(
            partial(ruler_words.make_common, count=count, room=room, short=length < 4096, what=what)
        )
    if task == "fwe":
        return "words", _remembering(partial(ruler_words.make_frequent, count=count, room=room, what=what))
    file = _qa_file(task, folder)
    library = (ruler_documents.read_squad if task == "qa_1" else ruler_documents.read_hotpot)(file)
    known: dict[str, int] = {}
    questions = library.questions
    return file.name, lambda draw, number: ruler_documents.make_documents(
        draw, count, room, library, questions[number % len(questions)], known, what
    )


def _remembering(make_one: Callable[..., tuple[int, RulerSample]]) -> Make:
    """Each sample begins with the size of the one before."""
    sizes = [0]

    def one(draw: random.Random, _: int) -> RulerSample:
        sizes[0], sample = make_one(draw, guess=sizes[0])
        return sample

    return one


def _qa_file(task: str, folder: Path | None) -> Path:
    names, title, page = QA_FILES[task]
    for name in names if folder is not None else ():
        assert folder is not None
        if (file := folder / name).is_file():
            return file
    where = folder if folder is not None else "FOLDER/ruler and give --data-dir FOLDER"
    raise DataError(
        f"ruler: {task} asks about {title}: place {names[0]} in {where} (from {page}), or name the other tasks "
        f"with --subset {','.join(one for one in TASKS if one not in QA_FILES)}"
    )


def read(record: Record, subset: str, number: int) -> Question:
    """A made sample."""
    return Question(
        f"{subset}/{record['number']}", record["text"], record["answers"], subset,
        extra={**record["extra"], "prefix": record["prefix"]},
    )  # fmt: skip


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The share of answers that stand in the output, lower-cased; of qa, whether any does."""
    text = outputs[-1].text
    found = [one for one in question.target if one.lower() in text.lower()]
    any_is_enough = question.extra["task"].startswith("qa")
    score = float(bool(found)) if any_is_enough else len(found) / len(question.target)
    return Verdict({"accuracy": score}, ", ".join(found) or None)


def by_task(scores: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Scores of subsets as a table: task -> length -> score."""
    table: dict[str, dict[int, float]] = {}
    for subset, value in scores.items():
        task, _, name = subset.partition("/")
        table.setdefault(task, {})[_length(name)] = value
    return table


def weighted_average(scores: Mapping[int, float], *, increasing: bool = True) -> float:
    """Mean over lengths whose weights rise (or fall) in equal steps with the length's rank (paper, table 3).

    Args:
        scores: By length.
    """
    weights = list(range(1, len(scores) + 1))[:: 1 if increasing else -1]
    ordered = [scores[length] for length in sorted(scores)]
    return sum(map(float.__mul__, map(float, weights), ordered)) / sum(weights)


def _length(name: str) -> int:
    unit = {"K": 1 << 10, "M": 1 << 20}.get(name[-1], 1)
    return int(name.rstrip("KM")) * unit


CHAT = Generation(
    prompt=lambda question: question.text,
    solution=lambda question: " " + ", ".join(question.target),
    verdict=verdict,
    prefix=lambda question: question.extra["prefix"].lstrip(),
    max_new_tokens=lambda question: NEW_TOKENS[question.extra["task"]],
)
PLAIN = Generation(
    prompt=CHAT.prompt, solution=CHAT.solution, verdict=verdict, chat=False,
    prefix=lambda question: question.extra["prefix"], max_new_tokens=CHAT.max_new_tokens,
)  # fmt: skip

BENCHMARK = Benchmark(
    name="ruler",
    title="RULER",
    dimension="long context",
    source=Made(make, subsets, data="SQuAD and HotpotQA for qa_1 and qa_2"),
    read=read,
    modes={"plain": PLAIN, "chat": CHAT},
    average="subsets",
    keep=("task", "length", "depth", "tokens", "haystack"),
    follows="the paper's templates and scoring, with the answer's beginning written for the model (OpenCompass puts it "
    "at the end of the user's message); OpenCompass counts lengths with GPT-4's tokenizer, we with the model's own",
)
