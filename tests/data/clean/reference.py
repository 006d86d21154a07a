"""The features of one text in plain Python, written for being right and not for being fast."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

STOPS, WIDE_STOPS, DOTS = ".!?", "。！？", "…"
CLOSERS = "\"'”’」』()[]<>（）【】"
BULLETS = "•‣▪●■□"


def is_han(character: str) -> bool:
    return unicodedata.name(character, "").startswith("CJK UNIFIED") or character in "々〇"


def is_syllable(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("HIRAGANA LETTER", "KATAKANA LETTER", "HANGUL SYLLABLE"))


def is_abnormal(character: str) -> bool:
    code = ord(character)
    control = unicodedata.category(character) == "Cc" and character not in "\t\n\f"
    return control or character in "\ufffd\ufffe\uffff" or unicodedata.category(character) in ("Co", "Cs") or (
        0xFDD0 <= code <= 0xFDEF)  # fmt: skip


def is_space(character: str) -> bool:
    return character.isspace() and not is_abnormal(character)


def is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM" or is_han(character)


def words_in(text: str) -> list[str]:
    words: list[str] = []
    open_word = False
    for character in text.replace("İ", "I").lower():  # so that lower case keeps the length
        if is_han(character) or is_syllable(character):
            words.append(character)
            open_word = False
        elif character.isalnum() or (ord(character) > 0x2FF and unicodedata.category(character)[0] == "M"):
            words[-1:] = [words[-1] + character] if open_word else [*words[-1:], character]
            open_word = True
        else:
            open_word = False
    return words


def strip(line: str) -> str:
    while line and is_space(line[0]):
        line = line[1:]
    while line and is_space(line[-1]):
        line = line[:-1]
    return line


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def ngram_places(words: list[str], n: int) -> dict[tuple[str, ...], list[int]]:
    places: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(words) - n + 1):
        places.setdefault(tuple(words[i : i + n]), []).append(i)
    return {gram: found for gram, found in places.items() if len(found) > 1}


def covered_share(words: list[str], starts: list[int], n: int) -> float:
    covered = {start + step for start in starts for step in range(n)}
    return ratio(sum(len(words[i]) for i in covered), sum(map(len, words)))


def top_ngram(words: list[str], n: int) -> float:
    places = ngram_places(words, n)
    most = max(map(len, places.values()), default=0)
    return max((covered_share(words, found, n) for found in places.values() if len(found) == most), default=0.0)


def duplicate_ngrams(words: list[str], n: int, first: bool = True) -> float:
    places = ngram_places(words, n)
    return covered_share(words, [i for found in places.values() for i in found[0 if first else 1 :]], n)


def seen_before(items: list[str]) -> list[bool]:
    return [item in items[:i] for i, item in enumerate(items)]


def line_ends_sentence(line: str) -> bool:
    if line[-1] in STOPS + WIDE_STOPS + DOTS:
        return True
    return line[-1] in CLOSERS and len(line) > 1 and line[-2] in STOPS + WIDE_STOPS + DOTS


def sentences(text: str, lines: list[str]) -> int:
    count = sum(not line_ends_sentence(line) for line in lines)
    ends = STOPS + WIDE_STOPS + DOTS
    for character, after in zip(text, text[1:] + "\n", strict=False):
        if character in ends and after not in ends:
            follows = is_space(after) or after in CLOSERS or is_han(after) or is_syllable(after)
            count += follows or character in WIDE_STOPS
    return count


def broken_lines(text: str, length: int) -> float:
    raw = [strip(line) for line in text.split("\n")]
    broken = 0
    for line, after in zip(raw, [*raw[1:], ""], strict=True):
        if line and after and len(line) <= length and is_letter(line[-1]):
            broken += is_letter(after[0]) and unicodedata.category(after[0]) not in ("Lu", "Lt")
    return ratio(broken, sum(map(bool, raw)))


def repeated_marks(text: str) -> int:
    found = 0
    for match in re.finditer(r"(.)\1{3,}", text):
        mark = match[1]
        found += len(match[0]) if unicodedata.category(mark)[0] in "PS" and not is_abnormal(mark) else 0
    return found


def spaced_ideographs(text: str) -> float:
    pairs = [(a, b, c) for a, b, c in zip(text, text[1:], text[2:] + " ", strict=False)]
    near = sum(is_han(a) and is_han(b) for a, b, _ in pairs)
    apart = sum(is_han(a) and is_space(b) and b != "\n" and is_han(c) for a, b, c in pairs)
    return ratio(apart, near + apart)


def measure(text: str) -> dict[str, float]:
    """All features of a text, by name."""
    words = words_in(text)
    lines = [line for raw in text.split("\n") if (line := strip(raw))]
    paragraphs: list[list[str]] = [[]]
    for raw in text.split("\n"):
        if line := strip(raw):
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    joined = ["\n".join(paragraph) for paragraph in paragraphs]
    spaces = sum(map(is_space, text))
    solid = len(text) - spaces
    marks = sum(unicodedata.category(a)[0] in "PS" and not is_abnormal(a) and not is_han(a) for a in text)
    cases = Counter("upper" if unicodedata.category(a) in ("Lu", "Lt") else unicodedata.category(a) for a in text)
    tokens = "".join(" " if is_space(a) else a for a in text).split(" ")
    tokens = [token for token in tokens if token]
    total = sum(map(len, lines))
    seen = seen_before(lines)
    seen_paragraphs = seen_before(joined)
    return {
        "characters": len(text),
        "solid_characters": solid,
        "utf8_bytes": len(text.encode("utf-8", "surrogatepass")),
        "cjk_share": ratio(sum(is_han(a) or is_syllable(a) for a in text), solid),
        "letter_share": ratio(sum(is_letter(a) for a in text), solid),
        "punctuation_share": ratio(marks, solid),
        "abnormal_share": ratio(sum(map(is_abnormal, text)), len(text)),
        "uppercase_share": ratio(cases["upper"], cases["upper"] + cases["Ll"]),
        "repeated_mark_share": ratio(repeated_marks(text), solid),
        "words": len(words),
        "mean_word_length": ratio(sum(map(len, words)), len(words)),
        "single_letter_words": ratio(sum(len(word) == 1 for word in words), len(words)),
        "alphabetic_words": ratio(sum(any(map(is_letter, token)) for token in tokens), len(tokens)),
        "hashes_per_word": ratio(text.count("#"), len(words)),
        "ellipses_per_word": ratio(len(re.findall(r"\.{3,}", text)) + len(re.findall("…+", text)), len(words)),
        "lines": len(lines),
        "mean_line_length": ratio(total, len(lines)),
        "longest_line": max(map(len, lines), default=0),
        "bullet_lines": ratio(sum(line[0] in BULLETS or bool(re.match(r"[-*–—](\s|$)", line)) for line in lines),
                              len(lines)),
        "ellipsis_lines": ratio(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "terminal_lines": ratio(sum(map(line_ends_sentence, lines)), len(lines)),
        "line_breaks_per_word": ratio(max(len(lines) - 1, 0), len(words)),
        "sentences": sentences(text, lines),
        "duplicate_lines": ratio(sum(seen), len(lines)),
        "duplicate_line_characters": ratio(sum(len(a) for a, b in zip(lines, seen, strict=True) if b), total),
        "duplicate_paragraphs": ratio(sum(seen_paragraphs), len(joined)),
        "duplicate_paragraph_characters": ratio(
            sum(sum(map(len, a)) for a, b in zip(paragraphs, seen_paragraphs, strict=True) if b), total),
        "spaced_ideographs": spaced_ideographs(text),
    }  # fmt: skip
