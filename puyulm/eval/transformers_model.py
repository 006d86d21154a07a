"""A checkpoint run by the transformers library: slow, and independent of our own decoder and engine. For checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from puyulm.engine.context import context_length
from puyulm.engine.conversation import prompt_ids
from puyulm.engine.load import ChatModel, default_params
from puyulm.errors import GenerationError
from puyulm.eval.engine_model import encode_pairs, fingerprint, split_answer
from puyulm.eval.model import Continuation, Judged, OnJudged, OnOutput, Output, Prompt
from puyulm.model.checkpoint import load_config
from puyulm.text.formats import ChatFormat
from puyulm.text.messages import Message
from puyulm.text.tokenizer import Tokenizer


class TransformersModel:
    """A `puyulm.eval.model.LanguageModel`. Prompts are written by our own renderer, one is answered at a time.

    Args:
        path: A folder that transformers can read without code of its own.

    Raises:
        GenerationError: It cannot.
    """

    def __init__(self, path: Path, name: str, chat_format: ChatFormat, device: str = "cpu") -> None:
        try:
            import transformers
        except ImportError:
            raise GenerationError("this needs transformers: pip install 'puyulm[dev]'") from None
        try:
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            raise GenerationError(f"transformers cannot load {path}: {str(error).splitlines()[0]}") from None
        self._model.eval().to(device)
        self._tokenizer, self._device, self._format = Tokenizer.load(path), device, chat_format
        params = default_params(path, self._tokenizer, chat_format)
        self._chat = ChatModel(None, self._tokenizer, chat_format, params, path)  # type: ignore[arg-type]
        self.name, self.fingerprint = name, f"transformers {fingerprint(path, chat_format.name)}"
        self.thinks = chat_format.thinking_prompt is not None
        self.context = context_length(load_config(path))

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], on_output: OnOutput) -> None:
        for index, prompt in enumerate(prompts):
            if prompt.tools or prompt.top_logprobs:
                raise GenerationError("the check with transformers has no tools and no log-probabilities of answers")
            on_output(index, self._answer(prompt))

    @torch.inference_mode()
    def judge(self, continuations: Sequence[Continuation], on_judged: OnJudged) -> None:
        for index, (start, ids) in enumerate(encode_pairs(self._tokenizer, continuations)):
            if start == len(ids):
                on_judged(index, Judged(0.0, 0))
                continue
            logits = self._model(torch.tensor([ids], device=self._device)).logits[0, start - 1 : -1]
            targets = torch.tensor(ids[start:], device=self._device)[:, None]
            total = logits.float().log_softmax(-1).gather(1, targets).sum()
            on_judged(index, Judged(float(total), len(ids) - start))

    def reward(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        raise GenerationError("the check with transformers gives no rewards")

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def close(self) -> None:
        pass

    def _answer(self, prompt: Prompt) -> Output:
        if prompt.messages:
            ids = prompt_ids(self._chat, prompt.messages, think=prompt.think)
            ids += self._tokenizer.encode(prompt.prefix, mid_text=True) if prompt.prefix else []
        else:
            ids = self._tokenizer.encode(prompt.text + prompt.prefix, bos=True)
        drawn = prompt.sampling
        if drawn.seed is not None:
            torch.manual_seed(drawn.seed % 2**63)
        chosen = {
            name: getattr(drawn, name)
            for name in ("temperature", "top_p", "top_k", "repetition_penalty")
            if getattr(drawn, name) is not None
        }
        if drawn.temperature == 0:
            chosen = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
        stops = [*self._chat.params.stop_ids]
        given = torch.tensor([ids], device=self._device)
        made = self._model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=prompt.max_new_tokens, eos_token_id=stops,
            pad_token_id=stops[0] if stops else 0, **{"do_sample": True, **chosen},
        )  # fmt: skip
        new = made[0, len(ids) :].tolist()
        ended = bool(new) and new[-1] in stops
        content = new[:-1] if ended else new
        message, text = split_answer(prompt, content, self._tokenizer, self._format)
        cut = min((place for stop in prompt.stop if (place := text.find(stop)) >= 0), default=None)
        return Output(
            text=text if cut is None else text[:cut], reasoning=message.reasoning or "", message=message,
            finish_reason="stop" if ended or cut is not None else "length", tokens=len(new),
        )  # fmt: skip
