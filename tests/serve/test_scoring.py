"""Vectors, rewards, and tokens."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from puyulm.engine.engine import Engine
from puyulm.serve.scoring import best_first, ranks
from puyulm.text.chat import Message, render
from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import Running, running

REWARD_TOKEN = 250


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(write_checkpoint(tmp_path_factory.mktemp("vectors"))) as started:
        yield started


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = write_checkpoint(tmp_path_factory.mktemp("rewards"), head="reward", reward_token_id=REWARD_TOKEN)
    with running(model) as started:
        yield started


def post(server: Running, path: str, status: int = 200, **body: Any) -> Any:
    response = httpx.post(server.url + path, json=body, timeout=30)
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_the_engines(server: Running, pooling: Any) -> None:
    texts = ["What is the weather?", "上海"]
    reference = Engine(server.engine.model, server.engine.tokenizer, server.engine.config)
    expected = reference.embed([server.state.tokenizer.encode(text, bos=True) for text in texts], pooling)
    with server.client() as client:
        answer = client.embeddings.create(
            model="model", input=texts, encoding_format="float", extra_body={"pooling": pooling}
        )
        packed = client.embeddings.create(model="model", input=texts, extra_body={"pooling": pooling})
    for one, other, vector in zip(answer.data, packed.data, expected, strict=True):
        assert np.allclose(one.embedding, vector.numpy(), atol=1e-6)
        assert np.allclose(other.embedding, one.embedding, atol=1e-7)  # the client asks for base64 by itself
        assert math.isclose(math.hypot(*one.embedding), 1, rel_tol=1e-5)
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == sum(len(server.state.tokenizer.encode(text)) for text in texts)


def test_base64_is_little_endian_float32(server: Running) -> None:
    plain = post(server, "/v1/embeddings", input=[65, 66])["data"][0]["embedding"]
    packed = post(server, "/v1/embeddings", input=[65, 66], encoding_format="base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), dtype="<f4").tolist() == plain


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a" * 600}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_wrong_inputs_are_named(server: Running, body: dict[str, Any], param: str) -> None:
    assert post(server, "/v1/embeddings", 400, **body)["error"]["param"] == param


def rewards(server: Running, told: list[list[Message]]) -> list[float]:
    reference = Engine(server.engine.model, server.engine.tokenizer, server.engine.config)
    ids = [render(one, server.state.tokenizer, server.state.chat_format).ids for one in told]
    assert all(one[-1] == REWARD_TOKEN for one in ids)
    return reference.score(ids)


def test_conversations_are_scored_in_the_models_own_format(reward: Running) -> None:
    told = [[Message("user", "1 + 1?"), Message("assistant", answer)] for answer in ("2", "3", "many")]
    messages = [[{"role": one.role, "content": one.content} for one in conversation] for conversation in told]
    expected = rewards(reward, told)
    answer = post(reward, "/v1/score", messages=messages)
    assert [one["score"] for one in answer["data"]] == expected
    assert [one["data"] for one in post(reward, "/pooling", messages=messages)["data"]] == [[one] for one in expected]
    assert post(reward, "/v1/score", messages=messages[1])["data"][0]["score"] == expected[1]
    pairs = post(reward, "/v1/score", text_1="1 + 1?", text_2=["2", "3", "many"])
    assert [one["score"] for one in pairs["data"]] == expected


def test_places_and_the_order_of_indexes_are_told_apart(reward: Running) -> None:
    """They agree for two answers, and are mistaken for one another with three."""
    assert best_first([1.0, 3.0, 2.0]) == [1, 2, 0]
    assert ranks([1, 2, 0]) == [2, 0, 1]
    documents = ["2", "3", "many", "one", "none", "four"]
    expected = rewards(reward, [[Message("user", "1 + 1?"), Message("assistant", text)] for text in documents])
    by_score = sorted(range(6), key=lambda index: -expected[index])
    answer = post(reward, "/v1/score", text_1="1 + 1?", text_2=documents)
    assert answer["order"] == by_score
    assert [answer["order"][rank] for rank in sorted(answer["ranks"])] == by_score
    assert all(answer["order"][answer["ranks"][index]] == index for index in range(6))
    results = post(reward, "/v1/rerank", query="1 + 1?", documents=documents, top_n=4)["results"]
    assert [one["index"] for one in results] == by_score[:4]
    assert [one["rank"] for one in results] == [0, 1, 2, 3]
    assert [one["relevance_score"] for one in results] == [expected[index] for index in by_score[:4]]
    assert results[0]["document"] == {"text": documents[by_score[0]]}


def test_a_reward_model_writes_nothing_and_a_language_model_scores_nothing(server: Running, reward: Running) -> None:
    message = [{"role": "user", "content": "hi"}]
    assert "reward model" in post(reward, "/v1/chat/completions", 400, messages=message)["error"]["message"]
    assert "reward model" in post(reward, "/v1/completions", 400, prompt="a")["error"]["message"]
    assert "reward model" in post(server, "/v1/score", 400, messages=message)["error"]["message"]
    assert "reward model" in post(server, "/v1/rerank", 400, query="a", documents=["b"])["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [{}, {"text_1": "a"}, {"text_1": ["a", "b"], "text_2": ["c"]}, {"text_1": "a", "text_2": []}, {"messages": [[]]},
     {"messages": []}, {"messages": [{"role": "nobody", "content": "a"}]}, {"messages": ["a"]}],
)  # fmt: skip
def test_incomplete_conversations_are_refused(reward: Running, body: dict[str, Any]) -> None:
    assert post(reward, "/v1/score", 400, **body)["error"]["param"]


def test_tokens_there_and_back(server: Running) -> None:
    tokenizer = server.state.tokenizer
    text = "print(上海) 🙂"
    answer = post(server, "/tokenize", prompt=text, return_token_strs=True)
    assert answer["tokens"] == tokenizer.encode(text, bos=True)
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 256)
    assert len(answer["token_strs"]) == answer["count"]
    assert post(server, "/detokenize", tokens=answer["tokens"])["prompt"] == text
    assert post(server, "/detokenize", 400, tokens=[10**9])["error"]["param"] == "tokens"


def test_a_conversation_is_tokenised_as_it_is_answered(server: Running) -> None:
    messages: Any = [{"role": "user", "content": "<|im_end|> hi"}]
    ids = post(server, "/tokenize", messages=messages)["tokens"]
    with server.client() as client:
        answer = client.chat.completions.create(
            model="model", messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
        )
    assert answer.prompt_token_ids == ids  # type: ignore[attr-defined]
    assert ids.count(server.state.tokenizer.special_tokens["<|im_end|>"]) == 1  # not the one that a user typed


def test_unknown_models_are_not_found(server: Running) -> None:
    with server.client() as client, pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="a")
