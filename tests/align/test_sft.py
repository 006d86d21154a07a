"""Fine-tuning: what is trained on, how conversations are packed, and a whole run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from puyulm.align.conversations import ConversationBatches, Sample, load_samples, make_sample
from puyulm.align.sft import SFTRecipe, sft
from puyulm.cli import main
from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.engine.load import load_chat_model
from puyulm.errors import DataError, RecipeError, TrainError
from puyulm.eval.engine_model import EngineModel
from puyulm.eval.exact import exact_benchmark
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Setting, make_task
from puyulm.model.checkpoint import load_config, save_model
from puyulm.recipe import load_recipe
from puyulm.text.chat import Message, chat_format_for, render
from puyulm.text.template import render_template
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.metrics import read_json_lines
from puyulm.train.pretrain import PretrainRecipe
from puyulm.train.settings import TrainSettings
from puyulm.train.step import to_device
from tests.conftest import tiny_config, tiny_decoder
from tests.text.small_tokenizers import CHATML, small_tokenizer
from tests.train.runs import tiny_model

PAIRS = {"Say one.": "1", "Say two.": "22", "说三。": "三", "Say four.": "fourfourfour"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"), CHATML)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A checkpoint with fresh weights."""
    folder = tmp_path_factory.mktemp("base") / "model"
    decoder = tiny_decoder(family="internlm3", vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    save_model(decoder, folder, write_extra=tokenizer.save)
    return folder


def write_rows(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*pairs: tuple[str, str]) -> dict[str, object]:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    return {"messages": [message for turn in turns for message in turn]}


def load(path: Path, tokenizer: Tokenizer, seq_len: int = 256, on_long: str = "cut"):  # type: ignore[no-untyped-def]
    return load_samples([path], tokenizer, chat_format_for("internlm3", tokenizer), seq_len, on_long)


def test_targets_are_the_answers_shifted_by_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What is to be predicted, read off the targets: every answer with its end of turn, and nothing else."""
    path = write_rows(tmp_path / "a.jsonl", [chat(("Say one.", "1"), ("And more?", "two words"))])
    (sample,) = load(path, tokenizer).samples
    trained = sample.targets != IGNORE
    assert tokenizer.decode(sample.targets[trained].tolist()) == "1<|im_end|>two words<|im_end|>"
    ids = render([Message("user", "Say one.")], tokenizer, chat_format_for("internlm3", tokenizer),
                 add_generation_prompt=True).ids  # fmt: skip
    first = int(trained.nonzero()[0][0])
    assert sample.tokens[: first + 1].tolist() == ids  # the answer is predicted from the whole prompt
    assert sample.targets[first] == sample.tokens[first + 1]
    assert trained[-1], "what follows the last trained token is left out"


def test_samples_of_one_and_of_none() -> None:
    sample = make_sample([5, 6, 7, 8], [False, False, True, False])
    assert sample is not None
    assert sample.tokens.tolist() == [5, 6] and sample.targets.tolist() == [IGNORE, 7]
    assert make_sample([5, 6, 7], [True, False, False]) is None  # nothing precedes the first token
    assert make_sample([5, 6, 7], [False, False, True], limit=1) is None


def test_long_conversations_are_cut_or_dropped_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    short, long_answer, long_question = chat(("a", "b")), chat(("a", "b" * 90)), chat(("a" * 90, "b"))
    silent = {"messages": [{"role": "user", "content": "a"}]}
    unlearned = {"messages": [*chat(("a", "b"))["messages"]]}  # type: ignore[misc]
    unlearned["messages"][1] = {**unlearned["messages"][1], "loss": False}
    path = write_rows(tmp_path / "a.jsonl", [short, long_answer, long_question, silent, unlearned])
    cut = load(path, tokenizer, seq_len=40)
    assert [len(sample.tokens) for sample in cut.samples][1:] == [40]
    assert (cut.cut, cut.dropped, cut.untrained) == (1, 1, 2)
    assert all((sample.targets != IGNORE).any() for sample in cut.samples)
    assert "2 longer than 40 tokens: 1 cut, 1 dropped\n2 dropped: no message" in cut.summary(40)
    assert "2 conversations" in cut.summary(40)
    dropped = load(path, tokenizer, seq_len=40, on_long="drop")
    assert (len(dropped.samples), dropped.cut, dropped.dropped) == (1, 0, 2)
    with pytest.raises(DataError, match="nothing to train on: 0 conversations"):
        load(write_rows(tmp_path / "b.jsonl", [long_question, silent]), tokenizer, seq_len=40)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{nonsense", "not JSON"),
        ('{"text": "a"}', r'expected \{"messages"'),
        ("[]", r'expected \{"messages"'),
        ('{"messages": [{"role": "wizard", "content": "a"}]}', "wizard"),
        ('{"messages": [{"role": "user"}]}', "content"),
        ('{"messages": []}', "no messages"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, tokenizer: Tokenizer, row: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(chat(("a", "b"))) + "\n\n" + row + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:3: .*{message}"):
        load(path, tokenizer)


def test_a_missing_file_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"cannot read conversations: .*none\.jsonl: No such file"):
        load(tmp_path / "none.jsonl", tokenizer)


def numbered(lengths: list[int]) -> list[Sample]:
    """Samples whose tokens all say which sample they are."""
    return [Sample(np.full(n, i, dtype=np.int64), np.full(n, i, dtype=np.int64)) for i, n in enumerate(lengths)]


def test_every_epoch_is_every_sample_once_in_another_order() -> None:
    lengths = [3, 9, 1, 7, 12, 5, 2, 8]
    batches = ConversationBatches(numbered(lengths), seq_len=12, rows_per_batch=2, seed=4)
    orders = []
    for epoch in range(3):
        first, last = batches.batches_in(epoch), batches.batches_in(epoch + 1)
        packed = [batches.batch(step) for step in range(first, last)]
        assert all(len(batch.tokens) == sum(batch.lengths) <= 24 for batch in packed)
        documents = [part for batch in packed for part in np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])]
        order = [int(document[0]) for document in documents]
        assert sorted(order) == list(range(8)) and [len(document) for document in documents] == [
            lengths[i] for i in order
        ]
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


def test_batches_are_found_by_number_in_any_order() -> None:
    samples = numbered([3, 9, 1, 7, 12, 5, 2, 8])
    one, other = (ConversationBatches(samples, 12, 1, seed=1) for _ in range(2))
    forwards = [one.batch(step).tokens.tolist() for step in range(20)]
    backwards = [other.batch(step).tokens.tolist() for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    in_order = [int(token) for batch in one.in_order() for token in dict.fromkeys(batch.tokens.tolist())]
    assert in_order == list(range(8))


def test_packed_conversations_do_not_see_each_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Loss and gradients of a packed batch equal those of its conversations one by one."""
    path = write_rows(tmp_path / "a.jsonl", [chat(pair, ("Again!", pair[1])) for pair in PAIRS.items()])
    samples = load(path, tokenizer).samples
    packed = ConversationBatches(samples, 256, 8, seed=0).batch(0)
    assert len(packed.lengths) == len(PAIRS)
    results = []
    for batches in ([packed], [PackedBatch(s.tokens, s.targets, [len(s.tokens)], 0) for s in samples]):
        model = tiny_model(vocab_size=tokenizer.vocab_size)
        loss, _ = model.forward_backward(to_device(model, batches), packed.num_targets)
        results.append((loss.item(), [parameter.grad for parameter in model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for together, apart in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)


def recipe(tmp_path: Path, base: Path, **changes: object) -> SFTRecipe:
    data = write_rows(tmp_path / "train.jsonl", [chat(pair) for pair in PAIRS.items()])
    values: dict[str, object] = {
        "model": str(base), "data": (data,), "valid": data, "seq_len": 64, "rows_per_batch": 4, "epochs": 40,
        "settings": TrainSettings(lr=1e-2, warmup_ratio=0.1, device="cpu", eval_every=20), "out": tmp_path / "out",
    }  # fmt: skip
    return SFTRecipe(**{**values, **changes})  # type: ignore[arg-type]


def test_a_whole_run_learns_its_answers(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = sft(recipe(tmp_path, base))
    printed = capsys.readouterr().err
    assert "sft: 4 conversations" in printed and result.steps == 40 and result.validation["loss"] < 0.1
    assert [row["step"] for row in read_json_lines(tmp_path / "out" / "validation.jsonl")] == [20, 40]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"prompt": a, "answer": b}) + "\n" for a, b in PAIRS.items()))
    task = make_task(exact_benchmark(items), Setting(mode="chat", max_new_tokens=16), SourceContext())
    for path, expected in ((base, 0), (tmp_path / "out" / "model", len(PAIRS))):
        chat = load_chat_model(str(path), device="cpu")
        samples = run_task(task, EngineModel(chat, "tuned"), tmp_path / "finished").values()
        assert sum(sample.scores["accuracy"] for sample in samples) == expected, samples
    assert chat.tokenizer.token_to_id("<|im_end|>") in load_config(path).eos_token_ids
    assert all(sample.finish_reason == "stop" for sample in samples)


