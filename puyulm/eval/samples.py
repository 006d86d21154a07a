"""Finished samples on disk: jsonl, a line each, written as they come, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TextIO

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question, Sample


class SampleFile:
    """The samples of one key, of all processes that work on them.

    Each process appends to a file of its own; all files of the key are read. A sample counts only if the question, and
    what the model was given with it, was the same.

    Args:
        folder: Where files lie.
        key: What the samples belong to; its digest is part of the files' names.
        stamp: Of a question: changes with whatever its sample depends on.
        part: This process's number.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], stamp: Callable[[Question], str], part: int = 0) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:12]
        self._folder, self._stem = folder, f"{key['task']}-{digest}"
        self.path = folder / f"{self._stem}.{part}.jsonl"
        self._stamp, self._stamps = stamp, dict[str, str]()
        self._lock = threading.Lock()
        self._file: TextIO | None = None

    def read(self, questions: Iterable[Question]) -> dict[tuple[str, int], Sample]:
        """What is finished, by id and repeat. The unfinished last line of a killed process is passed over."""
        self._stamps |= {question.id: self._stamp(question) for question in questions}
        found: dict[tuple[str, int], Sample] = {}
        for file in sorted(self._folder.glob(f"{self._stem}.*.jsonl")):
            lines = file.read_bytes().split(b"\n")
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    stamp, sample = row.pop("question"), Sample(**row | {"outputs": tuple(row["outputs"])})
                except (ValueError, TypeError, KeyError, AttributeError):
                    if number == len(lines):  # cut off
                        continue
                    raise DataError(f"{file}:{number}: not a sample; remove the line or the file") from None
                if self._stamps.get(sample.id) == stamp:
                    found[sample.id, sample.repeat] = sample
        return found

    def write(self, question: Question, sample: Sample) -> None:
        """Adds a sample; from any thread."""
        row = {"question": self._stamps.get(question.id) or self._stamp(question), **asdict(sample)}
        with self._lock:
            if self._file is None:
                self._file = self._open()
            self._file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            self._file.flush()

    def _open(self) -> TextIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file() and (content := self.path.read_bytes()) and not content.endswith(b"\n"):
            self.path.write_bytes(content[: content.rfind(b"\n") + 1])  # what a killed process left of its last line
        return self.path.open("a", encoding="utf-8", errors="backslashreplace")

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
