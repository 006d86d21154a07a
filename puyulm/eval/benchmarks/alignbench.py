"""AlignBench: 683 Chinese questions in eight categories, judged from 1 to 10 by a reference (Liu et al., 2023).

Data: data_v1.1_release.jsonl of THUDM/AlignBench.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from puyulm.eval.benchmark import Benchmark, Generation, Judge, Question, Record, Sample, Verdict
from puyulm.eval.judging import ask_judge, read_rating
from puyulm.eval.model import Output, Prompt
from puyulm.eval.source import Dataset

REASONING, LANGUAGE = "推理", "语言"
CATEGORIES = {
    "数学计算": REASONING,
    "逻辑推理": REASONING,
    "基本任务": LANGUAGE,
    "中文理解": LANGUAGE,
    "综合问答": LANGUAGE,
    "文本写作": LANGUAGE,
    "角色扮演": LANGUAGE,
    "专业能力": LANGUAGE,
}

# What a judge looks at follows from the question's subcategory (the paper's table 2).
_FACTS = ("事实正确性", "满足用户需求", "清晰度", "完备性")
_LOGIC = ("事实正确性", "满足用户需求", "逻辑连贯性", "完备性")
_MAKING = ("事实正确性", "满足用户需求", "逻辑连贯性", "创造性", "丰富度")
_ADVICE = ("事实正确性", "满足用户需求", "公平与可负责程度", "创造性")
DIMENSIONS = {
    **dict.fromkeys(("证明", "推理", "初等数学", "高等数学", "应用数学"), _LOGIC),
    **dict.fromkeys(("观点表达", "寻求建议"), _ADVICE),
    **dict.fromkeys(("翻译", "实用文体写作", "创意文体写作", "专业文体写作", "其他写作类"), _MAKING),
    **dict.fromkeys(("现实生活类", "游戏娱乐类", "功能类", "现实名人类", "（虚拟）恋爱类"), _MAKING),
}  # of all other subcategories: facts
_MEANINGS = {
    "事实正确性": "内容是否符合事实，有没有错误或编造。",
    "满足用户需求": "是否回应了问题的目的，并完成了所有要求。",
    "清晰度": "表达是否清楚、简明、易懂。",
    "完备性": "是否给出了充分的信息和细节，没有遗漏要点。",
    "逻辑连贯性": "推理与叙述是否前后一致、步步有据。",
    "创造性": "是否有新意，而不是套用模板。",
    "丰富度": "内容是否充实、多样、有深度。",
    "公平与可负责程度": "建议是否可行、稳妥、不偏颇、无害。",
}
_SYSTEM = "你是一位公正而严格的评审，负责评价AI助手回答的质量。"
_RULES = """请按以下步骤评审：
1. 把助手的回答与参考答案比较，指出不足并解释原因。
2. 逐一评价上述每个维度，说明理由，并给出1到10的整数分。
3. 综合各维度给出1到10的综合得分。事实正确性和满足用户需求最重要，它们决定综合得分。
评分标准：答非所问、有本质错误或有害，1到2分；无严重错误但质量低、没有满足需求，3到4分；基本满足要求但部分维度较差，5到6分；\
与参考答案质量相近、各维度良好，7到8分；明显优于参考答案、各维度近乎完美，9到10分。参考答案可视为8分。请从严打分。
最后单独一行，用字典写出全部分数，形如：{'事实正确性': 9, '满足用户需求': 6, ..., '综合得分': 7}"""

_TOTAL = re.compile(r"[\"'“‘”’]?综合得分[\"'“‘”’]?\s*[:：]\s*(10|\d)(?:\.\d+)?(?!\d)")


def read(record: Record, subset: str, number: int) -> Question | None:
    """The target is the reference answer."""
    category = record["category"].strip()
    if category not in CATEGORIES:
        raise ValueError(f"unknown category '{category}'")
    if category != subset:
        return None
    return Question(
        str(record["question_id"]), record["question"].strip(), record["reference"].strip(), subset,
        extra={"subcategory": record["subcategory"].strip()},
    )  # fmt: skip


def ask(question: Question, outputs: Sequence[Output]) -> Sequence[Prompt]:
    """The judge is shown what it must look at, the rules, the reference and the answer."""
    names = DIMENSIONS.get(question.extra["subcategory"], _FACTS)
    dimensions = "\n".join(f"- {name}：{_MEANINGS[name]}" for name in names)
    return [
        ask_judge(
            _SYSTEM,
            f"这个回答属于“{question.subset}”类，请从以下维度评价：\n{dimensions}\n\n{_RULES}\n\n"
            f"[用户的问题]\n{question.text}\n[参考答案开始]\n{question.target}\n[参考答案结束]\n"
            f"[助手的回答开始]\n{outputs[-1].text.strip()}\n[助手的回答结束]",
        )
    ]


def read_score(text: str) -> float | None:
    """The overall score: the last one that is named so, else a rating in another form; None: there is none."""
    named = [float(found) for found in _TOTAL.findall(text) if 1 <= float(found) <= 10]
    return named[-1] if named else read_rating(text)


def verdict(question: Question, outputs: Sequence[Output], judgements: Sequence[Output]) -> Verdict:
    """The overall score; a judgement without one does not count."""
    score = read_score(judgements[0].text)
    if score is None:
        return Verdict({"unread": 1.0}, note="the judge gave no score")
    return Verdict({"score": score, "unread": 0.0}, f"{score:g}")


def summarise(samples: Sequence[Sample]) -> Mapping[str, float]:
    """The mean of reasoning and language, each the mean of its categories."""
    by_category: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if "score" in sample.scores:
            by_category[sample.subset].append(sample.scores["score"])
    by_group: dict[str, list[float]] = defaultdict(list)
    for category, scores in by_category.items():
        by_group[CATEGORIES[category]].append(sum(scores) / len(scores))
    means = [sum(own) / len(own) for own in by_group.values()]
    return {"score": sum(means) / len(means) if means else math.nan}


BENCHMARK = Benchmark(
    name="alignbench",
    title="AlignBench",
    dimension="instruction",
    source=Dataset(
        hub="THUDM/AlignBench",
        files={"test": ["data_v1.1_release.jsonl", "data_v1.1_release.json"]},
        page="https://github.com/THUDM/AlignBench",
    ),
    read=read,
    subsets=CATEGORIES,
    modes={
        "chat": Generation(
            prompt=lambda question: question.text,
            solution=lambda question: question.target,
            judge=Judge(prompts=ask, verdict=verdict),
            max_new_tokens=2048,
        )
    },
    metrics=("score", "unread"),
    average="subsets",
    summarise=summarise,
    percent=False,
    follows=(
        "the official rule: dimensions by subcategory, references worth 8, the total as the mean of reasoning and "
        "language; our wording; unread judgements are left out, where the official script counts -1"
    ),
)
