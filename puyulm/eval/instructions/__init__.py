"""The 25 kinds of verifiable instructions of IFEval (Zhou et al., 2023, "Instruction-Following Evaluation for Large
Language Models", table 1): a function a kind, which says whether a text follows it.

Verdicts equal those of the official checker, oddities included. The one exception: where it would draw something at
random because a row's argument is out of its range (a letter frequency of `#`), what the row asks for is checked.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from puyulm.errors import DataError
from puyulm.eval.instructions import form, words

Check = Callable[..., bool]  # (text, **arguments of the row)

CHECKS: Mapping[str, Check] = {
    "keywords:existence": words.existence,
    "keywords:frequency": words.frequency,
    "keywords:forbidden_words": words.forbidden_words,
    "keywords:letter_frequency": words.letter_frequency,
    "language:response_language": words.response_language,
    "length_constraints:number_sentences": words.number_sentences,
    "length_constraints:number_paragraphs": form.number_paragraphs,
    "length_constraints:number_words": words.number_words,
    "length_constraints:nth_paragraph_first_word": form.nth_paragraph_first_word,
    "detectable_content:number_placeholders": form.number_placeholders,
    "detectable_content:postscript": form.postscript,
    "detectable_format:number_bullet_lists": form.number_bullet_lists,
    "detectable_format:constrained_response": form.constrained_response,
    "detectable_format:number_highlighted_sections": form.number_highlighted_sections,
    "detectable_format:multiple_sections": form.multiple_sections,
    "detectable_format:json_format": form.json_format,
    "detectable_format:title": form.title,
    "combination:two_responses": form.two_responses,
    "combination:repeat_prompt": form.repeat_prompt,
    "startend:end_checker": form.end_checker,
    "startend:quotation": form.quotation,
    "change_case:capital_word_frequency": words.capital_word_frequency,
    "change_case:english_capital": words.english_capital,
    "change_case:english_lowercase": words.english_lowercase,
    "punctuation:no_comma": form.no_comma,
}

_PACKAGES = {
    "language:response_language": ("langdetect",),
    "change_case:english_capital": ("langdetect",),
    "change_case:english_lowercase": ("langdetect",),
    "change_case:capital_word_frequency": ("nltk", "punkt"),
    "length_constraints:number_sentences": ("nltk", "punkt"),
}


def arguments_of(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A row's arguments for a kind; the hub's rows name those of all kinds and leave the others null.

    Raises:
        ValueError: The kind is unknown, or its arguments are others.
        DataError: A package that the check needs is not installed.
    """
    if kind not in CHECKS:
        raise ValueError(f"unknown instruction '{kind}'")
    given = {name: value for name, value in arguments.items() if value is not None}
    names = list(inspect.signature(CHECKS[kind]).parameters)[1:]
    if sorted(given) != sorted(names):
        raise ValueError(f"'{kind}' takes {', '.join(names) or 'no arguments'}, not {', '.join(given) or 'none'}")
    for name, value in given.items():
        _check_type(kind, name, value)
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES.get(kind, ())):
        raise DataError("checking instructions needs langdetect and nltk: pip install 'puyulm[eval]'")
    return given


def follows(text: str, kind: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a text follows an instruction as it stands. An empty text follows none."""
    return bool(text.strip()) and CHECKS[kind](text, **arguments)


def follows_loosely(text: str, kind: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the text follows it in any of eight forms (section 2.2 of the paper): with or without its first line
    and its last line (an introduction, a closing offer), and with or without its asterisks."""
    return any(follows(one, kind, arguments) for one in variants(text))


def variants(text: str) -> list[str]:
    """The eight forms of a text that count as the same answer; the text itself comes first."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(one.replace("*", "") for one in cut)]


def _check_type(kind: str, name: str, value: Any) -> None:
    lists = ("keywords", "forbidden_words")
    if name in lists:
        fits = isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) for one in value)
    elif name.startswith("num_") or name.endswith("frequency") or name == "nth_paragraph":
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        fits = isinstance(value, str) and bool(value)
        if name.endswith("relation"):
            fits = value in ("less than", "at least")
    if not fits:
        raise ValueError(f"'{kind}': {name} cannot be {value!r}")
