"""GAOKAO-Bench: objective questions of China's college entrance exam, 2010 to 2022 (Zhang et al., 2023).

Data: Objective_Questions of OpenLMLab/GAOKAO-Bench. A question may have several parts; each is worth the points that it
had in the exam, and the score is the share of all points. Of physics, where several choices may be right, some of the
right ones and no wrong one are worth half.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Sample, Verdict
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

Kind = Literal["one", "several", "parts", "five of seven"]


@dataclass(frozen=True)
class Paper:
    """A file of questions: its subject, in English and Chinese, what is asked, and how it is answered."""

    subject: str
    title: str
    kind: Kind


PAPERS: Mapping[str, Paper] = {
    "2010-2022_Math_I_MCQs": Paper("mathematics", "数学选择题", "one"),
    "2010-2022_Math_II_MCQs": Paper("mathematics", "数学选择题", "one"),
    "2010-2022_History_MCQs": Paper("history", "历史选择题", "one"),
    "2010-2022_Biology_MCQs": Paper("biology", "生物选择题", "one"),
    "2010-2022_Political_Science_MCQs": Paper("politics", "政治选择题", "one"),
    "2010-2022_Chemistry_MCQs": Paper("chemistry", "化学选择题", "one"),
    "2010-2013_English_MCQs": Paper("English", "英语选择题", "one"),
    "2010-2022_Physics_MCQs": Paper("physics", "物理选择题", "several"),
    "2010-2022_Geography_MCQs": Paper("geography", "地理选择题", "parts"),
    "2010-2022_Chinese_Lang_and_Usage_MCQs": Paper("Chinese", "语文选择题", "parts"),
    "2010-2022_Chinese_Modern_Lit": Paper("Chinese", "语文阅读理解题", "parts"),
    "2010-2022_English_Fill_in_Blanks": Paper("English", "英语完形填空题", "parts"),
    "2010-2022_English_Reading_Comp": Paper("English", "英语阅读理解题", "parts"),
    "2012-2022_English_Cloze_Test": Paper("English", "英语七选五题", "five of seven"),
}
_FORMS: Mapping[Kind, str] = {
    "one": "从 A、B、C、D 中选出正确的答案，写在【答案】和<eoa>之间，例如：【答案】 A <eoa>",
    "several": "从 A、B、C、D 中选出所有符合题意的答案，写在【答案】和<eoa>之间，例如：【答案】 AB <eoa>",
    "parts": (
        "每一小题都从 A、B、C、D 中选出正确的答案，分别写在【答案】和<eoa>之间，例如：\n"
        "（1）【答案】 A <eoa>\n（2）【答案】 B <eoa>"
    ),
    "five of seven": "把五个空的选项字母依次写在【答案】和<eoa>之间，例如：【答案】 A B C D E <eoa>",
}


def read(record: Record, subset: str, number: int) -> Question:
    answers = list(record["answer"])
    if not answers or not all(re.fullmatch("[A-G]+", one) for one in answers):
        raise ValueError(f"the answer {answers} is no list of letters")
    points = float(record["score"]) * len(answers)
    return Question(f"{subset}/{number}", record["question"].strip(), answers, subset, (), {"points": points})


def extract(text: str, kind: Kind, parts: int) -> list[str]:
    """The official rules.

    One answer: the last letter. Several: the letters after the first 【答案】, or in the last ten characters. Parts:
    the letter after each 【答案】 if there are as many as parts, else the first capital letters. Five of seven: the
    first five.
    """
    if kind == "one":
        return re.findall("[A-D]", text)[-1:]
    if kind == "several":
        text = "".join(text.split())
        place = text.find("【答案】")
        found = "".join(re.findall("[A-D]", text[place:] if place >= 0 else text[-10:]))
        return [found] if found else []
    if kind == "parts":
        found_parts = re.findall(r"【答案】\s*[:：]*\s*([A-Z])", text)
        return found_parts if len(found_parts) == parts else re.findall("[A-Z]", text)[:parts]
    return re.findall("[A-G]", text)[:5]


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The share of a question's points. Where not as many answers as parts are found, all are wrong."""
    kind = PAPERS[question.subset].kind
    found = extract(outputs[-1].text, kind, len(question.target))
    share = 0.0
    if len(found) == len(question.target):
        share = sum(map(_worth, found, question.target)) / len(found)
    return Verdict({"score": share}, " ".join(found) or None)


def _worth(answer: str, target: str) -> float:
    if answer == target:
        return 1.0
    return 0.5 if set(answer) <= set(target) else 0.0


def summarise(samples: Sequence[Sample]) -> Mapping[str, float]:
    """Points of all points."""
    total = sum(sample.extra["points"] for sample in samples)
    return {"score": sum(sample.scores["score"] * sample.extra["points"] for sample in samples) / total}


def _ask(question: Question) -> str:
    paper = PAPERS[question.subset]
    return (
        f"请你做一道{paper.title}。\n请一步一步思考，把思考过程写在【解析】和<eoe>之间。{_FORMS[paper.kind]}\n"
        f"请严格按照上述格式作答。\n题目如下：\n{question.text}\n"
    )


def _solution(question: Question) -> str:
    kind, answers = PAPERS[question.subset].kind, question.target
    if kind == "parts":
        return "\n".join(f"（{number}）【答案】 {one} <eoa>" for number, one in enumerate(answers, 1))
    return f"【答案】 {' '.join(answers)} <eoa>"


CHAT = Generation(prompt=_ask, solution=_solution, verdict=verdict, max_new_tokens=2048)

BENCHMARK = Benchmark(
    name="gaokao",
    title="GAOKAO-Bench",
    dimension="exam",
    source=Dataset(
        files={
            "test": [f"{folder}{{subset}}.json" for folder in ("Objective_Questions/", "Data/Objective_Questions/", "")]
        },
        page="https://github.com/OpenLMLab/GAOKAO-Bench/tree/main/Data/Objective_Questions",
    ),
    read=read,
    subsets={name: paper.subject for name, paper in PAPERS.items()},
    metrics=("score",),
    summarise=summarise,
    keep=("points",),
    modes={"chat": CHAT, "plain": replace(CHAT, chat=False, stop=("题目如下",))},
    follows=(
        "the authors' extraction and points, which OpenCompass has too (it takes the likelihood of letters for base "
        "models where there is one answer); prompt in our words with their format"
    ),
)
