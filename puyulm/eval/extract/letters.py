"""Letters of choices in what a model wrote, in English and Chinese.

Full-width letters, Markdown and LaTeX dress (`**B**`, `\\boxed{\\text{B}}`, `$B$`) are undone before any rule. Thoughts
between `<think>` and `</think>` are no answer; where they never end there is none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
SHORT = 300  # characters of an answer that may name its choice by words in passing

_END = r"(?![A-Za-z0-9_'’])"  # ends a letter that stands alone, also before Chinese, where \b does not
_ALONE = r"(?<![A-Za-z0-9_'’])"
_CHINESE = r"\u4e00-\u9fff"
_NAMED = rf"(?<![^\s(\[【「“\"'‘,;:。、{_CHINESE}])(?<!\d )"  # in prose: not in a formula, and no unit
_NAMED_END = rf"(?![^\s)\]】」”\"'’.,;:!?。、{_CHINESE}])(?!\s[=+*/<>^\\])"
_OPEN, _CLOSE = r"[(\[{【「“\"'‘<]{0,3}", r"[)\]}】」”\"'’>]{0,3}"
_FILLER = r"(?i:(?:option|choice|letter|选项)s?\s?)?"
_JOINT = r"\s?(?:,\s?and|,|、|;|/|&|\+|and|or|和|与|及|或)\s?"
_GOES_ON = r"(?!\s?(?:is|was|are|does|has|would|can|cannot|describes?|是|错|不|正确|项)(?![a-z]))"  # a new sentence
_SAYING = "|".join([
    r"(?:answer|option|choice|response)s?(?: to [^.:\n]{1,40})? ?(?:is|are|would be|should be|must be|will be|:|=)",
    r"\b(?:i|we|you|i'd|i'll|we'd) (?:would |will |should |must |can )?(?:choose|select|pick|go with)",
    r"\\?boxed ?\{",
    r"(?:答案|选项|结论) ?(?:应该是|应当是|应该为|应是|应为|应选|就是|是|为|选|:)",
    r"(?:故|应|应该|应当|因此|所以|可|我|我们|只能|本题|此题|此处|综上|综上所述|,|。|^)(?:选择|选)",
    r"正确的?(?:选项|答案|一项)?(?:是|为)|答案",
])  # fmt: skip
_WORDS = r"(?:[\s:,\-】\]]|\b(?:the|most|likely|probably|therefore|clearly|correct|following|option)\b|是|为){0,8}"
_GOES_ON_AFTER_A = re.compile(r"\s(?:because|since|as|for|which|and|or|is|was|are|with|in)\b")  # no article
_NEGATIONS = re.compile(r"(?:not|n't|wrong|incorrect|不|不是|并非|排除)\s*\(?$", re.IGNORECASE)


def plain_text(text: str) -> str:
    """Without thoughts, Markdown, LaTeX commands around letters, and full-width forms."""
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return ""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mathsf|rm|bf|operatorname)\s*(?=\{|\s|[A-Z])", "", text)
    text = re.sub(r"\\[()\[\]]|\$|\*|`|~~|__", "", text)
    return re.sub(r"[ \t]+", " ", re.sub(r"(?m)^\s*(?:#+|>)\s*", "", text))


def bare_letter(text: str, letters: str = "ABCD") -> str | None:
    """Strict: the answer is a letter and nothing else, or begins with a letter that is set off from its text.

    "B", "(B)", "B.", "B. Paris", "B：巴黎" are; "B is right", "It is B" are not.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    match = re.match(rf"\(?([{letters}])\)?[.。]?\s*$|\(([{letters}])\)|([{letters}])[.、:)。]", text)
    return None if match is None else next(one for one in match.groups() if one)


def marked_letter(text: str, letters: str = "ABCD", *, in_words: bool = False) -> str | None:
    """Strict: after the last "ANSWER:", "答案:" or "答案是:", as benchmarks ask for it on the last line.

    Args:
        in_words: After the last "answer is" instead, in parentheses or without.
    """
    text = unicodedata.normalize("NFKC", text)
    marker = r"(?i:answer is)\s*\(?" if in_words else r"(?i:ANSWER|答案是?)\s*:\s*\$?"
    found = re.findall(rf"{marker}([{letters}]){_END}", text)
    return found[-1] if found else None


def one_letter(text: str, letters: str = "ABCD", choices: Sequence[str] = ()) -> str | None:
    """Lenient: the one letter that a reader would take for the answer; None where there is none, or several.

    The last conclusion ("the answer is B", "答案是B", "故选B", `\\boxed{B}`) counts most; then a first or last line
    that is a letter with or without its text; then a choice's text written out; then the only letter that the first and
    the last sentence name.

    Args:
        letters: Those that are choices.
        choices: Texts of the choices, in the order of `letters`.
    """
    prose, text = _first_and_last_sentence(text), plain_text(text)
    if concluded := _conclusion(text, letters):
        return concluded if len(concluded) == 1 else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in (*lines[:1], *lines[-1:]):
        if (group := _leading(line, letters)) is not None:
            return group if len(group) == 1 else None
    if (named := _written_out(text, letters, choices)) is not None:
        return named
    alone = set(_alone(prose, letters))
    return alone.pop() if len(alone) == 1 else None


