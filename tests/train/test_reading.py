"""What a run reads: the same rows whatever the layout, streams that go on through phases, data left out for good."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from puyulm.data.documents import Document
from puyulm.data.shards import TokenShards, tokenize_documents
from puyulm.data.shares import Shares
from puyulm.data.stream import TokenStream
from puyulm.errors import DataError, RecipeError
from puyulm.parallel.plan import ParallelPlan, micro_rows
from puyulm.train.course import Skips
from puyulm.train.mixture import open_mixture
from puyulm.train.phases import BatchRamp, Data, Phase, Timeline
from puyulm.train.reading import PhasedRows
from puyulm.train.settings import TrainSettings
from puyulm.train.sources import folder_labels, open_sources
from tests.data.conftest import ByteTokenizer, random_documents

NAMES = ("web", "code", "books")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`web`, `code` and `books`, each with a `train` of documents of one to two hundred tokens; books are few."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    for seed, (name, count) in enumerate(zip(NAMES, (40, 30, 2), strict=True)):
        documents = random_documents(rng.integers(1, 200, count).tolist(), seed)
        tokenize_documents(documents, ByteTokenizer(), folder / name / "train", shard_tokens=900)
    return folder


def mixed(folder: Path, **weights: float) -> dict[str, float]:
    return {str(folder / name / "train"): weight for name, weight in weights.items()}


def course_of(
    phases: list[Phase], data: list[Data], micro_tokens: int = 64, boundaries: bool = True, seed: int = 5
) -> PhasedRows:
    by_name = {phase.name: read for phase, read in zip(phases, data, strict=True)}
    sources = open_sources(by_name, seed, ByteTokenizer())  # type: ignore[arg-type]
    return PhasedRows(Timeline(phases, TrainSettings()), sources, micro_tokens, boundaries=boundaries)


def three_phases(folder: Path, **options: object) -> PhasedRows:
    """Short rows with a ramp, then long ones with other weights and a third source, then other data only."""
    phases = [
        Phase(name="short", steps=9, seq_len=16, batch_tokens=384, ramp=BatchRamp(start=96, increment=96, every=2)),
        Phase(name="long", steps=6, seq_len=48, batch_tokens=576),
        Phase(name="last", steps=4, seq_len=16, batch_tokens=192),
    ]
    data: list[Data] = [
        mixed(folder, web=0.7, code=0.3), mixed(folder, code=2, books=1, web=1), folder / "books" / "train",
    ]  # fmt: skip
    return course_of(phases, data, **options)  # type: ignore[arg-type]


def whole(course: PhasedRows, step: int, parts: int = 1, skips: Skips = ()) -> dict[str, list[int]]:
    """A step's global batch, from all its parts and micro-batches."""
    batches = [batch for part in range(parts) for batch in course.batches(step, part, parts, skips)]
    assert len({len(batch.tokens) for batch in batches}) == 1
    return {
        "tokens": np.concatenate([batch.tokens for batch in batches]).tolist(),
        "targets": np.concatenate([batch.targets for batch in batches]).tolist(),
        "sources": np.concatenate([np.atleast_1d(batch.sources) for batch in batches]).tolist(),
        "lengths": [length for batch in batches for length in batch.lengths],
        "bytes": [sum(batch.num_bytes for batch in batches)],
    }


@pytest.mark.parametrize("boundaries", [True, False])
def test_a_step_is_the_same_for_any_layout(folder: Path, boundaries: bool) -> None:
    one = three_phases(folder, micro_tokens=1 << 20, boundaries=boundaries)
    expected = [whole(one, step) for step in range(one.steps)]
    skipped = [whole(one, step, skips=(7, 12)) for step in range(7, one.steps)]
    assert [len(batch["tokens"]) for batch in expected] == [96] * 2 + [192] * 2 + [288] * 2 + [384] * 3 + [576] * 6 + [
        192
    ] * 4
    for parts in (1, 2, 3, 6):
        for micro_tokens in (1, 16, 33, 64, 100, 4096):
            course = three_phases(folder, micro_tokens=micro_tokens, boundaries=boundaries)
            assert [whole(course, step, parts) for step in range(course.steps)] == expected
            assert [whole(course, step, parts, (7, 12)) for step in range(7, course.steps)] == skipped
            for batch in course.batches(10, parts - 1, parts):
                assert len(batch.tokens) <= max(micro_tokens, 48)


