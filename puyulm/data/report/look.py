"""Paging through records on a terminal, with search."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from puyulm.data.report.numbers import count
from puyulm.data.report.record_text import header, metadata_text, one_line
from puyulm.data.report.records import Record, Records
from puyulm.data.report.terminal_text import WrappedText, fitted

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import Output

HELP = "n/p next/previous  PgUp/PgDn scroll  / search  g go to  r same reason  m metadata  q quit"
SLICE_SECONDS = 0.05  # of reading, before keys are looked at again

Fragments = list[tuple[str, str]]


def search_pattern(words: str) -> re.Pattern[str]:
    """What to look for: a regular expression, or plain text where it is none; small letters match capitals too."""
    flags = re.IGNORECASE if words == words.lower() else re.NOFLAG
    try:
        return re.compile(words, flags)
    except re.error:
        return re.compile(re.escape(words), flags)


def _advance(work: Iterator[str]) -> bool:
    """Does work for a moment; whether it is finished."""
    started = time.monotonic()
    while time.monotonic() - started < SLICE_SECONDS:
        if next(work, None) is None:
            return True
    return False


def look(records: Records, title: str, input: Input | None = None, output: Output | None = None) -> None:
    """Pages through records on a full screen until the user leaves.

    Args:
        records: Which; they are read as far as they are looked at.
        title: What to call them.
        input, output: Of the terminal; the real one if None.
    """
    viewer = Viewer(records, title, input, output)
    viewer.application.run(pre_run=viewer.start)


@dataclass
class _Match:
    """Where in the current record the search stands."""

    record: int
    start: int
    end: int


class Viewer:
    """The full-screen application.

    Args:
        records: To page through.
        title: Shown at the top.
        input, output: Of the terminal; the real one if None.

    Attributes:
        application: Of prompt_toolkit; `run(pre_run=viewer.start)` it.
        current: Number of the record on the screen; 0 before the first is read.
    """

    def __init__(self, records: Records, title: str, input: Input | None = None, output: Output | None = None) -> None:
        from prompt_toolkit.buffer import Buffer

        self.records, self.title = records, one_line(title)
        self.current, self.status, self.show_metadata = 0, "", False
        self._top = 0  # row of the text at the top of the screen
        self._wrapped: WrappedText | None = None
        self._header: tuple[Record, list[tuple[str, str]]] | None = None
        self._pattern: re.Pattern[str] | None = None
        self._match: _Match | None = None
        self._job: asyncio.Task[None] | None = None
        self._asking = ""
        self._prompt = Buffer(multiline=False, accept_handler=self._answered)
        self.application = self._make(input, output)

    # What is on the screen.

    def _make(self, input: Input | None, output: Output | None) -> Application[None]:
        from prompt_toolkit.application import Application
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, VSplit, Window
        from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl
        from prompt_toolkit.layout.dimension import Dimension
        from prompt_toolkit.styles import Style

        def lines(text: Callable[[], Any], height: Callable[[], int] | None = None, style: str = "") -> Window:
            wanted = (lambda: Dimension.exact(height())) if height is not None else None
            return Window(FormattedTextControl(text), height=wanted, style=style)

        asking = Condition(lambda: bool(self._asking))
        label = Window(FormattedTextControl(lambda: f" {self._asking}: "), dont_extend_width=True, height=1)
        rule = Window(height=1, char="─", style="class:rule")
        self._prompt_window = Window(BufferControl(self._prompt), height=1)
        self._body = lines(self._text_fragments)
        root = HSplit([
            lines(self._header_fragments, lambda: len(self._header_lines())), rule, self._body,
            ConditionalContainer(VSplit([label, self._prompt_window]), asking),
            lines(self._status_fragments, lambda: 1, "class:status"),
        ])  # fmt: skip
        style = Style([
            ("place", "bold"), ("id", "ansicyan"), ("url", "ansiblue"), ("dropped", "ansired"),
            ("rule", "ansibrightblack"), ("status", "reverse"), ("match", "reverse"),
            ("match.current", "bg:ansiyellow fg:ansiblack"),
        ])  # fmt: skip
        application: Application[None] = Application(
            Layout(root, self._body), key_bindings=self._keys(), style=style, full_screen=True, input=input,
            output=output,
        )  # fmt: skip
        return application

    def start(self) -> None:
        """Shows the first record; to be called when the application runs."""
        self.go(1, lambda record: True, "")

    def _record(self) -> Record | None:
        return self.records.get(self.current) if self.current else None

    def _header_lines(self) -> list[tuple[str, str]]:
        record = self._record()
        if record is None:
            return [("class:place", self.title)]
        end = "" if self.records.complete else "+"
        if self._header is None or self._header[0] is not record:
            self._header = (record, header(record))
        (style, place), *others = self._header[1]
        parts = [f"{record.number:,} of {self.records.seen:,}{end}", self.title, one_line(place)]
        first = "  ·  ".join(part for part in parts if part != self.title or not place.startswith(part))
        return [(style, first), *others]

    def _header_fragments(self) -> Fragments:
        columns = self._size()[0]
        fragments: Fragments = []
        for style, line in self._header_lines():
            fragments += [(style, fitted(line, columns)), ("", "\n")]
        return fragments[:-1]

    def _size(self) -> tuple[int, int]:
        """Columns and rows that the text has."""
        size = self.application.output.get_size()
        used = len(self._header_lines()) + 2 + bool(self._asking)
        return max(size.columns, 4), max(size.rows - used, 1)

    def _text(self) -> WrappedText | None:
        record = self._record()
        if record is None:
            return None
        columns, _ = self._size()
        text = metadata_text(record) if self.show_metadata or record.document is None else record.document.text
        if self._wrapped is None or self._wrapped.width != columns or self._wrapped.source != text:
            old = self._wrapped
            self._wrapped = WrappedText(text, columns)
            if old is not None and old.source == text:  # a new width: the same text stays at the top
                row = old.row(self._top)
                self._top = self._wrapped.row_of(row[0]) if row is not None else 0
        return self._wrapped

    def _text_fragments(self) -> Fragments:
        wrapped = self._text()
        if wrapped is None:
            return [("", "" if self._job is not None else "no records")]
        _, rows = self._size()
        self._top = max(min(self._top, wrapped.last_top(rows, self._top)), 0)
        marks = self._marks(wrapped, rows)
        fragments: Fragments = []
        for i in range(self._top, self._top + rows):
            if (row := wrapped.row(i)) is None:
                break
            fragments += [*wrapped.fragments(row, marks), ("", "\n")]
        return fragments[:-1]

    def _marks(self, wrapped: WrappedText, rows: int) -> list[tuple[int, int, str]]:
        """Matches of the search in the rows on the screen."""
        first, last = wrapped.row(self._top), wrapped.row(self._top + rows - 1) or wrapped.last_row()
        if self._pattern is None or first is None or last is None or self.show_metadata:
            return []
        marks = []
        current = self._match if self._match is not None and self._match.record == self.current else None
        for match in self._pattern.finditer(wrapped.source, max(first[0] - 1000, 0), last[1] + 1000):
            here = current is not None and current.start == match.start()
            marks.append((*match.span(), "class:match.current" if here else "class:match"))
        return marks

    def _status_fragments(self) -> Fragments:
        wrapped = self._text()
        _, rows = self._size()
        where = ""
        if wrapped is not None and wrapped.row(self._top + rows) is not None:
            end = wrapped.row(self._top + rows - 1)
            where = f"{100 * (end[1] if end else 0) // max(len(wrapped.source), 1)} %  "
        return [("", fitted(f" {where}{self.status or HELP}", self._size()[0]))]

    # Going from record to record.

    def go(self, start: int, wanted: Callable[[Record], bool], what: str, step: int = 1) -> None:
        """Shows the first wanted record from number `start` on; keys are served while it is looked for.

        Args:
            start: From 1; above the number of records, the last one is shown.
            wanted: Which.
            what: For the status line when there is none; empty to show the last record instead.
            step: 1 forward, -1 back.
        """
        self.stop()
        work = self._search(start, wanted, what, step)
        if not _advance(work):
            self._job = self.application.create_background_task(self._finish(work))
        self.application.invalidate()

    def stop(self) -> None:
        """Ends a search that is under way."""
        if self._job is not None:
            self._job.cancel()
            self._job = None

    def _search(self, number: int, wanted: Callable[[Record], bool], what: str, step: int) -> Iterator[str]:
        """Does a little of the work at a time; yields what to say of it."""
        while number >= 1:
            while number > self.records.seen and self.records.more():
                yield f"reading … {count(self.records.seen)} records (Esc stops)"
            record = self.records.get(number)
            if record is None:
                break
            if wanted(record):
                self._show(number)
                return
            number += step
            yield f"{what}: looking … at record {number:,} (Esc stops)"
        if not what and self.records.seen:
            self._show(self.records.seen)
        self.status = f"{what}: no more from here" if what else self.status

    async def _finish(self, work: Iterator[str]) -> None:
        """Goes on with work that takes long, a slice at a time, with time for keys between them."""
        while (said := next(work, None)) is not None:
            self.status = said
            self.application.invalidate()
            await asyncio.sleep(0.001)
            if _advance(work):
                break
        self._job = None
        self.application.invalidate()

    def _show(self, number: int) -> None:
        if number != self.current:
            self.current, self._top, self._wrapped = number, 0, None
        self.status = ""
        self.application.invalidate()

    def find(self, words: str) -> None:
        """Goes to the next match, in the current record or in one after it; of empty words, of the last search."""
        if words:
            self._pattern = search_pattern(words)
            self._match = None
        if self._pattern is None:
            return
        self.show_metadata = False
        pattern = self._pattern
        old = self._match if self._match is not None and self._match.record == self.current else None

        def matches(record: Record) -> bool:
            if record.document is None:
                return False
            after = old.end if old is not None and record.number == self.current else 0
            if old is not None and old.end == old.start:
                after += 1  # past an empty match
            if (match := pattern.search(record.document.text, after)) is None:
                return False
            self._match = _Match(record.number, *match.span())
            self._scroll_to(record.number, match.start())
            return True

        self.go(max(self.current, 1), matches, f"{pattern.pattern!r}")

    def _scroll_to(self, number: int, offset: int) -> None:
        self._show(number)
        if (wrapped := self._text()) is not None:
            _, rows = self._size()
            self._top = max(wrapped.row_of(offset) - rows // 3, 0)

    # Keys.

    def _ask(self, what: str) -> None:
        self.stop()
        self._asking, self.status = what, ""
        self._prompt.reset()
        self.application.layout.focus(self._prompt_window)

    def _answered(self, buffer: Any) -> bool:
        asked, answer = self._asking, buffer.text
        self._leave_prompt()
        if asked == "search":
            self.find(answer)
        elif (digits := answer.strip().replace(",", "")).isdecimal():
            self.go(max(int(digits[:15]), 1), lambda record: True, "")
        elif answer.strip():
            self.status = "give the number of a record"
        return False

    def _leave_prompt(self) -> None:
        self._asking = ""
        self.application.layout.focus(self._body)

    def _same_reason(self) -> None:
        record = self._record()
        if record is None or not record.reason:
            self.status = "this record was not dropped: there is no reason to look for"
            return
        self.go(self.current + 1, lambda other: other.reason == record.reason, f"dropped: {one_line(record.reason)}")

    def _scroll(self, rows: int) -> None:
        self._top = max(self._top + rows, 0)

    def _end(self) -> None:
        if (wrapped := self._text()) is not None:
            self._top = wrapped.num_rows()

    def _toggle_metadata(self) -> None:
        self.show_metadata = not self.show_metadata
        self._top, self._wrapped = 0, None

    def _keys(self) -> KeyBindings:
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        reading, asking = Condition(lambda: not self._asking), Condition(lambda: bool(self._asking))
        page = lambda: max(self._size()[1] - 2, 1)  # noqa: E731 - two rows stay in sight
        actions: list[tuple[tuple[str, ...], Callable[[], None]]] = [
            (("n", "right"), lambda: self.go(self.current + 1, lambda record: True, "next")),
            (("p", "left"), lambda: self.go(self.current - 1, lambda record: True, "previous", -1)),
            (("pagedown", " "), lambda: self._scroll(page())),
            (("pageup", "b"), lambda: self._scroll(-page())),
            (("down", "j"), lambda: self._scroll(1)),
            (("up", "k"), lambda: self._scroll(-1)),
            (("home",), lambda: self._scroll(-self._top)),
            (("end",), self._end),
            (("/",), lambda: self._ask("search")),
            (("g",), lambda: self._ask("record number")),
            (("r",), self._same_reason),
            (("m",), self._toggle_metadata),
            (("escape",), lambda: None),
            (("q", "c-c"), lambda: self.application.exit()),
        ]
        for names, action in actions:
            for name in names:
                keys.add(name, filter=reading, eager=name == "escape")(self._handler(action))
        keys.add("escape", filter=asking, eager=True)(lambda event: self._leave_prompt())
        keys.add("c-c", filter=asking)(lambda event: self._leave_prompt())
        return keys

    def _handler(self, action: Callable[[], None]) -> Callable[[Any], None]:
        def handle(event: Any) -> None:
            self.stop()
            self.status = ""
            action()

        return handle
