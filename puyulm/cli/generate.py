"""`puyu generate`: answers questions, or continues text, one prompt or many."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from puyulm.cli.sampling import (
    add_engine_flags,
    add_model_flags,
    add_sampling_flags,
    engine_config,
    load_from_args,
    params_from_args,
)
from puyulm.errors import GenerationError, HubError

if TYPE_CHECKING:
    from puyulm.engine.load import ChatModel
    from puyulm.engine.params import SamplingParams
    from puyulm.engine.request import Completion


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "puyu generate [MODEL] PROMPT [PROMPT ...] [options]"
    parser.add_argument(
        "words", nargs="+", metavar="[MODEL] PROMPT",
        help="one word: a prompt for the default model; more: a model, then prompts (with --model all are prompts); "
        "a prompt of - is read from standard input",
    )  # fmt: skip
    parser.add_argument("--model", "-m", metavar="NAME", help="checkpoint folder, .gguf file or model name")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without a chat format")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_model_flags(parser)
    add_sampling_flags(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    name, prompts = model_and_prompts(args.model, args.words)
    prompts = [_stdin() if prompt == "-" else prompt for prompt in prompts]
    if any(not prompt.strip() for prompt in prompts):
        raise GenerationError("a prompt is empty: write the question or the text to continue")
    if args.raw and (args.think or args.system or args.chat_template):
        raise GenerationError("--raw continues plain text: leave --system, --think and --chat-template out")
    try:
        chat = load_from_args(name, args, needs_chat_format=not args.raw)
    except HubError as error:
        if args.model is not None or len(args.words) == 1:
            raise
        raise HubError(f"{error}; of several words the first is the model (--model NAME: all are prompts)") from error
    params = params_from_args(chat, args, think=args.think)
    ids = [_prompt_ids(chat, prompt, args) for prompt in prompts]
    fitted = [_fitted(chat, len(one), params, args.max_new_tokens is not None) for one in ids]
    if args.json or len(prompts) > 1:
        _answer_all(chat, prompts, ids, fitted, args)
    else:
        _answer_one(chat, ids[0], fitted[0], args)


def model_and_prompts(model: str | None, words: list[str]) -> tuple[str, list[str]]:
    """Tells the model's name from the prompts, by their number alone: with `model` given all words are prompts; a
    single word is a prompt for the default model; of several, the first is the model."""
    from puyulm.model.presets import DEFAULT_MODEL, find_preset

    if model is not None:
        return model, words
    if len(words) > 1:
        return words[0], words[1:]
    if find_preset(words[0]) is not None:
        raise GenerationError(f"{words[0]} is a model: write the prompt behind it")
    return DEFAULT_MODEL, words


def _stdin() -> str:
    return sys.stdin.read().removesuffix("\n")


def _prompt_ids(chat: ChatModel, prompt: str, args: argparse.Namespace) -> list[int]:
    from puyulm.engine.conversation import prompt_ids
    from puyulm.text.chat import Message

    if args.raw:
        return chat.tokenizer.encode(prompt, bos=True)
    system = [] if args.system is None else [Message("system", args.system)]
    messages = [*system, Message("user", prompt)]
    return prompt_ids(chat, messages, think=args.think, own_template=args.chat_template)


def _fitted(chat: ChatModel, prompt_length: int, params: SamplingParams, asked: bool) -> SamplingParams:
    from puyulm.engine.context import fit_to_context

    fitted = fit_to_context(chat.model.config, prompt_length, params)
    if asked and fitted.max_new_tokens < params.max_new_tokens:
        print(f"note: the context has room for {fitted.max_new_tokens:,} new tokens only", file=sys.stderr)
    return fitted


def _answer_one(chat: ChatModel, ids: list[int], params: SamplingParams, args: argparse.Namespace) -> None:
    """Streams the answer."""
    from puyulm.cli.terminal import Speed, dim, printable
    from puyulm.engine.engine import Engine

    speed = Speed()
    reason = None
    for event in Engine(chat.model, chat.tokenizer, engine_config(args, max_running=1)).stream(ids, params):
        speed.count()
        print(printable(event.text), end="", flush=True)
        reason = event.finish_reason
    print(flush=True)
    if sys.stderr.isatty():
        cut = f"; cut at {params.max_new_tokens:,} tokens" if reason == "length" else ""
        print(dim(f"[{speed}{cut}]"), file=sys.stderr)


def _answer_all(
    chat: ChatModel, prompts: list[str], ids: list[list[int]], params: list[SamplingParams], args: argparse.Namespace
) -> None:
    """Answers in one batch and prints when all are there."""
    from puyulm.cli.terminal import dim, printable
    from puyulm.engine.engine import Engine

    done = Engine(chat.model, chat.tokenizer, engine_config(args)).generate(ids, params, progress="answering")
    answers = zip(prompts, ids, done, strict=True)
    if args.json:
        print(json.dumps([_as_dict(*answer) for answer in answers], indent=2, ensure_ascii=False))
        return
    for prompt, _, completion in answers:
        title = prompt if len(prompt) <= 80 else prompt[:77] + "..."
        print(dim("> " + " ".join(title.split())))
        print(printable(completion.text or ""), end="\n\n")


def _as_dict(prompt: str, ids: list[int], completion: Completion) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(ids),
        "new_tokens": len(completion.ids),
    }