class ByHand:
    """The reference: rows are taken one after another, each stream has a cursor, and going back moves none."""

    def __init__(self, course: PhasedRows, weights: list[list[float]]) -> None:
        self.timeline, self.streams = course.timeline, course.streams
        self.shares = [Shares(row, [stream.key for stream in self.streams]) for row in weights]
        self.cursors = [0] * len(self.streams)
        self.rows = [0] * len(weights)

    def step(self, step: int) -> list[int]:
        segment, tokens = self.timeline.segment(step), []
        seq_len = self.timeline.phases[segment.phase].seq_len
        for _ in range(segment.rows):
            source, _ = self.shares[segment.phase].find(self.rows[segment.phase])
            self.rows[segment.phase] += 1
            tokens += stretch(self.streams[source], self.cursors[source], seq_len)
            self.cursors[source] += seq_len
        return tokens

    def go_back(self, step: int) -> None:
        for later in range(self.timeline.segment(step).phase + 1, len(self.rows)):
            self.rows[later] = 0


def stretch(stream: TokenStream, position: int, count: int) -> list[int]:
    pieces = stream.pieces(position, count)
    return np.concatenate([stream.shards.slice(p.document, p.start, p.stop) for p in pieces]).tolist()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 19), st.integers(1, 19)), max_size=4))
@example([(8, 3), (14, 2), (15, 12)])  # within the first phase, within the second, from there into the first
@example([(11, 4), (13, 8), (17, 3), (19, 19)])
def test_every_row_once_whatever_is_left_out(folder: Path, rollbacks: list[tuple[int, int]]) -> None:
    """Going back by some steps at some steps, also over the beginnings of phases, again and again."""
    course = three_phases(folder)
    by_hand = ByHand(course, [[0.7, 0.3, 0], [1, 2, 1], [0, 0, 1]])
    skips: Skips = ()
    step = 0
    while step < course.steps:
        assert course.positions(step, skips) == by_hand.cursors
        assert course.epochs(step, skips) == pytest.approx({
            stream.label: cursor / stream.shards.num_tokens
            for stream, cursor in zip(course.streams, by_hand.cursors, strict=True)
        })  # fmt: skip
        assert whole(course, step, skips=skips)["tokens"] == by_hand.step(step)
        step += 1
        if rollbacks and step >= rollbacks[0][0]:
            back = max(step - rollbacks.pop(0)[1], 0)
            skips = course.skip(back, step - 1, skips)
            by_hand.go_back(back)
            step = back
    assert course.positions(step, skips) == by_hand.cursors


def test_going_back_over_a_phase_skips_what_both_have_read(folder: Path) -> None:
    """Not so where a phase's rows are counted apart: the first phase would read what made the second fail."""
    course = three_phases(folder)
    first, second = course.timeline.phase_steps(0), course.timeline.phase_steps(1)
    skips = course.skip(first.stop - 2, second.start + 1)
    assert skips == (7, 11)
    assert course.positions(7, skips) == course.positions(11)
    assert course.positions(7, skips) != course.positions(7)


def test_streams_do_not_depend_on_what_else_is_read(folder: Path, tmp_path: Path) -> None:
    """A source more, another order, another place, another spelling: the rows of the others stay as they were."""
    phases = [
        Phase(name="a", steps=5, seq_len=16, batch_tokens=160),
        Phase(name="b", steps=5, seq_len=32, batch_tokens=320),
    ]
    before = course_of(phases, [mixed(folder, web=2, code=1)] * 2)
    after = course_of(phases, [mixed(folder, code=1, web=2), mixed(folder, books=1, code=1, web=2)])
    (tmp_path / "moved").symlink_to(folder)
    moved = course_of(phases, [mixed(tmp_path / "moved", code=1, web=2), mixed(folder, web=2, code=1)])
    for step in range(5):
        assert whole(after, step)["tokens"] == whole(before, step)["tokens"] == whole(moved, step)["tokens"]
    for step in range(5, 10):
        assert whole(moved, step)["tokens"] == whole(before, step)["tokens"]
    for stream in before.streams:
        other = next(s for s in after.streams if s.label == stream.label)
        assert stretch(other, 0, 500) == stretch(stream, 0, 500)
    assert len(moved.streams) == 2
    assert (
        whole(course_of(phases, [mixed(folder, web=2, code=1)] * 2, seed=6), 0)["tokens"] != whole(before, 0)["tokens"]
    )


def test_relative_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    phases = [Phase(steps=2, seq_len=16, batch_tokens=160)]
    course = course_of(phases, [{"web/train": 1, "./code/train": 1}])
    assert course.sources[0].startswith("web/") and list(course.epochs(2)) == ["web", "code"]
    assert whole(course, 1) == whole(course_of(phases, [mixed(folder, web=1, code=1)]), 1)


def test_a_corpus_smaller_than_a_row_is_read_again_and_again(tmp_path: Path) -> None:
    tokenize_documents(random_documents([2, 1]), ByteTokenizer(), tmp_path / "tiny")
    course = course_of([Phase(steps=10, seq_len=23, batch_tokens=23)], [tmp_path / "tiny"])
    assert course.epochs(10) == {"tiny": 46.0}
    (batch,) = course.batches(0, 0, 1)
    assert len(batch.tokens) == 23 and sum(length == 2 for length in batch.lengths) in (4, 5)
    assert course.notes() == ["tiny is read 46.0 times; text that comes more than 4 times teaches little"]
    assert course.phase(3) == ""


