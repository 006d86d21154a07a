"""LongBench: 21 tasks in six groups, English and Chinese (Bai et al., 2024). Data: THUDM/LongBench (data.zip's jsonl).

Option: `max_length`, the longest prompt in tokens; longer ones lose their middle.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Sample, Verdict
from puyulm.eval.longtext.metrics import (
    class_score,
    code_similarity,
    f1,
    rouge_l_union,
    share_of_numbers,
)
from puyulm.eval.longtext.truncate import cut_middle, longest_prompt
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset, Made, SourceContext

MAX_LENGTH = 31_500  # what LongBench gives models of 32K
SINGLE, MULTI, SUMMARY = "single-document QA", "multi-document QA", "summarization"
FEW_SHOT, SYNTHETIC, CODE = "few-shot learning", "synthetic", "code"
Metric = Callable[[str, str, Sequence[str]], float]  # answer, reference, classes


@dataclass(frozen=True)
class LongTask:
    """One of the 21.

    Attributes:
        prompt: With context and input.
        new_tokens: Longest answer.
        first_line: Only the answer's first line counts: few-shot prompts tempt models to go on with new examples.
    """

    group: str
    prompt: str
    new_tokens: int
    metric: Metric
    first_line: bool = False


def _f1(answer: str, reference: str, _: Sequence[str]) -> float:
    return f1(answer, reference)


def _f1_zh(answer: str, reference: str, _: Sequence[str]) -> float:
    return f1(answer, reference, "zh")


def _rouge(answer: str, reference: str, _: Sequence[str]) -> float:
    return rouge_l_union(answer, reference)


def _rouge_zh(answer: str, reference: str, _: Sequence[str]) -> float:
    return rouge_l_union(answer, reference, "zh")


def _number(answer: str, reference: str, _: Sequence[str]) -> float:
    found = re.search(r"\d+", reference)
    return share_of_numbers(answer, found[0]) if found else 0.0


def _code(answer: str, reference: str, _: Sequence[str]) -> float:
    return code_similarity(answer, reference)


_PASSAGES = (
    "Answer the question from the passages below. Give only the answer, and nothing else.\n\nPassages:\n{context}\n\n"
    "Answer the question from the passages above. Give only the answer, and nothing else.\n\nQuestion: {input}\nAnswer:"
)
_FINISH = "Go on with the code below.\n{context}{input}Next line of code:\n"

TASKS: Mapping[str, LongTask] = {
    "narrativeqa": LongTask(
        SINGLE,
        "Below is a story, a novel or a film script, and a question about it. Answer as briefly as you can, in a "
        "phrase "
        "if possible, and explain nothing.\n\nStory: {context}\n\nNow answer the question about the story as "
        "briefly as "
        "you can, in a phrase if possible, and explain nothing.\n\nQuestion: {input}\n\nAnswer:",
        128, _f1,
    ),
    "qasper": LongTask(
        SINGLE,
        "Below is a scientific article and a question about it. Answer as briefly as you can, in a phrase or a "
        "sentence. "
        'If the article does not say, write "unanswerable". If it is a yes-or-no question, write "yes", "no" or '
        '"unanswerable". Explain nothing.\n\nArticle: {context}\n\nAnswer the question about the article as briefly as '
        'you can, in a phrase or a sentence. If the article does not say, write "unanswerable". If it is a yes-or-no '
        'question, write "yes", "no" or "unanswerable". Explain nothing.\n\nQuestion: {input}\n\nAnswer:',
        128, _f1,
    ),
    "multifieldqa_en": LongTask(
        SINGLE,
        "Read the text below and answer briefly.\n\n{context}\n\nNow answer the question about the text above. "
        "Give only "
        "the answer, and nothing else.\n\nQuestion: {input}\nAnswer:",
        64, _f1,
    ),
    "multifieldqa_zh": LongTask(
        SINGLE,
        ""
        "请阅读下面的文字，并用中文简短作答：\n\n{context}\n\n现在请根据上面的文字回答问题，只写答案，不要写别的内容。\n\n"
        "问题：{input}\n回答：",
        64, _f1_zh,
    ),
    "hotpotqa": LongTask(MULTI, _PASSAGES, 32, _f1),
    "2wikimqa": LongTask(MULTI, _PASSAGES, 32, _f1),
    "musique": LongTask(MULTI, _PASSAGES, 32, _f1),
    "dureader": LongTask(
        MULTI,
        "请根据下面的文章回答问题。\n\n文章：{context}\n\n现在请根据上面的文章回答问题。\n\n问题：{input}\n回答：",
        128, _rouge_zh,
    ),
    "gov_report": LongTask(
        SUMMARY,
        "Below is a report by a government agency. Write a summary of the report on one page.\n\nReport:\n{context}\n\n"
        "Now write a summary of the report on one page.\n\nSummary:",
        512, _rouge,
    ),
    "qmsum": LongTask(
        SUMMARY,
        "Below is the transcript of a meeting and a question or an instruction about it. Answer in one or a few "
        "sentences.\n\nTranscript:\n{context}\n\nNow answer the question or follow the instruction in one or a few "
        "sentences.\n\nQuestion: {input}\nAnswer:",
        512, _rouge,
    ),
    "multi_news": LongTask(
        SUMMARY,
        "Below are several news articles. Write a summary of all of them on one page.\n\nNews:\n{context}\n\nNow "
        "write a "
        "summary of all the news on one page.\n\nSummary:",
        512, _rouge,
    ),
    "vcsum": LongTask(
        SUMMARY,
        "下面是一次会议的记录，请读后写一段总结，概括会议的内容。\n会议记录：\n{context}\n\n会议总结：",
        512, _rouge_zh,
    ),
    "trec": LongTask(
        FEW_SHOT,
        "Say which type the question at the end has. These are examples of questions and their types.\n\n{context}\n"
        "{input}",
        64, class_score, True,
    ),
    "triviaqa": LongTask(
        FEW_SHOT,
        "Answer the question from the passage. Give only the answer, and nothing else. These are examples.\n\n{context}"
        "\n\n{input}",
        32, _f1, True,
    ),
    "samsum": LongTask(
        FEW_SHOT,
        "Sum up the dialogue in a few short sentences. These are examples.\n\n{context}\n\n{input}",
        128, _rouge,
        True,
    ),
    "lsht": LongTask(
        FEW_SHOT,
        "请判断最后一条新闻的类别，下面是一些例子。\n\n{context}\n{input}",
        64, class_score, True,
    ),
    "passage_count": LongTask(
        SYNTHETIC,
        "Below are paragraphs from Wikipedia, some of which may be there more than once. Read them, and find out "
        "how many "
        "different paragraphs there are, each counted once however often it is repeated.\n\n{context}\n\nWrite how "
        "many "
        "different paragraphs there are, as a number such as 1, 2, 3, and nothing else.\n\nThe final answer is: ",
        32, _number,
    ),
    "passage_retrieval_en": LongTask(
        SYNTHETIC,
        "Below are 30 paragraphs from Wikipedia and an abstract. Find the paragraph that the abstract is "
        "of.\n\n{context}"
        '\n\nThe abstract:\n\n{input}\n\nWrite the number of that paragraph in the form "Paragraph 1", "Paragraph '
        '2", and '
        "so on.\n\nThe answer is: ",
        32, _number,
    ),
    "passage_retrieval_zh": LongTask(
        SYNTHETIC,
        "下面有若干段维基百科的文字和一段摘要，请找出摘要是哪一段的。\n\n{context}\n\n下面是摘要：\n\n{input}\n\n"
        "请写出那一段的编号，格式为“段落1”、“段落2”等。\n\n答案是：",
        32, _number,
    ),
    "lcc": LongTask(CODE, _FINISH, 64, _code),
    "repobench-p": LongTask(CODE, _FINISH, 64, _code),
}  # fmt: skip

_DATASET = Dataset(
    hub="THUDM/LongBench",
    config="{subset}",
    files={"test": ["{subset}.jsonl", "data/{subset}.jsonl"]},
    page="https://huggingface.co/datasets/THUDM/LongBench/resolve/main/data.zip",
)


def make(subset: str, context: SourceContext) -> Iterator[dict[str, Any]]:
    """The published rows, with prompts that fit."""
    limit = longest_prompt(context, "longbench", MAX_LENGTH)
    for row in _DATASET.records("longbench", subset, "test", context):
        asked = {name: row.get(name) for name in ("context", "input")}
        if all(isinstance(text, str) for text in asked.values()):
            row = {**row, "prompt": cut_middle(TASKS[subset].prompt.format(**asked), limit, context)}
        yield dict(row)


def read(record: Record, subset: str, number: int) -> Question:
    """A row: context, input, answers, all_classes, length."""
    answers, classes = record["answers"], record.get("all_classes") or []
    if isinstance(answers, str) or not answers or not all(isinstance(one, str) for one in answers):
        raise ValueError("answers are not a list of texts")
    if "prompt" not in record:
        raise ValueError(f"no text in {'context' if not isinstance(record.get('context'), str) else 'input'}")
    return Question(
        f"{subset}/{number}", record["prompt"], list(answers), subset,
        extra={"classes": list(classes), "words": record.get("length")},
    )  # fmt: skip


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The best score over all references, by the task's metric."""
    task, answer = TASKS[question.subset], outputs[-1].text
    if task.first_line:
        answer = answer.lstrip("\n").split("\n")[0]
    scores = [task.metric(answer, one, question.extra["classes"]) for one in question.target]
    return Verdict({"score": max(scores)}, answer.strip() or None)


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """The mean of the groups, each the mean of its tasks (as in the InternLM2 report's table 15)."""
    tasks: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        tasks[sample.subset].append(sample.scores["score"])
    groups: dict[str, list[float]] = defaultdict(list)
    for name, scores in tasks.items():
        groups[TASKS[name].group].append(sum(scores) / len(scores))
    return {"score": sum(sum(own) / len(own) for own in groups.values()) / len(groups)}


CHAT = Generation(
    prompt=lambda question: question.text,
    solution=lambda question: question.target[0],
    verdict=verdict,
    max_new_tokens=lambda question: TASKS[question.subset].new_tokens,
)

BENCHMARK = Benchmark(
    name="longbench",
    title="LongBench",
    dimension="long context",
    source=Made(make, data="THUDM/LongBench"),
    read=read,
    subsets={name: task.group for name, task in TASKS.items()},
    modes={"chat": CHAT, "plain": replace(CHAT, chat=False)},
    metrics=("score",),
    average="subsets",
    summarise=summarise,
    keep=("words",),
    follows="LongBench's metrics and lengths, prompts of the same content in our words; all tasks through the chat "
    "format as in OpenCompass (LongBench's own script leaves it out for few-shot tasks and code); the score is the "
    "mean of the six groups",
)
