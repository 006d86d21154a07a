"""Stop texts: found wherever they fall, and never shown in part."""

from __future__ import annotations

import random
import re

import pytest

from puyulm.engine.chat_answer import ChatAnswer
from puyulm.engine.text import AnswerText
from puyulm.text.formats import INTERNLM3
from puyulm.text.parse import Event, ReasoningDelta, TextDelta, message_of, parse_answer
from puyulm.text.tokenizer import Tokenizer
from tests.text.small_tokenizers import ACTIONS, CHATML, small_tokenizer


class Pieces:
    """A stand-in for a stream decoder: token i is the i-th piece; `rest` comes out at the end."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, id: int) -> str:
        return self.pieces[id]

    def flush(self) -> str:
        return self.rest


def run(pieces: list[str], stop: tuple[str, ...], rest: str = "") -> tuple[list[str], AnswerText]:
    answer = AnswerText(Pieces(pieces, rest), stop)
    shown = []
    for id in range(len(pieces)):
        shown.append(answer.push(id))
        if answer.stopped:
            break
    shown.append(answer.finish())
    assert "".join(shown) == answer.text
    return shown, answer


def test_a_stop_text_over_several_tokens_is_never_shown_in_part() -> None:
    shown, answer = run(["Hello", "\n", "\n", "more"], ("\n\n",))
    assert shown == ["Hello", "", "", ""] and answer.stopped


def test_held_back_text_comes_out_when_it_was_no_stop_text() -> None:
    shown, answer = run(["a", "\n", "b\n"], ("\n\n",))
    assert shown == ["a", "", "\nb", "\n"] and not answer.stopped


def test_the_first_to_be_complete_counts() -> None:
    assert run(["one END two STOP"], ("STOP", "END"))[1].text == "one "
    assert run(["abcd"], ("abcd", "bc"))[1].text == run(list("abcd"), ("abcd", "bc"))[1].text == "a"


def test_a_repeated_beginning_is_matched_again_inside_itself() -> None:
    assert run(list("aaab!"), ("aab",))[1].text == "a"


def test_an_incomplete_character_at_the_end_is_given_out() -> None:
    assert run(["ab"], ("bc",), rest="\ufffd")[0] == ["a", "b\ufffd"]


def test_stop_texts_pass_while_the_answer_may_not_end() -> None:
    answer = AnswerText(Pieces(["x END y", " END z"]), ("END",))
    assert answer.push(0, may_stop=False) == "x END y"
    assert answer.push(1) == " " and answer.stopped


@pytest.mark.parametrize("seed", range(20))
def test_any_split_gives_the_same_text(seed: int) -> None:
    dice = random.Random(seed)
    text = "".join(dice.choice("ab\n") for _ in range(60))
    stop = tuple("".join(dice.choice("ab\n") for _ in range(dice.randint(2, 4))) for _ in range(2))
    cuts = sorted(dice.sample(range(1, 60), 20))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 60], strict=True)]
    places = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    _, answer = run(pieces, stop)
    assert answer.stopped == bool(places)
    assert answer.text == text[: min(places)[1] if places else None]


def test_which_stop_text_it_was() -> None:
    assert run(["one END two STOP"], ("STOP", "END"))[1].stopped_by == "END"
    assert run(["one"], ("STOP", "END"))[1].stopped_by is None
    assert run(list("xaab"), ("aab", "b"))[1].stopped_by == "aab"  # both end here: the longer begins before the other


# Chat answers

CALL = '<|action_start|><|plugin|>\n{"name": "f", "parameters": {"a": "END"}}<|action_end|>'
BROKEN = "<|action_start|><|plugin|>\n{nothing END}<|action_end|>"
CODE = "<|action_start|><|interpreter|>\n```python\nEND\n```<|action_end|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("chat"), [*CHATML, *ACTIONS])


def read(
    ids: list[int], tokenizer: Tokenizer, stop: tuple[str, ...], *, in_reasoning: bool = False, may_stop: bool = True
) -> tuple[ChatAnswer, list[Event]]:
    """Reads an answer as the engine does, and checks what holds of every answer."""
    answer = ChatAnswer(tokenizer, INTERNLM3, stop, in_reasoning=in_reasoning)
    shown, events = "", []
    for id in ids:
        shown += answer.push(id, may_stop)
        events += answer.take_events()
        assert message_of(events).content == shown == answer.text
        if answer.stopped:
            break
    shown += answer.finish()
    events += answer.take_events()
    assert message_of(events) == answer.message and answer.message.content == answer.text == shown
    assert answer.finish() == "" and not answer.take_events()
    return answer, events


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello END more", "Hello ", 0),
        ("<think>\nthe END?\n</think>\n\nYes.", "Yes.", 0),
        ("<think>\nthe END?\n</think>\n\nYes. END", "Yes. ", 0),
        (f"Look.{CALL}", "Look.", 1),
        (f"Look. END{CALL}", "Look. ", 0),
        (f"EN{CALL}D", "END", 1),
        (f"EN{CODE}D END", "END ", 0),
        (f"Look.{BROKEN}", f"Look.{BROKEN}", 0),
        (f"{BROKEN} END x", f"{BROKEN} ", 0),
        (f"{CALL}{CALL}", "", 2),
    ],
)
def test_stop_texts_count_in_content_alone(tokenizer: Tokenizer, text: str, content: str, calls: int) -> None:
    answer, _ = read(tokenizer.encode_markup(text), tokenizer, ("END",))
    message = answer.message
    assert (message.content, len(message.tool_calls)) == (content, calls)
    assert answer.stopped_by == ("END" if answer.stopped else None)
    assert answer.stopped == (content != parse_answer(tokenizer.encode_markup(text), tokenizer, INTERNLM3).content)
    if "<think>" in text:
        assert message.reasoning == "the END?"
    if CODE in text:
        assert message.code == "END"


def test_an_answer_that_starts_in_its_thoughts(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\nthe END\n</think>\n\nfour END")
    answer, events = read(ids, tokenizer, ("END",), in_reasoning=True)
    assert (answer.message.reasoning, answer.message.content, answer.stopped_by) == ("the END", "four ", "END")
    kinds = [type(event) for event in events]
    assert ReasoningDelta not in kinds[kinds.index(TextDelta) :]


def spellings(tokenizer: Tokenizer, text: str, dice: random.Random) -> list[int]:
    """The ids of a text in a split taken by chance; markers stay whole."""
    pieces: dict[bytes, list[int]] = {}
    for id in range(tokenizer.vocab_size):
        if not tokenizer.is_special(id):
            pieces.setdefault(tokenizer.token_bytes(id), []).append(id)
    ids: list[int] = []
    for part in re.split(r"(<\|\w+\|>)", text):
        left = part.encode()
        if part in tokenizer.special_tokens:
            ids.append(tokenizer.special_tokens[part])
            continue
        while left:
            size = dice.choice([n for n in range(1, min(len(left), 8) + 1) if left[:n] in pieces])
            ids.append(dice.choice(pieces[left[:size]]))
            left = left[size:]
    return ids


PARTS = [
    "EN",
    "D",
    "END",
    "E",
    "好",
    "\n",
    "\n\n",
    "🙂",
    "<thi",
    "nk>",
    "</think>",
    "<think>",
    CALL,
    BROKEN,
    CODE,
    "`",
    "x",
]


@pytest.mark.parametrize("seed", range(40))
def test_any_split_gives_the_same_message(tokenizer: Tokenizer, seed: int) -> None:
    """Answers put together by chance, each in eight splits."""
    dice = random.Random(seed)
    text = ("<think>\n" if seed % 3 == 0 else "") + "".join(dice.choices(PARTS, k=12))
    stop, may_stop = ("END", "\n\nx", "好好")[: dice.randint(0, 3)], seed % 5 != 0
    whole = [
        read(spellings(tokenizer, text, dice), tokenizer, stop, in_reasoning=seed % 2 == 0, may_stop=may_stop)[0]
        for _ in range(8)
    ]
    if may_stop:
        assert all((one.message, one.stopped_by) == (whole[0].message, whole[0].stopped_by) for one in whole)
        assert not any(one in whole[0].text.replace(BROKEN, "|").replace(CALL, "|") for one in stop) or (
            BROKEN in text or CALL in text or CODE in text
        )
    if not stop:
        plain = parse_answer(spellings(tokenizer, text, dice), tokenizer, INTERNLM3, in_reasoning=seed % 2 == 0)
        assert plain == whole[0].message


@pytest.mark.parametrize("cut", range(1, 60))
def test_every_place_to_cut_one_answer_in_two(tokenizer: Tokenizer, cut: int) -> None:
    """Letter by letter up to the cut and in large tokens after it."""
    text = f"<think>\nEND 好\n</think>\n\nA 🙂 EN{CALL} EN"
    letters = [id for part in re.split(r"(<\|\w+\|>)", text) for id in spell(tokenizer, part)]
    ids = letters[:cut] + tokenizer.encode_markup(tokenizer.decode(letters[cut:], skip_special=False))
    if "�" in tokenizer.decode(letters[cut:]):
        ids = letters  # a cut through a character has no other spelling
    message = read(ids, tokenizer, ("END", "ENx"))[0].message
    assert message.reasoning == "END 好" and message.content == "A 🙂 EN EN" and len(message.tool_calls) == 1


def spell(tokenizer: Tokenizer, part: str) -> list[int]:
    if part in tokenizer.special_tokens:
        return [tokenizer.special_tokens[part]]
    ordinary = (id for id in range(tokenizer.vocab_size) if not tokenizer.is_special(id))
    ids = {tokenizer.token_bytes(id): id for id in ordinary}
    return [ids[bytes([byte])] for byte in part.encode()]
