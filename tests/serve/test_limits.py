"""Keys, rates, sizes, browsers; and the shape of every error."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import ValidationError

from puyulm.errors import GenerationError
from puyulm.serve.limits import TokenBuckets
from puyulm.serve.protocol import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    PoolingBody,
    RerankBody,
    ResponsesBody,
    ScoreBody,
)
from puyulm.serve.server import Address, open_socket
from puyulm.serve.settings import RateLimit, ServeSettings
from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import Running, running

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    settings = ServeSettings(api_keys=("sk-one", "sk-浦"), max_body=3000, cors_origins=("https://page.example",))
    with running(model, settings) as started:
        yield started


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http(headers={"Authorization": "Bearer sk-one"}) as client:
        yield client


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, whose shape is OpenAI's."""
    assert response.status_code == status, response.text
    told = response.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert isinstance(told["message"], str) and told["message"] and "\n" not in told["message"]
    return told


def test_who_has_no_key_is_not_let_in(server: Running) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer sk-two"},
        {"Authorization": "Basic sk-one"},
        {"Authorization": "sk-one"},
    ):
        for ask in (
            lambda: httpx.post(f"{server.url}/v1/chat/completions", json=HI, headers=headers),  # noqa: B023
            lambda: httpx.get(f"{server.url}/v1/models", headers=headers),  # noqa: B023
            lambda: httpx.get(f"{server.url}/metrics", headers=headers),  # noqa: B023
            lambda: httpx.get(f"{server.url}/openapi.json", headers=headers),  # noqa: B023
        ):
            response = ask()
            assert error(response, 401)["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
    with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_who_has_a_key_is(server: Running, http: httpx.Client) -> None:
    assert http.post("/v1/chat/completions", json=HI).status_code == 200
    second = {"Authorization": "bearer sk-浦".encode()}
    assert httpx.get(f"{server.url}/v1/models", headers=second).status_code == 200  # type: ignore[arg-type]


def test_health_needs_no_key(server: Running) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/version").json()["version"]


def test_too_large_a_body_is_not_read(http: httpx.Client) -> None:
    body = json.dumps(HI | {"user": "x" * 4000}).encode()
    json_kind = {"Content-Type": "application/json"}
    refused = http.post("/v1/chat/completions", content=body, headers=json_kind)
    assert "3,000 bytes" in error(refused, 413)["message"]

    def pieces() -> Iterator[bytes]:  # without a length to go by
        for start in range(0, len(body), 500):
            yield body[start : start + 500]

    error(http.post("/v1/chat/completions", content=pieces(), headers=json_kind), 413)
    assert http.post("/v1/chat/completions", json=HI).status_code == 200


def test_other_pages_may_not_ask(http: httpx.Client) -> None:
    def allowed(origin: str) -> str | None:
        return http.get("/v1/models", headers={"Origin": origin}).headers.get("access-control-allow-origin")

    assert allowed("https://page.example") == "https://page.example"
    assert allowed("https://other.example") is None
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    ask["Access-Control-Request-Headers"] = "authorization,content-type"
    with httpx.Client(base_url=http.base_url) as browser:  # which asks first, without the key
        assert browser.options("/v1/chat/completions", headers=ask).status_code == 200


def test_browsers_are_not_let_in_by_default(model: Path) -> None:
    with running(model) as server:
        response = httpx.get(f"{server.url}/v1/models", headers={"Origin": "https://page.example"})
        assert "access-control-allow-origin" not in response.headers


def test_a_key_that_asks_too_often_is_told_when_to_come_again(model: Path) -> None:
    settings = ServeSettings(api_keys=("a", "b"), rate_limit=RateLimit(2, 3600.0))
    with running(model, settings) as server:
        with server.http(headers={"Authorization": "Bearer a"}) as first:
            assert [first.post("/tokenize", json={"prompt": "a"}).status_code for _ in range(2)] == [200, 200]
            refused = first.post("/tokenize", json={"prompt": "a"})
            assert error(refused, 429)["type"] == "rate_limit_error"
            assert 1000 < int(refused.headers["retry-after"]) <= 1801
            assert first.get("/v1/models").status_code == 200  # costs nothing
            with_blanks = {"Authorization": "Bearer   a"}  # the same client
            assert first.post("/tokenize", json={"prompt": "a"}, headers=with_blanks).status_code == 429
        with server.http(headers={"Authorization": "Bearer b"}) as second:
            assert second.post("/tokenize", json={"prompt": "a"}).status_code == 200


def test_buckets_fill_up_with_time() -> None:
    now = [0.0]
    buckets = TokenBuckets(RateLimit(2, 10.0), lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 5.0]
    assert buckets.take("b") == 0
    now[0] = 4.0
    assert buckets.take("a") == pytest.approx(1.0)
    now[0] = 5.0
    assert buckets.take("a") == 0
    now[0] = 1000.0
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 5.0]  # never more than are allowed at once


