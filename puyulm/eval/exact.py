"""Questions of one's own with one right answer, compared after normalising.

A tuned model is asked in its chat format and its whole answer counts. A base model, which knows no chat format, is
asked in plain text ("Question: ... Answer:", in the question's language), after solved examples where they are given,
and the first line of what it writes counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.model import Output
from puyulm.eval.source import Made, SourceContext, read_records

_PLAIN = {"en": ("Question: ", "\nAnswer:"), "zh": ("问题：", "\n答案：")}
_COMMAS, _SPACES = re.compile(r"\s*[,、]\s*"), re.compile(r"\s+")
_EDGES = " .。!！?？\"'“”‘’"
_FIELDS = ("prompt", "answer", "kind", "language")


def exact_benchmark(items: Path, examples: Path | None = None) -> Benchmark:
    """A benchmark of a jsonl file of `{"prompt", "answer"}`, and where known `"kind"` and `"language"`.

    Args:
        examples: A file of items from which prompts take examples of the same kind and language.

    Raises:
        DataError: A file is missing or empty, or a line is damaged; with file and line.
    """
    rows = read_items(items)
    kinds = dict.fromkeys(row["kind"] for row in rows)

    def make(subset: str, context: SourceContext) -> Iterator[Mapping[str, str]]:
        return (row for row in rows if row["kind"] == subset)

    solved = [] if examples is None else [_question(row, f"example {i}") for i, row in enumerate(read_items(examples))]
    return Benchmark(
        name=re.sub(r"[^\w.-]+", "-", items.stem) or "items",
        title=items.stem,
        dimension="text",
        source=Made(make),
        read=lambda record, subset, number: _question(record, f"{subset}/{number}"),
        subsets=dict.fromkeys(kinds, ""),
        examples=tuple(solved),
        pick=_same_kind,
        modes={"chat": CHAT, "plain": PLAIN},
    )


def read_items(path: Path) -> list[dict[str, str]]:
    """Items with all four fields.

    Raises:
        DataError: The file is missing or empty, or a line is damaged; with file and line.
    """
    items = []
    for number, row in enumerate(read_records(path), 1):
        item = {"kind": "items", "language": "en"} | {name: row[name] for name in _FIELDS if name in row}
        if not {"prompt", "answer"} <= item.keys():
            raise DataError(f'{path}: item {number}: expected {{"prompt": "...", "answer": "..."}}')
        if not all(isinstance(value, str) for value in item.values()) or not normalise(item["answer"]):
            raise DataError(
                f"{path}: item {number}: prompt, answer, kind and language must be text, and the answer not empty"
            )
        items.append(item)
    if not items:
        raise DataError(f"{path}: no items")
    return items


def normalise(text: str) -> str:
    """What is compared: Unicode forms, case, spaces, the style of commas, and marks at the edges do not count."""
    text = unicodedata.normalize("NFKC", text).casefold().strip(_EDGES + "\n\t")
    return _SPACES.sub(" ", _COMMAS.sub(",", text))


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    answer = normalise(outputs[-1].text)
    return Verdict({"accuracy": float(answer == normalise(question.target))}, answer or None)


def _question(item: Record, id: str) -> Question:
    return Question(id, item["prompt"], item["answer"], item["kind"], extra={"language": item["language"]})


def _same_kind(known: Sequence[Question], question: Question, count: int) -> list[Question]:
    """Those of the same kind and language."""
    wanted = (question.subset, question.extra["language"])
    same = [one for one in known if (one.subset, one.extra["language"]) == wanted]
    if len(same) < count:
        raise DataError(f"{count} examples are asked for, but '{wanted[0]}' in {wanted[1]} has {len(same)}")
    return same[:count]


def _plain(question: Question) -> str:
    before, after = _PLAIN.get(question.extra["language"], _PLAIN["en"])
    return f"{before}{question.text}{after}"


CHAT = Generation(
    prompt=lambda question: question.text,
    solution=lambda question: question.target,
    verdict=verdict,
    max_new_tokens=64,
)
PLAIN = Generation(
    prompt=_plain,
    solution=lambda question: f" {question.target}",
    verdict=verdict,
    chat=False,
    stop=("\n",),
    max_new_tokens=64,
)