def documents_of(*sources: tuple[str, str]) -> list[Document]:
    return [Document(f"{i}", "text" * (i + 1), language, source) for i, (source, language) in enumerate(sources)]


def test_names_that_losses_are_told_apart_by(tmp_path: Path) -> None:
    one, two, plain = (tmp_path / name / "train" for name in ("one", "two", "plain"))
    tokenize_documents(documents_of(("crawl", "en"), ("crawl", "zh"), ("books", "en"), ("", "")), ByteTokenizer(), one)
    tokenize_documents(documents_of(("books", "fr"), ("crawl", "en"), ("wiki", "en")), ByteTokenizer(), two)
    tokenize_documents(documents_of(("x", "en")), ByteTokenizer(), plain)
    first, second = (Phase(name=name, steps=2, seq_len=8, batch_tokens=16) for name in "ab")

    def names(*data: Data) -> list[str]:
        return list(course_of([first, second][: len(data)], list(data)).sources)

    assert names(one) == ["crawl/en", "crawl/zh", "books", "none"]
    assert names(one, two) == ["crawl/en", "crawl/zh", "books", "none", "crawl", "wiki"]
    assert names({str(one): 1, str(plain): 2}) == ["one/crawl/en", "one/crawl/zh", "one/books", "one/none", "plain"]
    assert names({str(two): 1, str(plain): 0}, two) == ["books", "crawl", "wiki", "x"]
    assert names(plain) == []
    assert course_of([first], [plain]).batches(0, 0, 1)[0].sources is None
    (batch,) = course_of([first], [one]).batches(0, 0, 1)
    assert batch.sources is not None and len(batch.sources) == 16


def test_many_sources_are_told_apart_by_their_size(tmp_path: Path) -> None:
    documents = [Document(f"{i}", "word " * (200 - i), "en", f"s{i:02d}") for i in range(80)]
    shards = tokenize_documents(documents, ByteTokenizer(), tmp_path / "many")
    epoch = shards.num_tokens
    course = course_of([Phase(steps=1, seq_len=epoch, batch_tokens=epoch)], [tmp_path / "many"])
    assert course.sources == [*(f"s{i:02d}" for i in range(63)), "others"]
    (batch,) = course.batches(0, 0, 1)
    assert batch.sources is not None
    tokens = [source.tokens for source in shards.sources]
    assert np.bincount(batch.sources).tolist() == [*tokens[:63], sum(tokens[63:])]


def test_labels_of_folders() -> None:
    def labels(*folders: str) -> list[str]:
        return folder_labels([Path(folder) for folder in folders])

    assert labels("a/web/train", "a/code/train") == ["web", "code"]
    assert labels("a/web/train", "a/code/x/train") == ["web", "code/x"]
    assert labels("/data/x", "/data/x/more") == ["x", "x/more"]
    assert labels("some/where/train") == ["train"]


def test_loss_per_byte_weighs_what_is_read(folder: Path) -> None:
    phase = Phase(steps=10, seq_len=16, batch_tokens=160)
    shards = {name: TokenShards.open(folder / name / "train") for name in NAMES}
    course = course_of([phase], [mixed(folder, web=3, books=1, code=0)])
    parts = course.epochs(10)
    assert parts["code"] == 0
    targets = sum(parts[name] * (part.num_tokens - part.num_documents) for name, part in shards.items())
    size = sum(parts[name] * part.num_bytes for name, part in shards.items())
    assert course.bits_per_byte_factor == pytest.approx(targets / size / math.log(2))
    plain = course_of([phase], [folder / "web" / "train"], boundaries=False)
    assert plain.bits_per_byte_factor == pytest.approx(shards["web"].num_tokens / shards["web"].num_bytes / math.log(2))


def test_rows_must_be_divisible(folder: Path) -> None:
    course = three_phases(folder, micro_tokens=96)
    course.check(ParallelPlan(replicate=3, shard=2))
    with pytest.raises(RecipeError) as error:
        course.check(ParallelPlan(replicate=1, shard=4))
    assert str(error.value) == (
        "phase short: 6 rows of 16 tokens a step cannot be divided among 4 ranks (replicate x shard); make ramp.start "
        "and ramp.increment multiples of 64"
    )
    with pytest.raises(
        RecipeError, match=r"phase last: 12 rows .* among 24 ranks .* make batch_tokens multiples of 384"
    ):
        course_of([Phase(name="last", steps=4, seq_len=16, batch_tokens=192)], [folder / "web" / "train"]).check(
            ParallelPlan(replicate=24, shard=1)
        )
    with pytest.raises(RecipeError, match=r"phase short: a pipeline of 2 ranks"):
        course.check(ParallelPlan(shard=1, pipeline=2))


