"""Questions and answers in turns, in a limited context. A turn finds the earlier ones in the prefix cache."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from puyulm.engine.config import EngineConfig
from puyulm.engine.context import context_length, fit_to_context
from puyulm.engine.engine import Engine
from puyulm.engine.load import ChatModel
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import TokenEvent
from puyulm.errors import ChatError
from puyulm.text.chat import Message, render
from puyulm.text.parse import parse_answer
from puyulm.text.template import render_template

# When the context is full, turns are dropped until this part of it is free: dropping one at a time would change the
# beginning of every prompt from then on, and a changed beginning is prefilled anew.
FREE_SHARE = 0.25


def prompt_ids(
    chat: ChatModel, messages: Sequence[Message], *, think: bool = False, own_template: bool = False
) -> list[int]:
    """A conversation as the ids that ask for the next answer.

    Args:
        think: With the format's prompt for deep thinking.
        own_template: By the checkpoint's own jinja template instead of the chat format.

    Raises:
        ChatError: The format cannot express the messages, or has no deep thinking; or there is no template.
    """
    if not own_template:
        return render(messages, chat.tokenizer, chat.chat_format, think=think, add_generation_prompt=True).ids
    template = chat.tokenizer.chat_template
    if template is None:
        raise ChatError(f"{chat.path} has no chat template of its own: leave --chat-template out")
    if think:
        thinking = chat.chat_format.thinking_prompt
        if thinking is None:
            raise ChatError(f"the chat format '{chat.chat_format.name}' has no thinking mode; it comes with InternLM3")
        messages = [Message("system", thinking), *messages]
    return render_template(messages, chat.tokenizer, template, add_generation_prompt=True)


class Conversation:
    """What was said so far, and how the next answer is made. All attributes may be changed between answers.

    Attributes:
        messages: Questions and answers, oldest first.
        system: System text; None: the chat format's own.
        params: How answers are sampled.
        think: Ask for deep thinking.
        dropped: Messages that `ask` left out of the last prompt because the context was full.
    """

    def __init__(
        self,
        chat: ChatModel,
        params: SamplingParams,
        *,
        system: str | None = None,
        think: bool = False,
        own_template: bool = False,
        config: EngineConfig | None = None,
    ) -> None:
        self.chat = chat
        self.params = params
        self.system = system
        self.think = think
        self.messages: list[Message] = []
        self.dropped = 0
        self._own_template = own_template
        self._engine = Engine(chat.model, chat.tokenizer, config or EngineConfig(max_running=1))

    def reset(self) -> None:
        """Forgets what was said."""
        self.messages.clear()

    def ask(self, question: str) -> Generator[TokenEvent, None, None]:
        """Asks, and yields the answer's tokens.

        The answer becomes part of the conversation when the loop ends, also when it is left early (close the
        iterator) or interrupted: then what there is of it. A question without any answer is taken back.
        When the context is full, the oldest questions go, with their answers, for good; the system text stays.

        Raises:
            GenerationError: The question alone does not fit the context.
        """
        before, self.dropped = list(self.messages), 0
        self.messages.append(Message("user", question))
        answer, ids = "", []
        try:
            prompt = self._prompt()
            params = fit_to_context(self.chat.model.config, len(prompt), self.params)
            for event in self._engine.stream(prompt, params):
                answer += event.text
                ids.append(event.token)
                yield event
        finally:
            if answer:
                self.messages.append(self._message(answer, ids))
            else:
                self.messages[:] = before

    def _message(self, answer: str, ids: list[int]) -> Message:
        """The answer with its calls, code and reasoning, whose markers the visible text does not show."""
        message = parse_answer(ids, self.chat.tokenizer, self.chat.chat_format)
        if message.tool_calls or message.code is not None or message.reasoning is not None:
            return message
        return Message("assistant", answer)  # a stop text is cut off here, and not from the ids

    def _prompt(self) -> list[int]:
        """The prompt, after as many of the oldest turns are dropped as leave room for an answer."""
        limit = context_length(self.chat.model.config)
        ids = self._render(self.messages)
        if limit is None:
            return ids
        free = int(limit * FREE_SHARE)
        if len(ids) > limit - min(self.params.max_new_tokens, free):
            while len(ids) > limit - free and len(self.messages) > 1:
                next_question = next(i for i, message in enumerate(self.messages) if i and message.role == "user")
                self.dropped += next_question
                del self.messages[:next_question]
                ids = self._render(self.messages)
        return ids

    def _render(self, messages: Sequence[Message]) -> list[int]:
        system = [] if self.system is None else [Message("system", self.system)]
        return prompt_ids(self.chat, [*system, *messages], think=self.think, own_template=self._own_template)
