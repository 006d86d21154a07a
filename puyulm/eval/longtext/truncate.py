"""Prompts that are too long for a model lose their middle, as LongBench's and OpenCompass's do."""

from __future__ import annotations

from puyulm.eval.longtext.fill import number_option
from puyulm.eval.source import SourceContext


def cut_middle(text: str, limit: int, context: SourceContext) -> str:
    """The first and the last half of a text's `limit` tokens; the text itself where it has no more.

    Without a model to count with, nothing is cut.
    """
    model = context.model
    if model is None or len(text.encode("utf-8", "replace")) <= limit:
        return text
    ids = model.encode(text)
    if len(ids) <= limit:
        return text
    half = limit // 2
    while True:
        head, tail = model.decode(ids[:half]), model.decode(ids[len(ids) - half :])
        shorter = head.rstrip("\ufffd") + tail.lstrip("\ufffd")
        if (left := len(model.encode(shorter)) - limit) <= 0 or half == 0:
            return shorter
        half = max(half - left, 0)  # tokens at the cut were joined otherwise


def longest_prompt(context: SourceContext, name: str, default: int) -> int:
    """The option `max_length`: tokens of a prompt; the rest of the context is for the answer and the chat format."""
    return number_option(context, name, "max_length", default, least=64)
