"""`/v1/embeddings`, `/pooling`, `/v1/score` and `/v1/rerank`: texts and conversations read, nothing written."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from torch import Tensor

from puyulm.engine.request import Request
from puyulm.serve.answers import Answers, Job
from puyulm.serve.connection import while_connected
from puyulm.serve.errors import ApiError
from puyulm.serve.prompts import (
    chat_ids,
    check_messages,
    in_thread,
    input_ids,
    json_response,
    list_of_inputs,
    read_messages,
)
from puyulm.serve.protocol import MAX_INPUTS, EmbeddingBody, PoolingBody, RerankBody, ScoreBody
from puyulm.serve.shapes import new_id
from puyulm.serve.state import ServerState
from puyulm.text.chat import Message

Pooling = Literal["mean", "last"]
AT_ONCE = 64  # sequences of one request in the engine's queue: others are to have a chance


async def embeddings(state: ServerState, body: EmbeddingBody, http: HttpRequest) -> Response:
    """Vectors of length 1: the final-normed hidden states of a text's tokens, their "mean" or the "last" one.

    Raises:
        PuyuError: A text is empty, or too long.
    """
    adapter = state.adapter_for(body.model)
    hidden_size = state.config.hidden_size
    if body.dimensions not in (None, hidden_size):
        raise ApiError(f"dimensions: this model's vectors have {hidden_size}; leave it out", param="dimensions")
    inputs = list_of_inputs(body.input, MAX_INPUTS, "input")

    async def work() -> list[Request]:
        ids = await in_thread(lambda: [input_ids(state, text, "input") for text in inputs])
        return await _read(state, ids, body.pooling, adapter, "input")

    done = await while_connected(http, work())

    def result() -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(_unit(request), body.encoding_format)}
            for index, request in enumerate(done)
        ]
        return {"object": "list", "data": data, "model": adapter or state.name, "usage": _usage(done)}

    return await json_response(result)


async def pooling(state: ServerState, body: PoolingBody, http: HttpRequest) -> Response:
    """Of a reward model the score of each conversation, of a language model a vector, as `/v1/embeddings`.

    Raises:
        PuyuError: There is nothing to read, or too much.
    """
    adapter = state.adapter_for(body.model)
    if (body.input is None) == (body.messages is None):
        raise ApiError("messages: give either messages or input", param="messages")
    rewards = state.config.head == "reward"

    def ids() -> list[list[int]]:
        if body.messages is not None:
            return [_conversation(state, one) for one in conversations(body.messages)]
        inputs = list_of_inputs(body.input or [], MAX_INPUTS, "input")
        return [_scored_text(state, text) if rewards else input_ids(state, text, "input") for text in inputs]

    async def work() -> tuple[list[Request], list[list[float]] | None]:
        done = await _read(state, await in_thread(ids), "last" if rewards else body.pooling, adapter, "messages")
        return done, ([[score] for score in await _scores(state, done)] if rewards else None)

    done, scores = await while_connected(http, work())

    def result() -> dict[str, Any]:
        rows = [torch.tensor(row) for row in scores] if scores is not None else [_unit(request) for request in done]
        data = [
            {"object": "pooling", "index": index, "data": _encoded(row, body.encoding_format)}
            for index, row in enumerate(rows)
        ]
        return {
            "id": new_id("pool-"), "object": "list", "data": data, "model": adapter or state.name, "usage": _usage(done)
        }  # fmt: skip

    return await json_response(result)


async def score(state: ServerState, body: ScoreBody, http: HttpRequest) -> dict[str, Any]:
    """Rewards of conversations, or of answers (`text_2`) to questions (`text_1`; one for all answers, or one each).

    `ranks` gives each one's place (0: the best) and `order` their indexes, best first: of three or more these differ.

    Raises:
        PuyuError: The model is not a reward model, or the request is incomplete.
    """
    adapter = state.adapter_for(body.model)
    told = _score_messages(body)
    scores, done = await while_connected(http, _score(state, told, adapter))
    data = [{"object": "score", "index": index, "score": value} for index, value in enumerate(scores)]
    order = best_first(scores)
    return {
        "id": new_id("score-"), "object": "list", "data": data, "order": order, "ranks": ranks(order),
        "model": adapter or state.name, "usage": _usage(done),
    }  # fmt: skip


async def rerank(state: ServerState, body: RerankBody, http: HttpRequest) -> dict[str, Any]:
    """Answers ("documents") to a question ("query"), the best first.

    Raises:
        PuyuError: The model is not a reward model.
    """
    adapter = state.adapter_for(body.model)
    texts = [_document(document, index) for index, document in enumerate(body.documents)]
    scores, done = await while_connected(http, _score(state, [_exchange(body.query, text) for text in texts], adapter))
    results = [
        {"index": index, "rank": place, "relevance_score": scores[index]}
        | ({"document": {"text": texts[index]}} if body.return_documents else {})
        for place, index in enumerate(best_first(scores))
    ]
    return {
        "id": new_id("rerank-"), "model": adapter or state.name, "results": results[: body.top_n], "usage": _usage(done)
    }  # fmt: skip


def best_first(scores: Sequence[float]) -> list[int]:
    """Indexes of scores, the best first; equal ones in their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def ranks(order: Sequence[int]) -> list[int]:
    """The place of each index in an order."""
    places = [0] * len(order)
    for place, index in enumerate(order):
        places[index] = place
    return places


