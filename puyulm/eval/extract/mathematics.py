r"""Mathematical answers in what a model wrote: `\boxed{}`, "the final answer is", and one form of LaTeX.

`normalise` follows what Lewkowycz et al. (2022, "Solving Quantitative Reasoning Problems with Language Models",
appendix on the evaluation of MATH) describe for comparing answers as texts: units, words around the answer, spaces and
sizes of brackets are taken off, short forms of fractions and roots are written out. Symbolic equality is in
`puyulm.eval.mathematics`.
"""

from __future__ import annotations

import re
import unicodedata

from puyulm.eval.extract.numbers import final_number

_BOX = re.compile(r"\\(?:boxed|fbox)\b\s{0,9}")
_SAID = re.compile(
    r"(?:final\s{1,3}answer|answer)\s{0,3}"
    r"(?:\*{0,3}\s{0,3}[:：]|\s{1,3}(?:is|are|=|would be|should be)\b\s{0,3}[:：]?)\s{0,3}"
    r"|(?:最终)?答案\s{0,3}(?:是|为|等于|应为|应该是|[:：])\s{0,3}[:：]?\s{0,3}",
    re.IGNORECASE,
)
_ENDING = re.compile(r"(?:I hope (?:it|this) is correct\.?|Q\.?E\.?D\.?)$", re.IGNORECASE)
_DISPLAY = re.compile(  # bounded, so that hostile texts cost no more than their length
    r"\$\$(.{1,1000}?)\$\$|\\\[(.{1,1000}?)\\\]|\\\((.{1,1000}?)\\\)|(?<!\\)\$(.{1,1000}?)(?<!\\)\$", re.DOTALL
)
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are characters
_LONGEST_WORDS = 12


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{}` (or `\fbox{}`, or `\boxed 5`) holds, with balanced braces; None: there is none.

    An unclosed last box (an answer cut off) counts as none, and the one before it is taken.
    """
    boxes = list(_BOX.finditer(text))
    ends = _closing(text) if boxes else {}
    for found in reversed(boxes):
        start = found.end()
        if start in ends:
            return text[start + 1 : ends[start]].strip()
        if text[start : start + 1] != "{" and (word := re.match(r"[^\s$.,;{}\\]+", text[start : start + 100])):
            return word[0]
    return None


def _closing(text: str) -> dict[int, int]:
    """Where each brace that opens closes."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for found in _BRACES.finditer(text):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            ends[opened.pop()] = found.start()
    return ends


def stated_answer(text: str) -> str | None:
    """Strict: the last box, or else what the last "final answer is" names, up to the end of its sentence."""
    boxed = last_boxed(text)
    return boxed if boxed else _stated(text)


def _stated(text: str) -> str | None:
    for found in reversed(list(_SAID.finditer(text))):
        rest = _ENDING.sub("", text[found.end() :].strip("*_ \t\n"))
        answer = _first_sentence(rest)
        if answer:
            return answer
    return None


def _first_sentence(text: str) -> str:
    """Up to a full stop or the line's end; formulas and decimal points do not end it."""
    if formula := _DISPLAY.match(text):
        return next(part for part in formula.groups() if part is not None).strip()
    line = text.split("\n", 1)[0]
    line = re.split(r"[.。!](?:\s|$|\*)|[;；]", line, maxsplit=1)[0]
    if formula := _DISPLAY.search(line):
        return next(part for part in formula.groups() if part is not None).strip()
    return line.strip().strip("*_").strip().rstrip(".。,，").strip()


def final_answer(text: str) -> str | None:
    """Lenient: what a reader takes for the answer.

    The last box; what "the answer is" names; the last formula of the last three lines; a last line of one word; the
    last number.
    """
    answer = stated_answer(text)
    if answer:
        return answer
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    for line in reversed(lines[-3:]):
        formulas = [next(part for part in one.groups() if part is not None) for one in _DISPLAY.finditer(line)]
        if formulas:
            return formulas[-1].strip()
    if lines and len(lines[-1].split()) == 1 and lines[-1].isascii():
        return lines[-1].strip("*_ ").rstrip(".。")
    number = final_number(text)
    if number is None:
        return None
    return str(number.value * 100) + "\\%" if number.percent else str(number.value)


_OPENING_WORDS = re.compile(r"^(?:(?:an?|the)\s+)+", re.IGNORECASE)
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])|\\(?:displaystyle|textstyle|limits)\b|(?<!\\)\\[!,;: ]|~"
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|boldsymbol|operatorname)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°|\\degree\b|\\%|%|\\\$|\$")
_UNITS = re.compile(
    r"(?<![a-zA-Z\\])(?:square|cubic|units?|degrees?|dollars?|cents?|inch(?:es)?|foot|feet|ft|miles?|mph|meters?|metres?"
    r"|cm|km|mm|kg|gm|grams?|pounds?|lbs?|hours?|minutes?|seconds?|days?|years?|ways|points?|integers?|digits?|edges"
    r"|students?|meals?|multiples)(?![a-zA-Z])(?:\s*\^\s*\{?[23]\}?)?",
    re.IGNORECASE,
)
_SAME = {
    "\\tfrac": "\\frac", "\\dfrac": "\\frac", "\\cfrac": "\\frac", "\\leq": "\\le", "\\geq": "\\ge", "\\neq": "\\ne",
    "\\varnothing": "\\emptyset", "\\cdot": "*", "\\times": "*", "\\{": "\\lbrace ", "\\}": "\\rbrace ", "\\dots": "",
    "\\ldots": "", "{,}": ",", "\\lvert": "|", "\\rvert": "|",
}  # fmt: skip
_WRITTEN = re.compile("|".join(re.escape(one) + ("(?![a-zA-Z])" if one[-1].isalpha() else "") for one in _SAME))
_MATRIX = re.compile(r"\\(begin|end)\{[bvV]matrix\}")


def normalise(answer: str) -> str:
    """One form of an answer, for equality as texts (Minerva's rule)."""
    text = tidy(answer)
    text = _OPENING_WORDS.sub("", text)
    text = _WRITTEN.sub(lambda found: _SAME[found[0]], text)
    text = _SIZES.sub("", text)
    text = re.sub(r",?\s*(?:\\text\s*\{\s*and\s*\}|\band\b)\s*", ",", text)
    text = _UNITS.sub("", _DEGREES.sub("", _TEXT.sub(r" \1 ", text)))
    text = _MATRIX.sub(r"\\\1{pmatrix}", text)
    if found := re.fullmatch(r"\s*[a-zA-Z](?:\([a-z]\))?\s*(?:=|\\in(?![a-zA-Z]))([^=]*)", text):  # x = 5
        text = found[1]
    text = re.sub(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", r"\1 ", text).strip()
    text = re.sub(r"(?<!\\)\s+(?![a-zA-Z])|(?<![a-zA-Z])\s+", "", text)
    text = re.sub(r"\\sqrt(?:\s*)([^{\[\s\\])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac\s*([^{\s\\])\s*([^{\s\\])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([^{\s\\])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\{[^{}]*\})([^{\s\\])", r"\1{\2}", text)
    if found := re.fullmatch(r"(-?)(\d+)/(\d+)", text):
        text = f"{found[1]}\\frac{{{found[2]}}}{{{found[3]}}}"
    text = re.sub(r"^\\frac\{-(\d+)\}", r"-\\frac{\1}", text)
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    return text.rstrip(".").strip()


def same_text(gold: str, answer: str) -> bool:
    """Whether two answers are the same text after `normalise`; of words, case does not count."""
    one, other = normalise(gold), normalise(answer)
    if not one or not other:
        return tidy(gold) == tidy(answer)
    return one == other or (is_word(gold) and is_word(answer) and _letters(gold) == _letters(answer))


def is_word(answer: str) -> bool:
    r"""Whether an answer is words rather than mathematics: `\text{Evelyn}`, "east", "even function", "红色"."""
    text = tidy(answer)
    if re.search(r"[\d=+*/^_<>|\[\]]", text):
        return False
    bare = _TEXT.sub(r"\1", text)
    if "\\" in bare or not (words := re.findall(r"[^\W\d_]+", bare)) or len(words) > _LONGEST_WORDS:
        return False
    return any(len(word) > 3 or not word.isascii() for word in words) or (text != bare and len(bare.strip("() ")) > 1)


def _letters(answer: str) -> str:
    return " ".join(re.findall(r"\w+", _TEXT.sub(r" \1 ", tidy(answer)).casefold()))


def tidy(answer: str) -> str:
    """Full-width characters as ASCII, and no dollar signs, brackets of formulas, bold marks or full stop around it."""
    text = unicodedata.normalize("NFKC", answer).replace("−", "-").replace("–", "-").replace("。", ".").strip()
    text = re.sub(r"^\*\*(.*)\*\*$", r"\1", text.rstrip(".").strip(), flags=re.DOTALL)
    for before, behind in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(before) + len(behind) and text.startswith(before) and text.endswith(behind):
            text = text[len(before) : -len(behind)]
    return re.sub(r"(?<!\\)\$", "", text).strip().rstrip(".").strip()
