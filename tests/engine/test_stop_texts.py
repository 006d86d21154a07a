"""Stop texts: found wherever they fall, and never shown in part."""

from __future__ import annotations

import random

import pytest

from puyulm.engine.text import AnswerText


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
