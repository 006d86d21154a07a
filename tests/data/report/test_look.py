"""Texts in rows, and the viewer driven by keys: what stands on the screen, and that texts cannot steer the terminal."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output

from puyulm.data.documents import Document, write_documents
from puyulm.data.report import look as look_module
from puyulm.data.report.look import Viewer, search_pattern
from puyulm.data.report.records import open_records
from puyulm.data.report.terminal_text import WrappedText, cells, fitted

TEXTS = st.text(st.sampled_from("ab  c\n\t浦语，e\u0301\x1b\u202e👩.-"), max_size=120)


def shown(wrapped: WrappedText, row: tuple[int, int]) -> str:
    return "".join(text for _, text in wrapped.fragments(row))


@given(TEXTS, st.integers(4, 12))
def test_rows_are_the_text_and_fit(text: str, width: int) -> None:
    wrapped = WrappedText(text, width)
    number = wrapped.num_rows()
    rows = [row for i in range(number) if (row := wrapped.row(i)) is not None]
    assert number >= 1 and wrapped.row(number) is None
    position = 0
    for start, end in rows:
        assert text[position:start] in ("", " ", "\n")  # a break takes one space or line feed at most
        position = end
    assert text[position:] in ("", "\n")
    for row in rows:
        assert sum(map(cells, shown(wrapped, row))) <= width
        assert "\n" not in text[slice(*row)]


@given(TEXTS, st.integers(4, 12))
def test_rows_of_characters(text: str, width: int) -> None:
    fresh, whole = WrappedText(text, width), WrappedText(text, width)
    whole.num_rows()
    for offset in range(len(text)):
        expected = max(i for i in range(whole.num_rows()) if whole.row(i)[0] <= offset)  # type: ignore[index]
        assert whole.row_of(offset) == expected == fresh.row_of(offset)


def test_words_stay_whole() -> None:
    wrapped = WrappedText("the old harbour\n\nabcdefghijkl 浦语模型ab", 8)
    wrapped.num_rows()
    rows = [shown(wrapped, row) for row in wrapped._rows]
    assert rows == ["the old", "harbour", "", "abcdefgh", "ijkl 浦", "语模型ab"]


def test_wrapping_is_lazy() -> None:
    wrapped = WrappedText("word " * 1_000_000, 40)
    assert wrapped.row(10) is not None and len(wrapped._rows) == 11
    assert wrapped.last_top(20, 5) == 5 and len(wrapped._rows) == 25


def test_lines_are_fitted_by_columns() -> None:
    assert fitted("abc", 3) == "abc"
    assert fitted("abcd", 3) == "ab…"
    assert fitted("浦语模型", 5) == "浦语…"


def test_search_patterns() -> None:
    assert search_pattern("harbour").search("The HARBOUR")
    assert not search_pattern("Harbour").search("harbour")
    assert search_pattern(r"\d{4}").search("in 1998")
    assert search_pattern("a[b").search("x A[b")  # no regular expression: plain text


class Driver:
    """A viewer that runs on a made-up terminal, and what stands on its screen."""

    def __init__(self, viewer: Viewer, pipe: Any) -> None:
        self.viewer, self._pipe = viewer, pipe

    def screen(self) -> str:
        screen = self.viewer.application.renderer.last_rendered_screen
        if screen is None:
            return ""
        size = self.viewer.application.output.get_size()
        return "\n".join(
            "".join(screen.data_buffer[y][x].char for x in range(size.columns)).rstrip() for y in range(size.rows)
        )

    async def press(self, keys: str, until: Callable[[], bool]) -> None:
        self._pipe.send_text(keys)
        for _ in range(20_000):
            await asyncio.sleep(0)
            if until():
                return
        raise AssertionError(f"after {keys!r}:\n{self.screen()}")

    async def see(self, keys: str, *words: str) -> None:
        await self.press(keys, lambda: all(word in self.screen() for word in words))


class Screen(DummyOutput):
    def __init__(self, columns: int, rows: int) -> None:
        self.size = Size(rows=rows, columns=columns)

    def get_size(self) -> Size:
        return self.size


def drive(path: Path, steps: Callable[[Driver], Coroutine[Any, Any, None]], output: Any = None, **options: Any) -> None:
    async def main() -> None:
        with create_pipe_input() as pipe:
            viewer = Viewer(open_records(path, **options), path.name, pipe, output or Screen(100, 14))
            running = asyncio.ensure_future(viewer.application.run_async(pre_run=viewer.start))
            driver = Driver(viewer, pipe)
            try:
                await driver.press("", lambda: viewer.application.renderer.last_rendered_screen is not None)
                await steps(driver)
                await driver.press("q", running.done)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    made = []
    for i in range(40):
        reason = {"dropped": "gopher: few words" if i % 10 == 3 else "c4: curly"} if i % 2 else {}
        text = "\n".join(f"line {k} of {i} 浦语" for k in range(30)) + (" needle" if i in (5, 25) else "")
        made.append(Document(f"id{i}", text, "en", "web", f"http://x/{i}", scores={"fluency": 0.5}, metadata=reason))
    write_documents(tmp_path / "a.jsonl.zst", made)
    return tmp_path / "a.jsonl.zst"


def test_paging_and_scrolling(shard: Path) -> None:
    async def steps(d: Driver) -> None:
        await d.see(
            "", "1 of 1+  ·  a.jsonl.zst, line 1", "id0", "web · en", "http://x/0", "line 0 of 0 浦语", "q quit"
        )
        await d.see("n", "2 of 2+", "id1", "dropped: c4: curly", "line 0 of 1")
        await d.see("\x1b[C", "3 of 3+")  # right
        await d.see("\x1b[D", "2 of 3+")  # left
        await d.see("p", "1 of 3+")
        await d.see("p", "previous: no more from here")
        await d.see("\x1b[6~", "line 11 of 0")  # page down: two of seven rows stay
        assert "line 5 of 0" in d.screen() and "line 4 of 0" not in d.screen()
        await d.see("\x1b[B", "line 12 of 0")
        await d.see("\x1b[5~\x1b[5~", "line 0 of 0")
        await d.see("\x1b[F", "line 29 of 0")  # end
        await d.see("\x1b[H", "line 0 of 0")
        await d.see("nnnnnn", "7 of 7+", "id6")  # none of six quick keys is lost

    drive(shard, steps)


def test_search(shard: Path) -> None:
    async def steps(d: Driver) -> None:
        await d.see("/needle\r", "6 of 6+", "line 29 of 5 浦语 needle")
        await d.see("/\r", "26 of 26+", "line 29 of 25 浦语 needle")
        await d.see("/\r", "'needle': no more from here")
        assert d.viewer.current == 26 and d.viewer.records.complete
        await d.see("g1\r", "1 of 40 ")
        await d.see("/LINE 7\r", "no more from here")  # capitals count
        await d.see("/line [78] of 0\r", "line 7 of 0")
        assert d.viewer._match is not None
        first = d.viewer._match.start
        await d.press("/\r", lambda: d.viewer._match is not None and d.viewer._match.start > first)
        assert d.viewer.current == 1

    drive(shard, steps)


def test_going_to_numbers_and_reasons(shard: Path) -> None:
    async def steps(d: Driver) -> None:
        await d.see("r", "this record was not dropped")
        await d.see("g14\r", "14 of 14+", "dropped: gopher: few words")
        await d.see("r", "24 of 24+")
        await d.see("r", "34 of 34+")
        await d.see("r", "no more from here")
        await d.see("g9,999\r", "40 of 40 ")
        await d.see("gx\r", "give the number of a record")
        await d.see("g0\r", "1 of 40 ")
        await d.see("m", '"fluency": 0.5')
        await d.see("m", "line 0 of 0")

    drive(shard, steps)


def test_a_long_search_leaves_time_for_keys(shard: Path, monkeypatch) -> None:
    monkeypatch.setattr(look_module, "SLICE_SECONDS", 0.0)  # every record is a slice

    async def steps(d: Driver) -> None:
        await d.see("", "1 of 1+")
        await d.press("/nowhere\r", lambda: d.viewer._job is not None and d.viewer.records.seen > 3)
        await d.press("m", lambda: d.viewer._job is None)
        assert d.viewer.records.seen < 40 and d.viewer.current == 1
        await d.see("m/needle\r", "6 of ")

    drive(shard, steps)


def test_reasons_are_chosen(tmp_path: Path, shard: Path) -> None:
    async def steps(d: Driver) -> None:
        await d.see("", "1 of 1+", "id3")
        await d.see("n", "2 of 2+", "id13")
        await d.see("nnnn", "no more from here", "4 of 4 ")

    drive(shard, steps, reason="few")


def test_an_empty_file_and_records_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text("broken\n")

    async def empty(d: Driver) -> None:
        await d.see("n/x\rr", "no records")

    async def broken(d: Driver) -> None:
        await d.see("", "cannot be read", "line 1: not JSON")
        await d.see("/x\rm", "1 of 1")

    drive(tmp_path / "a.jsonl", empty)
    drive(tmp_path / "b.jsonl", broken)


def test_a_new_width_keeps_the_place(shard: Path) -> None:
    output = Screen(100, 14)

    async def steps(d: Driver) -> None:
        await d.see("\x1b[6~", "line 6 of 0")
        output.size = Size(rows=14, columns=10)
        d.viewer.application.invalidate()
        await d.press("", lambda: "line 5 of" in d.screen().split("──────────\n")[-1].split("\n")[0])

    drive(shard, steps, output)


def test_texts_do_not_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2Jx\x9b31m\u202eevil\ud800\x00"
    document = Document(
        evil, f"{evil}\n{evil}", evil, evil, evil, scores={evil: 1.0}, metadata={"dropped": evil, "k": evil}
    )
    write_documents(tmp_path / "a.jsonl", [document, replace(document, id="second")])
    written = io.StringIO()
    output = Vt100_Output(written, lambda: Size(rows=20, columns=70), term="xterm")

    async def steps(d: Driver) -> None:
        await d.see("", "owned", "evil")
        await d.see("m", "metadata")
        await d.see("mn/evil\r", "second")

    drive(tmp_path / "a.jsonl", steps, output)
    for bad in ("\x1b]0;owned", "\x9b", "\u202e", "\ud800", "\x00", "\x07"):
        assert bad not in written.getvalue()
    assert "␛]0;owned␇" in written.getvalue()
