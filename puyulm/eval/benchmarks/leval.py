"""L-Eval: 20 tasks on long documents, closed and open (An et al., 2024). Data: the jsonl files of OpenLMLab/LEval.

Each row is a document with several instructions and outputs; each pair is a question.

Option: `max_length`, the longest prompt in tokens; longer ones lose their middle.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.longtext.metrics import normalise, rouge_l
from puyulm.eval.longtext.truncate import cut_middle, longest_prompt
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset, Made, SourceContext

MAX_LENGTH = 31_500
CLOSED = ("tpo", "quality", "coursera", "sci_fi", "gsm100", "codeU", "topic_retrieval_longchat")
OPEN = (
    "financial_qa", "gov_report_summ", "legal_contract_qa", "meeting_summ", "multidoc_qa", "narrative_qa",
    "natural_question", "news_summ", "paper_assistant", "patent_summ", "review_summ", "scientific_qa", "tv_show_summ",
)  # fmt: skip
LETTER_TASKS = ("tpo", "quality", "coursera")
NEW_TOKENS = {"tpo": 32, "quality": 32, "coursera": 32, "sci_fi": 64, "topic_retrieval_longchat": 64}
LONGEST_ANSWER = 512

_DATASET = Dataset(
    hub="L4NLP/LEval",
    config="{subset}",
    files={
        "test": ["{subset}.jsonl"]
        + [
            pattern
            for kind in ("Closed", "Open")
            for pattern in (f"{kind}-ended-tasks/{{subset}}.jsonl", f"LEval-data/{kind}-ended-tasks/{{subset}}.jsonl")
        ]
    },
    page="https://github.com/OpenLMLab/LEval/tree/main/LEval-data",
)  # fmt: skip
_FORMS = {
    "tpo": "Answer with the letter of the right option only.",
    "quality": "Answer with the letter of the right option only.",
    "coursera": "One or more options are right. Answer with the letters of all right options only, as in ABC.",
    "sci_fi": 'Say first whether the statement is true in the story, then whether it is true in the real world, in the '
    'form "True [fact: False]".',
    "gsm100": 'Reason step by step, and end with "The answer is" and the number.',
    "codeU": 'Say what the program prints, and end with "the final output:" and the output.',
}  # fmt: skip
_LETTER_ALONE = re.compile(r"(?<![A-Za-z])([A-D])(?![A-Za-z'])")
_LETTERS = re.compile(r"(?<![A-Za-z])([A-D](?:(?:\s*[,、&]\s*|\s+and\s+|\s*)[A-D])*)(?![A-Za-z'])")
_OPTION = re.compile(r"(?<![A-Za-z])([A-D])[.):](?=\s)")  # with its text behind it
_BEGINNING = re.compile(r"\(?[A-D](?:[.):,、&\n]|\s*\Z|\s*(?:and\s+)?[A-D]\b)")
_MARKER = re.compile(r"\b(?:answers?|options?|choices?)\b[^.\n]{0,20}?(?:\bis\b|\bare\b|:)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def make(subset: str, context: SourceContext) -> Iterator[dict[str, Any]]:
    """The published rows, an instruction at a time, with prompts that fit."""
    limit = longest_prompt(context, "leval", MAX_LENGTH)
    for row in _DATASET.records("leval", subset, "test", context):
        document, instructions, outputs = row.get("input"), row.get("instructions"), row.get("outputs")
        lists = isinstance(instructions, list) and isinstance(outputs, list)
        if not isinstance(document, str) or not lists or len(instructions or []) != len(outputs or []):
            yield {"row": dict(row)}
            continue
        for instruction, output in zip(instructions or [], outputs or [], strict=True):
            prompt = cut_middle(_prompt(subset, document, str(instruction)), limit, context)
            yield {"prompt": prompt, "instruction": instruction, "output": output}


def _prompt(subset: str, document: str, instruction: str) -> str:
    form = f"\n{_FORMS[subset]}" if subset in _FORMS else ""
    if subset == "gsm100":  # its document is the solved examples
        return f"{document}\n\nQuestion: {instruction}{form}\nAnswer:"
    return f"Document is as follows.\n{document}\n\nQuestion: {instruction}{form}\nAnswer:"


def read(record: Record, subset: str, number: int) -> Question:
    """An instruction of a row: input, instructions, outputs."""
    if "row" in record:
        raise ValueError("input, instructions and outputs are not a text and two lists of one length")
    if not isinstance(record["output"], str) or not record["output"].strip():
        raise ValueError("an output is empty")
    target = record["output"].strip()
    if subset in LETTER_TASKS:
        target = "".join(sorted(set(re.sub(r"[^A-D]", "", target.split()[0]))))
        if not target:
            raise ValueError(f"no letter at the beginning of the output '{record['output'][:20]}'")
    return Question(f"{subset}/{number}", record["prompt"], target, subset)


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Closed tasks: right or wrong. Open ones: ROUGE-L."""
    text, task, right = outputs[-1].text, question.subset, question.target
    if task in LETTER_TASKS:
        answer = letters(text, several=task == "coursera")
        return Verdict({"score": float(answer == right)}, answer)
    if task == "gsm100":
        answer, wanted = last_number(text), last_number(right)
        return Verdict({"score": float(answer is not None and wanted is not None and float(answer) == float(wanted))},
                       answer)  # fmt: skip
    if task == "sci_fi":
        found, wanted_pair = truths(text), truths(right)
        same = sum(one is not None and one == other for one, other in zip(found, wanted_pair, strict=True))
        return Verdict({"score": same / 2}, " ".join(map(str, found)))
    if task == "codeU":
        answer = code_output(text, len(right.split()))
        return Verdict({"score": float(_bare_code(right) in answer)}, answer)
    if task == "topic_retrieval_longchat":
        return Verdict({"score": float(normalise(text) == normalise(right))}, text.strip() or None)
    return Verdict({"score": rouge_l(text, right)}, text.strip() or None)