def conversations(messages: Sequence[Any]) -> list[list[Mapping[str, Any]]]:
    """One conversation or several, as several."""
    return [list(messages)] if isinstance(messages[0], Mapping) else [list(one) for one in messages]


async def _score(
    state: ServerState, told: Sequence[Sequence[Mapping[str, Any]]], adapter: str | None
) -> tuple[list[float], list[Request]]:
    if state.config.head != "reward":
        raise ApiError("this is a language model, which does not score texts: serve a reward model")
    ids = await in_thread(lambda: [_conversation(state, one) for one in told])
    done = await _read(state, ids, "last", adapter, "messages")
    return await _scores(state, done), done


async def _scores(state: ServerState, done: Sequence[Request]) -> list[float]:
    """What the reward head says of the last tokens."""

    def scores() -> list[float]:
        with torch.inference_mode():
            head = state.engine.engine.model.head
            return [float(head(request.pooled[None])) for request in done if request.pooled is not None]

    return await state.engine.call(scores)


async def _read(
    state: ServerState, sequences: Sequence[Sequence[int]], task: Pooling, adapter: str | None, field: str
) -> list[Request]:
    limit = state.max_length
    for ids in sequences:
        if len(ids) > limit:
            raise ApiError(
                f"{field}: a text has {len(ids):,} tokens, but there is room for {limit:,}: shorten it",
                param=field, code="context_length_exceeded",
            )  # fmt: skip
    done: list[Request] = []
    for first in range(0, len(sequences), AT_ONCE):
        answers = Answers(state)
        try:
            await answers.open(
                [Job(prompt=ids, task=task, adapter=adapter) for ids in sequences[first : first + AT_ONCE]]
            )
            done += await answers.all()
        finally:
            answers.close()
    return done


def _conversation(state: ServerState, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """A finished conversation, with what the reward model's format puts behind it."""
    read = read_messages(messages)
    check_messages(state, read)
    return chat_ids(state, read, answer=False)


def _scored_text(state: ServerState, text: str | list[int]) -> list[int]:
    if isinstance(text, str):
        check_messages(state, [Message("user", text)], "input")
        return chat_ids(state, [Message("user", text)], answer=False)
    return input_ids(state, text, "input")


def _score_messages(body: ScoreBody) -> list[list[Mapping[str, Any]]]:
    if body.messages is not None:
        if body.text_1 is not None or body.text_2 is not None:
            raise ApiError("messages: give either messages, or text_1 and text_2", param="messages")
        return conversations(body.messages)
    if body.text_1 is None or body.text_2 is None:
        raise ApiError("messages: give conversations, or questions (text_1) with answers (text_2)", param="messages")
    answers = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    questions = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    if len(questions) == 1:
        questions = questions * len(answers)
    if len(questions) != len(answers) or not 1 <= len(answers) <= MAX_INPUTS:
        raise ApiError(
            f"text_2: {len(questions)} questions but {len(answers)} answers: give one question, or one for each answer",
            param="text_2",
        )  # fmt: skip
    return [_exchange(question, answer) for question, answer in zip(questions, answers, strict=True)]


def _exchange(question: str, answer: str) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _document(document: str | dict[str, Any], index: int) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise ApiError(f"documents[{index}].text: missing: give texts", param=f"documents[{index}]")
    return text


def _unit(request: Request) -> Tensor:
    assert request.pooled is not None
    return torch.nn.functional.normalize(request.pooled.float(), dim=0).cpu()


def _encoded(row: Tensor, encoding: str) -> list[float] | str:
    """Numbers, or the base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(row.float().numpy().astype("<f4").tobytes()).decode()
    return row.tolist()


def _usage(done: Sequence[Request]) -> dict[str, int]:
    read = sum(request.prompt_length for request in done)
    return {"prompt_tokens": read, "total_tokens": read}
