"""What a conversation in a request asks of the engine, whichever endpoint it came through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puyulm.engine.chat_answer import ChatAnswer
from puyulm.engine.grammar import Grammar
from puyulm.engine.params import SamplingParams
from puyulm.engine.thinking import ThinkingBudget
from puyulm.engine.tool_grammar import tool_call_grammar
from puyulm.serve.answers import Answers, Job
from puyulm.serve.errors import ApiError
from puyulm.serve.prompts import chat_ids, check_grammar, check_messages, in_thread, read_messages
from puyulm.serve.protocol import ChatBody
from puyulm.serve.sampling import sampling_params, wanted_grammar
from puyulm.serve.settings import ServeSettings
from puyulm.serve.state import ServerState
from puyulm.text.formats import THINK_OPEN


@dataclass(frozen=True)
class ChatRequest:
    """A conversation, ready for the engine.

    Attributes:
        in_reasoning: The prompt ends inside the thoughts, so that the answer begins there.
    """

    ids: list[int]
    params: SamplingParams
    adapter: str | None
    in_reasoning: bool


async def read_chat(state: ServerState, settings: ServeSettings, body: ChatBody) -> ChatRequest:
    """Checks and renders a request, away from the event loop.

    Raises:
        PuyuError: It cannot be served; the message names the field.
    """
    adapter = state.adapter_for(body.model)
    request = await in_thread(lambda: _read(state, settings, body, adapter))
    await check_grammar(state, request.params.grammar)
    return request


async def open_chat(state: ServerState, request: ChatRequest) -> tuple[Answers, list[ChatAnswer]]:
    """Submits the `n` answers of a request; the caller must close them.

    Raises:
        PuyuError: They cannot be served.
    """
    answers, readers = Answers(state), []
    try:
        jobs = []
        for params in request.params.samples():
            reader = ChatAnswer(
                state.tokenizer, state.chat_format, request.params.stop, in_reasoning=request.in_reasoning
            )
            readers.append(reader)
            thinking = _thoughts(state, request, params.thinking_budget)
            jobs.append(
                Job(prompt=request.ids, params=params, answer=reader, thinking=thinking, adapter=request.adapter)
            )
        await answers.open(jobs)
    except BaseException:
        answers.close()
        raise
    return answers, readers


def count_thoughts(state: ServerState, request: ChatRequest, ids: Sequence[int]) -> int:
    """How many tokens of an answer are thoughts."""
    follower = ThinkingBudget(state.tokenizer, state.chat_format, len(ids) + 1, request.in_reasoning)
    count = 0
    for id in ids:
        count += follower.inside
        follower.observe(id)
    return count


def _thoughts(state: ServerState, request: ChatRequest, budget: int | None) -> ThinkingBudget | None:
    if not state.chat_format.reasoning:
        return None
    return ThinkingBudget(
        state.tokenizer, state.chat_format, budget, request.in_reasoning, grammar=request.params.grammar is not None
    )


def _read(state: ServerState, settings: ServeSettings, body: ChatBody, adapter: str | None) -> ChatRequest:
    _refuse(state, settings, body)
    choice = _tool_choice(body)
    tools = body.tools if choice != "none" else None
    think, budget = _thinking(state, body)
    messages = read_messages(body.messages)
    check_messages(state, messages)
    ids = chat_ids(
        state, messages, tools=tools, think=think, continue_final=bool(body.continue_final_message)
    )  # fmt: skip
    grammar = _grammar(state, body, tools, choice)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(
        state, body, len(ids), max_tokens=body.max_completion_tokens or body.max_tokens, grammar=grammar,
        prompt_field="messages", logprobs=logprobs, think=think, thinking_budget=budget,
    )  # fmt: skip
    return ChatRequest(ids, params, adapter, state.own_template and _opens_thoughts(state, ids))


def _refuse(state: ServerState, settings: ServeSettings, body: ChatBody) -> None:
    if state.config.head != "lm":
        raise ApiError(
            "this is a reward model: it scores conversations (/v1/score, /v1/rerank, /pooling) and writes none"
        )
    if body.n is not None and body.n > settings.max_answers:
        raise ApiError(f"n: at most {settings.max_answers} answers at once, not {body.n}", param="n")
    if body.functions or body.function_call:
        field = "functions" if body.functions else "function_call"
        raise ApiError(f"{field}: is of an old protocol: write tools and tool_choice", param=field)
    if body.top_logprobs and not body.logprobs:
        raise ApiError("top_logprobs: needs logprobs: true", param="top_logprobs")


def _tool_choice(body: ChatBody) -> str:
    """ "auto", "none", "required", or the name of a tool."""
    choice = body.tool_choice
    if not body.tools:
        if choice in (None, "none", "auto"):
            return "none"
        raise ApiError("tool_choice: there are no tools to choose from: give tools", param="tool_choice")
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        return choice
    function = choice.get("function", choice)  # the second is how /v1/responses writes it
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or name in ("auto", "none", "required"):
        raise ApiError(
            'tool_choice: must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}',
            param="tool_choice",
        )
    return name


def _thinking(state: ServerState, body: ChatBody) -> tuple[bool, int | None]:
    """Whether deep thinking is asked for, and the budget of thoughts."""
    wanted, named = body.enable_thinking, (body.chat_template_kwargs or {}).get("enable_thinking")
    if named is not None and not isinstance(named, bool):
        raise ApiError("chat_template_kwargs.enable_thinking: must be true or false", param="chat_template_kwargs")
    if wanted is None:
        wanted = named
    has_mode = state.chat_format.thinking_prompt is not None
    if wanted is None and body.reasoning_effort is not None:
        # Clients send an effort to every model: where there is no such mode it means nothing.
        wanted = False if body.reasoning_effort == "none" else (has_mode or None)
    if wanted is False:
        return False, 0  # thoughts that the model begins all the same are closed at once
    if wanted and not state.chat_format.reasoning:
        raise ApiError(
            f"enable_thinking: the chat format '{state.chat_format.name}' has no thinking mode", param="enable_thinking"
        )
    return (state.think if wanted is None else has_mode), body.thinking_budget


def _grammar(
    state: ServerState, body: ChatBody, tools: Sequence[Mapping[str, Any]] | None, choice: str
) -> Grammar | None:
    grammar = wanted_grammar(body, body.response_format)
    if tools:
        if grammar is not None:
            raise ApiError(
                "tools: cannot be combined with a format of the answer, unless tool_choice is none", param="tools"
            )
        grammar = tool_call_grammar(
            tools, choice, state.chat_format, state.tokenizer, parallel=body.parallel_tool_calls is not False
        )
    if grammar is not None and body.ignore_eos:
        raise ApiError("ignore_eos: an answer with a format ends where the format ends", param="ignore_eos")
    return grammar


def _opens_thoughts(state: ServerState, ids: Sequence[int]) -> bool:
    """Whether a template has begun the thoughts itself, as some do."""
    return state.tokenizer.decode(ids[-8:]).rstrip().endswith(str(THINK_OPEN))
