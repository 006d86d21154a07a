"""A run's steps on the screen: a table that grows over a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from puyulm.data.report.numbers import count, duration
from puyulm.train.metrics import StepFigures

if TYPE_CHECKING:
    from rich.text import Text

LINES_PER_SECOND = 10.0
GAP = "  "


class Screen(Protocol):
    """Where a person looks."""

    def step(self, figures: StepFigures) -> None:
        """Shows a step."""
        ...

    def say(self, text: str) -> None:
        """Shows a line of its own."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Leaves the screen to others for a while."""
        ...

    def close(self) -> None:
        """Leaves the screen as it should be."""
        ...


def open_screen(label: str, steps: int, every: int) -> Screen:
    """The live table where stderr is a terminal, else a plain line now and then.

    Args:
        label: What is being done.
        steps: Of the whole run.
        every: Steps between plain lines.
    """
    return LiveScreen(label, steps) if sys.stderr.isatty() else PlainScreen(label, every)


class PlainScreen:
    """Lines on stderr: of every so many steps, of the first and of the last."""

    def __init__(self, label: str, every: int) -> None:
        self._label, self._every, self._begun = label, every, False

    def step(self, figures: StepFigures) -> None:
        if not self._begun or figures.step % self._every == 0 or figures.step == figures.steps:
            self._begun = True
            self.say(plain_line(figures))

    def say(self, text: str) -> None:
        print(f"{self._label}: {text}", file=sys.stderr, flush=True)

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        pass


