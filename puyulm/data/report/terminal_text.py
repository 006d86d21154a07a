"""A text in rows of a terminal: wrapped as far as it is looked at, wide characters counted as two columns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

from puyulm.data.report.visible import one_for_one

TAB = 4
Row = tuple[int, int]


class WrappedText:
    """A text in rows.

    Args:
        source: The text.
        width: Columns, 4 or more.

    A row is (start, end) in the text, without the line feed. Lines break at spaces, before and after wide characters,
    and inside a word only where it is wider than a row.
    """

    def __init__(self, source: str, width: int) -> None:
        self.source, self.width = source, max(width, 4)
        self._rows: list[Row] = []
        self._more = self._wrap()

    def row(self, i: int) -> Row | None:
        """Row `i` from 0; None beyond the last."""
        while len(self._rows) <= i:
            row = next(self._more, None)
            if row is None:
                return None
            self._rows.append(row)
        return self._rows[i] if i >= 0 else None

    def num_rows(self) -> int:
        """All rows; wraps the whole text."""
        self._rows += self._more
        return len(self._rows)

    def last_row(self) -> Row | None:
        """The last of the rows that were made so far."""
        return self._rows[-1] if self._rows else None

    def last_top(self, rows: int, wanted: int) -> int:
        """The first row of a screen of `rows` that begins at `wanted`, or before it so that the screen is full."""
        if self.row(wanted + rows - 1) is not None:
            return wanted
        return min(wanted, max(len(self._rows) - rows, 0))

    def row_of(self, offset: int) -> int:
        """The row that holds a character."""
        low, high = 0, len(self._rows)
        if high and self._rows[-1][1] > offset:
            while low < high - 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._rows[middle][0] <= offset else (low, middle)
            return low
        i = max(high - 1, 0)
        while (row := self.row(i + 1)) is not None and row[0] <= offset:
            i += 1
        return i

    def fragments(self, row: Row, marks: Sequence[tuple[int, int, str]] = ()) -> list[tuple[str, str]]:
        """A row as (style, text), harmless for a terminal.

        Args:
            row: Which.
            marks: (start, end, style) of stretches of the whole text.
        """
        start, end = row
        marks = [mark for mark in marks if mark[0] < end and mark[1] > start]
        cuts = sorted({start, end, *(min(max(at, start), end) for mark in marks for at in mark[:2])})
        parts = []
        column = 0
        for a, b in itertools.pairwise(cuts):
            style = next((style for first, last, style in marks if first <= a and b <= last), "")
            shown = []
            for character in one_for_one(self.source[a:b]):
                if character == "\t":
                    step = TAB - column % TAB
                    shown.append(" " * step)
                    column += step
                else:
                    shown.append(character)
                    column += cells(character)
            parts.append((style, "".join(shown)))
        return parts

    def _wrap(self) -> Iterator[Row]:
        start, length = 0, len(self.source)
        while start < length:
            end = self.source.find("\n", start)
            end = length if end < 0 else end
            yield from self._wrap_line(start, end)
            start = end + 1
        if not length:
            yield (0, 0)

    def _wrap_line(self, start: int, end: int) -> Iterator[Row]:
        while True:
            cut = self._fill(start, end)
            yield (start, cut)
            if cut >= end:
                return
            start = cut + 1 if self.source[cut] == " " else cut

    def _fill(self, start: int, end: int) -> int:
        """Where the row that begins at `start` ends."""
        column, good = 0, -1
        for i in range(start, end):
            character = self.source[i]
            wide = TAB - column % TAB if character == "\t" else cells(character)
            if column + wide > self.width:
                if character == " ":
                    return i
                return good if good > start else max(i, start + 1)
            column += wide
            if character == " " or character == "\t":
                good = i + (character == "\t" or i == start)
            elif wide == 2:
                good = i + 1
            if i + 1 < end and cells(self.source[i + 1]) == 2:
                good = i + 1
        return end


def fitted(line: str, width: int) -> str:
    """A line that takes at most `width` columns, with "…" where it was cut."""
    column = 0
    for i, character in enumerate(line):
        column += cells(character)
        if column > width:
            kept = line[:i]
            while kept and sum(map(cells, kept)) > width - 1:
                kept = kept[:-1]
            return kept + "…"
    return line


@functools.lru_cache(1 << 16)
def cells(character: str) -> int:
    """Columns that a character takes, as it is shown: odd ones take one."""
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(one_for_one(character))
