"""Needle in a haystack: facts in a long text, found at any depth and length; English and Chinese.

Options: `lengths` (tokens, answer included), `depths` (percent), `count` (haystacks of each), `needles` (facts of the
"multi" subsets), `reserve` and `answer` (tokens of a length that are left to the chat format and the answer).

The haystack is the user's: texts in DATA_DIR/needle named en*.txt, en*.jsonl, zh*.txt or zh*.jsonl (of jsonl the field
"text", as in Skywork/ChineseDomainModelingEval's zh_finance.jsonl); without them made prose, and the samples say so.
The internlm2 report took lengths from 16K to 200K in steps of 16K, 20 depths and 10 repeats, in Chinese.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.longtext import haystack
from puyulm.eval.longtext.fill import Count, Pieces, counter, fill, insert, number_option, number_options
from puyulm.eval.longtext.metrics import edit_similarity
from puyulm.eval.model import Output
from puyulm.eval.source import Made, SourceContext

LENGTHS = (4096, 8192, 16384, 32768)
DEPTHS = tuple(range(0, 101, 10))
NEW_TOKENS = 512
RESERVE = 128
NEEDLES = 4


@dataclass(frozen=True)
class Text:
    """What is hidden and asked in a language.

    Attributes:
        needle, question, answer, keywords: Of a single needle; the answer repeats the needle.
        fact: A needle of several, of one thing.
        asked: Question for several things.
        listed: Its answer.
        things: What facts are of.
        prompt: With document and question.
        prefix: How an answer in plain text begins.
        joints: Between sentences, and between listed things.
    """

    needle: str
    question: str
    answer: str
    keywords: tuple[str, ...]
    fact: str
    asked: str
    listed: str
    things: tuple[str, ...]
    prompt: str
    prefix: str
    joints: tuple[str, str]


TEXTS = {
    "en": Text(
        needle="The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.",
        question="What is the best thing to do in San Francisco? Answer in the form: The best thing to do in San "
        "Francisco is ________.",
        answer="The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.",
        keywords=("sandwich", "Dolores Park"),
        fact="{thing} is one of the secret ingredients of Grandmother Lin's dumplings.",
        asked="What are the secret ingredients of Grandmother Lin's dumplings? Answer in the form: The secret "
        "ingredients of Grandmother Lin's dumplings are ________.",
        listed="The secret ingredients of Grandmother Lin's dumplings are {things}.",
        things=("Water chestnut", "Dried shrimp", "Fermented bean curd", "Pickled radish", "Toasted sesame",
                "Orange zest", "Smoked tofu", "Lotus root", "Black garlic", "Osmanthus honey"),
        prompt="Read the document, and answer the question behind it.\n\n<document>\n{document}\n</document>\n\n"
        "First find the part of the document that the question is about; then give the answer only.\n"
        "Question: {question}",
        prefix="\nAnswer:",
        joints=(" ", ", "),
    ),
    "zh": Text(
        needle="小明最喜欢的实习的地点就是上海人工智能实验室。",
        question="小明最喜欢的实习地点是哪里？请按照“小明最喜欢的实习地点就是________。”的格式回答。",
        answer="小明最喜欢的实习地点就是上海人工智能实验室。",
        keywords=("上海人工智能实验室",),
        fact="林奶奶饺子馅的秘密配料之一是{thing}。",
        asked="林奶奶饺子馅的秘密配料有哪些？请按照“林奶奶饺子馅的秘密配料有________。”的格式回答。",
        listed="林奶奶饺子馅的秘密配料有{things}。",
        things=("马蹄", "虾皮", "腐乳", "腌萝卜", "熟芝麻", "橙皮", "熏豆干", "莲藕", "黑蒜", "桂花蜜"),
        prompt="请阅读下面的文档，并回答文档后面的问题。\n\n<文档>\n{document}\n</文档>\n\n"
        "请先想一想文档中与问题最相关的部分，再只给出答案。\n问题：{question}",
        prefix="\n答案：",
        joints=("", "、"),
    ),
}  # fmt: skip


def make(subset: str, context: SourceContext) -> Iterator[dict[str, Any]]:
    """A question for each length, depth and repeat.

    Raises:
        DataError: An option is wrong, a file is damaged, or a length is too short.
    """
    kind, _, language = subset.partition("_")
    several = number_option(context, "needle", "needles", NEEDLES, least=2) if kind == "multi" else 1
    text, count = TEXTS[language], counter(context, "needle")
    if several > len(text.things):
        raise DataError(f"needle: needles must be at most {len(text.things)}, not {several}")
    depths = _depths(context)
    lengths = number_options(context, "needle", "lengths", LENGTHS, least=256)
    reserve = number_option(context, "needle", "reserve", RESERVE, least=0)
    reserve += number_option(context, "needle", "answer", NEW_TOKENS)
    folder = None if context.data_dir is None else context.data_dir / "needle"
    patterns = [f"{language}*.{kind}" for kind in ("txt", "json", "jsonl")]
    hay = haystack.load(folder, patterns, language)
    for repeat in range(number_option(context, "needle", "count", 1)):
        pieces = Pieces(hay.sentences(context.seed + repeat), count, text.joints[0])
        for length in lengths:
            for depth in depths:
                row = _row(text, several, repeat, depth, pieces, count, length - reserve, f"needle at {length} tokens")
                where = {"length": length, "depth": depth, "haystack": hay.name}
                yield {**row, "id": f"{length}/{depth}/{repeat}", "extra": {**where, **row["extra"]}}


def _depths(context: SourceContext) -> list[float]:
    value = context.options.get("depths", DEPTHS)
    depths = [value] if isinstance(value, int | float) else list(value)
    if not depths or len(set(depths)) < len(depths) or any(not 0 <= one <= 100 for one in depths):
        raise DataError(f"needle: depths must be different percents from 0 to 100, not {depths}")
    return [int(one) if one == int(one) else float(one) for one in depths]


def _row(
    text: Text, several: int, repeat: int, depth: float, pieces: Pieces, count: Count, room: int, what: str
) -> dict[str, Any]:
    """One question; several needles lie at equal distances from the depth to the end."""
    depths = [depth + (100 - depth) * place / several for place in range(several)]
    if several == 1:
        needles, question, answer, keywords = [text.needle], text.question, text.answer, text.keywords
    else:
        things = [text.things[(repeat + place) % len(text.things)] for place in range(several)]
        needles, keywords = [text.fact.format(thing=thing) for thing in things], tuple(things)
        question, answer = text.asked, text.listed.format(things=text.joints[1].join(things))

    def build(number: int) -> str:
        document = text.joints[0].join(insert(pieces.first(number), needles, depths))
        return text.prompt.format(document=document, question=question)

    def whole(prompt: str) -> int:
        return count(prompt + text.prefix)

    filled = fill(build, whole, room, pieces.fitting(room - whole(build(0))), pieces.mean(), what)
    return {
        "text": filled.text, "answer": answer,
        "extra": {"tokens": filled.tokens, "keywords": list(keywords), "prefix": text.prefix},
    }  # fmt: skip


def read(record: Record, subset: str, number: int) -> Question:
    """A made question."""
    return Question(f"{subset}/{record['id']}", record["text"], record["answer"], subset, extra=record["extra"])


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """ "similarity": one minus the edit distance over the longer length, without white space. "found": the share of
    what was hidden that the output names."""
    text = outputs[-1].text.strip()
    plain = "".join(text.lower().split())
    named = [one for one in question.extra["keywords"] if "".join(one.lower().split()) in plain]
    found = len(named) / len(question.extra["keywords"])
    return Verdict({"similarity": edit_similarity(text, question.target), "found": found}, ", ".join(named) or None)


CHAT = Generation(
    prompt=lambda question: question.text,
    solution=lambda question: question.target,
    verdict=verdict,
    max_new_tokens=NEW_TOKENS,
)

BENCHMARK = Benchmark(
    name="needle",
    title="Needle in a haystack",
    dimension="long context",
    source=Made(make, data="your own texts, or none"),
    read=read,
    subsets={"single_en": "English", "single_zh": "Chinese", "multi_en": "English", "multi_zh": "Chinese"},
    modes={
        "chat": CHAT,
        "plain": replace(CHAT, chat=False, prefix=lambda question: question.extra["prefix"], stop=("\n",),
                         max_new_tokens=128),
    },
    metrics=("similarity", "found"),
    average="subsets",
    keep=("length", "depth", "tokens", "haystack"),
    follows="OpenCompass's CDME: edit distance without white space; lengths in the model's tokens instead of "
    "GPT-4's",
)  # fmt: skip
