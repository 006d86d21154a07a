"""AGIEval: entrance and licence exams in English and Chinese (Zhong et al., 2023). Data: ruixiangcui/AGIEval, v1.1.

Most tasks have one right choice; those in `SEVERAL` may have more, and all of them must be named. Two tasks are cloze:
their answers are compared as texts in one normal form, as the authors do; `;` separates the answers of several blanks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.choices import LETTERS, letters_of
from puyulm.eval.extract.letters import many_letters, one_letter
from puyulm.eval.extract.mathematics import final_answer, same_text
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

ENGLISH, CHINESE = "English", "Chinese"
TASKS = {
    "aqua-rat": ENGLISH,
    "logiqa-en": ENGLISH,
    "lsat-ar": ENGLISH,
    "lsat-lr": ENGLISH,
    "lsat-rc": ENGLISH,
    "math": ENGLISH,
    "sat-en": ENGLISH,
    "sat-en-without-passage": ENGLISH,
    "sat-math": ENGLISH,
    "gaokao-biology": CHINESE,
    "gaokao-chemistry": CHINESE,
    "gaokao-chinese": CHINESE,
    "gaokao-english": CHINESE,
    "gaokao-geography": CHINESE,
    "gaokao-history": CHINESE,
    "gaokao-mathcloze": CHINESE,
    "gaokao-mathqa": CHINESE,
    "gaokao-physics": CHINESE,
    "jec-qa-ca": CHINESE,
    "jec-qa-kd": CHINESE,
    "logiqa-zh": CHINESE,
}
SEVERAL = ("gaokao-physics", "jec-qa-ca", "jec-qa-kd")
CLOZE = ("math", "gaokao-mathcloze")
ASKED_IN_ENGLISH = frozenset(name for name, group in TASKS.items() if group == ENGLISH) | {"gaokao-english"}


def read(record: Record, subset: str, number: int) -> Question | None:
    """Choices come with their letters before them, in several ways; a row without a right answer is no question."""
    id, passage = f"{subset}/{number}", (record["passage"] or "").strip()
    text = record["question"].strip()
    if subset in CLOZE:
        return Question(id, text, str(record["answer"]), subset, (), {"passage": passage})
    choices = tuple(_bare(text, letter) for letter, text in zip(LETTERS, record["options"], strict=False))
    label = record["label"]
    target = "".join(sorted(set(re.findall("[A-Z]", "".join(label)))))  # some have spaces or a full stop too
    if not target:
        return None
    if not set(target) <= set(LETTERS[: len(choices)]):
        raise ValueError(f"the label '{label}' is none of its {len(choices)} choices")
    several = subset in SEVERAL or len(target) > 1
    return Question(id, text, target, subset, choices, {"passage": passage, "several": several})


def _bare(choice: str, letter: str) -> str:
    return re.sub(rf"^\s*(?:\({letter}\)|{letter}[.．、)]|{letter}\s)\s*", "", choice).strip()


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Of an answer that ends with its conclusion."""
    text = outputs[-1].text
    if question.subset in CLOZE:
        blanks = re.split("[;；]", question.target)
        answers = _filled_in(text, len(blanks))
        right = len(answers) == len(blanks) and all(map(same_text, blanks, answers))
        return Verdict({"accuracy": float(right)}, "; ".join(answers) or None)
    letters = letters_of(question)
    answer = many_letters(text, letters) if question.extra["several"] else one_letter(text, letters, question.choices)
    return Verdict({"accuracy": float(answer == question.target)}, answer)


def official_verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Of an answer that begins at once: the first letter of A to F, or all of them where several may be right."""
    text = outputs[-1].text
    if question.subset in CLOZE:
        return verdict(question, [Output(text=f"The answer is {text}")])  # the prompt ends so
    found = re.findall("[A-F]", text)
    answer = "".join(sorted(set(found))) if question.extra["several"] else "".join(found[:1])
    return Verdict({"accuracy": float(answer == question.target)}, answer or None)


def _filled_in(text: str, blanks: int) -> list[str]:
    """The answer of each blank: of several, what the last conclusion (or the last line) lists."""
    if blanks == 1:
        answer = final_answer(text)
        return [] if answer is None else [answer]
    listed = re.split(r"(?i:answers? (?:is|are)|答案[是为:：]+)", text.strip())[-1].strip()
    lines = [line for line in listed.splitlines() if line.strip()]
    for separators in ("[;；]", "[、，]|, | and |和"):
        parts = re.split(separators, lines[0] if lines else "")
        if len(parts) == blanks:
            return [part.strip(" .。") for part in parts]
    return []


def _is_english(question: Question) -> bool:
    return question.subset in ASKED_IN_ENGLISH


def _ask(question: Question) -> str:
    """The official form of a question, up to where its answer is asked for."""
    before, options = ("Q: ", " Answer Choices: ") if _is_english(question) else ("问题：", " 选项：")
    text = f"{question.extra['passage']}{before}{question.text}"
    if question.choices:
        listed = (f"({letter}){choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
        text += options + " ".join(listed)
    return text


def _plain(question: Question) -> str:
    if question.subset in CLOZE:
        return f"{_ask(question)}\n" + ("A: The answer is" if _is_english(question) else "答案：")
    last = letters_of(question)[-1]
    if _is_english(question):
        return f"{_ask(question)}\nA: Among A through {last}, the answer is"
    return f"{_ask(question)}\n答案：从A到{last}, 我们应选择"


def _chat(question: Question) -> str:
    if _is_english(question):
        what = "the answer" if question.subset in CLOZE else "the letter of the right choice"
        return f'{_ask(question)}\n\nThink step by step. End with "The answer is" and {what}.'
    if question.subset in CLOZE:
        what = "答案；有多个空时用分号隔开"
    else:
        what = "所有正确选项的字母（可能不止一个）" if question.extra["several"] else "正确选项的字母"
    return f"{_ask(question)}\n\n请一步一步思考，最后写“答案是”和{what}。"


def _solution(question: Question) -> str:
    conclusion = "The answer is" if _is_english(question) else "答案是"
    formula = question.subset in CLOZE and "$" not in question.target
    return f"{conclusion} ${question.target}$" if formula else f"{conclusion} {question.target}"


BENCHMARK = Benchmark(
    name="agieval",
    title="AGIEval",
    dimension="exam",
    source=Dataset(
        files={
            "test": [f"{folder}{{subset}}.jsonl" for folder in ("v1_1/", "data/v1_1/", "", "v1/", "data/v1/")],
        },
        page="https://github.com/ruixiangcui/AGIEval/tree/main/data/v1_1",
    ),
    read=read,
    subsets=TASKS,
    average="subsets",
    modes={
        "chat": Generation(prompt=_chat, solution=_solution, verdict=verdict, max_new_tokens=2048),
        "plain": Generation(
            prompt=_plain,
            solution=lambda question: f" {question.target}",
            verdict=official_verdict,
            chat=False,
            stop=("\n", "Q:", "问题："),
            max_new_tokens=32,
        ),
    },
    follows=(
        "plain: the authors' zero-shot prompt and rule; OpenCompass takes the likelihood of letters where one is "
        "right, lm-evaluation-harness that of all tasks with choices. chat: our words, zero-shot with a conclusion "
        "(OpenCompass asks for the letter at once). The mean of the 21 tasks, as OpenCompass"
    ),
)
