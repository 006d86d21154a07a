"""MMLU: 57 subjects, four choices (Hendrycks et al., 2021). Data: cais/mmlu, or the csv files of hendrycks/test."""

from __future__ import annotations

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record
from puyulm.eval.choices import LAST_LINE, LETTERS, by_letter, direct_verdict, known_letter, last_line_verdict, lettered
from puyulm.eval.source import Dataset

STEM, SOCIAL, HUMANITIES, OTHER = "STEM", "social sciences", "humanities", "other"

# Groups as in categories.py of hendrycks/test.
SUBJECTS = {
    "abstract_algebra": STEM,
    "anatomy": OTHER,
    "astronomy": STEM,
    "business_ethics": OTHER,
    "clinical_knowledge": OTHER,
    "college_biology": STEM,
    "college_chemistry": STEM,
    "college_computer_science": STEM,
    "college_mathematics": STEM,
    "college_medicine": OTHER,
    "college_physics": STEM,
    "computer_security": STEM,
    "conceptual_physics": STEM,
    "econometrics": SOCIAL,
    "electrical_engineering": STEM,
    "elementary_mathematics": STEM,
    "formal_logic": HUMANITIES,
    "global_facts": OTHER,
    "high_school_biology": STEM,
    "high_school_chemistry": STEM,
    "high_school_computer_science": STEM,
    "high_school_european_history": HUMANITIES,
    "high_school_geography": SOCIAL,
    "high_school_government_and_politics": SOCIAL,
    "high_school_macroeconomics": SOCIAL,
    "high_school_mathematics": STEM,
    "high_school_microeconomics": SOCIAL,
    "high_school_physics": STEM,
    "high_school_psychology": SOCIAL,
    "high_school_statistics": STEM,
    "high_school_us_history": HUMANITIES,
    "high_school_world_history": HUMANITIES,
    "human_aging": OTHER,
    "human_sexuality": SOCIAL,
    "international_law": HUMANITIES,
    "jurisprudence": HUMANITIES,
    "logical_fallacies": HUMANITIES,
    "machine_learning": STEM,
    "management": OTHER,
    "marketing": OTHER,
    "medical_genetics": OTHER,
    "miscellaneous": OTHER,
    "moral_disputes": HUMANITIES,
    "moral_scenarios": HUMANITIES,
    "nutrition": OTHER,
    "philosophy": HUMANITIES,
    "prehistory": HUMANITIES,
    "professional_accounting": OTHER,
    "professional_law": HUMANITIES,
    "professional_medicine": OTHER,
    "professional_psychology": SOCIAL,
    "public_relations": SOCIAL,
    "security_studies": SOCIAL,
    "sociology": SOCIAL,
    "us_foreign_policy": SOCIAL,
    "virology": OTHER,
    "world_religions": HUMANITIES,
}


def read(record: Record, subset: str, number: int) -> Question:
    """Of the hub (question, choices, answer as a number) or csv (question, the choices, letter or number)."""
    choices = tuple(record["choices"] if "choices" in record else list(record.values())[-5:-1])
    target = known_letter(record["answer"], choices)
    return Question(f"{subset}/{number}", record["question"].strip(), target, subset, choices)


def _subject(question: Question) -> str:
    return question.subset.replace("_", " ")


def _header(question: Question) -> str:
    return f"The following are multiple choice questions (with answers) about {_subject(question)}."


def _chat(question: Question) -> str:
    return (
        f"There is a single choice question about {_subject(question)}. Answer the question by replying A, B, C or D.\n"
        f"Question: {question.text}\n{lettered(question.choices)}\nAnswer: "
    )


def _last_line(question: Question) -> str:
    return f"{LAST_LINE.format(letters='ABCD')}\n\n{question.text}\n\n{lettered(question.choices, '{letter}) {text}')}"


CHAT = Generation(prompt=_chat, solution=lambda question: question.target, verdict=direct_verdict)
COT = Generation(
    prompt=_last_line,
    solution=lambda question: f"ANSWER: {question.target}",
    verdict=last_line_verdict,
    max_new_tokens=2048,
)

BENCHMARK = Benchmark(
    name="mmlu",
    title="MMLU",
    dimension="exam",
    source=Dataset(
        hub="cais/mmlu",
        config="{subset}",
        splits={"test": "test", "dev": "dev"},
        files={"test": ["test/{subset}_test.csv"], "dev": ["dev/{subset}_dev.csv"]},
        columns=("question", *LETTERS[:4], "answer"),
        page="https://github.com/hendrycks/test",
    ),
    read=read,
    subsets=SUBJECTS,
    examples="dev",
    average="subsets",
    metrics=("accuracy", "strict"),
    modes={
        "likelihood": by_letter(
            header=_header, context=lambda question: f"{question.text}\n{lettered(question.choices)}\nAnswer: "
        ),
        "chat": CHAT,
        "cot": COT,
    },
    follows=(
        "likelihood: prompt and rule of lm-evaluation-harness (OpenCompass has one line break between examples, and "
        "two spaces before the subject); chat: OpenCompass, each turn with its hint; cot: simple-evals, as OpenCompass "
        "has it. The mean of subjects as OpenCompass takes it (the harness weights by size)"
    ),
)