class LiveScreen:
    """A table with a line a step, and below it how far the run is.

    Where steps are so fast that nobody could read, some have no line; all are in the files.
    """

    def __init__(self, label: str, steps: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._label, self._steps = label, steps
        self._figures: StepFigures | None = None
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(get_renderable=self._status, console=self._console, transient=True, refresh_per_second=4)
        self._shown: Sequence[Column] = ()
        self._lines, self._last_line = 0, 0.0  # since the last heading; time of the last step's line
        self._live.start()

    def step(self, figures: StepFigures) -> None:
        before, self._figures = self._figures, figures
        now = time.monotonic()
        last = figures.step == figures.steps
        if now - self._last_line < 1 / LINES_PER_SECOND and not last and not figures.skipped:
            return
        self._last_line = now
        columns = fitting(columns_of(figures), self._console.width)
        new_phase = before is None or before.phase != figures.phase
        if new_phase and figures.phase:
            self._print(f"phase {figures.phase}", "bold")
        if new_phase or self._lines >= self._console.height - 4 or not _same(columns, self._shown):
            self._head(figures, columns)
        self._print(table_line(figures, columns), "yellow" if figures.skipped else "")

    def say(self, text: str) -> None:
        self._print(f"{self._label}: {text}", "", wrap=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def close(self) -> None:
        self._live.stop()

    def _head(self, figures: StepFigures, columns: Sequence[Column]) -> None:
        titles = {column.title for column in columns}
        hidden = {name: loss for name, loss in figures.sources_smoothed.items() if name not in titles}
        if hidden:
            losses = GAP.join(f"{name} {loss:.3f}" for name, loss in hidden.items())
            self._print(f"without a column: {losses}", "dim", wrap=True)
        self._print(GAP.join(column.title.rjust(column.width) for column in columns), "dim")
        self._shown, self._lines = columns, 0

    def _print(self, text: str, style: str, wrap: bool = False) -> None:
        self._lines += 1
        self._console.print(text, style=style or None, markup=False, soft_wrap=wrap, no_wrap=not wrap, crop=not wrap)

    def _status(self) -> Text:
        from rich.text import Text

        utf8 = self._console.encoding.lower().startswith("utf")
        return Text(status(self._figures, self._label, self._steps, self._console.width, utf8), no_wrap=True)


class Column(NamedTuple):
    """A column of the table; of two, that of the smaller rank stays where there is no room for both."""

    title: str
    width: int
    rank: int
    text: Callable[[StepFigures], str]


def columns_of(figures: StepFigures) -> list[Column]:
    """All columns that this run has something for, in order."""
    digits = max(len(f"{figures.steps:,}"), 4)
    columns = [
        Column("step", digits, 0, lambda f: f"{f.step:,}"),
        Column("loss", 7, 1, lambda f: f"{f.loss:.4f}"),
        Column("smooth", 7, 8, lambda f: "" if f.smoothed is None else f"{f.smoothed:.4f}"),
        Column("lr", 7, 6, lambda f: short_rate(f.lr)),
        Column("norm", 6, 2, lambda f: short_norm(f.grad_norm)),
        Column("tokens/s", 8, 3, lambda f: short_count(f.tokens_per_second)),
    ]
    if figures.mfu is not None:
        columns.append(Column("MFU", 6, 4, lambda f: _percent(f.mfu)))
    if figures.mfu_causal is not None:
        columns.append(Column("causal", 6, 9, lambda f: _percent(f.mfu_causal)))
    columns += [
        Column("memory", 9, 7, lambda f: f"{f.memory_gib:.1f} GiB"),
        Column("time", 7, 5, lambda f: short_time(f.seconds)),
        Column("waiting", 7, 10, lambda f: _percent(f.data_seconds / f.seconds)),
    ]
    for number, name in enumerate(figures.sources_smoothed):
        columns.append(Column(name, max(len(name), 6), 11 + number, partial(_loss_of, name)))
    return columns


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that there is room for, in order."""
    kept: list[Column] = []
    for column in sorted(columns, key=lambda column: column.rank):
        if sum(other.width + len(GAP) for other in kept) + column.width > width:
            break
        kept.append(column)
    return [column for column in columns if column in kept]


def table_line(figures: StepFigures, columns: Sequence[Column]) -> str:
    """A step as a line of the table."""
    return GAP.join(column.text(figures).rjust(column.width) for column in columns)


def plain_line(figures: StepFigures) -> str:
    """A step in words."""
    of = f" of {figures.steps:,}" + (f" ({figures.phase})" if figures.phase else "")
    smoothed = "" if figures.smoothed is None else f" ({figures.smoothed:.4f} smoothed)"
    parts = [f"step {figures.step:,}{of}: loss {figures.loss:.4f}{smoothed}", f"lr {short_rate(figures.lr)}"]
    parts += [f"gradient norm {short_norm(figures.grad_norm)}", f"{short_count(figures.tokens_per_second)} tokens/s"]
    if figures.mfu is not None and figures.mfu_causal is not None:
        parts.append(f"MFU {_percent(figures.mfu)} (causal {_percent(figures.mfu_causal)})")
    elif figures.mfu_causal is not None:
        parts.append(f"causal MFU {_percent(figures.mfu_causal)}")
    waiting = f" ({_percent(figures.data_seconds / figures.seconds)} waiting for data)"
    parts += [f"{figures.memory_gib:.1f} GiB", f"{short_time(figures.seconds)}{waiting}"]
    parts += [f"{name} {loss:.3f}" for name, loss in figures.sources_smoothed.items()]
    if figures.left is not None:
        parts.append(f"{duration(figures.left)} left")
    return ", ".join(parts) + (", skipped" if figures.skipped else "")


def status(figures: StepFigures | None, label: str, steps: int, width: int, utf8: bool = True) -> str:
    """How far the run is, in one line."""
    if figures is None:
        return f"{label}: the first of {steps:,} steps"[:width]
    done = figures.step / max(figures.steps, 1)
    head = f"{label} {figures.phase}".rstrip()
    tail = f"{100 * done:.1f} %{GAP}{figures.step:,} of {figures.steps:,}"
    for more in (
        "" if figures.left is None else f"{GAP}{duration(figures.left)} left",
        f"{GAP}{count(figures.tokens)} tokens",
    ):
        if len(head) + len(tail) + len(more) + 12 <= width:
            tail += more
    room = min(width - len(head) - len(tail) - 2 * len(GAP), 60)
    bar = GAP + _bar(done, room, utf8) if room >= 6 else ""
    return f"{head}{bar}{GAP}{tail}"[:width]


def short_rate(lr: float) -> str:
    """A learning rate in three digits."""
    return f"{lr:.2e}".replace("e-0", "e-") if lr else "0"


def short_norm(norm: float) -> str:
    """A gradient norm in at most six columns."""
    return f"{norm:.3f}" if norm < 10 else f"{norm:.1f}" if norm < 1000 else f"{norm:.0e}"


def short_count(number: float) -> str:
    """A rate with at most seven columns: 1,234 or 56.7 k."""
    return f"{number:,.0f}" if number < 100_000 else count(number)


def short_time(seconds: float) -> str:
    """The time of a step in at most seven columns: 87 ms, 1.23 s, 754 s."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _loss_of(source: str, figures: StepFigures) -> str:
    loss = figures.sources_smoothed.get(source)
    return "" if loss is None else f"{loss:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _bar(done: float, width: int, utf8: bool) -> str:
    full = round(min(max(done, 0.0), 1.0) * width)
    return ("━" * full + "─" * (width - full)) if utf8 else ("#" * full + "-" * (width - full))


def _same(columns: Sequence[Column], others: Sequence[Column]) -> bool:
    return [(column.title, column.width) for column in columns] == [(column.title, column.width) for column in others]
