"""Answers as they grow: tokens to text, and stop texts honoured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class PieceDecoder(Protocol):
    """Turns token ids into text piece by piece, holding back incomplete characters
    (`puyulm.text.stream.StreamDecoder` is one)."""

    def push(self, id: int) -> str: ...

    def flush(self) -> str: ...


class AnswerReader(Protocol):
    """Follows an answer token by token and decides what of it may be shown (`AnswerText` is the plain one)."""

    text: str
    stopped: bool
    stopped_by: str | None

    def push(self, id: int, may_stop: bool = True) -> str: ...

    def finish(self) -> str: ...


class AnswerText:
    """The text of one answer.

    Text that may turn out to be the beginning of a stop text is held back, so that no part of a stop text is ever
    shown.

    Attributes:
        text: All that was given out so far.
        stopped: Whether a stop text was found; the text ends before it.
        stopped_by: Which it was.

    Args:
        decoder: Fresh, for this answer alone.
        stop: Texts that end the answer; the one that is complete first counts.
    """

    def __init__(self, decoder: PieceDecoder, stop: Iterable[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self.stopped_by: str | None = None
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""

    def push(self, id: int, may_stop: bool = True) -> str:
        """Adds a token.

        Args:
            may_stop: False lets a stop text pass as ordinary text.

        Returns:
            The text that may be shown now.
        """
        return self._release(self._decoder.push(id), may_stop, final=False)

    def finish(self) -> str:
        """Ends the answer: what was held back, unless a stop text began there."""
        return "" if self.stopped else self._release(self._decoder.flush(), may_stop=True, final=True)

    def _release(self, piece: str, may_stop: bool, final: bool) -> str:
        self._held += piece
        # (end, begin) of each stop text's first place: the least is the one that a reader meets first, however the
        # text was cut into tokens.
        found = [(begin + len(stop), begin) for stop in self._stop if (begin := self._held.find(stop)) >= 0]
        if found and may_stop:
            end, keep = min(found)
            self.stopped, self.stopped_by = True, self._held[keep:end]
        else:
            keep = len(self._held) - (0 if final else self._undecided())
            keep = max([keep, *(end for end, _ in found)])
        shown, self._held = self._held[:keep], self._held[keep:]
        self.text += shown
        return shown

    def _undecided(self) -> int:
        """Characters at the end that a stop text may begin with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
