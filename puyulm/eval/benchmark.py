"""What a benchmark is: where its rows are, how a model is asked, what is read from its answer, what that is worth.

A benchmark is one `Benchmark` value in a file of its own in `puyulm.eval.benchmarks`: plain data and small functions,
no class to inherit from. A row of the official files becomes a `Question`; a *mode* ("likelihood", "plain", "chat",
...) says how it is asked; its `verdict` turns what came back into scores.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from puyulm.errors import DataError
from puyulm.eval.model import Output, Prompt
from puyulm.eval.source import Dataset, Made

Dimension = Literal[
    "exam", "knowledge", "reasoning", "mathematics", "code", "instruction", "long context", "tools", "science",
    "preference", "text",
]  # fmt: skip
Averaging = Literal["subsets", "rows"]
Comparison = Literal["sum", "bytes", "characters", "tokens"]
Record = Mapping[str, Any]  # a row of an official file


@dataclass(frozen=True)
class Question:
    """A row of a benchmark, in one form for all modes.

    Attributes:
        id: Unique in the benchmark.
        text: What is asked.
        target: What is right: a letter, a number, texts, ...; anything that JSON holds.
        subset: Subject or task; "" where there are none.
        choices: Texts to choose from, without letters.
        extra: Other fields of the row that prompts or verdicts need; JSON.
    """

    id: str
    text: str
    target: Any = None
    subset: str = ""
    choices: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth.

    Attributes:
        scores: By metric; between 0 and 1 unless the metric says otherwise.
        answer: What was taken from the output; None: nothing was found.
        note: Why, for whoever reads the samples.
    """

    scores: Mapping[str, float]
    answer: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A question that was asked and judged: a line of the samples' file.

    Attributes:
        repeat: Which of several answers to the same question.
        prompt: What the model saw, as text; turns of a conversation are marked.
        outputs: What it wrote, turn by turn; of likelihoods, the log-probability of each choice.
        scores, answer, note: As in `Verdict`.
        tokens: New tokens.
        extra: What aggregation needs beyond scores (lengths, ...).
    """

    id: str
    subset: str
    repeat: int
    prompt: str
    outputs: tuple[str, ...]
    target: Any
    scores: Mapping[str, float]
    answer: str | None = None
    note: str = ""
    finish_reason: str = ""
    tokens: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


Asking = Callable[[Question], str]
Play = Generator[Prompt, Output, Sequence[Output]]


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The choice that the model finds most likely is its answer.

    Attributes:
        context: A question up to where its answer begins.
        answers: What may follow it; spaces between the two belong here or there, ids are the same.
        right: Index of the right one in `answers`. Examples show it.
        contexts: Where the choices differ in the context and what follows is the same (WinoGrande): a context for each,
            instead of `context`.
        header: Before all examples, of the question's subset.
        separator: After the header and each example.
        by: What is compared: the "sum" of log-probabilities, or their mean over "bytes", "characters" or "tokens".
        metric: Name of the score.
        others: Further scores from the same log-probabilities: name, and what is compared.
    """

    context: Asking
    answers: Callable[[Question], Sequence[str]]
    right: Callable[[Question], int]
    contexts: Callable[[Question], Sequence[str]] | None = None
    header: Asking | None = None
    separator: str = "\n\n"
    by: Comparison = "sum"
    metric: str = "accuracy"
    others: Mapping[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A second model that reads the answers.

    Attributes:
        prompts: What it is asked about an answer; several where it is asked twice with the order swapped.
        verdict: From its answers, in that order.
    """

    prompts: Callable[[Question, Sequence[Output]], Sequence[Prompt]]
    verdict: Callable[[Question, Sequence[Output], Sequence[Output]], Verdict]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The model writes its answer.

    Attributes:
        prompt: A question, as a user's message or as plain text up to where the answer begins.
        solution: A right answer as it should be written; examples show it.
        verdict: Of the outputs (one; several where `play` asks several times).
        chat: Ask through the chat format, examples as earlier turns; otherwise in plain text.
        system: System text; None: the chat format's own.
        header: Before all examples; of chats, before the first message's text.
        separator: After the header and each example in plain text.
        prefix: The answer's beginning, written for the model; it is not part of the output.
        stop: Texts that end the answer. Of chats they are rarely needed.
        max_new_tokens: Longest answer; of each question, where tasks differ.
        tools: OpenAI-style tool definitions for the chat format.
        play: Several turns: yields prompts, gets outputs, returns what is judged. The first prompt is given to it.
        at_once: How many questions play at a time, where each holds something (a process); None: all.
        judge: Decides instead of `verdict`.
        top_logprobs: How many of the first token's most likely tokens the output lists.
    """

    prompt: Asking
    solution: Asking
    verdict: Callable[[Question, Sequence[Output]], Verdict] | None = None
    chat: bool = True
    system: str | None = None
    header: Asking | None = None
    separator: str = "\n\n"
    prefix: Asking | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int | Callable[[Question], int] = 512
    tools: Callable[[Question], Sequence[Record]] | None = None
    play: Callable[[Question, Prompt], Play] | None = None
    at_once: int | None = None
    judge: Judge | None = None
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if (self.verdict is None) == (self.judge is None):
            raise ValueError("a generation has a verdict or a judge, and not both")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The model reads a text, and its log-probability is taken. Scores: "nats" and "tokens", "bytes", "characters".

    Attributes:
        text: What is read.
        context: What comes before and is not judged.
    """

    text: Asking
    context: Asking | None = None


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A reward model scores conversations, of which the first should be the best. Score: "accuracy".

    Attributes:
        conversations: Each a list of user and assistant texts in turns, beginning with the user's.
    """

    conversations: Callable[[Question], Sequence[Sequence[str]]]


Mode = Likelihood | Generation | Reading | Preference


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark, whole.

    Attributes:
        name: As on the command line.
        title: As in tables.
        dimension: Which of the capabilities it measures.
        source: Where rows come from.
        read: A record of the official files (hub's or original form), its subset and its number become a question;
            None: the record is no question (a blank row).
        modes: Ways of asking, by name: "likelihood", "plain", "chat", "thinking", ... The first is the default.
        subsets: Name of each subset, and the group that it is shown in ("": none). Where they follow from options, see
            `Made.subsets`.
        examples: Solved questions for the prompt: a role of the source ("dev") or a fixed list.
        pick: Chooses `shots` examples for a question; None: the first ones of its subset (or of all, where there are
            no subsets).
        metrics: Names of scores; the first is the benchmark's.
        average: Mean of the subsets' means, or of all rows.
        summarise: Scores that are not means of rows' scores (a ratio, a regression); they replace means of their name,
            and others are shown besides (pass@k).
        keep: Fields of `Question.extra` that samples keep (a depth, a length), for reports.
        needs: Raises, before any model is loaded, where something is missing that verdicts need (a sandbox, a package).
        percent: Whether scores are shown times 100.
        version: Changes when what samples are worth does; of a file of one's own, its digest.
        follows: Whose prompt and rule this is, and where peers differ.
    """

    name: str
    title: str
    dimension: Dimension
    source: Dataset | Made
    read: Callable[[Record, str, int], Question | None]
    modes: Mapping[str, Mode]
    subsets: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    examples: str | tuple[Question, ...] = ()
    pick: Callable[[Sequence[Question], Question, int], Sequence[Question]] | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    average: Averaging = "rows"
    summarise: Callable[[Sequence[Sample]], Mapping[str, float]] | None = None
    keep: tuple[str, ...] = ()
    needs: Callable[[], None] | None = None
    percent: bool = True
    version: str = ""
    follows: str = ""

    def mode(self, name: str) -> Mode:
        """The mode of this name.

        Raises:
            DataError: There is none.
        """
        if name not in self.modes:
            raise DataError(f"{self.name}: no mode '{name}'; known: {', '.join(self.modes)}")
        return self.modes[name]
