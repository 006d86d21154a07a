"""Bodies of requests. Types are strict; fields that nobody knows are ignored, as clients send many.

Besides OpenAI's fields there are those of the engine: `top_k`, `min_p`, `repetition_penalty`, `min_tokens`,
`ignore_eos`, `stop_token_ids`, `regex`, `choice`, `grammar`, `enable_thinking`, `thinking_budget`, `return_token_ids`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

MAX_TOP = 20  # alternatives to a token, as in OpenAI's protocol
MAX_INPUTS = 2048  # texts in one request, likewise
MAX_MESSAGES = 10_000
MAX_PLACE = 200  # characters of a place in a body that a message names

# Lists end at their first wrong item: an error for each of millions would take minutes, and gigabytes.
FIRST = Field(fail_fast=True)

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
JsonObject = dict[str, JsonValue]  # JSON's own types, and text that is Unicode
JsonObjects = Annotated[list[JsonObject], FIRST]
Texts = Annotated[list[str], FIRST]
TextOrIds = str | Texts | Ids | Annotated[list[Ids], FIRST]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Conversation = Annotated[list[JsonObject], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
Conversations = Annotated[list[Conversation], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]


def _first_wrong(*kinds: type) -> Callable[[object], object]:
    """Of an object with wrong values leaves the first of them, as `FIRST` does with lists."""

    def first_wrong(data: object) -> object:
        if not isinstance(data, dict):
            return data
        wrong = ((key, value) for key, value in data.items() if type(value) not in kinds)
        return next(({key: value} for key, value in wrong), data)

    return first_wrong


class Body(BaseModel):
    """What all have in common."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, data: object) -> object:
        """Half a surrogate pair, which JSON can spell, can neither be encoded nor sent back."""
        try:
            json.dumps(data, ensure_ascii=False, default=repr).encode()  # a body of megabytes in no time
            return data
        except UnicodeEncodeError:
            where = _not_unicode(data)
        except RecursionError:
            raise ValueError("the body is nested too deeply") from None
        if where is not None:
            raise ValueError(f"{cut(where.lstrip('.'))}: holds half a surrogate pair, which is no Unicode text")
        return data


def cut(place: str) -> str:
    """A place in a body, short enough for a message."""
    return place if len(place) <= MAX_PLACE else place[:MAX_PLACE] + "..."


def _not_unicode(data: object, where: str = "") -> str | None:
    """The place of a text that is not Unicode."""
    if isinstance(data, str):
        return None if data.isascii() or _encodes(data) else where
    items: Iterable[tuple[str, object]] = ()
    if isinstance(data, dict):
        if not all(_encodes(key) for key in data):
            return where or "a field's name"
        items = ((f"{where}.{key}", value) for key, value in data.items())
    elif isinstance(data, list) and data and not isinstance(data[0], int | float):  # of ids there may be a million
        items = ((f"{where}[{number}]", value) for number, value in enumerate(data))
    return next((found for place, value in items if (found := _not_unicode(value, place)) is not None), None)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class SamplingBody(Body):
    """How answers are drawn; None: as the checkpoint wants it."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # -1: all, as 0
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(_first_wrong(int, float))] | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=64, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=256, fail_fast=True)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    grammar: str | None = None
    return_token_ids: bool | None = None


class ResponseFormat(BaseModel):
    """`{"type": "json_schema", "json_schema": {"name", "schema"}}`, "json_object" or "text"."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonObject | None = None


class ThinkingBody(BaseModel):
    """Whether the model thinks before it answers, and for how long."""

    enable_thinking: bool | None = None
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: JsonObject | None = None


class ChatBody(SamplingBody, ThinkingBody):
    """`POST /v1/chat/completions`."""

    messages: Conversation
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    tools: JsonObjects | None = None
    tool_choice: Literal["none", "auto", "required"] | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    continue_final_message: bool | None = None
    functions: list[JsonValue] | None = None
    function_call: JsonValue = None


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: TextOrIds
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    response_format: ResponseFormat | None = None


class EmbeddingBody(Body):
    """`POST /v1/embeddings`."""

    input: TextOrIds
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    pooling: Literal["mean", "last"] = "mean"


class PoolingBody(Body):
    """`POST /pooling`: `messages` (one conversation or several) or `input`."""

    input: TextOrIds | None = None
    messages: Conversation | Conversations | None = None
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last"] = "mean"


class ScoreBody(Body):
    """`POST /v1/score`: `messages`, or questions (`text_1`) and answers (`text_2`)."""

    messages: Conversation | Conversations | None = None
    text_1: str | Texts | None = None
    text_2: str | Texts | None = None


class RerankBody(Body):
    """`POST /v1/rerank`."""

    query: str
    documents: Annotated[list[str | JsonObject], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True


class TokenizeBody(Body):
    """`POST /tokenize`: `prompt`, or `messages`."""

    prompt: str | None = None
    messages: Conversation | None = None
    tools: JsonObjects | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    tokens: Annotated[list[Annotated[int, Field(ge=0)]], FIRST]
    skip_special_tokens: bool = False


class LoadAdapterBody(Body):
    """`POST /v1/load_lora_adapter`."""

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]
    lora_path: Annotated[str, Field(min_length=1)]


class UnloadAdapterBody(Body):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: str


class ResponsesReasoning(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class ResponsesBody(Body):
    """`POST /v1/responses`."""

    input: str | Conversation
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: JsonObjects | None = None
    tool_choice: Literal["none", "auto", "required"] | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    text: JsonObject | None = None
    reasoning: ResponsesReasoning | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_first_wrong(str))] | None = None
    previous_response_id: str | None = None
    conversation: JsonValue = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
