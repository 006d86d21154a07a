"""Made rows of multiple-choice benchmarks, in their official files. The n-th answer is the letter n mod choices."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

COUNT = 12


def write_csv(file: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([list(header)] * bool(header) + [list(row) for row in rows])


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def sum_row(n: int, choices: int = 4) -> tuple[str, list[str], int]:
    """A question, its choices, and which is right."""
    right = n % choices
    return f"What is {n} plus {n}?", [f"the number {2 * n + place - right}" for place in range(choices)], right


def mmlu(folder: Path) -> None:
    for subject in ("anatomy", "virology"):
        for role in ("test", "dev"):
            rows = [[text, *choices, "ABCD"[right]] for text, choices, right in map(sum_row, range(COUNT))]
            write_csv(folder / "mmlu" / role / f"{subject}_{role}.csv", rows)


def cmmlu(folder: Path) -> None:
    for subject in ("anatomy", "virology"):
        for role in ("test", "dev"):
            rows = [[n, text, *choices, "ABCD"[r]] for n, (text, choices, r) in enumerate(map(sum_row, range(COUNT)))]
            write_csv(folder / "cmmlu" / role / f"{subject}.csv", rows, ["", "Question", *"ABCD", "Answer"])


def ceval(folder: Path) -> None:
    for subject in ("logic", "law"):
        for role in ("val", "dev"):
            rows = [[n, text, *choices, "ABCD"[r]] for n, (text, choices, r) in enumerate(map(sum_row, range(COUNT)))]
            write_csv(folder / "ceval" / role / f"{subject}_{role}.csv", rows, ["id", "question", *"ABCD", "answer"])


def gpqa(folder: Path) -> None:
    names = ["Record ID", "Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
    rows = [[f"rec{n}", f"Question {n}?", "right", "wrong", "false", "off"] for n in range(COUNT)]
    write_csv(folder / "gpqa" / "gpqa_main.csv", rows, names)
    write_csv(folder / "gpqa" / "gpqa_diamond.csv", rows[:4], names)


def arc(folder: Path) -> None:
    rows = []
    for n in range(COUNT):
        text, choices, right = sum_row(n)
        labels = "1234" if n % 2 else "ABCD"
        listed = [{"text": choice, "label": label} for choice, label in zip(choices, labels, strict=True)]
        rows.append({"id": f"q{n}", "question": {"stem": text, "choices": listed}, "answerKey": labels[right]})
    for name in ("ARC-Easy", "ARC-Challenge"):
        for split in ("Train", "Test"):
            write_jsonl(folder / "arc" / f"{name}-{split}.jsonl", rows)


def hellaswag(folder: Path) -> None:
    rows = [
        {
            "activity_label": "Adding numbers", "ctx_a": f"[header] How to add {n} [title] Take two numbers.",
            "ctx_b": "the sum", "endings": [f"is  {text}. [step] Write it down" for text in sum_row(n)[1]],
            "label": sum_row(n)[2],
        }
        for n in range(COUNT)
    ]  # fmt: skip
    for split in ("val", "train"):
        write_jsonl(folder / "hellaswag" / f"hellaswag_{split}.jsonl", rows)


def winogrande(folder: Path) -> None:
    rows = [
        {
            "qID": f"id-{n}", "sentence": f"The box {n} did not fit into the bag because the _ was too big.",
            "option1": "box", "option2": "bag", "answer": str(n % 2 + 1),
        }
        for n in range(COUNT)
    ]  # fmt: skip
    for name in ("dev", "train_xl"):
        write_jsonl(folder / "winogrande" / f"{name}.jsonl", rows)


def piqa(folder: Path) -> None:
    rows = [{"goal": f"To {n}", "sol1": f"Walk to {n}.", "sol2": f"Sit on {n}.", "label": n % 2} for n in range(COUNT)]
    for name in ("valid", "train"):
        write_jsonl(folder / "piqa" / f"{name}.jsonl", rows)


WRITERS: dict[str, Callable[[Path], None]] = {
    "mmlu": mmlu, "cmmlu": cmmlu, "ceval": ceval, "gpqa": gpqa, "gpqa_diamond": gpqa, "arc_easy": arc,
    "arc_challenge": arc, "hellaswag": hellaswag, "winogrande": winogrande, "piqa": piqa,
}  # fmt: skip
