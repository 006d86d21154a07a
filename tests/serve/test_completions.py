"""Plain texts gone on with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from puyulm.engine.engine import Engine
from puyulm.engine.params import SamplingParams
from puyulm.serve.shapes import Place, text_logprobs
from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import Running, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(write_checkpoint(tmp_path_factory.mktemp("texts"))) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def reference(server: Running) -> Engine:
    """Another engine over the same model, which nobody else asks."""
    return Engine(server.engine.model, server.engine.tokenizer, server.engine.config)


def test_a_text_and_its_ids_go_on_alike_and_as_the_engine_says(
    server: Running, client: openai.OpenAI, reference: Engine
) -> None:
    ids = server.state.tokenizer.encode("It is", bos=True)
    params = server.state.params.evolve(temperature=0, max_new_tokens=9)
    [expected] = reference.generate([ids], params)
    for prompt in ("It is", ids):
        answer = client.completions.create(model="model", prompt=prompt, max_tokens=9, temperature=0)
        assert answer.choices[0].text == expected.text
        assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize("prompt", [["one", "another", "third"], [[65, 66], [67], [68, 69, 70]]])
def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI, prompt: Any) -> None:
    together = client.completions.create(model="model", prompt=prompt, max_tokens=6, temperature=0, n=1)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    for text, choice in zip(prompt, together.choices, strict=True):
        alone = client.completions.create(model="model", prompt=text, max_tokens=6, temperature=0)
        assert alone.choices[0].text == choice.text


def test_n_answers_to_each_prompt_count_its_tokens_once(server: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="model", prompt=["ab", "cd"], n=2, max_tokens=3, seed=1, temperature=1.0)
    assert len(answer.choices) == 4
    read = sum(len(server.state.tokenizer.encode(text, bos=True)) for text in ("ab", "cd"))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (read, 12)


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "model", "prompt": ["ab", "cd"], "max_tokens": 8, "temperature": 0, "echo": True}
    whole = client.completions.create(**fields)
    texts, ends = ["", ""], ["", ""]
    for chunk in client.completions.create(**fields, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0].startswith("ab") and ends == ["length", "length"]


def test_an_echo_with_logprobs_judges_the_prompt(server: Running, client: openai.OpenAI, reference: Engine) -> None:
    """What evaluation harnesses do to score a text: no new token at all."""
    ids = server.state.tokenizer.encode("print(1)", bos=True)
    answer = client.completions.create(model="model", prompt="print(1)", max_tokens=0, echo=True, logprobs=2)
    [choice] = answer.choices
    assert choice.text == "print(1)"
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == reference.logprobs([ids])[0]
    assert "".join(logprobs.tokens or []) == "print(1)"
    assert [len(top) for top in (logprobs.top_logprobs or [])[1:]] == [2] * (len(ids) - 1)
    assert answer.usage is not None and answer.usage.completion_tokens == 0


def test_prompt_and_answer_are_judged_alike(server: Running, client: openai.OpenAI) -> None:
    first = client.completions.create(
        model="model", prompt=[[65, 66, 67]], max_tokens=5, temperature=0, echo=True, logprobs=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    ).choices[0]  # fmt: skip
    whole = [*first.prompt_token_ids, *first.token_ids]  # type: ignore[attr-defined]
    again = client.completions.create(model="model", prompt=whole, max_tokens=0, echo=True, logprobs=0).choices[0]
    assert first.logprobs is not None and again.logprobs is not None
    assert first.logprobs.token_logprobs is not None and again.logprobs.token_logprobs is not None
    for one, other in zip(first.logprobs.token_logprobs[1:], again.logprobs.token_logprobs[1:], strict=True):
        assert math.isclose(one or 0, other or 0, abs_tol=1e-6)


def test_half_a_character_at_the_prompts_end_does_not_reach_the_answer(server: Running, client: openai.OpenAI) -> None:
    half = server.state.tokenizer.encode("上")[:1]
    [q] = server.state.tokenizer.encode("Q")
    answer = client.completions.create(
        model="model", prompt=half, max_tokens=2, temperature=0, logit_bias={str(q): 100}
    )
    assert answer.choices[0].text == "QQ"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 300}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "prompt"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [65, "a"]}, "prompt[0]"),
        ({"prompt": [999_999]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"logit_bias": {"no": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": ""}, "stop"),
        ({"extra_body": {"min_p": 2}}, "min_p"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 3}, "min_tokens"),
        ({"extra_body": {"top_k": "many"}}, "top_k"),
    ],
)
def test_what_is_wrong_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(**({"model": "model", "prompt": "a", "max_tokens": 2} | fields))
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


def test_greedy_logprobs_are_the_models_own(client: openai.OpenAI, reference: Engine, server: Running) -> None:
    ids = server.state.tokenizer.encode("a", bos=True)
    [expected] = reference.generate([ids], SamplingParams(temperature=0, max_new_tokens=4, ignore_eos=True))
    answer = client.completions.create(
        model="model", prompt="a", max_tokens=4, temperature=0, logprobs=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == expected.logprobs


def test_offsets_count_whole_characters(server: Running, client: openai.OpenAI) -> None:
    tokenizer = server.state.tokenizer
    text = "aé浦x"
    ids = [id for byte in text.encode() for id in range(256) if tokenizer.token_bytes(id) == bytes([byte])]
    assert tokenizer.decode(ids, mid_text=True) == text and len(ids) == 7
    place, empty = Place(), [None] * 7
    first = text_logprobs(tokenizer, ids[:2], [0.0] * 2, empty[:2], place)["text_offset"]
    rest = text_logprobs(tokenizer, ids[2:], [0.0] * 5, empty[2:], place)["text_offset"]
    assert first + rest == [0, 1, 1, 2, 2, 2, 3]


def test_offsets_of_a_streamed_echo_are_those_of_the_whole(server: Running, client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "model", "prompt": "浦语 ab", "max_tokens": 8, "temperature": 0}
    fields |= {"echo": True, "logprobs": 1}
    whole = client.completions.create(**fields).choices[0].logprobs
    streamed: list[int] = []
    for chunk in client.completions.create(stream=True, **fields):
        if chunk.choices and chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.text_offset or []
    assert whole is not None and streamed == whole.text_offset
