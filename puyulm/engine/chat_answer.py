"""A chat model's answer as it grows: text, thoughts and calls as events, and stop texts that count in text alone."""

from __future__ import annotations

from collections.abc import Iterable

from puyulm.engine.text import StopScanner
from puyulm.text.formats import ChatFormat
from puyulm.text.messages import Message
from puyulm.text.parse import AnswerParser, CallEnd, Event, TextDelta, message_of
from puyulm.text.tokenizer import Tokenizer


class ChatAnswer:
    """The message that one answer is.

    What `message` says is the sum of all events, whenever they are taken, and depends on the answer's ids alone. A stop
    text ends the message where it begins in the content; thoughts, code and calls may hold it. It counts within one
    stretch of content: a call between two of its halves keeps them apart.

    Attributes:
        text: The content that was given out so far.

    Args:
        stop: Texts that end the answer; the one that is complete first counts.
        in_reasoning: The prompt ended inside the thoughts (with `<think>`), so the answer starts there.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat_format: ChatFormat, stop: Iterable[str] = (), *, in_reasoning: bool = False
    ) -> None:
        self.text = ""
        self._parser = AnswerParser(tokenizer, chat_format, in_reasoning=in_reasoning)
        self._stop = tuple(stop)
        self._scanner = StopScanner(self._stop)
        self._events: list[Event] = []
        self._taken = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found."""
        return self._scanner.stopped

    @property
    def stopped_by(self) -> str | None:
        """Which it was."""
        return self._scanner.stopped_by

    @property
    def message(self) -> Message:
        """What is settled so far; after `finish`, the whole answer."""
        return message_of(self._events)

    def take_events(self) -> list[Event]:
        """The events since the last time."""
        end = len(self._events)  # read once: a server takes events in another thread than the one that adds them
        taken, self._taken = self._events[self._taken : end], end
        return taken

    def push(self, id: int, may_stop: bool = True) -> str:
        """Adds a token.

        Args:
            may_stop: False lets a stop text pass as ordinary text.

        Returns:
            The content that may be shown now; `take_events` gives it with all the rest.
        """
        return self._pass(self._parser.push(id), may_stop)

    def finish(self) -> str:
        """Ends the answer: what was held back, unless a stop text began there."""
        if self.stopped:
            return ""
        return self._pass(self._parser.finish(), True) + self._show(self._scanner.flush())

    def _pass(self, events: list[Event], may_stop: bool) -> str:
        shown, raw = "", False
        for event in events:
            if self.stopped:
                break
            if isinstance(event, TextDelta) and not raw:
                shown += self._show(self._scanner.feed(event.text, may_stop))
                continue
            # Nothing but a stop text itself can still make one of what was held back: something else has come.
            shown += self._show(self._scanner.flush(may_stop))
            if isinstance(event, TextDelta):  # a call that was not understood, as it was written
                shown += self._show(event.text)
            else:
                self._events.append(event)
            raw = isinstance(event, CallEnd) and event.call is None
        return shown

    def _show(self, text: str) -> str:
        if text:
            self.text += text
            self._events.append(TextDelta(text))
        return text
