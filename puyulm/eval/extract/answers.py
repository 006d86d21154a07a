"""Short answers in words: what was answered, and whether it is one of the right ones.

Normalisation and scores are those of the data sets' official scripts: SQuAD's (Rajpurkar et al., 2016; also used for
NQ-open), TriviaQA's (Joshi et al., 2017) and DROP's (Dua et al., 2019).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_AS_SPACES = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_ANSWER = re.compile(
    r"(?:answers? (?:is|are)|\banswers?\s*[:：]|^\s*a\s*[:：]|答案(?:是|为|[:：]))\s*[:：]?\s*", re.IGNORECASE
)
_MOST_SPANS = 12  # that are aligned in every way


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalise_trivia(text: str) -> str:
    """The same, but punctuation and underscores separate words (TriviaQA)."""
    return " ".join(_ARTICLES.sub(" ", text.replace("_", " ").lower().translate(_AS_SPACES)).split())


def short_answer(text: str) -> str:
    """What a short answer says: its first line, without "The answer is" or "A:" before it and marks around it."""
    lines = text.strip().split("\n", 1)
    return _ANSWER.split(lines[0])[-1].lstrip("*\"'“ ").rstrip("*\"'”.。 ")


def exact_match(answer: str, right: Iterable[str], form: Callable[[str], str] = normalise) -> bool:
    """Whether an answer is one of the right ones after normalisation."""
    said = form(answer)
    return bool(said) and any(said == form(one) for one in right)


def contains(answer: str, right: Iterable[str], form: Callable[[str], str] = normalise) -> bool:
    """Whether a right answer stands in it, in whole words."""
    said = f" {form(answer)} "
    return any(f" {known} " in said for one in right if (known := form(one)))


def overlaps(answer: str, right: Iterable[str]) -> bool:
    """Whether one of the right answers stands in the answer or it in one of them, even within words (the rule for
    DROP in simple-evals and OpenCompass)."""
    said = normalise(answer)
    known = [normalise(one) for one in right]
    return any(one in said or said in one for one in known if one) if said else False


def answer_line(text: str) -> str | None:
    """Strict: what the last line of the form "Answer: ..." says."""
    found = re.findall(r"^[^\w\n]{0,9}answer[*_ ]{0,9}[:：][*_ \t]{0,9}(\S[^\n]*)$", text, re.IGNORECASE | re.MULTILINE)
    return found[-1].strip().strip("*").strip() or None if found else None


def after_answer_is(text: str) -> str | None:
    """What stands behind the last "answer is", up to the end of the line, without marks and the full stop."""
    parts = re.split(r"answer is\s*[:：]?\s*|答案(?:是|为)\s*[:：]?\s*", text, flags=re.IGNORECASE)
    if len(parts) == 1:
        return None
    said = parts[-1].strip().split("\n", 1)[0].strip()
    if bold := re.match(r"\*\*(.+?)\*\*", said):
        said = bold[1]
    for mark in ("$", "`", '"', "**"):
        said = said.removesuffix(".").removesuffix("。").strip().removeprefix(mark).removesuffix(mark)
    return said.strip() or None


# DROP


def drop_scores(answer: str, right: Iterable[Sequence[str]]) -> tuple[float, float]:
    """Exact match and F1 of an answer, the best over all that annotators gave (each one or more spans).

    Where a right answer has several spans, the answer also counts as the list that it is when it is split at commas,
    semicolons and "and".
    """
    best = (0.0, 0.0)
    for spans in right:
        if not any(span.strip() for span in spans):
            continue
        ways = [[answer]]
        if len(spans) > 1:
            ways.append([one for one in re.split(r"[,;，；、\n]|\band\b|和", answer) if one.strip()] or [""])
        for way in ways:
            exact, f1 = _spans_scores(way, spans)
            best = (max(best[0], exact), max(best[1], f1))
    return best


def _spans_scores(said: Sequence[str], right: Sequence[str]) -> tuple[float, float]:
    one, other = [_drop_form(span) for span in said], [_drop_form(span) for span in right]
    exact = float(sorted(one) == sorted(other))
    weights = [[_bag_f1(set(mine.split()), set(known.split())) for mine in one] for known in other]
    return exact, round(_best_alignment(weights) / max(len(one), len(other)), 2)


def _drop_form(text: str) -> str:
    tokens = []
    for token in re.split(r"[ -]", text.lower()):
        bare = token if _is_number(token) else token.translate(_PUNCTUATION)
        bare = str(float(bare)) if _is_number(bare) else bare
        tokens.append(" ".join(_ARTICLES.sub(" ", bare).split()))
    return " ".join(token for token in tokens if token)


def _bag_f1(said: set[str], right: set[str]) -> float:
    """Of two spans' words; numbers of the right one must be among them."""
    numbers = {word for word in right if _is_number(word)}
    if numbers and not numbers & said:
        return 0.0
    common = len(said & right)
    precision = common / len(said) if said else 1.0
    recall = common / len(right) if right else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _best_alignment(weights: Sequence[Sequence[float]]) -> float:
    """The largest sum of one weight a row, no column twice."""
    columns = len(weights[0])
    if columns > len(weights):
        weights, columns = list(zip(*weights, strict=True)), len(weights)
    if columns > _MOST_SPANS:  # nobody lists so many: the best pairs first
        pairs = sorted(((w, i, j) for i, row in enumerate(weights) for j, w in enumerate(row)), reverse=True)
        rows_left, columns_left, total = set(range(len(weights))), set(range(columns)), 0.0
        for weight, i, j in pairs:
            if i in rows_left and j in columns_left:
                rows_left.discard(i)
                columns_left.discard(j)
                total += weight
        return total
    best = {0: 0.0}  # used columns -> sum
    for row in weights:
        for used, total in list(best.items()):
            for column, weight in enumerate(row):
                if not used >> column & 1:
                    taken = used | 1 << column
                    best[taken] = max(best.get(taken, 0.0), total + weight)
    return max(best.values())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
