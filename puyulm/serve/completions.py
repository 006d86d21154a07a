"""`/v1/completions`: texts gone on with, without a chat format."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puyulm.engine.grammar import Grammar
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Request, TokenEvent
from puyulm.serve.answers import Answers, Job
from puyulm.serve.chat import answer_ids
from puyulm.serve.connection import while_connected
from puyulm.serve.errors import ApiError
from puyulm.serve.prompts import check_grammar, in_thread, input_ids, json_response, list_of_inputs
from puyulm.serve.protocol import MAX_INPUTS, CompletionBody
from puyulm.serve.sampling import sampling_params, wanted_grammar
from puyulm.serve.settings import ServeSettings
from puyulm.serve.shapes import Place, head, stop_reason, text_logprobs, usage
from puyulm.serve.state import ServerState
from puyulm.serve.streaming import DONE, EventStream, event


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    text: str
    params: SamplingParams


async def completions(state: ServerState, settings: ServeSettings, body: CompletionBody, http: HttpRequest) -> Response:
    """Goes on with texts."""
    adapter = state.adapter_for(body.model)
    if body.stream:
        prompts = await while_connected(http, _read(state, settings, body))
        answers = await _open(state, body, prompts, adapter)
        return EventStream(_stream(state, body, prompts, answers, adapter), answers.close)
    return await while_connected(http, _whole(state, settings, body, adapter))


async def _read(state: ServerState, settings: ServeSettings, body: CompletionBody) -> list[_Prompt]:
    prompts = await in_thread(lambda: _prompts(state, settings, body))
    await check_grammar(state, prompts[0].params.grammar)
    return prompts


def _prompts(state: ServerState, settings: ServeSettings, body: CompletionBody) -> list[_Prompt]:
    _refuse(state, body)
    inputs = list_of_inputs(body.prompt, MAX_INPUTS, "prompt")
    if len(inputs) * (body.n or 1) > settings.max_answers:
        raise ApiError(
            f"prompt: {len(inputs):,} prompts and n = {body.n or 1} make more than {settings.max_answers} answers: "
            "send several requests", param="prompt",
        )  # fmt: skip
    grammar = wanted_grammar(body, body.response_format)
    if grammar is not None and body.ignore_eos:
        raise ApiError("ignore_eos: an answer with a format ends where the format ends", param="ignore_eos")
    return [_prompt(state, settings, body, text, grammar) for text in inputs]


def _refuse(state: ServerState, body: CompletionBody) -> None:
    if state.config.head != "lm":
        raise ApiError(
            "this is a reward model: it scores conversations (/v1/score, /v1/rerank, /pooling) and writes none"
        )
    if body.suffix:
        raise ApiError("suffix: the model was not made to fill in: leave it out", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError("best_of: is not done here: ask for n answers and choose by their logprobs", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError("max_tokens: 0 makes sense with echo alone: ask for 1 or more", param="max_tokens")
    if body.max_tokens == 0 and body.stream:
        raise ApiError("max_tokens: 0 cannot be streamed", param="max_tokens")


def _prompt(
    state: ServerState, settings: ServeSettings, body: CompletionBody, given: str | list[int], grammar: Grammar | None
) -> _Prompt:
    ids = input_ids(state, given, "prompt")
    # OpenAI's own default here is 16, which surprises everybody: an answer gets what is left.
    params = sampling_params(
        state, body, len(ids), max_tokens=body.max_tokens or (1 if body.max_tokens == 0 else None), grammar=grammar,
        prompt_field="prompt", logprobs=body.logprobs, prompt_logprobs=body.logprobs if body.echo else None,
    )  # fmt: skip
    text = "" if not body.echo else given if isinstance(given, str) else state.tokenizer.decode(ids)
    return _Prompt(ids, text, params)


async def _open(
    state: ServerState, body: CompletionBody, prompts: Sequence[_Prompt], adapter: str | None
) -> Answers:  # fmt: skip
    answers = Answers(state)
    try:
        if body.max_tokens == 0:  # nothing but the prompts' own log-probabilities
            await answers.open(
                [Job(prompt=one.ids, params=one.params, task="logprobs", first_logprob=1, adapter=adapter)
                 for one in prompts for _ in range(one.params.n)]
            )  # fmt: skip
        else:
            await answers.open(
                [Job(prompt=one.ids, params=params, adapter=adapter)
                 for one in prompts for params in one.params.samples()]
            )  # fmt: skip
    except BaseException:
        answers.close()
        raise
    return answers


async def _whole(
    state: ServerState, settings: ServeSettings, body: CompletionBody, adapter: str | None
) -> Response:  # fmt: skip
    prompts = await _read(state, settings, body)
    answers = await _open(state, body, prompts, adapter)
    try:
        done = await answers.all()
    finally:
        answers.close()
    n = body.n or 1

    def result() -> dict[str, Any]:
        choices = [_choice(state, body, index, prompts[index // n], one) for index, one in enumerate(done)]
        start = head(state, "text_completion", "cmpl-", adapter)
        return start | {"choices": choices, "usage": usage(done, range(0, len(done), n))}

    return await json_response(result)


def _choice(state: ServerState, body: CompletionBody, index: int, prompt: _Prompt, request: Request) -> dict[str, Any]:
    text = "" if request.answer is None else request.answer.text
    choice: dict[str, Any] = {
        "index": index,
        "text": prompt.text + text,
        "logprobs": None,
        "finish_reason": "length" if body.max_tokens == 0 else request.finish_reason,
        "stop_reason": stop_reason(request, body.stop_token_ids),
    }
    if body.logprobs is not None:
        ids, logprobs, tops = answer_ids(request), list[float | None](request.logprobs), list(request.top)
        choice["logprobs"] = _logprobs(state, body, prompt, request, ids, logprobs[: len(ids)], tops[: len(ids)])
    if body.return_token_ids:
        choice |= {"prompt_token_ids": prompt.ids, "token_ids": request.tokens[request.prompt_length :]}
    return choice


def _logprobs(
    state: ServerState, body: CompletionBody, prompt: _Prompt, request: Request,
    ids: list[int], logprobs: list[float | None], tops: list[Any],
) -> dict[str, Any]:  # fmt: skip
    if not body.echo:
        return text_logprobs(state.tokenizer, ids, logprobs, tops, Place())
    return text_logprobs(
        state.tokenizer, prompt.ids + ids, [None, *request.prompt_logprobs, *logprobs],
        [None, *request.prompt_top, *tops], Place(),
    )  # fmt: skip


async def _stream(
    state: ServerState, body: CompletionBody, prompts: Sequence[_Prompt], answers: Answers, adapter: str | None
) -> AsyncGenerator[str, None]:
    start = head(state, "text_completion", "cmpl-", adapter)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    if with_usage:
        start["usage"] = None
    n = body.n or 1
    places = [Place() for _ in answers.tickets]
    begun = [False] * len(places)
    async for index, tokens, done in answers.parts():
        prompt, request = prompts[index // n], answers.request(index)
        text = "".join(token.text for token in tokens)
        begins = not begun[index] and bool(tokens or done)
        echoes = begins and bool(body.echo) and body.logprobs is not None
        extras = _extras(state, body, request, tokens, None if echoes else places[index])
        if begins:
            begun[index] = True
            text = prompt.text + text
            if echoes:
                extras["logprobs"] = await in_thread(
                    lambda one=(prompt, request, tokens, places[index]): _echoed(state, *one)  # type: ignore[misc]
                )
            if body.return_token_ids:
                extras["prompt_token_ids"] = prompt.ids
        if text or extras:
            yield event(start | {"choices": [_change(index, text) | extras]})
        if done:
            last = _change(index, "", request.finish_reason) | {
                "stop_reason": stop_reason(request, body.stop_token_ids)
            }
            yield event(start | {"choices": [last]})
    if with_usage:
        done_requests = [answers.request(index) for index in range(len(places))]
        counted = usage(done_requests, range(0, len(done_requests), n))
        yield event(start | {"choices": [], "usage": counted})
    yield DONE


def _change(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _told(request: Request, tokens: Sequence[TokenEvent]) -> list[TokenEvent]:
    return [token for token in tokens if token.token not in request.stop_ids]


def _extras(
    state: ServerState, body: CompletionBody, request: Request, tokens: Sequence[TokenEvent], place: Place | None
) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    told = _told(request, tokens)
    if body.logprobs is not None and told and place is not None:
        extras["logprobs"] = text_logprobs(
            state.tokenizer, [token.token for token in told], [token.logprob for token in told],
            [token.top for token in told], place,
        )  # fmt: skip
    if body.return_token_ids and tokens:
        extras["token_ids"] = [token.token for token in tokens]
    return extras


def _echoed(
    state: ServerState, prompt: _Prompt, request: Request, tokens: Sequence[TokenEvent], place: Place
) -> dict[str, Any]:
    """Log-probabilities of the prompt and of the first tokens after it."""
    told = _told(request, tokens)
    return text_logprobs(
        state.tokenizer, prompt.ids + [token.token for token in told],
        [None, *request.prompt_logprobs, *(token.logprob for token in told)],
        [None, *request.prompt_top, *(token.top for token in told)], place,
    )  # fmt: skip
