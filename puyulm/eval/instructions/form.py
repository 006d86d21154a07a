"""Instructions about the form of a text: paragraphs, lists, sections, marks, its beginning and its end."""

from __future__ import annotations

import json
import re

_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_STOPS = re.compile(r"""[.,?!'"]""")


def number_paragraphs(text: str, num_paragraphs: float) -> bool:
    """Exactly so many paragraphs between the dividers `***`. The first and the last may be empty and do not count;
    any other empty one fails."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    empty = [place for place, part in enumerate(parts) if not part.strip()]
    if any(0 < place < len(parts) - 1 for place in empty):
        return False
    return len(parts) - len(empty) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: float, nth_paragraph: float, first_word: str) -> bool:
    """Exactly so many paragraphs between blank lines, the n-th beginning with a word.

    Empty paragraphs do not count in the number, but they do in the place.
    """
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > count:
        return False
    paragraph = parts[int(nth_paragraph) - 1].split()
    if not paragraph:
        return False
    word = paragraph[0].lstrip("'").lstrip('"')
    return count == num_paragraphs and _STOPS.split(word, maxsplit=1)[0].lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: float) -> bool:
    """At least so many `[placeholders]`."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """A postscript with its marker, of which spaces and capitals may differ. It may stand anywhere."""
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


def number_bullet_lists(text: str, num_bullets: float) -> bool:
    """Exactly so many Markdown bullets: lines that begin with `-`, or with one `*` and something after it."""
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(text: str) -> bool:
    """One of the three answers of the prompt stands somewhere in the text."""
    return any(answer in text for answer in _ANSWERS)


def number_highlighted_sections(text: str, num_highlights: float) -> bool:
    """At least so many `*highlights*`; `**bold**` ones are found as well, and empty ones do not count."""
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    return sum(bool(found.strip("*").strip()) for found in [*single, *double]) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: float) -> bool:
    """At least so many sections with numbered headings, such as `Section 1`. (The argument is spelt as published.)"""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """JSON as a whole, perhaps in a code fence."""
    bare = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(fence)
    try:
        json.loads(bare.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """A `<<title>>` that is not empty."""
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    """Two different responses with six asterisks between them."""
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return False
    full = [part for part in parts if part]
    return len(full) == 2 and full[0] != full[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """The request stands first, word for word."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    """The phrase stands last, but for double quotation marks."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    """Double quotation marks around the whole."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def no_comma(text: str) -> bool:
    """No comma; the full-width one is allowed."""
    return "," not in text