@pytest.mark.parametrize(("rows", "most", "size"), [(12, 5, 4), (12, 0, 1), (7, 4, 1), (7, 9, 7), (1, 1, 1), (0, 3, 3)])
def test_micro_batches_are_of_one_size(rows: int, most: int, size: int) -> None:
    assert micro_rows(rows, most) == (1 if rows == 0 else size)


def test_bad_data(folder: Path, tmp_path: Path) -> None:
    phase = Phase(name="p", steps=1, seq_len=8, batch_tokens=8)
    web = folder / "web" / "train"
    with pytest.raises(DataError, match=r"no token shards at .*nowhere"):
        course_of([phase], [folder / "nowhere"])
    for weights, shown in (({str(web): 0.0}, "train: 0"), ({str(web): -1.0}, "train: -1"), ({}, "nothing"),
                           ({str(web): float("nan")}, "train: nan")):  # fmt: skip
        with pytest.raises(DataError, match=rf"phase p: the weights of data must be 0 or more, .* found .*{shown}"):
            course_of([phase], [weights])
    (tmp_path / "copy").symlink_to(web)
    with pytest.raises(DataError, match=r"phase p: .*train and .*copy hold the same tokens"):
        course_of([phase], [{str(web): 1.0, str(tmp_path / "copy"): 1.0}])
    with pytest.raises(DataError, match="another tokenizer"):
        open_sources({"p": web}, 0, ByteTokenizer(300))  # type: ignore[arg-type]


def test_notes(folder: Path) -> None:
    phases = [
        Phase(name="a", tokens=1000, seq_len=16, batch_tokens=160),
        Phase(name="b", tokens=3200, seq_len=16, batch_tokens=320),
    ]
    course = course_of(phases, [folder / "web" / "train", mixed(folder, books=1, web=1)])
    books = TokenShards.open(folder / "books" / "train").num_tokens
    assert course.notes() == [
        "phase a takes 1,120 tokens instead of 1,000: whole steps of 160",
        f"books is read {1600 / books:.1f} times; text that comes more than 4 times teaches little",
    ]


@pytest.fixture
def mixture_folder(tmp_path: Path) -> Path:
    facts = [{"name": name, "folder": f"{name}/train", "tokens": tokens, "sequence_length": length}
             for name, tokens, length in (("one", 1000, None), ("two", 500, 32))]  # fmt: skip
    (tmp_path / "06-mix").mkdir()
    (tmp_path / "06-mix" / "mixture.json").write_text(json.dumps({"phases": facts}))
    return tmp_path / "06-mix"


def phases_named(*names: str) -> Iterator[Phase]:
    for name in names:
        yield Phase(name=name, tokens=1000, seq_len=8, batch_tokens=80)


def test_the_parts_of_a_mixture(mixture_folder: Path) -> None:
    phases = list(phases_named("one", "two"))
    mixture = open_mixture(mixture_folder, phases)
    assert mixture.train("two") == mixture_folder / "two" / "train" and mixture.valid is None
    (mixture_folder / "valid").mkdir()
    assert open_mixture(mixture_folder, phases).valid == mixture_folder / "valid"
    assert mixture.notes(Timeline(phases, TrainSettings())) == [
        "phase one takes 1,040 tokens, but the mixture has 1,000 for it: they are read 1.04 times; mix more, or lower "
        "the phase's tokens",
        "phase two takes 1,040 tokens, but the mixture has 500 for it: they are read 2.08 times; mix more, or lower "
        "the phase's tokens",
        "phase two has rows of 8 tokens, but was mixed for a context of 32",
    ]
    elsewhere = [replace(phase, data=Path("x")) for phase in phases_named("three")]
    assert open_mixture(mixture_folder, elsewhere).notes(Timeline(elsewhere, TrainSettings())) == []


def test_what_a_mixture_lacks(mixture_folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"phase three: the mixture .* has no phase of this name, but one, two; name"):
        open_mixture(mixture_folder, phases_named("one", "three"))
    with pytest.raises(RecipeError, match=r"holds no mixture.json; did you mean .*/06-mix\?"):
        open_mixture(mixture_folder.parent, [])
    with pytest.raises(RecipeError, match=r"holds no mixture.json; give the folder of a stage mix"):
        open_mixture(mixture_folder / "nowhere", [])
    (mixture_folder / "mixture.json").write_text('{"phases": [{}]}')
    with pytest.raises(RecipeError, match=r"mixture.json cannot be read .* run the stage mix again"):
        open_mixture(mixture_folder, [])