@pytest.mark.parametrize("text", ["", "5", "0/m", "-1/m", "5/day", "x/m", "1.5/s", "５/m"])
def test_rates_that_cannot_be_read(text: str) -> None:
    with pytest.raises(GenerationError, match="60/m"):
        RateLimit.parse(text)


def test_rates() -> None:
    assert [RateLimit.parse(text) for text in ("60/m", "5/s", "9/h")] == [
        RateLimit(60, 60.0), RateLimit(5, 1.0), RateLimit(9, 3600.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"{", None, "not JSON"),
        (b"", None, "JSON object"),
        (b"[]", None, "JSON object"),
        (b'"text"', None, "JSON object"),
        (b"\xff\xfe", None, ""),
        (b'{"messages": "\xff"}', None, "UTF-8"),
        (b"[" * 2900, None, ""),
        (b'{"messages": ' + b"[" * 400 + b"]" * 400 + b"}", None, ""),
        (b'{"messages": [], "metadata": ' + b'{"a":' * 450 + b"1" + b"}" * 451, "messages", "at least 1"),
        (b'{"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema", "json_schema":'
         b' {"schema": ' + b'{"not":' * 200 + b"{}" + b"}" * 203, None, ""),
        (b"{}", "messages", "missing"),
        (b'{"messages": "hi"}', "messages", "list"),
        (b'{"messages": []}', "messages", "at least 1"),
        (b'{"messages": [1]}', "messages[0]", "dictionary"),
        (b'{"messages": [{}]}', "messages[0].role", "missing"),
        (b'{"messages": [{"role": "king", "content": "a"}]}', "messages[0].role", "unknown"),
        (b'{"messages": [{"role": "user"}]}', "messages[0].content", "missing"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "messages[0].content", "text"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0].content", "surrogate"),
        (b'{"messages": [{"role": "\\ud800", "content": "a"}]}', "messages[0].role", "surrogate"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}', "model", "surrogate"),
        (b'{"messages": [{"role": "user", "content": "a"}], "\\udfff": 1}', None, "surrogate"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
         "messages[0].content[0]", "text alone"),
        (b'{"messages": [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}]}',
         "messages[0].tool_calls", "assistant"),
        (b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}',
         "messages[0].tool_calls[0].function.arguments", "JSON"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "temperature", ""),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', "temperature", ""),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": "hot"}', "temperature", "valid number"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": true}', "temperature", "valid number"),
        (b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}', "max_tokens", "greater"),
        (b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1.5}', "max_tokens", "integer"),
        (b'{"messages": [{"role": "user", "content": "a"}], "seed": 1e30}', "seed", ""),
        (b'{"messages": [{"role": "user", "content": "a"}], "seed": 99999999999999999999}', "seed", ""),
        (b'{"messages": [{"role": "user", "content": "a"}], "n": 100000}', "n", "256"),
        (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"1": NaN}}', "logit_bias", ""),
        (b'{"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}', "top_logprobs", "logprobs"),
        (b'{"messages": [{"role": "user", "content": "a"}], "stream": "yes"}', "stream", "boolean"),
        (b'{"messages": [{"role": "user", "content": "a"}], "thinking_budget": -1}', "thinking_budget", ""),
        (b'{"messages": [{"role": "user", "content": "a"}], "tool_choice": 7}', "tool_choice", ""),
        (b'{"messages": [{"role": "user", "content": "a"}], "stop": [""]}', "stop[0]", "1 character"),
    ],
)  # fmt: skip
def test_bad_bodies(http: httpx.Client, body: bytes, param: str | None, says: str) -> None:
    response = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    told = error(response, 400)
    assert says in told["message"]
    if param is not None:
        assert told["param"] == param


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ChatBody, {"messages": [1] * 50}),
        (ChatBody, {"messages": [{}], "tools": [1] * 50}),
        (ChatBody, {"messages": [{}], "logit_bias": {str(id): "much" for id in range(50)}}),
        (ChatBody, {"messages": [{}], "stop": [1] * 50, "stop_token_ids": ["a"] * 50, "choice": [1] * 50}),
        (CompletionBody, {"prompt": [[]] * 50}),
        (CompletionBody, {"prompt": [[1], *([["a"] * 50] * 50)]}),
        (EmbeddingBody, {"input": [None] * 50}),
        (PoolingBody, {"messages": [[1] * 50] * 50}),
        (ScoreBody, {"text_1": [1] * 50, "text_2": [1] * 50}),
        (RerankBody, {"query": "a", "documents": [1] * 50}),
        (DetokenizeBody, {"tokens": ["a"] * 50}),
        (ResponsesBody, {"input": [1] * 50, "metadata": {str(id): 1 for id in range(50)}}),
    ],
)
def test_a_body_wrong_in_many_places_has_few_errors(kind: type[Body], fields: dict[str, Any]) -> None:
    """An error for each of millions of items would take minutes and gigabytes."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(fields)
    assert caught.value.error_count() <= 6  # kinds of a field, not items


def test_nothing_waits_for_the_clients_confirmation() -> None:
    """Without TCP_NODELAY every token of a stream may wait for the one before."""
    with open_socket(Address(port=0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_paths_and_methods_that_are_not_there(http: httpx.Client) -> None:
    error(http.get("/v1/nothing"), 404)
    error(http.post("/nothing", json={}), 404)
    response = http.get("/v1/chat/completions")
    error(response, 405)
    assert response.headers["allow"] == "POST"
    error(http.get("/v1/models/nobody"), 404)


def test_every_response_has_an_id(http: httpx.Client) -> None:
    assert len(http.get("/v1/models").headers["x-request-id"]) == 32
    assert http.get("/v1/models", headers={"X-Request-Id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert http.get("/v1/models", headers={"Authorization": ""}).headers["x-request-id"]


def test_metrics_count_what_happens(model: Path) -> None:
    with running(model) as server:
        with server.client() as client:
            long: Any = [{"role": "user", "content": "x" * 80}]
            for _ in range(2):
                client.chat.completions.create(model="model", messages=long, max_tokens=4, temperature=0)
        httpx.post(f"{server.url}/v1/chat/completions", json={})
        httpx.get(f"{server.url}/no/such/path")
        value = server.state.metrics.registry.get_sample_value
        text = httpx.get(f"{server.url}/metrics").text
        assert value("puyu_generated_tokens_total") == 8
        assert value("puyu_prompt_tokens_total") > 160
        assert value("puyu_cached_tokens_total") >= 64
        assert value("puyu_requests_total", {"finish_reason": "length"}) == 2
        for name in ("time_to_first_token", "inter_token", "request"):
            assert value(f"puyu_{name}_seconds_count") == 2
        assert value("puyu_cache_usage") == 0 and value("puyu_cache_blocks_kept") > 0
        assert value("puyu_requests_running") == value("puyu_requests_waiting") == value("puyu_preemptions_total") == 0
        path = "/v1/chat/completions"
        assert value("puyu_http_responses_total", {"path": path, "status": "200"}) == 2
        assert value("puyu_http_responses_total", {"path": path, "status": "400"}) == 1
        assert value("puyu_http_responses_total", {"path": "other", "status": "404"}) == 1
        assert "/no/such/path" not in text
        for name in ("puyu_requests_running", "puyu_cache_usage", "puyu_time_to_first_token_seconds_bucket"):
            assert name in text
