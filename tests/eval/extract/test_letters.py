"""Letters as models write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.eval.extract.letters import LETTERS, bare_letter, last_letter, many_letters, marked_letter, one_letter

CAPITALS = ("Paris", "London", "Rome", "New York")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("b", None),
        ("(B) Paris", "B"),
        ("**B**", "B"),
        ("**Answer: B**", "B"),
        ("The answer is **(C)**.", "C"),
        ("The correct answer is (D) all of the above", "D"),
        ("\\boxed{B}", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("$\\boxed{\\textbf{(C)}}$", "C"),
        ("Thus \\boxed{\\mathrm{D}}.", "D"),
        ("Ｂ", "B"),
        ("答案是Ｃ", "C"),
        ("答案：B", "B"),
        ("答案是：B。", "B"),
        ("正确答案是 **C**", "C"),
        ("故选D。", "D"),
        ("因此，应该选择B选项", "B"),
        ("所以选A", "A"),
        ("本题选C", "C"),
        ("A. Paris", "A"),
        ("A: it", "A"),
        ("A man walks into", None),
        ("I cannot answer this question.", None),
        ("As an AI, I cannot say.", None),
        ("", None),
        ("The answer is not A, it is unclear", None),
        ("The answer is A or B", None),
        ("The answer is A and B", None),
        ("答案是AB", None),
        ("A, B", None),
        ("Both A and C are right", None),
        ("<think>maybe A", None),
        ("<think>maybe A</think>B", "B"),
        ("The answer is a matter of taste", None),
        ("The answer is A because", "A"),
        ("Let's see. A is wrong. B is wrong. So the answer is C.", "C"),
        ("First I thought the answer is A. But the final answer is B.", "B"),
        ("选项B是正确的", "B"),
        ("选B", "B"),
        ("I would choose option D.", "D"),
        ("Option C", "C"),
        ("答案不是A，而是B", "B"),
        ("The best option is: B) cats", "B"),
        ("正确的是C", "C"),
        ("ANSWER: D", "D"),
        ("Answer: $D$", "D"),
        ("答案: (B)", "B"),
        ("The answer is:\n\nB", "B"),
        ("The answer is:\n\n**B. Paris**", "B"),
        ("It must be C, I think.", "C"),
        ("A good guess is B.", "B"),
        ("The answer is A good thing", None),
        ("B is correct", "B"),
        ("【答案】C", "C"),
        ("综上所述，选C。", "C"),
        ("I think Paris is right", None),
        ("The answer is B, C is wrong.", "B"),
        ("答案是B，A是错的", "B"),
        ("The answer is B. C is wrong", "B"),
        ("Answer: B\n\nExplanation: A is wrong since C.", "B"),
        ("B\n\nA is wrong.", "B"),
        ("The correct answer to the question is B.", "B"),
        ("不选A，选C", "C"),
        ("Among the options, the correct one is D.", "D"),
    ],
)
def test_the_letter_that_a_reader_takes(text: str, expected: str | None) -> None:
    assert one_letter(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("paris", "A"),
        ("**New York**", "D"),
        ("It is Rome, of course.", "C"),
        ("It is Rome or London.", None),
        ("Paris. No: the answer is B", "B"),
        ("Berlin", None),
    ],
)
def test_a_choice_written_out(text: str, expected: str | None) -> None:
    assert one_letter(text, choices=CAPITALS) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ACD", "ACD"),
        ("A、C、D", "ACD"),
        ("答案是：ABD", "ABD"),
        ("A, C and D", "ACD"),
        ("The answer is A and C.", "AC"),
        ("(A)(C)", "AC"),
        ("【答案】 AB <eoa>", "AB"),
        ("AC D", "ACD"),
        ("故选BC。", "BC"),
        ("B", "B"),
        ("I am not sure", None),
        ("The correct answers are (A), (B), and (D).", "ABD"),
        ("选项A和C正确，B错误。因此答案为AC", "AC"),
        ("DA", "AD"),
        ("The answer is ABSOLUTELY unclear", None),
    ],
)
def test_all_letters_of_the_answer(text: str, expected: str | None) -> None:
    assert many_letters(text) == expected


@pytest.mark.parametrize(
    ("text", "bare", "marked"),
    [
        ("B", "B", None),
        (" B. ", "B", None),
        ("(B)", "B", None),
        ("(B) Paris", "B", None),
        ("B. Paris", "B", None),
        ("B：巴黎", "B", None),
        ("Ｂ", "B", None),
        ("B is right", None, None),
        ("It is B", None, None),
        ("Because", None, None),
        ("b", None, None),
        ("E", None, None),
        ("Some thoughts.\nANSWER: C", None, "C"),
        ("answer: C", None, "C"),
        ("Answer: $C$", None, "C"),
        ("答案：D", None, "D"),
        ("答案是: D", None, "D"),
        ("ANSWER: A\nNo.\nANSWER: B", None, "B"),
        ("ANSWER: $LETTER", None, None),
        ("ANSWER: Because", None, None),
        ("ANSWER: **C**", None, None),
        ("The answer is C", None, None),
    ],
)
def test_strict_rules(text: str, bare: str | None, marked: str | None) -> None:
    assert (bare_letter(text), marked_letter(text)) == (bare, marked)


def test_strict_rule_of_an_answer_in_words() -> None:
    assert marked_letter("The correct answer is (C).", in_words=True) == "C"
    assert marked_letter("The answer is **C**", in_words=True) is None
    assert marked_letter("The answer is Carbon", in_words=True) is None


def test_ten_choices() -> None:
    assert one_letter("The answer is (J).", LETTERS) == "J" and one_letter("The answer is (J).") is None
    assert one_letter("I think that I know: **I**", LETTERS) == "I"
    assert one_letter("I am not sure about it.", LETTERS) is None
    assert last_letter("H, then C.") == "C" and last_letter("none") is None


@pytest.mark.parametrize(
    "text", ["answer is ", "A, ", "( ", "[[[", "A", "答案", "answer to ", "option A and ", "\\boxed{", "\\(", "$ "]
)
def test_hostile_texts_cost_no_more_than_their_length(text: str) -> None:
    one_letter(text * 5000), many_letters(text * 5000), bare_letter(text * 5000), marked_letter(text * 5000)


@given(
    st.text(alphabet="ABCDI abis(),.:不是答案选*\\boxed{}$<think>/\n", max_size=60), st.sampled_from(["ABCD", LETTERS])
)
def test_any_text_gives_known_letters_or_none(text: str, letters: str) -> None:
    one, many = one_letter(text, letters), many_letters(text, letters)
    assert one is None or (len(one) == 1 and one in letters)
    assert many is None or (many and many == "".join(sorted(set(many))) and set(many) <= set(letters))
    for strict in (bare_letter(text, letters), marked_letter(text, letters)):
        assert strict is None or strict in letters


FORMS = (
    "{}", "({})", "**{}**", "Answer: {}", "The answer is {}.", "The correct answer is ({}) this one.", "答案是{}。",
    "\\boxed{{{}}}", "I choose option {}.", "【答案】{}", "{}. Some text", "My thoughts.\n\n{}", "正确选项为{}",
    "故选：{}",
)  # fmt: skip


@given(st.sampled_from("ABCD"), st.sampled_from(FORMS))
def test_forms_hold_for_every_letter(letter: str, form: str) -> None:
    assert one_letter(form.format(letter)) == letter and many_letters(form.format(letter)) == letter