def many_letters(text: str, letters: str = "ABCD") -> str | None:
    """Lenient: all letters of the answer, in order, each once ("ACD"); None where there are none.

    The last conclusion counts most, then a first or last line of letters, then all letters that stand in the text.
    """
    text = plain_text(text)
    if concluded := _conclusion(text, letters):
        return concluded
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in (*lines[:1], *lines[-1:]):
        if (group := _leading(line, letters)) is not None:
            return group
    return _in_order(_alone(text, letters)) or None


def last_letter(text: str, letters: str = LETTERS) -> str | None:
    """The last letter that stands alone, without any regard to what it means (MMLU-Pro's last resort)."""
    found = re.findall(rf"\b[{letters}]\b", text)
    return found[-1] if found else None


def _group(letters: str) -> str:
    """Letters in a row or joined: "B", "(B)", "option B", "ABD", "A, B and D", "A、C"."""
    one = rf"{_OPEN}[{letters}]{_CLOSE}"
    return rf"{_ALONE}{_FILLER}{one}(?:{_JOINT}{_FILLER}{one}{_END}{_GOES_ON}|\s?{one})*{_END}"


def _conclusion(text: str, letters: str) -> str:
    """Letters of the last conclusion; "": there is none."""
    found = ""
    pattern = rf"(?im:{_SAYING})(?i:{_WORDS})(?P<group>{_group(letters)})"
    for match in re.finditer(pattern, text):
        word = len(match["group"]) == 1 and _is_word(text, match.start("group"))
        if not word and not _is_denied(text, match.start()):
            found = _named(match["group"], letters)
    return found


def _named(group: str, letters: str) -> str:
    return _in_order(re.findall(rf"{_ALONE}[{letters}]|(?<=[{letters}])[{letters}]", group))


def _leading(line: str, letters: str) -> str | None:
    """Letters that a line is made of, or the letter that it begins with, set off from its text."""
    if match := re.fullmatch(rf"({_group(letters)})[.。,;:!]*", line):
        return _named(match[1], letters)
    match = re.match(rf"{_FILLER}(?:[(\[【]([{letters}])[)\]】]|([{letters}])\s?[.、:)。])(?![A-Za-z]\.)", line)
    return None if match is None else match[1] or match[2]


def _written_out(text: str, letters: str, choices: Sequence[str]) -> str | None:
    """The letter of a choice that is the whole answer, or the only one that stands in a short one."""
    bare = _bare(text)
    texts = {letter: _bare(choice) for letter, choice in zip(letters, choices, strict=False)}
    if same := [letter for letter, choice in texts.items() if choice and choice == bare]:
        return same[0]
    if len(bare) > SHORT:
        return None
    inside = [letter for letter, choice in texts.items() if len(choice) > 3 and choice in bare]
    return inside[0] if len(inside) == 1 else None


def _bare(text: str) -> str:
    return " ".join(plain_text(text).casefold().split()).strip(" .。,!\"'")


def _first_and_last_sentence(text: str) -> str:
    """Without formulas, where letters stand for other things."""
    text = re.sub(r"\$\$?[^$]{1,1000}\$\$?|\\\(.{1,400}?\\\)|\\\[.{1,400}?\\\]", " ", text, flags=re.DOTALL)
    sentences = [one for one in re.split(r"(?<=[.!?])\s+|[。！？\n]", plain_text(text)) if one.strip()]
    return " ".join((*sentences[:1], *sentences[1:][-1:]))


def _alone(text: str, letters: str) -> list[str]:
    """Letters that stand alone in running text, without those that are words of English there, or denied ("not A")."""
    places = [match.start() for match in re.finditer(rf"{_NAMED}[{letters}]{_NAMED_END}", text)]
    return [text[place] for place in places if not _is_word(text, place) and not _is_denied(text, place)]


def _is_denied(text: str, place: int) -> bool:
    return _NEGATIONS.search(text, max(place - 12, 0), place) is not None


def _is_word(text: str, place: int) -> bool:
    """Whether an "A" is the article, or an "I" the pronoun, and no choice."""
    letter, after = text[place], text[place + 1 : place + 12]
    if letter == "I":
        return re.match(r"\s?[A-Za-z,]", after) is not None
    return letter == "A" and re.match(r"\s[A-Za-z]", after) is not None and not _GOES_ON_AFTER_A.match(after)


def _in_order(found: Sequence[str]) -> str:
    return "".join(sorted(set(found)))
