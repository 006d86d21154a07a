"""Each of IFEval's 25 checks on texts that it must and must not accept, and all against the official checker."""

from __future__ import annotations

import importlib
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.eval.instructions import CHECKS, arguments_of, follows, follows_loosely, variants
from tests.eval.responses import SENTENCES, obedient, wayward

for package in ("langdetect", "nltk", "punkt"):
    pytest.importorskip(package, reason="needs the extra eval")

LONG = SENTENCES["en"][0]
AT_LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}

TABLE: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["mom", "kid"]}, ["MOM and kids"], ["mom", "m o m kid"]),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, **AT_LEAST}, ["War toward"], ["war"]),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, **LESS}, ["war", "peace"], ["war, warm"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, ["rocks", "bedrock"], ["a Rock.", "rock-hard"]),
    (
        "keywords:letter_frequency",
        {"letter": "a", "let_frequency": 3, "let_relation": "at least"},
        ["Anna has"],
        ["an a"],
    ),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "less than"}, ["#"], ["# #"]),
    ("language:response_language", {"language": "de"}, [SENTENCES["de"][0], "123"], [LONG, "这是一本书"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, **LESS},
        ["Dr. Who came at 5 p.m. on foot."],
        ["A. B!"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, **AT_LEAST}, ["It is. It was."], ["no\nstop\nhere"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***a***b"],
        ["a", "a***\n***b", "a\n\nb"],
    ),
    ("length_constraints:number_words", {"num_words": 3, **AT_LEAST}, ["don't go", "一 二 三"], ["two words"]),
    ("length_constraints:number_words", {"num_words": 3, **LESS}, ["well-known"], ["1.5 2"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"},
        ["a\n\nIt's b", "a\n\n'it, b"],
        ["a\n\nits b", "a\n\n\n\nit", "it b", "a\nit", "a\n\nit\n\nb", "a\n\n**it** b"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b]", "[][]"], ["[a]", "[a\nb] [c]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\np. s. y", "P.S. z"], ["PS: y", "p.s"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S. y", "p. p. s"], ["P.S. y"]),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, ["note: y"], ["notes"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  * b"],
        ["** a\n* b", "* a", "1. a\n2. b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is no.", "I think: My answer is maybe."],
        ["my answer is no.", "no"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* *b*", "**a** *b*"],
        ["*a*", "**a**", "** **", "*a\nb*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section 22"],
        ["Section 1", "SECTION 1 SECTION 2", "Section I\nSection II"],
    ),
    ("detectable_format:json_format", {}, ['{"a": 1}', "```json\n[1]\n```", "3"], ["{'a': 1}", "Here: {}", "```\n"]),
    ("detectable_format:title", {}, ["<<a>>\nb", "b <<c d>>"], ["<a>", "<< >>", "<<a\nb>>", "<<>>"]),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b******"],
        ["a", "a******a", "a******b******c", "a****** ******b"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, ["say hi.\nHi", " SAY HI. "], ["Sure. Say hi."]),
    (
        "startend:end_checker",
        {"end_phrase": "Bye now."},
        ["x bye now.", 'x "Bye now."\n'],
        ["bye now", "Bye now. x", "Bye now.*"],
    ),
    ("startend:quotation", {}, ['"a"', ' "a" b "\n'], ['"', '"a', "“a”", "'a'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["DON'T", "A B", "U.S. GDP"],
        ["Dont GO", "WELL-KNOWN fact"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["No ONE"],
        ["I AM"],
    ),
    ("change_case:english_capital", {}, [LONG.upper()], [LONG, SENTENCES["de"][0].upper(), "123"]),
    ("change_case:english_lowercase", {}, [LONG], [LONG.title(), SENTENCES["it"][0].lower(), "123"]),
    ("punctuation:no_comma", {}, ["a; b", "一，二"], ["a, b"]),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), TABLE)
def test_what_follows(kind: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    asked = arguments_of(kind, arguments)
    assert {text: follows(text, kind, asked) for text in good} == dict.fromkeys(good, True)
    assert {text: follows(text, kind, asked) for text in bad} == dict.fromkeys(bad, False)
    assert not follows(" \n", kind, asked)


def test_the_table_has_all_kinds() -> None:
    assert {kind for kind, *_ in TABLE} == set(CHECKS) and len(CHECKS) == 25


def test_loosely() -> None:
    """Lines before and after, and asterisks, are forgiven; each instruction by its own variant."""
    assert variants("a*\nb\nc") == ["a*\nb\nc", "b\nc", "a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]
    text = 'Sure, here:\n**"Yes."**\nBye, friend'
    assert not follows(text, "startend:quotation", {}) and follows_loosely(text, "startend:quotation", {})
    assert follows_loosely(text, "punctuation:no_comma", {})
    assert not follows_loosely("a, b\nc, d\ne, f", "punctuation:no_comma", {})
    assert not follows_loosely("", "punctuation:no_comma", {})


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("keywords:colour", {}, "unknown instruction"),
        ("punctuation:no_comma", {"num_words": 3}, "takes no arguments, not num_words"),
        ("length_constraints:number_words", {"num_words": 3, "relation": None}, "takes num_words, relation"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "about"}, "relation cannot be 'about'"),
        ("length_constraints:number_words", {"num_words": "3", "relation": "at least"}, "num_words cannot be '3'"),
        ("keywords:existence", {"keywords": []}, r"keywords cannot be \[\]"),
    ],
)
def test_rows_that_ask_for_something_else(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments_of(kind, arguments)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("aA .,!?*-[]<>{}\"'`#\n\t0一é"), max_size=60), st.sampled_from(TABLE))
def test_any_text_gets_a_verdict(text: str, row: tuple[str, dict[str, Any], list[str], list[str]]) -> None:
    kind, arguments = row[:2]
    assert follows_loosely(text, kind, arguments) >= follows(text, kind, arguments)