def test_the_base_model_is_part_of_the_run(tmp_path: Path, base: Path, tokenizer: Tokenizer) -> None:
    short = recipe(tmp_path, base, epochs=1)
    sft(short)
    other = tmp_path / "other"
    save_model(tiny_decoder(seed=9, family="internlm3", vocab_size=tokenizer.vocab_size), other,
               write_extra=tokenizer.save)  # fmt: skip
    with pytest.raises(TrainError, match=r"another recipe or data: model \(content\)"):
        sft(recipe(tmp_path, other, epochs=1))
    state = sorted(path.relative_to(tmp_path) for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(DataError, match="typo"):  # a mistake costs nothing of the old run
        sft(recipe(tmp_path, other, epochs=1, data=(tmp_path / "typo.jsonl",)), overwrite=True)
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "out").rglob("*")) == state
    assert sft(recipe(tmp_path, other, epochs=1), overwrite=True).steps == 1


def test_the_model_brings_the_template_it_was_trained_with(tmp_path: Path, base: Path) -> None:
    sft(recipe(tmp_path, base, epochs=1))
    tuned = Tokenizer.load(tmp_path / "out" / "model")
    assert tuned.chat_template is not None
    messages, chat_format = [Message("user", "Say one.")], chat_format_for("internlm3", tuned)
    expected = render(messages, tuned, chat_format, add_generation_prompt=True).ids
    assert render_template(messages, tuned, tuned.chat_template, add_generation_prompt=True) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "either epochs or steps"),
        ({"steps": 3}, "either epochs or steps"),
        ({"accumulation": 0}, "accumulation must be above 0"),
        ({"data": ()}, "at least one file"),
        ({"seq_len": 0}, "seq_len must be above 0"),
        ({"epochs": 0}, "epochs must be above 0"),
    ],
)
def test_recipes_that_make_no_sense(tmp_path: Path, base: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, base, **changes)


