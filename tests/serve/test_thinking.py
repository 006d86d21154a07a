"""Whether a model thinks, and for how long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from puyulm.engine.thinking import GRACE
from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import Running, running

ASK: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("thinking"), max_position_embeddings=4096)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def deep(model: Path) -> Iterator[Running]:
    """As InternLM3: thoughts are asked for by a system text."""
    with running(model, chat_format="internlm3") as started:
        yield started


def prompt_tokens(client: openai.OpenAI, **fields: Any) -> int:
    answer = client.chat.completions.create(**(ASK | fields))
    assert answer.usage is not None
    return answer.usage.prompt_tokens


def test_thinking_is_asked_for_by_any_of_its_names(deep: Running) -> None:
    with deep.client() as client:
        off, on = prompt_tokens(client), prompt_tokens(client, extra_body={"enable_thinking": True})
        assert on > off + 500
        assert prompt_tokens(client, extra_body={"chat_template_kwargs": {"enable_thinking": True}}) == on
        assert prompt_tokens(client, reasoning_effort="high") == on
        assert prompt_tokens(client, reasoning_effort="none") == off
        assert prompt_tokens(client, extra_body={"enable_thinking": False}, reasoning_effort="high") == off


def test_thinking_may_be_the_servers_default(model: Path, deep: Running) -> None:
    with deep.client() as client:
        on = prompt_tokens(client, extra_body={"enable_thinking": True})
    with running(model, chat_format="internlm3", think=True) as server, server.client() as client:
        assert prompt_tokens(client) == on
        assert prompt_tokens(client, reasoning_effort="none") < on


def test_a_format_without_thoughts_refuses_them_and_ignores_an_effort(model: Path) -> None:
    with running(model, chat_format="base") as server, server.client() as client:
        with pytest.raises(openai.BadRequestError, match="no thinking mode"):
            prompt_tokens(client, extra_body={"enable_thinking": True})
        assert prompt_tokens(client, reasoning_effort="high") == prompt_tokens(client)


@pytest.mark.parametrize("budget", [0, 12])
def test_thoughts_that_use_up_their_budget_are_closed_and_the_answer_follows(model: Path, budget: int) -> None:
    """The template begins the thoughts; a model of random weights would never end them."""
    with running(model, chat_format="chatml", own_template=True) as server, server.client() as client:
        fields: Any = {
            "max_tokens": 60, "temperature": 0, "extra_body": {"thinking_budget": budget, "ignore_eos": True},
            "logit_bias": {str(id): -100 for id in server.state.tokenizer.special_tokens.values()},
        }  # fmt: skip
        answer = client.chat.completions.create(**(ASK | fields))
        message, usage = answer.choices[0].message, answer.usage
        assert message.content and "</think>" not in message.content
        assert usage is not None and usage.completion_tokens_details is not None
        closing = len(server.state.tokenizer.encode("\n</think>\n\n"))
        thoughts = usage.completion_tokens_details.reasoning_tokens or 0
        assert budget <= thoughts <= budget + GRACE + closing
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**(ASK | fields), stream=True)]
        assert "".join(delta.content or "" for delta in deltas) == message.content
        told = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert told == (getattr(message, "reasoning_content", None) or "")
        assert bool(told) == bool(budget)
