"""Small tasks with checkable answers, in English and Chinese, for teaching and testing small models.

Every item is drawn from a seed. Whether its content (the words or numbers that it is about, not their wording) belongs
to training or is held out is decided by a hash of that content, so that the two never share any: a model that answers
held-out items has learned to do the task.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from puyulm.errors import DataError

Language = Literal["en", "zh"]
Split = Literal["train", "held-out"]

HELD_OUT_SHARE = 0.1
PATIENCE = 200  # draws without a new item, before a task is called exhausted


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: dict[Language, tuple[str, ...]] = {
    "en": _split(
        "apple bird boat book bread bridge cake cat chair cloud coat corn cow cup day desk dog door duck farm fire "
        "fish flag floor flower fox garden gate gold grass hand hat hill horse house ice iron island king lake lamp "
        "leaf lion market milk moon mountain mouse night oil paper path pen piano queen rain ring river road room "
        "rose salt sand school sea sheep ship shoe silver sky snow song star stone storm street sugar sun table tea "
        "tiger time tower town train tree valley village wall water wind window wine winter wolf wood world"
    ),
    "zh": _split(
        "苹果 小鸟 小船 书本 面包 石桥 猫 椅子 白云 外衣 玉米 牛 杯子 书桌 狗 大门 鸭子 农田 火 鱼 红旗 花 狐狸 "
        "花园 黄金 青草 手 帽子 小山 马 房子 冰 铁 海岛 国王 湖水 灯 树叶 狮子 牛奶 月亮 高山 老鼠 黑夜 油 纸 小路 "
        "毛笔 钢琴 雨 戒指 江河 大路 玫瑰 盐 沙子 学校 大海 羊 轮船 鞋子 银子 天空 雪 歌 星星 石头 风暴 街道 糖 太阳 "
        "桌子 茶 老虎 时间 高塔 城市 火车 大树 山谷 村庄 墙 水 春风 窗户 酒 冬天 狼 木头 世界"
    ),
}
NAMES: dict[Language, tuple[str, ...]] = {
    "en": _split("Anna Ben Carl Dora Emma Fred Grace Henry Ivy Jack Kate Leo Mary Nick Olga Paul Rose Sam Tina Will"),
    "zh": _split("小明 小红 小刚 小丽 小华 小军 小芳 小强 小梅 小东 大伟 阿宝 阿珍 王芳 李雷 张三 李四 赵云 孙权 周瑜"),
}
THINGS: dict[Language, tuple[str, ...]] = {
    "en": _split("bag ball boat book box cat chair coat cup dog door fish flag flower hat horse lamp pen ring shoe"),
    "zh": _split("书包 小球 小船 书本 盒子 猫 椅子 外衣 杯子 狗 门 鱼 旗子 花 帽子 马 灯 笔 戒指 鞋子"),
}
COLOURS: dict[Language, tuple[str, ...]] = {
    "en": _split("red blue green white black yellow brown grey"),
    "zh": _split("红色 蓝色 绿色 白色 黑色 黄色 棕色 灰色"),
}
PLACES: dict[Language, tuple[str, ...]] = {
    "en": _split("garden kitchen school market park forest office church library station house town"),
    "zh": _split("花园 厨房 学校 市场 公园 树林 书房 寺庙 图书馆 车站 家里 城里"),
}
ORDINALS: dict[Language, tuple[str, ...]] = {
    "en": _split("first second third fourth fifth"),
    "zh": _split("第一 第二 第三 第四 第五"),
}


@dataclass(frozen=True)
class Item:
    """A question whose answer can be checked."""

    prompt: str
    answer: str
    kind: str
    language: Language


class _Draw(NamedTuple):
    """What a task is about (it decides the split), how to ask, and the answer."""

    content: tuple[Any, ...]
    templates: Sequence[str]
    values: dict[str, Any]
    answer: str


def _list(words: Sequence[Any], language: Language) -> str:
    return (", " if language == "en" else "、").join(map(str, words))


def _words(rng: random.Random, language: Language, low: int, high: int) -> list[str]:
    return rng.sample(WORDS[language], rng.randint(low, high))


def _repeat(rng: random.Random, language: Language) -> _Draw:
    words = _words(rng, language, 2, 5)
    templates = {
        "en": ("Repeat these words: {list}.", "Say this list again: {list}.", "Please copy the words {list}."),
        "zh": ("请重复这些词：{list}。", "把这些词再说一遍：{list}。", "请照抄：{list}。"),
    }
    text = _list(words, language)
    return _Draw(tuple(words), templates[language], {"list": text}, text)


def _place(rng: random.Random, language: Language) -> _Draw:
    """The first, second, ... or last word of a list."""
    words = _words(rng, language, 3, 5)
    index = rng.randrange(len(words) + 1)
    last = index == len(words)
    templates = {
        "en": ("What is the {which} word in the list {list}?", "Which word comes {which} in {list}?",
               "List: {list}. Tell me the {which} word."),
        "zh": ("{list}，{which}个词是什么？", "列表：{list}。说出{which}个词。", "在{list}这些词里，{which}个是什么？"),
    }  # fmt: skip
    which = {"en": "last", "zh": "最后一"}[language] if last else ORDINALS[language][index]
    values = {"list": _list(words, language), "which": which}
    return _Draw(tuple(words), templates[language], values, words[-1] if last else words[index])


def _reverse(rng: random.Random, language: Language) -> _Draw:
    words = _words(rng, language, 2, 4)
    templates = {
        "en": ("Reverse this list: {list}.", "Say these words backwards: {list}.", "What is {list} in reverse order?"),
        "zh": ("把这些词倒过来：{list}。", "请倒序说出：{list}。", "{list}，反过来是什么？"),
    }
    return _Draw(tuple(words), templates[language], {"list": _list(words, language)}, _list(words[::-1], language))


def _next(rng: random.Random, language: Language) -> _Draw:
    """The word after, or before, a given one."""
    words = _words(rng, language, 4, 6)
    after = rng.random() < 0.5
    index = rng.randrange(len(words) - 1)
    given, answer = (index, index + 1) if after else (index + 1, index)
    templates = {
        ("en", True): ("Which word comes after {word} in {list}?", "List: {list}. What follows {word}?"),
        ("en", False): ("Which word comes before {word} in {list}?", "List: {list}. What stands before {word}?"),
        ("zh", True): ("在{list}里，{word}的后面是什么？", "列表：{list}。{word}后面的词是什么？"),
        ("zh", False): ("在{list}里，{word}的前面是什么？", "列表：{list}。{word}前面的词是什么？"),
    }
    values = {"list": _list(words, language), "word": words[given]}
    return _Draw(tuple(words), templates[language, after], values, words[answer])


def _count(rng: random.Random, language: Language) -> _Draw:
    words = _words(rng, language, 2, 7)
    templates = {
        "en": ("How many words are in this list: {list}?", "Count the words: {list}."),
        "zh": ("这里有几个词：{list}？", "数一数有多少个词：{list}。"),
    }
    return _Draw(tuple(words), templates[language], {"list": _list(words, language)}, str(len(words)))


def _colour(rng: random.Random, language: Language) -> _Draw:
    """Looking up who has what in a small story."""
    names, things, colours = (rng.sample(pool[language], 2) for pool in (NAMES, THINGS, COLOURS))
    who = rng.randrange(2)
    templates = {
        "en": ("{a} has a {p} {x}. {b} has a {q} {y}. What colour is the {thing} of {name}?",
               "{a}'s {x} is {p}, and {b}'s {y} is {q}. Which colour is {name}'s {thing}?"),
        "zh": ("{a}有一个{p}的{x}，{b}有一个{q}的{y}。{name}的{thing}是什么颜色？",
               "{a}的{x}是{p}，{b}的{y}是{q}。{name}的{thing}是什么颜色？"),
    }  # fmt: skip
    values = {"a": names[0], "b": names[1], "x": things[0], "y": things[1], "p": colours[0], "q": colours[1],
              "name": names[who], "thing": things[who]}  # fmt: skip
    return _Draw((*names, *things, *colours), templates[language], values, colours[who])


def _where(rng: random.Random, language: Language) -> _Draw:
    """Looking up where somebody is."""
    names, places = rng.sample(NAMES[language], 3), rng.sample(PLACES[language], 3)
    who = rng.randrange(3)
    templates = {
        "en": ("{a} is in the {x}. {b} is in the {y}. {c} is in the {z}. Where is {name}?",
               "{a} went to the {x}, {b} to the {y} and {c} to the {z}. Where did {name} go?"),
        "zh": ("{a}在{x}，{b}在{y}，{c}在{z}。{name}在哪里？", "{a}去了{x}，{b}去了{y}，{c}去了{z}。{name}去了哪里？"),
    }  # fmt: skip
    values = dict(zip("abcxyz", (*names, *places), strict=True)) | {"name": names[who]}
    answer = f"the {places[who]}" if language == "en" else places[who]
    return _Draw((*names, *places), templates[language], values, answer)


def _copy(rng: random.Random, language: Language) -> _Draw:
    number = str(rng.randint(1000, 9999))
    templates = {
        "en": ("Repeat the number {n}.", "Say {n}.", "Copy this number: {n}."),
        "zh": ("请重复{n}。", "说出{n}。", "照抄这个数：{n}。"),
    }
    return _Draw((number,), templates[language], {"n": number}, number)


def _backwards(rng: random.Random, language: Language) -> _Draw:
    number = str(rng.randint(1000, 9999))
    templates = {
        "en": ("Reverse the digits of {n}.", "Write {n} backwards.", "Read {n} from right to left."),
        "zh": ("把{n}倒过来写。", "倒着写出{n}。", "从右往左读{n}。"),
    }
    return _Draw((number,), templates[language], {"n": number}, number[::-1])


def _digit(rng: random.Random, language: Language) -> _Draw:
    """The first, second, third or last digit of a number."""
    number, index = str(rng.randint(1000, 9999)), rng.randrange(4)
    which = {"en": "last", "zh": "最后一"}[language] if index == 3 else ORDINALS[language][index]
    templates = {
        "en": ("What is the {which} digit of {n}?", "Tell me the {which} digit of {n}."),
        "zh": ("{n}的{which}位数字是什么？", "请说出{n}的{which}位数字。"),
    }
    return _Draw((number,), templates[language], {"n": number, "which": which}, number[index])


def _larger(rng: random.Random, language: Language) -> _Draw:
    """The larger, or smaller, of two numbers."""
    a, b = rng.sample(range(10, 100), 2)
    larger = rng.random() < 0.5
    templates = {
        ("en", True): ("Which number is larger, {a} or {b}?", "Which is the bigger number: {a} or {b}?"),
        ("en", False): ("Which number is smaller, {a} or {b}?", "Which is the lesser number: {a} or {b}?"),
        ("zh", True): ("{a}和{b}哪个大？", "{a}与{b}，哪个数更大？"),
        ("zh", False): ("{a}和{b}哪个小？", "{a}与{b}，哪个数更小？"),
    }
    answer = max(a, b) if larger else min(a, b)
    return _Draw((min(a, b), max(a, b)), templates[language, larger], {"a": a, "b": b}, str(answer))


def _sort(rng: random.Random, language: Language) -> _Draw:
    numbers = rng.sample(range(1, 100), 3)
    templates = {
        "en": ("Sort these numbers: {list}.", "Put {list} in order, smallest first."),
        "zh": ("把这些数从小到大排列：{list}。", "请给{list}排序，从小到大。"),
    }
    return _Draw(tuple(sorted(numbers)), templates[language], {"list": _list(numbers, language)},
                 _list(sorted(numbers), language))  # fmt: skip


def _add(rng: random.Random, language: Language) -> _Draw:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    templates = {
        "en": ("What is {a} + {b}?", "Add {a} and {b}."),
        "zh": ("{a} + {b} 等于多少?", "{a}加{b}是多少？"),
    }
    return _Draw((min(a, b), max(a, b)), templates[language], {"a": a, "b": b}, str(a + b))


def _successor(rng: random.Random, language: Language) -> _Draw:
    """The number after, or before, a number."""
    a = rng.randint(101, 998)
    after = rng.random() < 0.5
    templates = {
        ("en", True): ("Which number comes after {a}?", "What is the next number after {a}?"),
        ("en", False): ("Which number comes before {a}?", "What is the number just before {a}?"),
        ("zh", True): ("{a}的后一个数是多少？", "{a}之后是几？"),
        ("zh", False): ("{a}的前一个数是多少？", "{a}之前是几？"),
    }
    return _Draw((a,), templates[language, after], {"a": a}, str(a + 1 if after else a - 1))


def _parity(rng: random.Random, language: Language) -> _Draw:
    a = rng.randint(1000, 9999)
    templates = {
        "en": ("Is {a} odd or even?", "Tell me whether {a} is an odd or an even number."),
        "zh": ("{a}是奇数还是偶数？", "请问{a}是单数还是双数？"),
    }
    words = {"en": ("even", "odd"), "zh": ("偶数", "奇数")}
    return _Draw((a,), templates[language], {"a": a}, words[language][a % 2])


KINDS: dict[str, Callable[[random.Random, Language], _Draw]] = {
    "repeat": _repeat,
    "place": _place,
    "reverse": _reverse,
    "next": _next,
    "count": _count,
    "colour": _colour,
    "where": _where,
    "copy": _copy,
    "backwards": _backwards,
    "digit": _digit,
    "larger": _larger,
    "sort": _sort,
    "add": _add,
    "successor": _successor,
    "parity": _parity,
}
"""Tasks by name."""


def make_items(kind: str, n: int, seed: int, split: Split, languages: Sequence[Language] = ("en", "zh")) -> list[Item]:
    """Draws `n` different items of one kind, the languages in turn.

    Args:
        split: Items of "train" and "held-out" never have the same content, whatever their seeds.

    Raises:
        DataError: The kind is unknown, or has fewer different items.
    """
    if kind not in KINDS:
        raise DataError(f"unknown task '{kind}'; known: {', '.join(KINDS)}")
    rng = random.Random(f"{kind} {split} {seed}")
    items: dict[str, Item] = {}
    failures = 0
    while len(items) < n:
        language = languages[len(items) % len(languages)]
        draw = KINDS[kind](rng, language)
        prompt = rng.choice(draw.templates).format(**draw.values)
        if prompt in items or is_held_out(draw.content) != (split == "held-out"):
            failures += 1
            if failures > PATIENCE * (1 + len(items)):
                raise DataError(f"the task '{kind}' has no {n} different items for {split}; ask for fewer")
            continue
        items[prompt] = Item(prompt, draw.answer, kind, language)
    return list(items.values())


def make_mixture(counts: dict[str, int], seed: int, split: Split) -> list[Item]:
    """Items of several kinds, shuffled.

    Args:
        counts: How many of each kind.
    """
    items = [item for kind, n in counts.items() for item in make_items(kind, n, seed, split)]
    random.Random(f"mixture {seed}").shuffle(items)
    return items


def is_held_out(content: tuple[Any, ...]) -> bool:
    """Whether items about this content are held out; for every kind alike, so that none sees what another keeps."""
    digest = hashlib.sha256(json.dumps([str(part) for part in content], ensure_ascii=False).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def write_items(items: Iterable[Item], path: Path) -> None:
    """Writes items as jsonl, for `puyu eval`."""
    _write_lines([asdict(item) for item in items], path)


def write_conversations(items: Sequence[Item], path: Path, turns: int = 1) -> None:
    """Writes items as jsonl conversations for fine-tuning.

    Args:
        turns: Conversations have 1 to `turns` questions and answers, in turn.
    """
    rows, start, size = [], 0, 1
    while start < len(items):
        messages = []
        for item in items[start : start + size]:
            messages += [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
        rows.append({"messages": messages})
        start, size = start + size, size % turns + 1
    _write_lines(rows, path)


def _write_lines(rows: Iterable[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)
