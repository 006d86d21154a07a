"""`puyu chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from puyulm.cli.sampling import (
    add_engine_flags,
    add_model_flags,
    add_sampling_flags,
    engine_config,
    load_from_args,
    params_from_args,
)
from puyulm.cli.terminal import Reader, Speed, dim, open_reader, printable
from puyulm.errors import ChatError, PuyuError

if TYPE_CHECKING:
    from puyulm.engine.conversation import Conversation
    from puyulm.engine.load import ChatModel

HELP = """\
/help          this list
/system TEXT   set the system message from the next answer on; without TEXT, back to the model's own
/think on|off  deep thinking: long reasoning before the answer (InternLM3)
/reset         forget the conversation
/save FILE     write the conversation to a JSON file
/exit          leave (also Ctrl-D)
Enter sends; Alt-Enter, a backslash at the end of a line, or an open ``` block goes on in a new line.
Ctrl-C stops an answer; what was said of it stays in the conversation."""


def configure(parser: argparse.ArgumentParser) -> None:
    from puyulm.model.presets import DEFAULT_MODEL

    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL",
        help="checkpoint folder, .gguf file or model name [%(default)s]",
    )  # fmt: skip
    add_model_flags(parser)
    add_sampling_flags(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    from puyulm.engine.conversation import Conversation

    chat = load_from_args(args.model, args)
    params = params_from_args(chat, args, think=args.think)
    conversation = Conversation(
        chat, params, system=args.system, think=args.think, own_template=args.chat_template,
        config=engine_config(args, max_running=1),
    )  # fmt: skip
    if args.think:
        _require_thinking(chat)
    _note(_banner(chat, args.model))
    Chat(conversation, args, open_reader()).run()


class Chat:
    """The loop of questions, commands and answers."""

    def __init__(self, conversation: Conversation, args: argparse.Namespace, reader: Reader) -> None:
        self.conversation = conversation
        self._args = args
        self._reader = reader
        self._saved: Path | None = None

    def run(self) -> None:
        """Goes on until the input ends or /exit."""
        while True:
            try:
                text = self._reader.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                _note("Ctrl-D or /exit leaves")
                continue
            command = re.match(r"/([a-z]+)(?:\s+(.*))?$", text, re.DOTALL)
            try:
                if command is None and text:
                    self.answer(text)
                elif command is not None and not self.command(command[1], (command[2] or "").strip()):
                    return
            except PuyuError as error:
                _note(f"error: {error}")
            except KeyboardInterrupt:  # a second one, while the first was dealt with
                continue

    def answer(self, question: str) -> None:
        """Shows the answer as it comes; Ctrl-C stops it."""
        conversation, speed, reason, stopped = self.conversation, Speed(), None, False
        answer = ""
        with contextlib.closing(conversation.ask(question)) as tokens:
            try:
                for event in tokens:
                    if conversation.dropped and not speed.tokens:
                        count = conversation.dropped
                        _note(f"the context is full: the {count} oldest messages were left out")
                    speed.count()
                    print(printable(event.text), end="", flush=True)
                    answer += event.text
                    reason = event.finish_reason
            except KeyboardInterrupt:
                stopped = True
        print(flush=True)
        notes = [str(speed)] if speed.tokens else []
        if not stopped and not answer:
            notes.append("no answer: the question is taken back")
        if stopped:
            notes.append("stopped" if answer else "stopped before the answer began: the question is taken back")
        if reason == "length":
            notes.append("cut at the longest answer or the end of the context (--max-new-tokens)")
        _note("[" + "; ".join(notes) + "]")

    def command(self, name: str, value: str) -> bool:
        """Carries out a command; False ends the chat."""
        conversation = self.conversation
        if name in ("exit", "quit"):
            return False
        if name == "help":
            _note(HELP)
        elif name == "reset":
            conversation.reset()
            _note("forgotten")
        elif name == "system":
            conversation.system = value or None
            _note("system message set" if value else "the model's own system message")
        elif name == "think" and value in ("on", "off"):
            self._think(value == "on")
        elif name == "think":
            _note(f"thinking is {'on' if conversation.think else 'off'}; /think on or /think off changes it")
        elif name == "save" and value:
            self._save(Path(value).expanduser())
        elif name == "save":
            _note("/save needs the name of a file")
        else:
            _note(f"no command /{name}; /help lists them")
        return True

    def _think(self, on: bool) -> None:
        if on:
            _require_thinking(self.conversation.chat)
        self.conversation.think = on
        self.conversation.params = params_from_args(self.conversation.chat, self._args, think=on)
        _note(f"thinking is {'on' if on else 'off'}, answers up to {self.conversation.params.max_new_tokens:,} tokens")

    def _save(self, path: Path) -> None:
        from puyulm.text.chat import Message, message_to_dict

        if path.exists() and path != self._saved:
            _note(f"{path} exists: choose another name")
            return
        conversation = self.conversation
        system = [] if conversation.system is None else [Message("system", conversation.system)]
        messages = [message_to_dict(message) for message in (*system, *conversation.messages)]
        beside = path.with_name(path.name + ".partial")
        try:
            beside.write_text(json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n", "utf-8")
            os.replace(beside, path)
        except OSError as error:
            _note(f"cannot write {path}: {error.strerror}")
            return
        self._saved = path
        _note(f"{len(messages)} messages in {path}")


def _require_thinking(chat: ChatModel) -> None:
    if chat.chat_format.thinking_prompt is None:
        raise ChatError(f"the chat format '{chat.chat_format.name}' has no thinking mode; it comes with InternLM3")


def _banner(chat: ChatModel, name: str) -> str:
    kind = chat.chat_format.name
    talk = "no chat format: it goes on from your text" if kind == "base" else f"chat format {kind}"
    weight = chat.model.embed.weight
    where = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
    return f"{name}: {talk}, {where}. /help lists commands, Ctrl-D leaves."


def _note(text: str) -> None:
    print(dim(text), file=sys.stderr, flush=True)
