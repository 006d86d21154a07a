"""Thoughts: where they begin and end in an answer, and their end when they have used up their budget."""

from __future__ import annotations

import copy

from puyulm.text.formats import ACTION_START, THINK_CLOSE, THINK_OPEN, ChatFormat
from puyulm.text.tokenizer import Tokenizer

THINKING_BUDGET = 8192  # tokens
# Beyond the budget so many tokens are granted to end a character, or a tag that the model has begun by itself.
GRACE = 8

_OPEN, _CLOSE = str(THINK_OPEN).encode(), str(THINK_CLOSE).encode()


class ThinkingBudget:
    """Follows the ids of one answer, as `puyulm.text.parse.AnswerParser` reads them: tags count by their ids and, where
    a vocabulary has none, by their text.

    Attributes:
        inside: The next token is a thought, or belongs to the end of thoughts that is being written.
        action: The id that begins a call or code, which ends thoughts too; None where the format has no actions.

    Args:
        budget: Tokens of thought, tags not counted, before the end is forced; None: `THINKING_BUDGET`.
        in_reasoning: The prompt ended inside the thoughts (with `<think>`).
        grammar: The answer proper has a grammar. Thoughts then begin only with the tag's own id, and the blank line
            after them, for which a grammar has no place, is forced where the model did not write it with the tag.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        budget: int | None = None,
        in_reasoning: bool = False,
        *,
        grammar: bool = False,
    ) -> None:
        self.inside = in_reasoning
        self.action = ACTION_START.find(tokenizer) if chat_format.actions else None
        self._tokenizer = tokenizer
        self._budget = THINKING_BUDGET if budget is None else budget
        self._grammar = grammar
        self._waiting = chat_format.reasoning and not in_reasoning  # for the tag that opens an answer
        tags = ((THINK_OPEN, _OPEN), (THINK_CLOSE, _CLOSE))
        self._tags = {id: tag for marker, tag in tags if (id := marker.find(tokenizer)) is not None}
        self._used = 0
        self._tail = b""  # the end of the text, as much as a tag may begin in
        self._rest = b""
        self._to_force = self._end_ids() if in_reasoning and self._due() else ()

    def forced(self) -> int | None:
        """The id that must come next, or None where the model is free."""
        return self._to_force[0] if self._to_force else None

    def observe(self, token: int) -> None:
        """Takes the next id of the answer, forced or not."""
        if self._to_force:
            # Another id than the forced one ends the forcing: the caller knows better.
            self._to_force = self._to_force[1:] if token == self._to_force[0] else ()
            self.inside = bool(self._to_force)
            return
        if not (self.inside or self._waiting):
            return
        if token == self.action:
            self.inside = self._waiting = False
            return
        special = self._tokenizer.is_special(token)
        text = self._tags.get(token, b"" if special else self._tokenizer.visible_bytes(token, False, True))
        self._used += self.inside
        self._tail += text
        if self._waiting:
            self._open()
        if self._grammar and token not in self._tags:
            self._waiting = False
        if self.inside:
            self._close()
        if self.inside and not self._to_force and self._due():
            self._to_force = self._end_ids()

    @property
    def opening(self) -> int | None:
        """The id that begins thoughts, where the next token may be it."""
        return THINK_OPEN.find(self._tokenizer) if self._waiting and not self._tail.strip() else None

    def take_rest(self) -> bytes:
        """What the last token held beyond the closing tag and its line breaks; each byte is given once."""
        rest, self._rest = self._rest, b""
        return rest

    def fork(self) -> ThinkingBudget:
        """A copy that goes its own way."""
        return copy.copy(self)

    def _open(self) -> None:
        begun = self._tail.lstrip()
        if begun.startswith(_OPEN):
            self.inside, self._waiting, self._used = True, False, 0
            self._tail = begun[len(_OPEN) :]
        elif not _OPEN.startswith(begun):
            self._waiting = False

    def _close(self) -> None:
        _, closed, rest = self._tail.partition(_CLOSE)
        if not closed:
            self._tail = self._tail[-len(_CLOSE) :]
            return
        self._tail, self._rest, self.inside = b"", rest.removeprefix(b"\n").removeprefix(b"\n"), False
        if self._grammar and not rest:
            self._to_force = self._blank_line_ids()
            self.inside = bool(self._to_force)

    def _due(self) -> bool:
        if self._used < self._budget:
            return False
        settled = _ends_whole(self._tail) and not any(self._tail.endswith(_CLOSE[:n]) for n in range(1, len(_CLOSE)))
        return settled or self._used >= self._budget + GRACE

    def _end_ids(self) -> tuple[int, ...]:
        """The ids of the end, as the renderer writes it: a line break, the tag, and a blank line."""
        start = "" if self._tail.endswith(b"\n") or not self._used else "\n"
        close = THINK_CLOSE.find(self._tokenizer)
        if close is None:
            return tuple(self._tokenizer.encode(f"{start}{THINK_CLOSE}\n\n", mid_text=True))
        return (*self._tokenizer.encode(start, mid_text=True), close, *self._blank_line_ids())

    def _blank_line_ids(self) -> tuple[int, ...]:
        after_text = THINK_CLOSE.find(self._tokenizer) is None
        return tuple(self._tokenizer.encode("\n\n", mid_text=after_text))


def _ends_whole(text: bytes) -> bool:
    """Whether no UTF-8 character is left half at the end."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte < 0x80:
            return True
        if byte >= 0xC0:  # the first of a character: its high bits tell how many there are
            return back >= (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return True