def letters(text: str, *, several: bool = False) -> str | None:
    """The letter that an answer chooses: the one it begins with, the one behind "answer is", or the first alone.

    Of several: those with a text of their own, or that stand together. L-Eval's script takes the first A to D of any
    word, and guesses A where there is none; we do neither.

    Returns:
        Sorted letters; None: there are none.
    """
    text = text.replace("*", "").strip()
    if several and len(options := set(_OPTION.findall(text))) > 1:
        return "".join(sorted(options))
    rule = _LETTERS if several else _LETTER_ALONE
    marked = _MARKER.search(text)
    found = _BEGINNING.match(text) and rule.search(text)
    found = found or (rule.search(text, marked.end()) if marked else None) or rule.search(text)
    return "".join(sorted(set(re.findall("[A-D]", found[1])))) if found else None


def last_number(text: str) -> str | None:
    """After "The answer is", or the last one of the first paragraph."""
    marked = re.search(r"[Tt]he answer is:?\s*\$?(-?\d[\d,]*(?:\.\d+)?)", text.replace("*", ""))
    if marked:
        return marked[1].replace(",", "")
    found = _NUMBER.findall(text.strip().split("\n\n")[0]) or _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def truths(text: str) -> tuple[bool | None, bool | None]:
    """ "True [fact: False]": what holds in the story, and in the world."""
    story, _, world = text.lower().partition("[fact:")
    found: list[bool | None] = []
    for part in (story, world):
        match = re.search(r"true|false", part)
        found.append(None if match is None else match[0] == "true")
    return found[0], found[1]


def code_output(text: str, words: int) -> str:
    """What an answer says that a program prints: words behind "the final output", or the last ones.

    L-Eval allows three more than the right output has.
    """
    text = _bare_code(text)
    for filler in ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed"):
        text = text.replace(filler, "")
    if "the final output" in text:
        return " ".join(text.split("the final output")[-1].split()[: words + 3])
    return " ".join(text.split()[-(words + 3) :])


def _bare_code(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for old, new in ((",", ""), ("'", ""), ("\\", ""), (".0", ""), ("] [", "]["), ("[ [", "[["), ("] ]", "]]")):
        text = text.replace(old, new)
    return text.strip()


CHAT = Generation(
    prompt=lambda question: question.text,
    solution=lambda question: question.target,
    verdict=verdict,
    max_new_tokens=lambda question: NEW_TOKENS.get(question.subset, LONGEST_ANSWER),
)

BENCHMARK = Benchmark(
    name="leval",
    title="L-Eval",
    dimension="long context",
    source=Made(make, data="L4NLP/LEval"),
    read=read,
    subsets={**dict.fromkeys(CLOSED, "closed"), **dict.fromkeys(OPEN, "open")},
    modes={"chat": CHAT, "plain": replace(CHAT, chat=False, stop=("\nQuestion:",))},
    metrics=("score",),
    average="subsets",
    follows="OpenCompass: exact match of closed tasks, ROUGE-L of open ones (L-Eval's own script also has F1, and the "
    "mean of three ROUGEs); the InternLM2 report has 18 tasks, without sci_fi and codeU",
)
