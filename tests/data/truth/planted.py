"""A small web with planted problems: real text of this machine, in pages, with what is wrong known for each.

The English text is the language reference behind `help()` and docstrings of the standard library; the Chinese text is
made from a grammar (see `chinese_text`), since nothing Chinese lies on every machine.
"""

from __future__ import annotations

import ast
import html
import importlib
import random
import re
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

ADS_EN = (
    "Huge weekend discount on {thing}! Order today and get {n}% off with free delivery. Call our hotline now, "
    "limited stock, best price guaranteed. Click the button to buy, members save even more. Satisfaction or money "
    "back! Visit our online shop for exclusive coupons and more bargains on {thing}."
)
ADS_ZH = (
    "我们的{thing}限时特惠，全场{n}折起，现在下单就有优惠，在本店购买的商品都是正品，免费包邮到家！欢迎来电咨询客服热线，加微信好友"
    "领取优惠券，名额有限，先到先得，赶快抢购吧！厂家直销，价格从优，点击购买，立享会员的专属折扣，不要错过了。"
)
THINGS = ("phones", "shoes", "garden tools", "sofas", "watches", "perfume", "laptops", "tyres", "tents", "lamps")
THINGS_ZH = ("手机", "皮鞋", "园艺工具", "沙发", "手表", "香水", "笔记本电脑", "轮胎", "帐篷", "台灯")
FOREIGN = {
    "fr": "Le petit village se trouve au bord de la rivière, entre les collines couvertes de vignes. Chaque matin, les "
    "habitants se retrouvent sur la place du marché pour acheter du pain frais et parler des nouvelles du jour. ",
    "de": "Das kleine Dorf liegt am Ufer des Flusses, zwischen den mit Reben bedeckten Hügeln. Jeden Morgen treffen "
    "sich die Einwohner auf dem Marktplatz, um frisches Brot zu kaufen und über die Neuigkeiten zu sprechen. ",
    "ru": "Маленькая деревня стоит на берегу реки между холмами, покрытыми виноградниками. Каждое утро жители "
    "встречаются на рыночной площади, чтобы купить свежий хлеб и поговорить о новостях дня. ",
    "es": "El pequeño pueblo se encuentra a la orilla del río, entre colinas cubiertas de viñedos. Cada mañana los "
    "vecinos se reúnen en la plaza del mercado para comprar pan fresco y hablar de las noticias del día. ",
}

# Who, when, where, does, what; then, with what result.
_CHINESE = (
    ("老师", "学生", "研究人员", "村民", "工程师", "医生", "作者", "孩子们", "渔民", "农民", "诗人",
     "工人", "导演", "记者",),
    ("清晨", "去年秋天", "在漫长的冬季里", "周末", "雨后", "二十年前", "节日的夜晚", "课后",
     "战争结束以后", "傍晚时分",),
    ("在河边", "在实验室里", "在古老的图书馆中", "沿着山路", "在村口的大树下", "在城市的另一端",
     "在博物馆门前", "在海港附近",),
    ("讨论", "记录", "观察", "整理", "描述", "比较", "研究", "回忆", "收集", "解释", "保护", "改进",),
    ("当地的风俗", "星空的变化", "旧时的手稿", "水稻的生长", "鸟类的迁徙", "一段被遗忘的历史",
     "新的教学方法", "机器的结构", "潮汐的规律", "山谷里的植物", "古代的建筑", "民间的故事",
     "语言的演变", "孩子的提问",),
    ("因此", "不过", "与此同时", "后来", "事实上", "正因为如此", "除此之外", "令人意外的是", "久而久之",),
    ("他们得到了与从前不同的结论", "这件事很快传遍了附近的村镇", "许多问题至今没有答案",
     "人们开始重新认识这片土地", "一本薄薄的笔记保存了下来", "这种做法被后来的人沿用",
     "大家的看法渐渐一致", "新的困难也随之出现",),
)  # fmt: skip


@dataclass
class Page:
    """One page of the small web.

    Attributes:
        url: Its address, and its name in the truth.
        text: What its article says.
        problem: "", "exact duplicate", "near duplicate", "lookalike", "advertisement", "garbled", "foreign",
            "contaminated" or "personal data".
        of: The page that it copies.
        date: Of its crawl.
        secrets: Personal data planted in it.
    """

    url: str
    text: str
    problem: str = ""
    of: str = ""
    date: str = "2024-01-01"
    secrets: list[str] = field(default_factory=list)


