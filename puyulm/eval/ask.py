"""From a question and its examples to what the model is given."""

from __future__ import annotations

from collections.abc import Sequence

from puyulm.eval.benchmark import Generation, Likelihood, Question, Reading
from puyulm.eval.model import Continuation, Prompt, Sampling
from puyulm.text.messages import Message


def continuations(mode: Likelihood, question: Question, examples: Sequence[Question]) -> list[Continuation]:
    """The question with each of its choices, after solved examples."""
    before = _header(mode.header, mode.separator, question)
    for example in examples:
        right, answers = mode.right(example), mode.answers(example)
        context = mode.context(example) if mode.contexts is None else mode.contexts(example)[right]
        before += f"{context}{answers[right]}{mode.separator}"
    answers = mode.answers(question)
    contexts = [mode.context(question)] * len(answers) if mode.contexts is None else mode.contexts(question)
    return [Continuation(before + context, text) for context, text in zip(contexts, answers, strict=True)]


def prompt(
    mode: Generation,
    question: Question,
    examples: Sequence[Question],
    *,
    max_new_tokens: int | None = None,
    think: bool = False,
    sampling: Sampling | None = None,
) -> Prompt:
    """The question after solved examples, as turns of a conversation or as plain text.

    Args:
        max_new_tokens: Instead of the mode's own.
    """
    before = _header(mode.header, mode.separator, question)
    turns: list[Message] = []
    text = ""
    if mode.chat:
        if mode.system is not None:
            turns.append(Message("system", mode.system))
        for one in examples:
            turns += [Message("user", before + mode.prompt(one)), Message("assistant", mode.solution(one))]
            before = ""
        turns.append(Message("user", before + mode.prompt(question)))
    else:
        solved = "".join(f"{mode.prompt(one)}{mode.solution(one)}{mode.separator}" for one in examples)
        text = f"{before}{solved}{mode.prompt(question)}"
    longest = mode.max_new_tokens(question) if callable(mode.max_new_tokens) else mode.max_new_tokens
    return Prompt(
        messages=tuple(turns),
        text=text,
        prefix="" if mode.prefix is None else mode.prefix(question),
        stop=mode.stop,
        max_new_tokens=max_new_tokens or longest,
        think=think,
        tools=() if mode.tools is None else tuple(mode.tools(question)),
        top_logprobs=mode.top_logprobs,
        sampling=sampling or Sampling(),
    )


def reading(mode: Reading, question: Question) -> Continuation:
    """The text to be read."""
    return Continuation("" if mode.context is None else mode.context(question), mode.text(question))


def _header(header: object, separator: str, question: Question) -> str:
    return f"{header(question)}{separator}" if callable(header) else ""
