"""RULER: every sample fits its length, hides what it asks, where it says; scores are what the paper defines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks import ruler
from puyulm.eval.longtext.ruler_niah import DEPTHS, KINDS, NOISE
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, oracle, scored, task_of, value

WITHOUT_FILES = [task for task in ruler.TASKS if task not in ruler.QA_FILES]
NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.")


class Words(FakeModel):
    """A tokenizer for which a word is a token, and so is every four letters of a long one."""

    def encode(self, text: str) -> list[int]:
        return [len(one) for one in re.findall(r"\w{1,4}|[^\w\s]|\n", text)]


def context(lengths: list[int], data_dir: Path | None = None, **options: Any) -> SourceContext:
    model = options.pop("model", None) or Words()
    seed = options.pop("seed", 0)
    return SourceContext(data_dir=data_dir, model=model, options={"lengths": lengths, **options}, seed=seed)


def questions(of: SourceContext, *tasks: str) -> list[Question]:
    known = ruler.subsets(of)
    return [
        ruler.read(row, subset, number)
        for subset, task in known.items()
        if task in tasks
        for number, row in enumerate(ruler.make(subset, of))
    ]


def tokens(model: FakeModel, question: Question) -> int:
    return len(model.encode(question.text + question.extra["prefix"]))


@pytest.fixture
def qa_files(tmp_path: Path) -> Path:
    """A few documents in the forms of SQuAD 2.0 and HotpotQA."""
    folder = tmp_path / "data" / "ruler"
    folder.mkdir(parents=True)
    paragraphs = [
        {
            "context": f"The river number {place} rises in the hills and flows for {place + 2} days to the sea.",
            "qas": [
                {"question": f"How long does river {place} flow?", "is_impossible": False,
                 "answers": [{"text": f"{place + 2} days"}, {"text": f"for {place + 2} days"}]},
                {"question": "Who dammed it?", "is_impossible": True, "answers": []},
            ],
        }
        for place in range(40)
    ]  # fmt: skip
    squad = {"version": "v2.0", "data": [{"title": "Rivers", "paragraphs": paragraphs}]}
    (folder / "dev-v2.0.json").write_text(json.dumps(squad))
    hotpot = [
        {"question": f"Which hill is higher, {place} or {place + 1}?", "answer": f"Hill {place}",
         "context": [[f"Hill {one}", [f"Hill {one} is {one} high.", " It is green."]] for one in (place, place + 1)]}
        for place in range(0, 40, 2)
    ]  # fmt: skip
    (folder / "hotpot_dev_distractor_v1.json").write_text(json.dumps(hotpot))
    return tmp_path / "data"


@pytest.mark.parametrize("task", ruler.TASKS)
def test_samples_fill_their_length_and_never_more(task: str, qa_files: Path) -> None:
    for length in (1024, 2000, 4096):
        of = context([length], qa_files, count=3)
        for question in questions(of, task):
            room = length - ruler.RESERVE - ruler.NEW_TOKENS[task]
            used = tokens(Words(), question)
            assert used == question.extra["tokens"] <= room
            assert used > room * 0.9
            assert question.extra["length"] == length


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(WITHOUT_FILES), st.integers(900, 3000), st.integers(0, 10**6), st.booleans())
def test_any_length_and_seed(task: str, length: int, seed: int, characters: bool) -> None:
    model = FakeModel() if characters else Words()
    length *= 8 if characters else 1  # ten words thirty times need their room
    [question] = questions(context([length], count=1, seed=seed, model=model), task)
    assert tokens(model, question) + ruler.NEW_TOKENS[task] + ruler.RESERVE <= length
    assert len(set(question.target)) == len(question.target)


@pytest.mark.parametrize("task", list(KINDS))
def test_needles_are_there_once(task: str) -> None:
    kind = KINDS[task]
    for question in questions(context([2000], count=8), task):
        needles = NEEDLE.findall(question.text)
        keys = Counter(key for key, _ in needles)
        asked = question.text.rsplit(" for ", 1)[1]
        values = [value for key, value in needles if key in asked]
        assert sorted(values) == sorted(question.target)
        assert all(question.text.count(value) == 1 for value in question.target)
        assert len(question.target) == kind.values * kind.queries
        if kind.haystack == "needles":
            assert len(keys) > 15 and set(keys.values()) == {1}
        else:
            assert len(keys) == kind.keys and set(keys.values()) == {kind.values}
        assert question.extra["haystack"] == {"essays": "made prose"}.get(kind.haystack, kind.haystack)


def test_needles_lie_where_the_depth_says() -> None:
    """In noise the places can be counted: all forty depths come up, from the first line to the last."""
    seen = set()
    for question in questions(context([2000], count=150), "niah_single_1"):
        lines = question.text.split("\n")[1:-1]
        [place] = [number for number, line in enumerate(lines) if line != NOISE]
        assert place == round((len(lines) - 1) * question.extra["depth"] / 100)
        seen.add(question.extra["depth"])
    assert seen <= set(DEPTHS) and len(seen) > 30 and len(DEPTHS) == 40


def test_prompts_are_in_the_singular_for_one_value() -> None:
    [one] = questions(context([1024], count=1), "niah_single_3")
    assert one.text.startswith("A special magic uuid is hidden within the following text.")
    assert re.search(r"What is the special magic uuid for \S+ mentioned in the provided text\?$", one.text)
    [four] = questions(context([1024], count=1), "niah_multiquery")
    assert four.text.startswith("Some special magic numbers are hidden")
    assert re.search(r"What are all the special magic numbers for \S+, \S+, \S+, and \S+ mentioned", four.text)
    assert four.extra["prefix"].endswith("mentioned in the provided text are")


def test_chains_can_be_followed() -> None:
    for question in questions(context([2000], count=5), "vt"):
        main = question.text.rsplit("Memorize and track", 1)[1]
        [(first, number)] = re.findall(r"VAR ([A-Z]{5}) = (\d{5})", main)
        found, links = [first], dict(re.findall(r"VAR ([A-Z]{5}) = VAR ([A-Z]{5})", main))
        while later := [name for name, earlier in links.items() if earlier == found[-1]]:
            assert main.index(f"VAR {later[0]} = VAR") > main.index(f"VAR {found[-1]} =")
            found += later
        assert tuple(found) == tuple(question.target) and len(found) == 5
        assert f"assigned the value {number} in the text above" in main
        assert question.text.count("Memorize and track") == 2  # a solved example comes first


@pytest.mark.parametrize(("length", "often", "seldom"), [(3000, 6, 1), (8192, 30, 3)])
def test_common_words_are_the_most_common(length: int, often: int, seldom: int) -> None:
    for question in questions(context([length], count=3), "cwe"):
        main = question.text.rsplit("Below is a numbered list", 1)[1].split("\n")[1]
        counts = Counter(re.findall(r"\d+\. (\S+)", main))
        assert {counts.pop(word) for word in question.target} == {often}
        assert set(counts.values()) == {seldom} and len(question.target) == 10


def test_frequent_words_are_the_most_frequent() -> None:
    for question in questions(context([2000], count=5), "fwe"):
        text = question.text.split("coded words. ")[1].split("\n")[0]
        ranks = Counter(text.split()).most_common(5)
        assert [word for word, _ in ranks[:4]] == ["...", *question.target]
        assert len({count for _, count in ranks}) == 5  # no ties
        assert 0.55 < ranks[0][1] / len(text.split()) < 0.75  # 1 / zeta(2) of all


def test_questions_on_documents(qa_files: Path) -> None:
    of = context([1024], qa_files, count=30)
    for question in questions(of, "qa_1"):
        assert any(f"Document {place}:" in question.text for place in range(5, 40))
        assert question.target[0] in question.text and question.text.endswith("flow?")
    for question in questions(of, "qa_2"):
        assert f"{question.target[0]}\n{question.target[0]} is" in question.text
    asked = {question.text.rsplit("Question: ")[1] for question in questions(of, "qa_2")}
    assert len(asked) == 20  # all, and then again from the first


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"qa_1 asks about SQuAD 2.0: place dev-v2.0.json in .*ruler.*--subset niah"):
        questions(context([1024], tmp_path), "qa_1")
    with pytest.raises(DataError, match=r"place hotpot_dev_distractor_v1.json in FOLDER/ruler and give --data-dir"):
        questions(context([1024]), "qa_2")
    (tmp_path / "ruler").mkdir()
    for text, message in (
        ("{", "not valid JSON"),
        ('[{"question": "?"}]', "no field 'context'"),
        ("[]", "no questions"),
    ):
        (tmp_path / "ruler" / "hotpot_dev_distractor_v1.json").write_text(text)
        with pytest.raises(DataError, match=message):
            questions(context([1024], tmp_path), "qa_2")
    (tmp_path / "ruler" / "dev-v2.0.json").write_text('{"data": [{"paragraphs": [{"qas": 1, "context": "a"}]}]}')
    with pytest.raises(DataError, match="not as published"):
        questions(context([1024], tmp_path), "qa_1")


def test_the_users_essays_are_the_haystack(tmp_path: Path) -> None:
    (tmp_path / "ruler").mkdir()
    (tmp_path / "ruler" / "essays.json").write_text(json.dumps([{"text": "I wrote this. I wrote more of it."}]))
    [question] = questions(context([1024], tmp_path, count=1), "niah_single_2")
    assert "I wrote this. I wrote more of it. I wrote this." in question.text
    assert question.extra["haystack"] == "essays.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [300]}, "too short"),
        ({"lengths": ["4K"]}, "lengths must be whole numbers"),
        ({"lengths": [1024], "count": 0}, "count"),
    ],
)
def test_options_that_make_no_sense(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        questions(SourceContext(model=Words(), options=options), "niah_single_2")


def test_without_a_tokenizer_there_is_no_length() -> None:
    with pytest.raises(DataError, match="tokens"):
        questions(SourceContext(options={"lengths": [1024]}), "vt")


@pytest.mark.parametrize("mode", ["plain", "chat"])
def test_known_models_get_the_scores_that_arithmetic_says(mode: str, qa_files: Path, tmp_path: Path) -> None:
    task = task_of(ruler.BENCHMARK, context([1024, 2000], qa_files, count=2), mode)
    assert len(task.questions) == 13 * 2 * 2
    assert value(task, oracle(task), tmp_path / "a") == 1.0
    assert value(task, FakeModel(), tmp_path / "b") == 0.0
    prompt = task.prompt(task.questions[0])
    assert prompt.max_new_tokens == 128 and prompt.prefix.lstrip().startswith("The special magic number for")


def test_a_model_that_knows_one_task(qa_files: Path, tmp_path: Path) -> None:
    """Scores by task, by length, and the effective length."""
    task = task_of(ruler.BENCHMARK, context([1024, 2000], qa_files, count=2), "chat")
    knows = oracle(task)

    def answer(prompt: Any) -> str:
        short = len(Words().encode(prompt.shown())) < 1024
        return knows.answer(prompt) if short else knows.answer(prompt) * ("special magic" in prompt.prefix)

    scores = scored(task, FakeModel(answer), tmp_path)
    assert scores.lengths[1024].value == 1.0 and scores.lengths[2000].value == pytest.approx(8 / 13)
    assert scores.main.value == pytest.approx((1 + 8 / 13) / 2)
    assert scores.groups["vt"].value == 0.5 and scores.groups["niah_single_1"].value == 1.0
    assert scores.effective_length() == 1024
    table = ruler.by_task({name: one.value for name, one in scores.subsets.items()})
    assert table["cwe"] == {1024: 1.0, 2000: 0.0} and len(table) == 13


def test_scoring_is_by_definition() -> None:
    def accuracy(task: str, output: str) -> float:
        question = Question("1", "?", ["Alpha", "Beta"], f"{task}/4K", extra={"task": task})
        return ruler.verdict(question, [Output(text=output)]).scores["accuracy"]

    for task in ("niah_multivalue", "vt", "cwe", "fwe"):
        assert accuracy(task, "ALPHA and betas") == 1.0
        assert accuracy(task, "the alpha") == 0.5
        assert accuracy(task, "gamma") == 0.0
    assert accuracy("qa_1", "it is beta") == 1.0 and accuracy("qa_2", "no") == 0.0


def test_weighted_averages() -> None:
    """InternLM2.5-7B-Chat-1M's published line."""
    scores = dict(zip(ruler.LENGTHS, [88.1, 85.5, 84.5, 82.7, 75.5, 68.9], strict=True))
    assert ruler.weighted_average(scores) == pytest.approx(77.8, abs=0.05)
    assert ruler.weighted_average(scores, increasing=False) == pytest.approx(83.9, abs=0.05)


def test_subsets_are_tasks_and_lengths() -> None:
    names = ruler.subsets(context([4096, 1 << 20, 5000]))
    assert list(names)[:2] == ["niah_single_1/4K", "niah_single_2/4K"] and len(names) == 39
    assert names["vt/1M"] == "vt" and "cwe/5000" in names
    task = task_of(ruler.BENCHMARK, context([1024, 2000], count=1), "plain", subsets=["vt", "cwe/1K"])
    assert {one.subset for one in task.questions} == {"vt/1K", "vt/2000", "cwe/1K"}


def test_samples_of_the_published_tokenizer(shared_dir: Path) -> None:
    from puyulm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(shared_dir / "tokenizers" / "internlm2.model")
    model = FakeModel()
    model.encode = tokenizer.encode  # type: ignore[method-assign]
    of = context([32768], count=1, model=model)
    for task in ("niah_single_2", "vt", "cwe"):
        [question] = questions(of, task)
        assert 32768 - 400 < tokens(model, question) + ruler.RESERVE + ruler.NEW_TOKENS[task] <= 32768
