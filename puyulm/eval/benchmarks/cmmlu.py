"""CMMLU: 67 subjects in Chinese, four choices (Li et al., 2023). Data: haonan-li/cmmlu, or its csv files."""

from __future__ import annotations

from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record
from puyulm.eval.choices import by_letter, direct_verdict, known_letter, last_line_verdict, lettered
from puyulm.eval.source import Dataset

STEM, SOCIAL, HUMANITIES, OTHER = "STEM", "social sciences", "humanities", "other"
CHINA = "China-specific"

# Chinese name and group. The authors count China-specific subjects in a second group too; here each is in one.
SUBJECTS = {
    "agronomy": ("农学", OTHER),
    "anatomy": ("解剖学", STEM),
    "ancient_chinese": ("古汉语", CHINA),
    "arts": ("艺术学", HUMANITIES),
    "astronomy": ("天文学", STEM),
    "business_ethics": ("商业伦理", SOCIAL),
    "chinese_civil_service_exam": ("中国公务员考试", CHINA),
    "chinese_driving_rule": ("中国驾驶规则", CHINA),
    "chinese_food_culture": ("中国饮食文化", CHINA),
    "chinese_foreign_policy": ("中国外交政策", CHINA),
    "chinese_history": ("中国历史", CHINA),
    "chinese_literature": ("中国文学", CHINA),
    "chinese_teacher_qualification": ("中国教师资格", CHINA),
    "clinical_knowledge": ("临床知识", OTHER),
    "college_actuarial_science": ("大学精算学", STEM),
    "college_education": ("大学教育学", SOCIAL),
    "college_engineering_hydrology": ("大学工程水文学", STEM),
    "college_law": ("大学法律", HUMANITIES),
    "college_mathematics": ("大学数学", STEM),
    "college_medical_statistics": ("大学医学统计", STEM),
    "college_medicine": ("大学医学", OTHER),
    "computer_science": ("计算机科学", STEM),
    "computer_security": ("计算机安全", OTHER),
    "conceptual_physics": ("概念物理学", STEM),
    "construction_project_management": ("建设工程管理", CHINA),
    "economics": ("经济学", SOCIAL),
    "education": ("教育学", SOCIAL),
    "electrical_engineering": ("电气工程", STEM),
    "elementary_chinese": ("小学语文", CHINA),
    "elementary_commonsense": ("小学常识", CHINA),
    "elementary_information_and_technology": ("小学信息技术", OTHER),
    "elementary_mathematics": ("初等数学", STEM),
    "ethnology": ("民族学", CHINA),
    "food_science": ("食品科学", OTHER),
    "genetics": ("遗传学", STEM),
    "global_facts": ("全球事实", HUMANITIES),
    "high_school_biology": ("高中生物", STEM),
    "high_school_chemistry": ("高中化学", STEM),
    "high_school_geography": ("高中地理", SOCIAL),
    "high_school_mathematics": ("高中数学", STEM),
    "high_school_physics": ("高中物理学", STEM),
    "high_school_politics": ("高中政治", CHINA),
    "human_sexuality": ("人类性行为", OTHER),
    "international_law": ("国际法学", HUMANITIES),
    "journalism": ("新闻学", SOCIAL),
    "jurisprudence": ("法理学", HUMANITIES),
    "legal_and_moral_basis": ("法律与道德基础", OTHER),
    "logical": ("逻辑学", HUMANITIES),
    "machine_learning": ("机器学习", STEM),
    "management": ("管理学", SOCIAL),
    "marketing": ("市场营销", SOCIAL),
    "marxist_theory": ("马克思主义理论", HUMANITIES),
    "modern_chinese": ("现代汉语", CHINA),
    "nutrition": ("营养学", OTHER),
    "philosophy": ("哲学", HUMANITIES),
    "professional_accounting": ("专业会计", SOCIAL),
    "professional_law": ("专业法学", HUMANITIES),
    "professional_medicine": ("专业医学", OTHER),
    "professional_psychology": ("专业心理学", SOCIAL),
    "public_relations": ("公共关系", SOCIAL),
    "security_study": ("安全研究", SOCIAL),
    "sociology": ("社会学", SOCIAL),
    "sports_science": ("体育学", OTHER),
    "traditional_chinese_medicine": ("中医中药", CHINA),
    "virology": ("病毒学", STEM),
    "world_history": ("世界历史", HUMANITIES),
    "world_religions": ("世界宗教", HUMANITIES),
}


def read(record: Record, subset: str, number: int) -> Question:
    choices = tuple(str(record[letter]) for letter in "ABCD")
    target = known_letter(record["Answer"], choices)
    return Question(f"{subset}/{number}", record["Question"].strip(), target, subset, choices)


def _hint(question: Question) -> str:
    return f"以下是关于{SUBJECTS[question.subset][0]}的单项选择题，请直接给出正确答案的选项。"


def _ask(question: Question) -> str:
    return f"题目：{question.text}\n{lettered(question.choices)}"


def _last_line(question: Question) -> str:
    return (
        f"请回答以下关于{SUBJECTS[question.subset][0]}的单项选择题，你回答的最后一行**必须**是以下格式"
        f" '答案: $选项' (不带引号)，其中选项是 ABCD 之一。请在回答之前一步步思考。\n\n"
        f"{question.text}\n\n{lettered(question.choices, '{letter}) {text}')}"
    )


CHAT = Generation(
    prompt=lambda question: f"{_hint(question)}\n{_ask(question)}",
    solution=lambda question: f"答案是: {question.target}",
    verdict=direct_verdict,
)
COT = Generation(
    prompt=_last_line,
    solution=lambda question: f"答案: {question.target}",
    verdict=last_line_verdict,
    max_new_tokens=2048,
)

BENCHMARK = Benchmark(
    name="cmmlu",
    title="CMMLU",
    dimension="exam",
    source=Dataset(
        hub="haonan-li/cmmlu",
        config="{subset}",
        splits={"test": "test", "dev": "dev"},
        files={"test": ["test/{subset}.csv"], "dev": ["dev/{subset}.csv"]},
        page="https://github.com/haonan-li/CMMLU",
    ),
    read=read,
    subsets={name: group for name, (_, group) in SUBJECTS.items()},
    examples="dev",
    average="subsets",
    metrics=("accuracy", "strict"),
    modes={
        "likelihood": replace(by_letter(_hint, lambda question: f"{_ask(question)}\n答案是: "), separator="\n"),
        "chat": CHAT,
        "cot": COT,
    },
    follows=(
        "OpenCompass, whose answer marker is 答案是; the harness has 答案： and an empty line between examples. "
        "The mean of subjects as OpenCompass takes it (the harness weights by size)"
    ),
)
