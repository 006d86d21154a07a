"""Statistical features of a long text: its lines, its marks, the words that tie sentences together, and how it repeats.

They are those of the published code for InternLM2's long-context data (LongWanjuan, `complexity/` and `cohesion/`), but
for the lists of words, which are our own, and for two that need no tokenizer: `unique_word_rate` and `compression`.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from puyulm.data.words import words_of

PIECE = 1_000_000  # characters looked at together: the words' arrays take about 40 bytes a character
STRETCH = 1000  # words among which unique ones are counted

TEXT_FEATURES = (
    "characters", "lines", "line_mean", "line_std", "line_median", "line_max", "line_min", "newline_rate", "comma_rate",
    "space_rate", "bar_rate", "pronoun_rate", "conjunction_rate", "unique_word_rate", "compression",
)  # fmt: skip
"""Names, in the order in which they are given; see `text_features`."""

_EN_PRONOUNS = """
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves this that these those who whom whose which one oneself
someone anyone everyone nobody somebody anybody everybody something anything everything nothing each other
"""
_EN_CONJUNCTIONS = """
and but or nor so yet because since although though while whereas if unless until when whenever where wherever
whether before after once than as however therefore moreover furthermore nevertheless nonetheless thus hence
meanwhile instead otherwise besides consequently accordingly similarly likewise finally also then still indeed first
second third
"""
_ZH_PRONOUNS = """
我们 咱们 你们 他们 她们 它们 我 你 您 他 她 它 自己 自身 本人 大家 彼此 人家 别人 这些 那些 这里 那里 这样 那样
这个 那个 这 那 谁 什么 哪些 哪里 哪个 其 此 該 我們 你們 他們 她們 它們 這些 那裡 這裡 這樣 這個 那個 這
"""
_ZH_CONJUNCTIONS = """
因为 由于 所以 因此 因而 于是 从而 以致 以至于 可见 既然 那么 但是 可是 然而 不过 只是 却 而 虽然 尽管 固然 即使
即便 哪怕 纵然 就算 如果 假如 假使 倘若 要是 只要 只有 除非 无论 不论 不管 任凭 不但 不仅 不只 不光 而且 并且 况且
何况 甚至 甚至于 以及 及其 或者 还是 要么 不是 就是 与其 宁可 不如 以便 以免 免得 为了 同时 此外 另外 再者 其次 首先
最后 最终 然后 接着 随后 后来 例如 比如 譬如 换言之 换句话说 也就是说 总之 总而言之 综上所述 由此可见 相反 反之
反过来 否则 不然 要不然 一方面 另一方面 与此同时 事实上 实际上 显然 当然 尤其 特别是 相比之下 同样 值得注意的是
除此之外 因為 雖然 儘管 於是 從而 並且 無論 不論 不過 卻 為了 還是 後來
"""

_COMMAS = (",", "，", "、")


def text_features(text: str, language: str) -> dict[str, float]:
    """Features of one text.

    Args:
        text: Of any length; memory beyond the text stays below 100 MB.
        language: ISO 639-1 code. Pronouns and conjunctions are counted in "en" and "zh" only, words not in "code".

    Returns:
        `characters`; `lines`: that are not blank, and `line_mean`, `line_std`, `line_median`, `line_max`, `line_min`:
        their lengths in characters; `newline_rate`, `comma_rate` (with the full-width ones), `space_rate`, `bar_rate`
        ("|"): per character; `pronoun_rate`, `conjunction_rate`: per word in English, as the share of characters in
        them in Chinese; `unique_word_rate`: unique words, and Chinese characters, in 1,000, the mean over the text (so
        that it does not fall with a text's length); `compression`: bytes that DEFLATE makes of one byte.
    """
    if not text:
        return {}
    size = len(text)
    features = {"characters": float(size)} | _lines(text) | {
        "newline_rate": text.count("\n") / size,
        "comma_rate": sum(map(text.count, _COMMAS)) / size,
        "space_rate": text.count(" ") / size,
        "bar_rate": text.count("|") / size,
    }  # fmt: skip
    if language == "zh":
        features["pronoun_rate"] = _covered(_zh_pattern("pronouns"), text) / size
        features["conjunction_rate"] = _covered(_zh_pattern("conjunctions"), text) / size
    if language != "code":
        features |= _words(text, language == "en")
    features["compression"] = _compression(text)
    return features


def _lines(text: str) -> dict[str, float]:
    lengths = np.array([len(line) for line in text.split("\n") if line and not line.isspace()] or [0], dtype=np.float64)
    return {
        "lines": float(np.count_nonzero(lengths)),
        "line_mean": float(lengths.mean()),
        "line_std": float(lengths.std()),
        "line_median": float(np.median(lengths)),
        "line_max": float(lengths.max()),
        "line_min": float(lengths.min()),
    }


def _words(text: str, english: bool) -> dict[str, float]:
    """Shares of unique words and, in English, of pronouns and conjunctions among the words."""
    total = pronouns = conjunctions = 0
    unique: list[float] = []
    for piece in _pieces(text):
        hashes = words_of([piece]).hashes
        total += len(hashes)
        if english:
            pronouns += int(np.isin(hashes, _en_hashes("pronouns")).sum())
            conjunctions += int(np.isin(hashes, _en_hashes("conjunctions")).sum())
        unique += [len(np.unique(part)) / len(part) for part in _stretches(hashes)]
    rates = {"pronoun_rate": pronouns, "conjunction_rate": conjunctions} if english else {}
    features = {name: count / max(total, 1) for name, count in rates.items()}
    return features | {"unique_word_rate": sum(unique) / max(len(unique), 1)}


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]


def _stretches(hashes: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.uint64]]:
    """Runs of 1,000 words; what is left over counts only where there is no whole run."""
    if 0 < len(hashes) < STRETCH:
        yield hashes
    for start in range(0, len(hashes) - STRETCH + 1, STRETCH):
        yield hashes[start : start + STRETCH]


def _compression(text: str) -> float:
    compressor = zlib.compressobj(6)
    taken = made = 0
    for piece in _pieces(text):
        raw = piece.encode("utf-8", "surrogatepass")
        taken += len(raw)
        made += len(compressor.compress(raw))
    return (made + len(compressor.flush())) / taken


def _covered(pattern: re.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))


@functools.cache
def _en_hashes(name: str) -> npt.NDArray[np.uint64]:
    return words_of([_EN_PRONOUNS if name == "pronouns" else _EN_CONJUNCTIONS]).hashes


@functools.cache
def _zh_pattern(name: str) -> re.Pattern[str]:
    phrases = (_ZH_PRONOUNS if name == "pronouns" else _ZH_CONJUNCTIONS).split()
    return re.compile("|".join(sorted(phrases, key=lambda phrase: (-len(phrase), phrase))))  # the longest first
