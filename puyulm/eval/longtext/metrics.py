"""Metrics of texts: overlap of words, ROUGE, edit distance.

The names and rules are those of LongBench's and L-Eval's published scorers; each is tested against the packages that
those scorers use (`rouge`, `rouge-score`, `fuzzywuzzy`).
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Sequence

from puyulm.errors import DataError

_PUNCTUATION = set(string.punctuation)
_ZH_PUNCTUATION = _PUNCTUATION | set(
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[a-z0-9]+")


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and doubled spaces (SQuAD's rule)."""
    bare = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def chinese_words(text: str) -> list[str]:
    """Words of a Chinese text, spaces and punctuation among them.

    Raises:
        DataError: jieba, by whose words the published scores were counted, is not installed.
    """
    try:
        import jieba  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise DataError("Chinese words are told apart by jieba: pip install 'puyulm[eval]'") from None
    jieba.setLogLevel(60)
    return list(jieba.cut(text, cut_all=False))


def f1(answer: str, reference: str, language: str = "en") -> float:
    """Harmonic mean of precision and recall over words."""
    if language == "en":
        found, right = normalise(answer).split(), normalise(reference).split()
    else:
        found, right = _bare_chinese_words(answer), _bare_chinese_words(reference)
    return _harmonic(sum((Counter(found) & Counter(right)).values()), len(found), len(right))


def rouge_l_union(answer: str, reference: str, language: str = "en") -> float:
    """ROUGE-L as LongBench takes it: F of the union of longest common subsequences over sentences.

    Sentences end at full stops, words at spaces, and each word counts once (the `rouge` package's default).
    """
    if language == "zh":
        answer, reference = " ".join(chinese_words(answer)), " ".join(chinese_words(reference))
    found, right = _sentences(answer), _sentences(reference)
    in_found, in_right = {word for one in found for word in one}, {word for one in right for word in one}
    if not in_found or not in_right:
        return 0.0
    common = {word for one in right for own in found for word in _common_subsequence(one, own)}
    precision, recall = len(common) / len(in_found), len(common) / len(in_right)
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L of two texts as a whole: words are runs of Latin letters and digits, lower-cased, no stemming."""
    found, right = _WORD.findall(answer.lower()), _WORD.findall(reference.lower())
    return _harmonic(_common_length(found, right), len(found), len(right))


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's: insertions, deletions and substitutions of characters."""
    row = list(range(len(second) + 1))
    for number, character in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(second, 1):
            changed = min(row[place] + 1, row[place - 1] + 1, diagonal + (character != other))
            diagonal, row[place] = row[place], changed
    return row[-1]


def edit_similarity(answer: str, reference: str) -> float:
    """One minus the edit distance over the longer length, without white space; between 0 and 1."""
    first, second = "".join(answer.split()), "".join(reference.split())
    longer = max(len(first), len(second))
    return 1 - edit_distance(first, second) / longer if longer else 1.0


def code_similarity(answer: str, reference: str) -> float:
    """Matching blocks of the answer's first line of code, in whole percents (`fuzzywuzzy.fuzz.ratio`)."""
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * difflib.SequenceMatcher(None, line, reference).ratio()) / 100


def share_of_numbers(answer: str, right: str) -> float:
    """How many of the numbers in an answer are the right one (LongBench's counting and retrieval)."""
    numbers = re.findall(r"\d+", answer)
    return sum(number == right for number in numbers) / len(numbers) if numbers else 0.0


def class_score(answer: str, right: str, classes: Sequence[str]) -> float:
    """Whether an answer names the right class; shared among all classes that it names.

    A class whose name is part of the right one's does not count as named.
    """
    named = [one for one in classes if one in answer and (one not in right or one == right)]
    return 1 / len(named) if right in named else 0.0


def _bare_chinese_words(text: str) -> list[str]:
    words = (
        "".join(letter for letter in word.lower() if letter not in _ZH_PUNCTUATION and not letter.isspace())
        for word in chinese_words(text)
    )
    return [word for word in words if word]


def _sentences(text: str) -> list[list[str]]:
    return [one.split() or [""] for one in text.split(".") if one]  # a blank one holds an empty word, as there


def _harmonic(common: int, found: int, right: int) -> float:
    return 2 * common / (found + right) if common else 0.0


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a bit for each word of `first` (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    rows = full
    for word in second:
        matched = rows & places.get(word, 0)
        rows = (rows + matched | rows - matched) & full
    return len(first) - rows.bit_count()


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several, the one that leaves the first text's end as late as it can."""
    table = [[0] * (len(second) + 1)]
    for word in first:
        above, row = table[-1], [0]
        for place, other in enumerate(second):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[place]))
        table.append(row)
    found, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]
