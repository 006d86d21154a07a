"""Answers back into messages, whole and token by token, and however the text is cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.text import formats
from puyulm.text.chat import Message, ToolCall, render
from puyulm.text.parse import (
    AnswerParser,
    CallArguments,
    CallBegin,
    CallEnd,
    CodeDelta,
    Event,
    ReasoningDelta,
    TextDelta,
    _Answer,
    parse_answer,
)
from puyulm.text.tokenizer import Tokenizer
from tests.text.small_tokenizers import ACTIONS, CHATML, small_tokenizer

CALL, CODE, END = "<|action_start|><|plugin|>", "<|action_start|><|interpreter|>", "<|action_end|>"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("small"), [*CHATML, *ACTIONS, "<eoh>", "<eoa>"])


def parse(text: str, tokenizer: Tokenizer, chat_format: formats.ChatFormat = formats.INTERNLM2) -> Message:
    return parse_answer(text, tokenizer, chat_format)


def assistant(content: str = "", **fields: object) -> Message:
    return Message("assistant", content, **fields)  # type: ignore[arg-type]


# Whole answers


def test_text_and_a_call(small: Tokenizer) -> None:
    answer = f'Let me look.{CALL}\n{{"name": "w", "parameters": {{"city": "上海"}}}}{END}<|im_end|>\n'
    assert parse(answer, small) == assistant("Let me look.", tool_calls=(ToolCall("w", {"city": "上海"}),))


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ('{"name": "f", "arguments": {"a": [1, {"b": null}]}}', [ToolCall("f", {"a": [1, {"b": None}]})]),
        ('{"parameters": {"a": 1}, "name": "f"}', [ToolCall("f", {"a": 1})]),
        ('{"name": "f"}', [ToolCall("f")]),
        ('{"name": "f", "parameters": null}', [ToolCall("f")]),
        ('{"name": "f", "arguments": "{\\"a\\": \\"}{\\"}"}', [ToolCall("f", {"a": "}{"})]),
        ('  {"id": 3, "name": "f" , "parameters" : { "a" : "\\"}" } }  \n', [ToolCall("f", {"a": '"}'})]),
        ('[{"name": "f"}, {"name": "g", "parameters": {"x": 1}}]', [ToolCall("f"), ToolCall("g", {"x": 1})]),
    ],
)
def test_calls_as_models_write_them(small: Tokenizer, body: str, calls: list[ToolCall]) -> None:
    assert parse(f"{CALL}\n{body}{END}<|im_end|>", small) == assistant(tool_calls=tuple(calls))
    events, message = feed(["<|action_start|>", "<|plugin|>", *body])
    assert message == assistant(tool_calls=tuple(calls))
    check_events(events, message)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"name": "f", "parameters": {"a": ', "Expecting value"),
        ("", "Expecting value"),
        ("call f please", "Expecting value"),
        ('{"name": "f"} and more', "Extra data"),
        ('{"parameters": {}}', "no 'name'"),
        ('{"name": 7}', "no 'name'"),
        ('{"name": "f", "parameters": [1]}', "'parameters' is not an object"),
        ('{"name": "f", "parameters": "x"}', "Expecting value"),
        ('{"name": "f", "parameters": {}, "arguments": {}}', "both"),
        ('{"name": "f", "name": "g"}', "twice"),
        ('{"name": "f", "parameters": {"a": NaN}}', "NaN"),
        ('{"name": "f", "parameters": {"a": "\\ud800"}}', "surrogate"),
        ('{"name": "f", "parameters": {"a": ' + "[" * 20_000 + "}}", "deep"),
        ('"f"', "not an object"),
        ("[]", "an empty list"),
    ],
)
def test_a_call_that_is_not_understood_stays_as_text(small: Tokenizer, body: str, reason: str) -> None:
    message = parse(f"Sure.{CALL}\n{body}{END}<|im_end|>", small)
    assert message.content == f"Sure.{CALL}\n{body}{END}"
    assert message.tool_calls == ()
    assert message.parse_error is not None and reason in message.parse_error
    # it can be shown to the model again, as text
    assert not any(small.is_special(i) for i in small.encode(message.content))


def test_missing_ends(small: Tokenizer) -> None:
    call = assistant("a", tool_calls=(ToolCall("f", {"x": 1}),))
    whole = f'a{CALL}\n{{"name": "f", "parameters": {{"x": 1}}}}'
    for answer in (whole, whole + END, whole + "<|im_end|>", whole + f"{END}\n<|im_end|>\n"):
        assert parse(answer, small) == call
    assert parse(f"{CODE}\n```python\nprint(1)\n", small).code == "print(1)\n"
    assert parse(f"{CODE}\n```python\nprint(1)", small).code == "print(1)"


def test_several_calls_and_code(small: Tokenizer) -> None:
    calls = "".join(f'{CALL}\n{{"name": "f", "parameters": {{"i": {i}}}}}{END}' for i in range(3))
    message = parse(f"Three.{calls}\n{CODE}\n```python\nx = 1\n```{END} Done.{CODE}\n```py\nx\n```\n{END}", small)
    assert [call.arguments for call in message.tool_calls] == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert message.code == "x = 1\nx"
    assert message.content == "Three. Done."
    unfinished = parse(f'{CALL}{{"name": "f"}}{CALL}{{"name": "g"}}', small)
    assert [call.name for call in unfinished.tool_calls] == ["f", "g"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("\n```python\nprint(1)\n```", "print(1)"),
        ("\n```\nprint(1)\n```\n", "print(1)"),
        ("\nprint(1)", "print(1)"),
        ("\n    x = 1\n    y", "    x = 1\n    y"),
        ("\n```python\n```", ""),
        ("\n```python\n\n```", ""),
        ("\n```python\ns = '''\n```\n'''\n```", "s = '''\n```\n'''"),
        ("\n``` not a fence\nx", "``` not a fence\nx"),
        ("", ""),
        ("\n```python", "```python"),
    ],
)
def test_code_blocks(small: Tokenizer, body: str, code: str) -> None:
    assert parse(f"{CODE}{body}{END}<|im_end|>", small) == assistant(code=code)


def test_actions_of_no_kind_and_stray_markers(small: Tokenizer) -> None:
    message = parse(f"a<|action_start|>b{END}c", small)
    assert message.content == f"a<|action_start|>b{END}c"
    assert message.parse_error is not None and "neither" in message.parse_error
    assert parse("a<|plugin|>b<|action_end|>c<s>d", small) == assistant("abcd")
    assert parse("after<|im_end|>the end</s>", small) == assistant("after")


def test_reasoning(small: Tokenizer) -> None:
    assert parse("<think>\nHm.\n\nSo.\n</think>\n\nYes.", small) == assistant("Yes.", reasoning="Hm.\n\nSo.")
    assert parse("\n<think>Hm</think>Yes", small) == assistant("Yes", reasoning="Hm")
    assert parse("<think>\n\n</think>\n\nYes", small) == assistant("Yes", reasoning="")
    assert parse("<think>\nbudget ran ou", small) == assistant(reasoning="budget ran ou")
    assert parse("a <think>b</think>", small) == assistant("a <think>b</think>")
    assert parse("<thinking>", small) == assistant("<thinking>")
    assert parse("<think>x</think>", small, formats.INTERNLM) == assistant("<think>x</think>")
    inside = parse_answer("Hm\n</think>\n\nYes", small, formats.INTERNLM3, in_reasoning=True)
    assert inside == assistant("Yes", reasoning="Hm")
    call = f'<think>\nuse a tool\n</think>\n\n{CALL}{{"name": "f"}}{END}'
    assert parse(call, small) == assistant(reasoning="use a tool", tool_calls=(ToolCall("f"),))


def test_reasoning_tags_that_are_tokens(tmp_path: Path) -> None:
    tokenizer = small_tokenizer(tmp_path, [*CHATML, *ACTIONS, "<think>", "</think>"])
    message = assistant("Yes.", reasoning="Hm.")
    rendered = render([Message("user", "q"), message], tokenizer, formats.INTERNLM3)
    think = [tokenizer.token_to_id(tag) for tag in ("<think>", "</think>")]
    assert [i for i in rendered.ids if i in think] == think
    start = rendered.mask.index(True)
    assert parse_answer(rendered.ids[start:], tokenizer, formats.INTERNLM3) == message


def test_first_generation(small: Tokenizer) -> None:
    for chat_format in (formats.INTERNLM, formats.INTERNLM_2023_07, formats.BASE):
        answer = small.encode(f"plain {CALL} text")
        assert parse_answer([*answer, small.eos_id or 0], small, chat_format) == assistant(f"plain {CALL} text")
    ended = small.encode_markup("x<eoa>y")
    assert parse_answer(ended, small, formats.INTERNLM) == assistant("x")


# Streams


def test_deltas_of_a_stream(small: Tokenizer) -> None:
    answer = f'<think>\nHm\n</think>\n\nOK{CALL}\n{{"name": "w", "parameters": {{"city": "上海"}}}}{END}<|im_end|>'
    parser = AnswerParser(small, formats.INTERNLM2)
    events = [event for token in small.encode_markup(answer) for event in parser.push(token)]
    assert parser.finished and parser.push(5) == [] and parser.finish() == []
    assert joined(events, ReasoningDelta) == "Hm"
    assert joined(events, TextDelta) == "OK"
    begin = events.index(CallBegin(0, "w"))
    arguments = [event.text for event in events[begin:] if isinstance(event, CallArguments)]
    assert len(arguments) > 3 and json.loads("".join(arguments)) == {"city": "上海"}
    assert events[-1] == CallEnd(0, ToolCall("w", {"city": "上海"}))


def test_text_is_given_out_at_once(small: Tokenizer) -> None:
    parser = AnswerParser(small, formats.INTERNLM2)
    for character in "Hello, 世界! < {":
        tokens = small.encode(character)
        assert joined([event for token in tokens for event in parser.push(token)], TextDelta) == character


def test_a_call_that_fails_late_is_taken_back(small: Tokenizer) -> None:
    parser = AnswerParser(small, formats.INTERNLM2)
    events = [
        e for token in small.encode_markup(f'{CALL}{{"name": "f", "parameters": {{]{END}') for e in parser.push(token)
    ]
    assert events[0] == CallBegin(0, "f")
    failed = next(event for event in events if isinstance(event, CallEnd))
    assert failed.call is None and failed.error
    assert events[-1] == TextDelta(f'{CALL}{{"name": "f", "parameters": {{]{END}')


def joined(events: list[Event], kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))  # type: ignore[attr-defined]


def check_events(events: list[Event], message: Message) -> None:
    """Every field of the message is the sum of its deltas."""
    assert joined(events, TextDelta) == message.content
    assert joined(events, ReasoningDelta) == (message.reasoning or "")
    assert joined(events, CodeDelta) == (message.code or "")
    ends = [event for event in events if isinstance(event, CallEnd)]
    assert [event.index for event in ends] == list(range(len(ends)))
    assert tuple(event.call for event in ends if event.call) == message.tool_calls
    for end in ends:
        begins = [event.name for event in events if isinstance(event, CallBegin) and event.index == end.index]
        arguments = [event.text for event in events if isinstance(event, CallArguments) and event.index == end.index]
        if end.call is not None:
            assert begins == [end.call.name]
            given = json.loads("".join(arguments))
            assert given == end.call.arguments


# Anything at all

FRAGMENTS = [
    "text", "\n", " ", "```", "```python\n", "\n```", "<think>", "</think>", "<think", "\n</think>",
    '{"name": "f"',
    ', "parameters": {"a": "\\"}"}', "}", "{", "]", '"', "\\", ",", '"arguments": ', "上海", "\u200d👩", "<",
    "`", "1e5", CALL + '\n{"name": "f", "parameters": {"a": "上海\\n"}}' + END, CALL + '{"arguments": {}, "name": "g"}',
    '{"name": "g", "arguments": {"b": [1, 2]}}', CALL, CODE, END, "<|plugin|>", "<|action_start|>", "[",
]  # fmt: skip
ANSWERS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=12)


def feed(pieces: list[str]) -> tuple[list[Event], Message]:
    answer = _Answer("start")
    markers = {str(m): m for m in (formats.ACTION_START, formats.ACTION_END, formats.PLUGIN, formats.INTERPRETER)}
    events: list[Event] = []
    for piece in pieces:
        events += answer.marker(markers[piece]) if piece in markers else answer.text(piece)
    events += answer.close()
    return events, answer.message()


def separate(fragments: list[str]) -> list[str]:
    """Markers and the text between them."""
    text = "".join(fragments)
    for name in ACTIONS:
        text = text.replace(name, f"\0{name}\0")
    return [piece for piece in text.split("\0") if piece]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(ANSWERS)
def test_any_cut_of_the_text_gives_the_same_message(fragments: list[str]) -> None:
    pieces = separate([fragment.replace("\0", "") for fragment in fragments])
    events, message = feed(pieces)
    check_events(events, message)
    for size in (1, 2, 3):
        cut = [
            part
            for piece in pieces
            for part in ([piece] if piece in ACTIONS else [piece[i : i + size] for i in range(0, len(piece), size)])
        ]
        cut_events, cut_message = feed(cut)
        assert cut_message == message
        check_events(cut_events, cut_message)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(fragments=ANSWERS)
def test_any_split_into_tokens_gives_the_same_message(small: Tokenizer, fragments: list[str]) -> None:
    text = "".join(fragments).encode("utf-8", "replace").decode()
    ids = small.encode_markup(text)
    bytewise = [small_id for token in ids for small_id in single_bytes(small, token)]
    whole = parse_answer(ids, small, formats.INTERNLM2)
    assert parse_answer(bytewise, small, formats.INTERNLM2) == whole
    parser = AnswerParser(small, formats.INTERNLM2)
    events = [event for token in bytewise for event in parser.push(token)] + parser.finish()
    check_events(events, parser.message)
    assert parser.message == whole


def single_bytes(tokenizer: Tokenizer, token: int) -> list[int]:
    if tokenizer.is_special(token):
        return [token]
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if not tokenizer.is_special(i)}
    return [by_bytes[bytes([byte])] for byte in tokenizer.token_bytes(token)]


PLAIN = st.text(max_size=20).filter(lambda text: not text.lstrip().startswith("<think"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=5,
)
MESSAGES = st.builds(
    Message,
    st.just("assistant"),
    PLAIN,
    reasoning=st.none() | PLAIN.filter(lambda text: "</think" not in text),
    tool_calls=st.lists(
        st.builds(ToolCall, st.text(min_size=1, max_size=8), st.dictionaries(PLAIN, JSON, max_size=3)), max_size=3
    ).map(tuple),
    code=st.none() | st.text(max_size=30),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(message=MESSAGES)
def test_what_is_rendered_is_read_back(small: Tokenizer, message: Message) -> None:
    rendered = render([Message("user", "q"), message], small, formats.INTERNLM2)
    start = rendered.mask.index(True)
    assert parse_answer(rendered.ids[start:], small, formats.INTERNLM2) == message


def test_published_vocabulary_round_trip(shared_dir: Path) -> None:
    v2 = Tokenizer.load(shared_dir / "tokenizers" / "internlm2.model")
    message = assistant(
        "我来查一下。", reasoning="先查天气", code="print('👩‍🔬')\n", tool_calls=(ToolCall("天气", {"城市": "上海 🌧"}),)
    )
    prompt = render([Message("user", "q")], v2, formats.INTERNLM2, add_generation_prompt=True).ids
    whole = render([Message("user", "q"), message], v2, formats.INTERNLM2).ids
    assert parse_answer(whole[len(prompt) :], v2, formats.INTERNLM2) == message
    assert replace(message, content="") != message
