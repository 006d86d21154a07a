"""What evaluation needs of a model, wherever it runs: in this process, behind HTTP, or in another library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from puyulm.errors import GenerationError
from puyulm.text.messages import Message


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn; None leaves it to the model's own defaults."""

    temperature: float | None = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is asked to answer.

    Attributes:
        messages: A conversation; empty: `text` is continued as it stands.
        prefix: The answer's beginning. It is not part of the output.
        stop: Texts that end the answer.
        think: With deep thinking.
        tools: OpenAI-style definitions.
        top_logprobs: How many of the first token's most likely tokens the output lists.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    prefix: str = ""
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 512
    think: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    top_logprobs: int = 0
    sampling: Sampling = field(default_factory=Sampling)

    def shown(self) -> str:
        """The prompt for people; turns are marked by their roles."""
        if not self.messages:
            return self.text + self.prefix
        turns = "".join(f"[{message.role}]\n{message.content}\n" for message in self.messages)
        return f"{turns}[assistant]\n{self.prefix}"


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model answered.

    Attributes:
        text: The answer, without thoughts and without the stop text.
        reasoning: Thoughts before it, where the model marks them.
        message: The answer with its calls and code; None from backends that know only text.
        finish_reason: "stop", "length", ...
        tokens: New tokens, thoughts included.
        top_logprobs: The first token's most likely tokens as texts.
    """

    text: str
    reasoning: str = ""
    message: Message | None = None
    finish_reason: str = "stop"
    tokens: int = 0
    top_logprobs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Continuation:
    """A text of which the end is judged: the log-probability of `text` after `context`."""

    context: str
    text: str


@dataclass(frozen=True)
class Judged:
    """Log-probability (nats, summed) of a continuation, and its tokens."""

    logprob: float
    tokens: int


class PromptError(GenerationError):
    """One of the things that a model was asked is none that it can take (too long); `index` says which."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[PromptError], tuple[int, str]]:
        return type(self), (self.index, str(self))


OnOutput = Callable[[int, Output], None]
OnJudged = Callable[[int, Judged], None]


class LanguageModel(Protocol):
    """A model to be evaluated. Results are reported as they come, by the index of what was asked; order is free.

    A backend that cannot do one of these raises a GenerationError that says so, and a PromptError where one of those
    that were asked is at fault.

    Attributes:
        name: As shown in tables.
        fingerprint: Changes when the weights do.
        thinks: Whether it can be asked for deep thinking.
        context: Longest text in tokens; None: it is not known, or there is no limit.
    """

    name: str
    fingerprint: str
    thinks: bool
    context: int | None

    def generate(self, prompts: Sequence[Prompt], on_output: OnOutput) -> None:
        """Answers prompts."""

    def judge(self, continuations: Sequence[Continuation], on_judged: OnJudged) -> None:
        """Log-probabilities. An empty context stands for the beginning of a text."""

    def reward(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Scores of conversations, by a reward model."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, to count and to cut by."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    def close(self) -> None:
        """Gives back what it holds."""