def test_equal_to_the_official_checker(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row on all 541 prompts: a text that follows everything, and some that do not."""
    official = _official(monkeypatch)
    lines = (shared_dir / "evaldata/ifeval/input_data.jsonl").read_text("utf-8").splitlines()
    seen: set[tuple[str, bool, bool]] = set()
    for number, line in enumerate(lines):
        row = json.loads(line)
        pairs = list(zip(row["instruction_id_list"], row["kwargs"], strict=True))
        if any(given.get("letter") in ("#", "!") for _, given in pairs):
            continue  # not a letter: the official checker counts one that it draws at random
        asked = official.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
        draw = random.Random(row["key"])
        for text in (wayward(pairs, draw), obedient(pairs) if number % 3 == 0 else wayward(pairs, draw)):
            strict = official.test_instruction_following_strict(asked, text).follow_instruction_list
            loose = official.test_instruction_following_loose(asked, text).follow_instruction_list
            marked = any(unicodedata.category(sign).startswith("M") for sign in text)
            for pair, one, other in zip(pairs, strict, loose, strict=True):
                if marked and pair[0] == "length_constraints:number_words":
                    continue  # whether marks end a word depends on NLTK's version
                assert (follows(text, *pair), follows_loosely(text, *pair)) == (one, other), (row["key"], pair, text)
            seen |= {(kind, one, other) for (kind, _), one, other in zip(pairs, strict, loose, strict=True)}
    assert {(kind, True, True) for kind in CHECKS} | {(kind, False, False) for kind in CHECKS} <= seen


def _official(monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-evaluation-harness's copy, seeded as ours is; without NLTK's data its splitter is given our tables."""
    pytest.importorskip("lm_eval", reason="the official checker comes with lm-eval: pip install 'puyulm[dev]'")
    pytest.importorskip("immutabledict", reason="the official checker comes with lm-eval[ifeval]")
    import langdetect
    import nltk

    from puyulm.eval.instructions import language

    monkeypatch.setattr(nltk, "download", lambda *args, **options: True)
    util = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        splitter = language._sentence_splitter()
        monkeypatch.setattr(util, "_get_sentence_tokenizer", lambda: splitter)
        monkeypatch.setattr(nltk.tokenize, "sent_tokenize", lambda text, language: splitter.tokenize(text))
    return importlib.import_module("lm_eval.tasks.ifeval.utils")
