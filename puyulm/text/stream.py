"""Turning ids into text one by one, as a model gives them."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer


class StreamDecoder:
    """Gives out text as soon as its characters are whole.

    One character can be spread over several ids (emoji and rare Chinese characters over three or four), so the text of
    an id may be empty, and that of a later one complete it. All texts together are
    `tokenizer.decode(ids, skip_special=..., mid_text=True)`; the work per id does not grow with the text.

    Args:
        skip_special: Leave special tokens out.

    Example:
        >>> decoder = StreamDecoder(tokenizer)
        >>> for token_id in answer: print(decoder.push(token_id), end="")
        >>> print(decoder.flush())
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._after_special = False

    def push(self, token_id: int) -> str:
        """Takes the next id and returns the text that is now complete."""
        data = self._tokenizer.visible_bytes(token_id, self._after_special, self._skip_special)
        self._after_special = self._tokenizer.is_special(token_id)
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Ends the text: bytes that never became a character give "�". Ready for another."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._after_special = False
        return text
