"""C-Eval: 52 subjects of Chinese exams, four choices (Huang et al., 2023). Data: ceval/ceval-exam, or its csv files.

The test split's answers are not published: validation rows are asked, as OpenCompass and lm-evaluation-harness do.
"""

from __future__ import annotations

from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record
from puyulm.eval.choices import by_letter, direct_verdict, known_letter, lettered
from puyulm.eval.source import Dataset

STEM, SOCIAL, HUMANITIES, OTHER = "STEM", "social sciences", "humanities", "other"

# Chinese name and group.
SUBJECTS = {
    "computer_network": ("计算机网络", STEM),
    "operating_system": ("操作系统", STEM),
    "computer_architecture": ("计算机组成", STEM),
    "college_programming": ("大学编程", STEM),
    "college_physics": ("大学物理", STEM),
    "college_chemistry": ("大学化学", STEM),
    "advanced_mathematics": ("高等数学", STEM),
    "probability_and_statistics": ("概率统计", STEM),
    "discrete_mathematics": ("离散数学", STEM),
    "electrical_engineer": ("注册电气工程师", STEM),
    "metrology_engineer": ("注册计量师", STEM),
    "high_school_mathematics": ("高中数学", STEM),
    "high_school_physics": ("高中物理", STEM),
    "high_school_chemistry": ("高中化学", STEM),
    "high_school_biology": ("高中生物", STEM),
    "middle_school_mathematics": ("初中数学", STEM),
    "middle_school_biology": ("初中生物", STEM),
    "middle_school_physics": ("初中物理", STEM),
    "middle_school_chemistry": ("初中化学", STEM),
    "veterinary_medicine": ("兽医学", STEM),
    "college_economics": ("大学经济学", SOCIAL),
    "business_administration": ("工商管理", SOCIAL),
    "marxism": ("马克思主义基本原理", SOCIAL),
    "mao_zedong_thought": ("毛泽东思想和中国特色社会主义理论体系概论", SOCIAL),
    "education_science": ("教育学", SOCIAL),
    "teacher_qualification": ("教师资格", SOCIAL),
    "high_school_politics": ("高中政治", SOCIAL),
    "high_school_geography": ("高中地理", SOCIAL),
    "middle_school_politics": ("初中政治", SOCIAL),
    "middle_school_geography": ("初中地理", SOCIAL),
    "modern_chinese_history": ("近代史纲要", HUMANITIES),
    "ideological_and_moral_cultivation": ("思想道德修养与法律基础", HUMANITIES),
    "logic": ("逻辑学", HUMANITIES),
    "law": ("法学", HUMANITIES),
    "chinese_language_and_literature": ("中国语言文学", HUMANITIES),
    "art_studies": ("艺术学", HUMANITIES),
    "professional_tour_guide": ("导游资格", HUMANITIES),
    "legal_professional": ("法律职业资格", HUMANITIES),
    "high_school_chinese": ("高中语文", HUMANITIES),
    "high_school_history": ("高中历史", HUMANITIES),
    "middle_school_history": ("初中历史", HUMANITIES),
    "civil_servant": ("公务员", OTHER),
    "sports_science": ("体育学", OTHER),
    "plant_protection": ("植物保护", OTHER),
    "basic_medicine": ("基础医学", OTHER),
    "clinical_medicine": ("临床医学", OTHER),
    "urban_and_rural_planner": ("注册城乡规划师", OTHER),
    "accountant": ("注册会计师", OTHER),
    "fire_engineer": ("注册消防工程师", OTHER),
    "environmental_impact_assessment_engineer": ("环境影响评价工程师", OTHER),
    "tax_accountant": ("税务师", OTHER),
    "physician": ("医师资格", OTHER),
}


def read(record: Record, subset: str, number: int) -> Question:
    choices = tuple(str(record[letter]) for letter in "ABCD")
    target = known_letter(record["answer"], choices)
    return Question(f"{subset}/{number}", record["question"].strip(), target, subset, choices)


def _hint(question: Question) -> str:
    return f"以下是关于{SUBJECTS[question.subset][0]}的单项选择题，请直接给出正确答案的选项。"


def _exam(question: Question) -> str:
    return f"以下是中国关于{SUBJECTS[question.subset][0]}考试的单项选择题，请选出其中的正确答案。"


def _ask(question: Question) -> str:
    return f"{question.text}\n{lettered(question.choices)}\n答案: "


BENCHMARK = Benchmark(
    name="ceval",
    title="C-Eval",
    dimension="exam",
    source=Dataset(
        hub="ceval/ceval-exam",
        config="{subset}",
        splits={"test": "val", "dev": "dev"},
        files={"test": ["val/{subset}_val.csv"], "dev": ["dev/{subset}_dev.csv"]},
        page="https://cevalbenchmark.com",
    ),
    read=read,
    subsets={name: group for name, (_, group) in SUBJECTS.items()},
    examples="dev",
    average="subsets",
    metrics=("accuracy", "strict"),
    modes={
        "likelihood": replace(by_letter(_hint, _ask), separator="\n"),
        "chat": Generation(
            prompt=lambda question: f"{_exam(question)}\n{_ask(question)}",
            solution=lambda question: question.target,
            verdict=direct_verdict,
        ),
    },
    follows=(
        "OpenCompass, whose answer marker is 答案: and whose examples stand on following lines; the harness has "
        "another header and 答案：. The mean of subjects as OpenCompass takes it (the harness weights by size)"
    ),
)
