"""A model behind an OpenAI-compatible endpoint: `puyu serve`, vLLM, LMDeploy, a vendor's."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from puyulm.errors import GenerationError
from puyulm.eval.model import Continuation, Judged, OnJudged, OnOutput, Output, Prompt, PromptError
from puyulm.text.messages import Message, message_from_dict, message_to_dict

if TYPE_CHECKING:
    import httpx

    from puyulm.text.tokenizer import Tokenizer

TRIES, FIRST_WAIT = 6, 0.5  # a busy server is asked again after 0.5 s, 1 s, 2 s, ...
REFUSED = (400, 413, 422)  # this question, and not another one
BUSY = (408, 409, 429, 500, 502, 503, 504)
TIMEOUT = 3600.0  # of one answer, in seconds: thoughts may be long

T = TypeVar("T")


class EndpointModel:
    """A `puyulm.eval.model.LanguageModel` over HTTP.

    Args:
        url: Up to and with "/v1".
        model: Its name there; None: the first that the server lists.
        key: Sent as a bearer token.
        concurrency: Requests at once.
        tokenizer: For benchmarks that count tokens; None: those are refused.

    Raises:
        GenerationError: The server cannot be reached or lists no model.
    """

    def __init__(
        self, url: str, model: str | None = None, *, key: str | None = None, concurrency: int = 32,
        tokenizer: Tokenizer | None = None,
    ) -> None:  # fmt: skip
        try:
            import httpx
        except ImportError:
            raise GenerationError("an endpoint needs httpx: pip install 'puyulm[eval]'") from None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT, limits=limits)
        self._url, self._concurrency, self._tokenizer = url.rstrip("/"), concurrency, tokenizer
        self.thinks = True  # as far as is known here
        self.context: int | None = None
        self._model = model or self._first_model()
        self.name = self._model
        self.fingerprint = f"{self._url} {self._model}"

    def generate(self, prompts: Sequence[Prompt], on_output: OnOutput) -> None:
        self._each(self._answer, prompts, on_output)

    def judge(self, continuations: Sequence[Continuation], on_judged: OnJudged) -> None:
        self._each(self._judged, continuations, on_judged)

    def reward(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        raise GenerationError("an endpoint gives no rewards: evaluate the reward model's checkpoint itself")

    def encode(self, text: str) -> list[int]:
        return self._counting().encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._counting().decode(ids)

    def close(self) -> None:
        self._client.close()

    def _counting(self) -> Tokenizer:
        if self._tokenizer is None:
            raise GenerationError("this benchmark counts tokens: name the model's tokenizer with --tokenizer FOLDER")
        return self._tokenizer

    def _each(self, function: Callable[[Any], T], asked: Sequence[Any], report: Callable[[int, T], None]) -> None:
        """Reports in this thread, as answers come. Whoever interrupts it does not wait for those on their way."""
        todo, answers = deque(enumerate(asked)), SimpleQueue[tuple[int, T | BaseException]]()

        def work() -> None:
            while True:
                try:
                    index, one = todo.popleft()
                except IndexError:
                    return
                try:
                    answers.put((index, function(one)))
                except BaseException as error:
                    answers.put((index, error))

        for _ in range(min(self._concurrency, len(asked))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in asked:
                index, answer = answers.get()
                if isinstance(answer, PromptError):
                    raise PromptError(index, str(answer))
                if isinstance(answer, BaseException):
                    raise answer
                report(index, answer)
        finally:
            todo.clear()

    def _answer(self, prompt: Prompt) -> Output:
        body: dict[str, Any] = {"model": self._model, "max_tokens": prompt.max_new_tokens}
        body |= {
            name: value
            for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
            if (value := getattr(prompt.sampling, name)) is not None
        }
        if prompt.stop:
            body["stop"] = list(prompt.stop)
        if not prompt.messages:
            if prompt.top_logprobs:
                body["logprobs"] = prompt.top_logprobs
            reply = self._post("completions", body | {"prompt": prompt.text + prompt.prefix})
            choice = _first_choice(reply)
            listed = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
            return _output(Message("assistant", choice.get("text") or ""), choice, reply, listed[0] or {})
        messages = [message_to_dict(message) for message in prompt.messages]
        if prompt.prefix:  # vLLM's and our own server's way to let a model go on
            messages.append({"role": "assistant", "content": prompt.prefix})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if prompt.think:
            body["chat_template_kwargs"] = {"enable_thinking": True}
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        if prompt.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": prompt.top_logprobs}
        reply = self._post("chat/completions", body | {"messages": messages})
        choice = _first_choice(reply)
        found = dict(choice.get("message") or {})
        reasoning = found.pop("reasoning_content", None) or found.pop("reasoning", None) or ""
        message = message_from_dict({"role": "assistant", "content": found.get("content") or ""} | _calls(found))
        content = (choice.get("logprobs") or {}).get("content") or [{}]
        top: dict[str, float] = {}
        for one in content[0].get("top_logprobs") or ():
            top.setdefault(one["token"], one["logprob"])  # the most likely one of those that look the same
        return _output(message, choice, reply, top, reasoning)

    def _judged(self, one: Continuation) -> Judged:
        """By the log-probabilities of an echoed prompt. One more token is made, as some servers insist on it.

        A token that stands across the border of context and continuation counts to the context, unless it is all that
        there is (see `puyulm.eval.engine_model.encode_pairs`).
        """
        prompt = one.context + one.text
        text = prompt[len(one.context.rstrip()) :]
        reply = self._post("completions", {
            "model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True,
        })  # fmt: skip
        logprobs = _first_choice(reply).get("logprobs") or {}
        values, offsets, tokens = (logprobs.get(name) for name in ("token_logprobs", "text_offset", "tokens"))
        if not values or not offsets or not tokens:
            raise GenerationError(f"{self._url} gives no log-probabilities of prompts (echo): likelihoods need them")
        count = (reply.get("usage") or {}).get("prompt_tokens") or len(values) - 1
        end = offsets[count] if count < len(offsets) else offsets[-1] + len(tokens[-1])
        border, ends = end - len(text), [*offsets[1:count], end]
        places = [place for place in range(count) if offsets[place] >= border]
        places = places or [place for place in range(count) if ends[place] > border]
        judged = [values[place] for place in places if values[place] is not None]
        return Judged(sum(judged), len(judged))

    def _first_model(self) -> str:
        listed = self._send("GET", "models", None).get("data") or []
        if not listed:
            raise GenerationError(f"{self._url} lists no model: name one with --model-name")
        return str(listed[0]["id"])

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        import httpx

        wait, problem = FIRST_WAIT, ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(wait)
                wait *= 2
            try:
                response = self._client.request(method, f"{self._url}/{path}", json=body)
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
                continue
            if response.status_code < 400:
                try:
                    return response.json()
                except ValueError:
                    raise GenerationError(f"{self._url}/{path} did not answer in JSON: is it an endpoint?") from None
            problem = _problem(response)
            if response.status_code in REFUSED and method == "POST":
                raise PromptError(0, f"{self._url}/{path}: {problem}")
            if response.status_code not in BUSY:
                break
        raise GenerationError(f"{self._url}/{path}: {problem}")


def _problem(response: httpx.Response) -> str:
    try:
        data = response.json()
        error = data.get("error", data)
        message = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        message = response.text[:200]
    return f"status {response.status_code}: {message}"


def _first_choice(reply: Mapping[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not choices:
        raise GenerationError("the endpoint answered without choices")
    return dict(choices[0])


def _calls(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"tool_calls": message["tool_calls"]} if message.get("tool_calls") else {}


def _output(
    message: Message, choice: Mapping[str, Any], reply: Mapping[str, Any], top: Mapping[str, float],
    reasoning: str = "",
) -> Output:  # fmt: skip
    tokens = (reply.get("usage") or {}).get("completion_tokens") or 0
    return Output(
        text=message.content, reasoning=reasoning, message=message, tokens=int(tokens), top_logprobs=dict(top),
        finish_reason=str(choice.get("finish_reason") or "stop"),
    )  # fmt: skip
