"""Texts for the tests: made ones, real ones, and pieces to draw random ones from."""

from __future__ import annotations

import ast
import pydoc_data.topics
from itertools import product
from pathlib import Path

ENGLISH = [pydoc_data.topics.topics[name][:6000] for name in ("with", "lambda", "exceptions", "strings", "naming")]
CODE = [Path(ast.__file__).read_text(encoding="utf-8")[:8000]]
CLASSICAL = """先帝创业未半而中道崩殂，今天下三分，益州疲弊，此诚危急存亡之秋也。
然侍卫之臣不懈于内，忠志之士忘身于外者，盖追先帝之殊遇，欲报之于陛下也。
诚宜开张圣听，以光先帝遗德，恢弘志士之气，不宜妄自菲薄，引喻失义，以塞忠谏之路也。

宫中府中，俱为一体；陟罚臧否，不宜异同。若有作奸犯科及为忠善者，宜付有司论其刑赏，以昭陛下平明之理；不宜偏私，使内外异法也。
侍中、侍郎郭攸之、费祎、董允等，此皆良实，志虑忠纯，是以先帝简拔以遗陛下。愚以为宫中之事，事无大小，悉以咨之，然后施行，必能裨补阙漏，有所广益。"""
MODERN = """图书馆在老城的北边，从车站走过去大约要二十分钟。我第一次去的时候下着雨，门口的台阶上坐着一位看报纸的老人。
他说，这座楼是一九三五年建成的，原来是一所中学。“你要找的书在三楼，”他又说，“不过电梯坏了，要走楼梯。”

三楼很安静，只有翻书的声音。窗外能看见一条河，河上有两座桥，一座是石头的，另一座是铁的……我在那里坐了整整一个下午。
后来我常常去那里看书。每到春天，河边的柳树就绿了，孩子们在桥上放风筝。管理员认识我以后，会把新到的杂志留给我。"""
MIXED = """用 Python 写一个 HTTP 服务器并不难：import http.server 之后，只要 3 行代码。
The server listens on port 8000. 在浏览器里打开 http://localhost:8000 就能看到结果。

性能如何？It depends on what you do with it..."""
EDGES = ["", "a", "。", "\n", "\n\n\n", " ", "x\n", "\nx", "汉", "#", "...", "no newline at all", "Ünï çödé Ðñ\u0301",
         "İstanbul İŞLER\nİ", "한국어 문장입니다. 좋아요!", "ひらがな、カタカナ。", "a\0b\ufffd\ue000",
         "🎉🎉🎉🎉 yay 👩\u200d💻", "- one\n- two\n• three\n* four\n-five", "wait...\nwell…\nok....",
         "----\n****\n====\n====", "中 文 分 开\n了",
         "A\nb\nc\nd", "x = {1}\n\nx = {1}\n\n\nx = {1}"]  # fmt: skip
REAL = [*ENGLISH, *CODE, CLASSICAL, MODERN, MIXED]
PIECES = ["the", "of", "cat", "Dog", "BIG", "a", "I", "don't", "3", "42", "é", "的", "了", "书", "人", "か", "한",
          " ", " ", "  ", "\t", "\n", "\n", "\n\n", ".", "...", "…", "!", "?", "。", "！", "，", ",", "\"", "”", "（",
          "）", "(", ")", "#", "{", "}", "-", "- ", "* ", "•", "=", "====", "_", "http://x.y/z",
          "\0", "\ufffd", "\ue000", "🎉", "\u0301",
          "the cat of the cat of", "今天天气很好。", "一样的句子，"]  # fmt: skip


def unique_words(count: int, length: int = 5) -> list[str]:
    """Words of five letters, all different, with no stop word among them."""
    letters = "bcdfgklmnprstvz"
    found = ["".join(word) for _, word in zip(range(count), product(letters, repeat=length), strict=False)]
    assert len(found) == count
    return found


def unique_characters(count: int) -> str:
    """Chinese characters, all different, with no function word among them."""
    return "".join(chr(0x5200 + i) for i in range(count))


def english(sentences: int, start: int = 0) -> str:
    """So many sentences of ten words, a line each; no two lines are equal."""
    words = unique_words(7 * (start + sentences))
    lines = []
    for i in range(start, start + sentences):
        own = words[7 * i : 7 * i + 7]
        lines.append(f"The {own[0]} of {own[1]} {own[2]} {own[3]} {own[4]} to {own[5]} {own[6]}.")
    return "\n".join(lines)


def chinese(sentences: int) -> str:
    """So many sentences of thirteen characters, a line each; no two lines are equal."""
    own = unique_characters(10 * sentences)
    return "\n".join(
        f"{own[i : i + 4]}的{own[i + 4 : i + 7]}，在{own[i + 7 : i + 10]}了。" for i in range(0, 10 * sentences, 10)
    )