def english_texts(count: int) -> list[str]:
    """Real English texts of 800 to 6,000 characters that differ from one another."""
    topics = importlib.import_module("pydoc_data.topics").topics
    parts = [part for _, text in sorted(topics.items()) for part in _cut(text, 3000)]
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py")) + sorted(library.glob("*/*.py")):
        if "test" in path.parts[-1] or "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        named = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, named)]
        parts += [doc for doc in docs if 800 <= len(doc) <= 6000]
    prose = [p for p in parts if _is_prose(p)]
    unique = list({re.sub(r"\W+", "", p)[:200]: p for p in prose}.values())
    random.Random(0).shuffle(unique)
    if len(unique) < count:
        raise AssertionError(f"only {len(unique)} texts")
    return unique[:count]


def chinese_text(generator: random.Random, sentences: int = 24) -> str:
    """A made Chinese text: grammatical sentences about everyday subjects, different each time."""
    lines = []
    for number in range(sentences):
        who, when, where, verb, what, link, result = (generator.choice(words) for words in _CHINESE)
        lines.append(f"{when}，{who}{where}{verb}{what}。{link}，{result}。")
        if number % 4 == 3:
            lines.append("\n\n")
    return "".join(lines).strip()


def edited(text: str, share: float, generator: random.Random) -> str:
    """The text with a share of its words (Chinese: characters) replaced, here and there."""
    chinese = "的" in text
    units = list(text) if chinese else re.split(r"(\s+)", text)
    spare = "山水木火土金日月天地" if chinese else ("however", "river", "seven", "often", "bright", "method")
    for i, unit in enumerate(units):
        if generator.random() < share and (unit.isalpha() if not chinese else "\u4e00" <= unit <= "\u9fff"):
            units[i] = generator.choice(spare)
    return "".join(units)


def jaccard(a: str, b: str, n: int = 5) -> float:
    """True similarity of two texts: shared n-grams of words (Chinese: characters) over all of them."""
    grams = []
    for text in (a, b):
        words = re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+", text.lower())
        grams.append({tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))})
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def garbled(text: str, generator: random.Random, kind: int) -> str:
    """Text as bad crawls have it: read in a wrong encoding, broken into pieces, or drowned in symbols."""
    if kind % 3 == 0:
        return text.encode("utf-8").decode("latin-1") if "的" in text else "".join(c + "\ufffd" for c in text[:1500])
    if kind % 3 == 1:
        return "\n".join(text[i : i + 2] for i in range(0, 1200, 2))
    return "".join(generator.choice("#@%^&*~|<>{}") if generator.random() < 0.4 else c for c in text)


def as_page(page: Page) -> bytes:
    """The page in HTML, with the navigation and the footer that pages have around their article."""
    paragraphs = "".join(f"<p>{html.escape(p)}</p>\n" for p in page.text.split("\n\n") if p.strip())
    title = html.escape(page.text.strip().split("\n")[0][:60])
    return (
        f"<!DOCTYPE html><html><head><meta charset='utf-8'><title>{title}</title></head><body>"
        "<nav><ul><li><a href='/'>Home</a></li><li><a href='/about'>About us</a></li><li><a href='/login'>Log in</a>"
        f"</li></ul></nav><main><article><h1>{title}</h1>\n{paragraphs}</article></main>"
        "<footer><p>Copyright. All rights reserved.</p></footer></body></html>"
    ).encode("utf-8", "surrogatepass")


def _cut(text: str, size: int) -> list[str]:
    paragraphs, parts = re.split(r"\n\s*\n", text), [""]
    for paragraph in paragraphs:
        if len(parts[-1]) > size:
            parts.append("")
        parts[-1] += paragraph + "\n\n"
    return [part.strip() for part in parts if len(part) >= 1000]


def _is_prose(text: str) -> bool:
    letters = sum(c.isalpha() or c.isspace() for c in text)
    return letters / len(text) > 0.82 and not re.search(r">>>|::=|\*{5}|={5}", text) and len(text) < 6000
