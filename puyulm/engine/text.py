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
    """Follows an answer token by token and decides what of it may be shown (`AnswerText` is the plain one,
    `puyulm.engine.chat_answer.ChatAnswer` the one that knows thoughts and calls)."""

    @property
    def text(self) -> str: ...

    @property
    def stopped(self) -> bool: ...

    @property
    def stopped_by(self) -> str | None: ...

    def push(self, id: int, may_stop: bool = True) -> str: ...

    def finish(self) -> str: ...


class StopScanner:
    """Lets text pass until a stop text comes.

    Text that may turn out to be the beginning of a stop text is held back, so that no part of a stop text is ever
    shown.

    Attributes:
        stopped_by: The stop text that was found; text ends before it. The one that is complete first counts.
    """

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self.stopped_by: str | None = None
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=1)
        self._held = ""

    @property
    def stopped(self) -> bool:
        return self.stopped_by is not None

    def feed(self, piece: str, may_stop: bool = True) -> str:
        """Adds text; returns what may be shown. With `may_stop=False` stop texts pass as ordinary text."""
        return self._release(piece, may_stop, final=False)

    def flush(self, may_stop: bool = True) -> str:
        """What was held back, if nothing follows it."""
        return self._release("", may_stop, final=True)

    def _release(self, piece: str, may_stop: bool, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += piece
        # (end, begin, which) of each stop text's first place: the least is the one that a reader meets first, however
        # the text was cut into tokens.
        found = [(begin + len(stop), begin, stop) for stop in self._stop if (begin := self._held.find(stop)) >= 0]
        if found and may_stop:
            _, keep, self.stopped_by = min(found)
        else:
            keep = len(self._held) - (0 if final else self._undecided())
            keep = max([keep, *(end for end, _, _ in found)])
        shown, self._held = self._held[:keep], self._held[keep:]
        return shown

    def _undecided(self) -> int:
        """Characters at the end that a stop text may begin with."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0


class AnswerText:
    """The text of one answer, special tokens and all else alike.

    Attributes:
        text: All that was given out so far. Where a stop text was found it ends before it.

    Args:
        decoder: Fresh, for this answer alone.
        stop: Texts that end the answer; the one that is complete first counts.
    """

    def __init__(self, decoder: PieceDecoder, stop: Iterable[str] = ()) -> None:
        self.text = ""
        self._decoder = decoder
        self._scanner = StopScanner(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found."""
        return self._scanner.stopped

    @property
    def stopped_by(self) -> str | None:
        """Which it was."""
        return self._scanner.stopped_by

    def push(self, id: int, may_stop: bool = True) -> str:
        """Adds a token.

        Args:
            may_stop: False lets a stop text pass as ordinary text.

        Returns:
            The text that may be shown now.
        """
        return self._show(self._scanner.feed(self._decoder.push(id), may_stop))

    def finish(self) -> str:
        """Ends the answer: what was held back, unless a stop text began there."""
        if self.stopped:
            return ""
        return self._show(self._scanner.feed(self._decoder.flush()) + self._scanner.flush())

    def _show(self, text: str) -> str:
        self.text += text
        return text
