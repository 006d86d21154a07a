"""Made prose: plausible, varied, without sense as a whole, and the same for the same seed.

It stands in for texts that may not be shipped. It holds no digits and no dashes, so that a needle with a number or a
two-part name can be nowhere else in it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from puyulm.eval.longtext.words import ADJECTIVES, NOUNS, word_tuple


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.strip().splitlines())


_ENGLISH = _lines("""
The {a} {n} beside the {m} had been there longer than anyone in the village could remember.
Nobody asked why the {n} was {a}, because the answer seemed to lie in the {m} itself.
When the rain stopped, a {a} {n} came down from the {m} and looked around.
It is hard to say whether a {n} matters more than a {m}, but most people act as if it did.
She wrote about the {n} in the evening, and about the {m} on the following day.
A {a} {n} is worth more than a {b} one, as long as somebody takes care of it.
They carried the {n} across the {m}, rested for a while, and went on before noon.
What we call a {a} {n} is often only a {m} that has been given enough time.
The first thing he noticed was the {n}; the second, much later, was the {b} {m}.
Work of this kind begins with a {n} and ends, if all goes well, with a {a} {m}.
In the town they still tell the story of the {a} {n} that was traded for a {m}.
There was no {n} to be seen, only the {b} {m} and the light on the water.
If you want to understand the {n}, you should spend a winter with the {m}.
Her brother repaired the {n} with parts of an old {m}, and it held for years.
Every {n} has a {a} side that shows only when the {m} is gone.
We talked about the {n} until late, and about how {a} the {m} had become.
Some said that the {n} was {a}; others, that it had always been {b}.
The road to the {m} passes a {a} {n}, where travellers used to wait for the morning.
He kept a {n} under the stairs and never explained what the {m} was for.
Good ideas about a {n} tend to look {a} at first, and {b} only in hindsight.
Between the {n} and the {m} there was just enough room for a {a} chair.
A letter arrived about the {n}, written in a {a} hand and folded around a {m}.
The children painted the {n} in {a} colours and left the {m} as it was.
Perhaps the {n} would have lasted longer if the {m} had been less {b}.
On market days the {n} was moved, and the {m} stood alone in the {a} square.
To build a {n} you need patience, a {a} friend, and some use for a {m}.
Whoever owned the {n} also looked after the {m}, even in the {b} months.
It took the whole summer to find a {n} as {a} as the one by the {m}.
The visitors admired the {n}, drank their tea, and forgot the {b} {m}.
Later generations would remember the {n} as {a}, which it never was.
""")

_CHINESE = _lines("""
村口的{n}比{m}还要老，谁也说不清它是什么时候来的。
雨停以后，{p}从{m}旁边走过，手里拿着一件{a}的{n}。
人们常说，{a}的{n}要比{b}的{m}更值得珍惜。
{p}在信里写到了{n}，却没有提起那{a}的{m}。
如果想了解{n}，最好先在{m}旁边住上一个冬天。
那一年夏天，镇上到处都在谈论{a}的{n}和它的主人。
没有人问{n}为什么这样{a}，因为答案就藏在{m}里。
{p}把{n}搬过小桥，歇了一会儿，又朝{m}的方向走去。
许多事情都是从一件{n}开始的，最后却变成了{a}的{m}。
傍晚的光照在{n}上，{m}显得格外{b}。
孩子们给{n}涂上了{a}的颜色，{m}还是原来的样子。
{p}修好了{n}，用的是旧{m}上拆下来的零件。
据说{n}原来放在{m}后面，后来才被{p}发现。
做一件{a}的{n}需要耐心，也需要一位懂得{m}的朋友。
集市那天，{n}被挪到一边，只剩下{b}的{m}留在广场上。
{p}喜欢{n}胜过{m}，尽管后者看起来更{a}。
通往{m}的路上有一处{a}的{n}，过去旅人常在那里等天亮。
他们谈到很晚，先是{n}，然后是{m}，最后什么也没有决定。
每一件{n}都有{a}的一面，只是要等{m}不在的时候才看得见。
后来的人都记得{n}是{b}的，其实它从来不是这样。
""")

_ZH_NOUNS = word_tuple("""
茶壶 石桥 灯笼 木船 书桌 古井 风筝 竹篮 老钟 柳树 雨伞 画卷 铜镜 陶罐 算盘 屏风 棉衣 果园 磨坊 渡口 钟楼 麦田 药箱 琴弦
棋盘 砚台 信箱 花瓶 马车 油灯 院墙 水车 渔网 谷仓 木梯 城门 茶馆 戏台 铁锅 草帽 藤椅 窗台 山路 河堤 炉火 织机 书箱 印章
""")
_ZH_ADJECTIVES = word_tuple("""
古老 安静 明亮 温暖 朴素 沉重 轻巧 陌生 熟悉 破旧 精致 结实 寒冷 柔软 干净 潮湿 宽阔 狭窄 鲜艳 暗淡 光滑 粗糙 珍贵 普通
""")
_ZH_PEOPLE = word_tuple("老船夫 木匠 教书先生 小姑娘 裁缝 郎中 掌柜 邮差 园丁 石匠 船长 画师 牧羊人 厨师 药师 守夜人")


def sentences(language: str, seed: int = 0) -> Iterator[str]:
    """Endless sentences.

    Args:
        language: "en" or "zh".
    """
    draw = random.Random(f"prose/{language}/{seed}")
    nouns, adjectives = (NOUNS, ADJECTIVES) if language == "en" else (_ZH_NOUNS, _ZH_ADJECTIVES)
    nouns = tuple(one for one in nouns if one[0] not in "aeiou")  # "a" goes before them
    adjectives = tuple(one for one in adjectives if one[0] not in "aeiou")
    patterns = _ENGLISH if language == "en" else _CHINESE
    while True:
        first, second = draw.sample(nouns, 2)
        this, other = draw.sample(adjectives, 2)
        person = draw.choice(_ZH_PEOPLE) if language == "zh" else ""
        yield draw.choice(patterns).format(n=first, m=second, a=this, b=other, p=person)
