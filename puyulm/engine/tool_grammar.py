"""Tool calls as a grammar: what the chat format's renderer would write, with arguments that fit their schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from puyulm.engine.grammar import WHITESPACE, Grammar, literal
from puyulm.errors import GenerationError
from puyulm.text.chat import tool_list_json
from puyulm.text.formats import ACTION_END, ACTION_START, INTERPRETER, PLUGIN, ChatFormat, Marker
from puyulm.text.tokenizer import Tokenizer


def tool_call_grammar(
    tools: Sequence[Mapping[str, Any]],
    choice: str,
    chat_format: ChatFormat,
    tokenizer: Tokenizer,
    *,
    parallel: bool = True,
) -> Grammar | None:
    """The grammar of answers that may, or must, call tools.

    A call is `<|action_start|><|plugin|>{"name": ..., "parameters": ...}<|action_end|>`. What a schema asks for and
    llguidance does not know is let pass, unless the tool says `"strict": true`.

    Args:
        tools: OpenAI-style tool definitions.
        choice: "auto": any text, and then calls if the model wants them; "required": one call at least, and nothing
            else; "none"; or the name of the tool to call.
        parallel: Several calls may follow one another.

    Returns:
        None for "none".

    Raises:
        ChatError: A tool is not a function definition.
        GenerationError: The chat format has no tools, or no tool has the name.
    """
    if choice == "none":
        return None
    tool_list_json(tools)  # its checks
    if not chat_format.actions:
        raise GenerationError(f"tools: the chat format '{chat_format.name}' has no tools")
    functions = [tool.get("function", tool) for tool in tools]
    if choice not in ("auto", "required"):
        functions = [function for function in functions if function["name"] == choice]
    if not functions:
        raise GenerationError(f"tool_choice: there is no tool '{choice}'" if tools else "tools: there are none")
    start = _token(ACTION_START, tokenizer, chat_format)
    bodies = [f"call_{number}: {_body(function)}" for number, function in enumerate(functions)]
    several = "" if not parallel or choice not in ("auto", "required") else "+"
    rules = [
        f"start: call{several}" if choice != "auto" else f"start: TEXT? (action{several})?",
        f"call: {start} {_token(PLUGIN, tokenizer, chat_format)} GAP? ({_either(len(functions))})"
        f" {_token(ACTION_END, tokenizer, chat_format)}",
        "GAP: / \\n?|\\n/",  # the blank is the one that some vocabularies put before every text
        *bodies,
    ]
    if choice == "auto":
        rules += ["TEXT: /(.|\\n)+/", f"action: {_actions(tokenizer, start, chat_format)}"]
    return Grammar.lark("\n".join(rules))


def _either(count: int) -> str:
    return " | ".join(f"call_{number}" for number in range(count))


def _actions(tokenizer: Tokenizer, start: str, chat_format: ChatFormat) -> str:
    """Calls, and code where the vocabulary has a marker for it."""
    if INTERPRETER.find(tokenizer) is None:
        return "call"
    code = f"{start} {_token(INTERPRETER, tokenizer, chat_format)} TEXT {_token(ACTION_END, tokenizer, chat_format)}"
    return f"call | {code}"


def _token(marker: Marker, tokenizer: Tokenizer, chat_format: ChatFormat) -> str:
    return f"<[{marker.id(tokenizer, chat_format.name)}]>"


def _body(function: Mapping[str, Any]) -> str:
    """One call's JSON, spaced as the renderer spaces it."""
    schema = dict(function.get("parameters") or {"properties": {}})
    schema.setdefault("type", "object")
    if "properties" in schema and schema.keys().isdisjoint(("patternProperties", "anyOf", "oneOf", "allOf", "$ref")):
        schema.setdefault("additionalProperties", False)
    options = {"whitespace_pattern": WHITESPACE, "lenient": not function.get("strict")}
    schema["x-guidance"] = {**options, **schema.get("x-guidance", {})}
    opening = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "parameters": '
    return f"{literal(opening)} %json {json.dumps(schema, ensure_ascii=False)} {literal('}')}"
