"""Between the chat page's bubbles and messages; no Gradio in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from puyulm.serve.bubbles import (
    INTERPRETER,
    Bubble,
    Shown,
    fenced,
    messages_of,
    question,
    read_tools,
    settled,
    text_of,
    text_part,
    unfenced,
    waiting_call,
)
from puyulm.serve.errors import ApiError
from puyulm.text.messages import ToolCall
from puyulm.text.parse import CallArguments, CallBegin, CallEnd, CodeDelta, Event, ReasoningDelta, TextDelta


def shown(*events: Event) -> list[Bubble]:
    answer = Shown()
    answer.add(events)
    return answer.bubbles


def asked(text: str, history: list[Bubble] = []) -> list[Bubble]:  # noqa: B006
    return [*history, question(text, [], history, Path("/nowhere"))]


def call(name: str, arguments: str, index: int = 0) -> list[Event]:
    return [CallBegin(index, name), CallArguments(index, arguments), CallEnd(index, ToolCall(name))]


def titles(bubbles: list[Bubble]) -> list[str | None]:
    return [(bubble["metadata"] or {}).get("title") for bubble in bubbles]


def test_thoughts_are_pending_until_something_follows_and_are_not_repeated() -> None:
    first = shown(ReasoningDelta("hm"), ReasoningDelta("m"))
    assert first[0]["metadata"] == {"title": "Thoughts", "status": "pending"} and text_of(first[0]) == "hmm"
    assert settled(first)[0]["metadata"]["status"] == "done"
    whole = shown(ReasoningDelta("hm"), TextDelta("\n\n"), TextDelta("yes"))
    assert whole[0]["metadata"]["status"] == "done" and text_of(whole[1]).strip() == "yes"
    assert [message["content"].strip() for message in messages_of([*asked("?"), *whole])] == ["?", "yes"]


def test_blank_text_makes_no_bubble() -> None:
    assert titles(shown(ReasoningDelta("hm"), TextDelta("\n"))) == ["Thoughts"]


def test_calls_are_answered_one_after_the_other() -> None:
    history = [*asked("weather?"), *shown(TextDelta("wait"), *call("a", '{"x": "```"}'), *call("b", "{}", 1))]
    assert waiting_call(history) == "a"
    history = asked("21", history)
    assert titles(history)[-1] == "Result of a" and waiting_call(history) == "b"
    history = asked("22", history)
    assert waiting_call(history) is None
    user, answer, first, second = messages_of(history)
    calls = answer["tool_calls"]
    assert user["role"] == "user" and answer["content"] == "wait"
    assert [one["function"] for one in calls] == [
        {"name": "a", "arguments": '{"x": "```"}'}, {"name": "b", "arguments": "{}"}
    ]  # fmt: skip
    assert [(one["role"], one["tool_call_id"], one["content"]) for one in (first, second)] == [
        ("tool", calls[0]["id"], "21"), ("tool", calls[1]["id"], "22")
    ]  # fmt: skip
    assert messages_of(asked("thanks", history))[-1] == {"role": "user", "content": "thanks"}


def test_a_call_that_was_stopped_halfway_is_text() -> None:
    history = [*asked("?"), *shown(CallBegin(0, "a"), CallArguments(0, '{"x": '))]
    assert waiting_call(history) is None
    assert "tool_calls" not in messages_of(history)[-1]


def test_a_call_that_was_not_understood_is_shown_as_it_was_written() -> None:
    bubbles = shown(CallBegin(0, "a"), CallArguments(0, "{"), CallEnd(0, None, "broken"), TextDelta('{"name": "a"'))
    assert titles(bubbles) == [None] and text_of(bubbles[0]) == '{"name": "a"'


def test_code_is_answered_by_what_it_printed() -> None:
    history = [*asked("?"), *shown(CodeDelta("print("), CodeDelta("1)"))]
    assert "```python\nprint(1)\n```" in text_of(history[-1]) and waiting_call(history) == INTERPRETER
    messages = messages_of(asked("1", history))
    assert messages[1]["code"] == "print(1)"
    assert messages[2] == {"role": "environment", "name": "interpreter", "content": "1"}


@pytest.mark.parametrize("text", ["", "a", "```\nb\n```", "````", "\n x\n", "</details>\n\n"])
def test_a_block_of_code_gives_its_text_back(text: str) -> None:
    assert unfenced(fenced(text, "json")) == text


def test_files_stand_in_the_question_and_are_removed(tmp_path: Path) -> None:
    first, second = tmp_path / "a <b>.md", tmp_path / "c.txt"
    first.write_text("# A\n```\nx\n```\n</details>\n\n", encoding="utf-8")
    second.write_bytes(b"\xef\xbb\xbf\xe4\xbd\xa0")
    bubble = question("Sum up", [str(first), str(second)], [], tmp_path)
    (message,) = messages_of([bubble])
    assert message["content"] == (
        "a <b>.md:\n````\n# A\n```\nx\n```\n</details>\n\n\n````\n\nc.txt:\n```\n你\n```\n\nSum up"
    )
    assert "a &lt;b&gt;.md</summary>" in text_of(bubble)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("cat.png", b"x", "no images"), ("x.bin", b"\xff\xfe", "this file is none"), ("x.txt", b"a\0b", "is none")],
)
def test_what_is_no_text_is_refused_and_kept(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ApiError, match=says):
        question("?", [str(tmp_path / name)], [], tmp_path)
    assert (tmp_path / name).exists()


def test_files_from_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "uploads" / "link").symlink_to(tmp_path / "secret")
    for path in (tmp_path / "secret", tmp_path / "uploads" / ".." / "secret", tmp_path / "uploads" / "link"):
        with pytest.raises(ApiError, match="was not attached here"):
            question("?", [str(path)], [], tmp_path / "uploads")
    assert (tmp_path / "secret").exists()


def test_an_empty_question_and_wrong_tools_are_refused() -> None:
    with pytest.raises(ApiError, match="write a question"):
        asked(" \n")
    for text in ("{", "{}", "1"):
        with pytest.raises(ApiError, match="tools: "):
            read_tools(text)
    assert read_tools(" ") is None and read_tools("[]") == []


def test_indentation_survives() -> None:
    assert text_part("    a\n  b") == {"type": "text", "text": "    a\n  b"}
    assert messages_of([{"role": "assistant", "content": [text_part("    a\n  b")], "metadata": None}])[0][
        "content"
    ].startswith("    a")