def test_a_reward_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    decoder = tiny_decoder(vocab_size=tokenizer.vocab_size, head="reward", reward_token_id=3)
    save_model(decoder, tmp_path / "reward", write_extra=tokenizer.save)
    assert load_config(tmp_path / "reward").head == "reward" and tiny_config().head == "lm"
    with pytest.raises(RecipeError, match="is a reward model"):
        sft(recipe(tmp_path, tmp_path / "reward"))


def test_the_verbs(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`puyu sft` with a recipe of the folder, then `puyu eval` on what came out."""
    data = write_rows(tmp_path / "train.jsonl", [chat(pair) for pair in PAIRS.items()])
    path = tmp_path / "sft.yaml"
    path.write_text(
        f"model: {base}\ndata: [{data}]\nseq_len: 64\nrows_per_batch: 4\nepochs: 2\n"
        f"settings: {{lr: 1e-2, device: cpu}}\nout: {tmp_path}/out\n"
    )
    assert main(["sft", str(path), "--epochs", "30", "--print-recipe"]) == 0
    assert "epochs: 30\n" in capsys.readouterr().out
    assert main(["sft", str(path), "--epochs", "30"]) == 0
    assert f"{tmp_path}/out/model: 30 steps" in capsys.readouterr().out
    items = write_rows(tmp_path / "items.jsonl", [{"prompt": q, "answer": a, "kind": "say"} for q, a in PAIRS.items()])
    command = ["eval", f"{tmp_path}/out/model", "--items", str(items), "--out", f"{tmp_path}/scores"]
    assert main([*command, "--limit", "3"]) == 0
    assert re.search(r"items +0-shot chat +3 +100\.0 ", capsys.readouterr().out)
    assert len((tmp_path / "scores" / "judged" / "items.jsonl").read_text().splitlines()) == 3
    assert main([*command, "--base", "--shots", "1", "--examples", str(items)]) == 0
    assert re.search(r"items +1-shot plain +4 ", capsys.readouterr().out)
    assert main([*command, "--shots", "1"]) == 2
    assert "there are no examples for its prompts" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "cls"), [("pretrain", PretrainRecipe), ("sft", SFTRecipe)])
def test_the_recipes_of_the_demo_are_valid(name: str, cls: type) -> None:
    load_recipe(cls, Path(__file__).resolve().parents[2] / "recipes" / "demo" / f"{name}.yaml")
