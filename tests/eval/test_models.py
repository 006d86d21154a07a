"""One model in four places: our engine, an endpoint, Ray's workers, transformers. All must give the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from puyulm.engine.config import EngineConfig
from puyulm.engine.load import load_chat_model
from puyulm.errors import GenerationError
from puyulm.eval.endpoint_model import EndpointModel
from puyulm.eval.engine_model import EngineModel, encode_pairs, fingerprint
from puyulm.eval.model import Continuation, Judged, LanguageModel, Output, Prompt, PromptError, Sampling
from puyulm.model.checkpoint import save_model
from puyulm.text.messages import Message
from puyulm.text.tokenizer import Tokenizer
from tests.conftest import tiny_decoder

CONTEXT = "A long beginning that all questions have in common, so that blocks are shared. " * 3
CONTINUATIONS = [
    *(Continuation(CONTEXT + "Answer:", f" {letter}") for letter in "ABCD"),
    *(Continuation(CONTEXT + "Answer: ", text) for text in ("yes indeed", "no", "一二三")),
    Continuation("", "A text without a beginning."),
]
PROMPTS = [
    Prompt(messages=(Message("user", "Say something."),), max_new_tokens=12),
    Prompt(messages=(Message("system", "Be brief."), Message("user", "你好")), max_new_tokens=8, prefix="I say:"),
    Prompt(text="Once upon a time", max_new_tokens=10),
]


def engine_model(folder: Path) -> EngineModel:
    chat = load_chat_model(str(folder), device="cpu", chat_format="chatml")
    return EngineModel(chat, "tiny", EngineConfig(memory=4 << 20))


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> EngineModel:
    return engine_model(checkpoint)


def judged(model: LanguageModel) -> list[Judged]:
    found: dict[int, Judged] = {}
    model.judge(CONTINUATIONS, found.__setitem__)
    return [found[index] for index in range(len(CONTINUATIONS))]


def answers(model: LanguageModel, prompts: list[Prompt] = PROMPTS) -> list[Output]:
    found: dict[int, Output] = {}
    model.generate(prompts, found.__setitem__)
    return [found[index] for index in range(len(prompts))]


def same_likelihoods(ours: list[Judged], theirs: list[Judged], places: slice = slice(None)) -> bool:
    pairs = list(zip(ours, theirs, strict=True))[places]
    return all(a.logprob == pytest.approx(b.logprob, abs=2e-4) and a.tokens == b.tokens for a, b in pairs)


def test_single_tokens_are_judged_as_whole_sequences_are(ours: EngineModel) -> None:
    """The shortcut (one forward for all choices) against the plain way."""
    tokenizer = ours.engine.tokenizer
    assert tokenizer is not None
    found = judged(ours)
    ids = [tokenizer.encode(one.context + one.text, bos=True) for one in CONTINUATIONS[:4]]
    starts = [len(tokenizer.encode(one.context, bos=True)) for one in CONTINUATIONS[:4]]
    whole = ours.engine.logprobs(ids, starts)
    assert [one.logprob for one in found[:4]] == pytest.approx([sum(row) for row in whole], abs=1e-5)
    assert len({one.logprob for one in found[:4]}) == 4


def test_a_text_that_joins_the_last_token_is_still_judged(ours: EngineModel) -> None:
    """Nothing would be certain: log-probability 0, above every other choice."""
    tokenizer = ours.engine.tokenizer
    assert tokenizer is not None
    [word] = [text for text in ("the", "is", "of", "that") if len(tokenizer.encode(f" {text}")) == 1][:1]
    cut, whole = Continuation(f"All {word[0]}", word[1:]), tokenizer.encode(f"All {word}")
    [(start, ids)] = encode_pairs(tokenizer, [cut])
    assert ids[-len(whole) :] == whole and start == len(ids) - 1
    found: list[Judged] = []
    ours.judge([cut, Continuation("", ""), Continuation("All", "")], lambda _, judged: found.append(judged))
    assert sorted((one.tokens, one.logprob < 0) for one in found) == [(0, False), (0, False), (1, True)]


def test_transformers_agrees(checkpoint: Path, ours: EngineModel) -> None:
    pytest.importorskip("transformers")
    from puyulm.eval.transformers_model import TransformersModel
    from puyulm.text.chat import find_chat_format

    theirs = TransformersModel(checkpoint, "tiny", find_chat_format("chatml"))
    assert same_likelihoods(judged(ours), judged(theirs))
    assert [one.text for one in answers(ours)] == [one.text for one in answers(theirs)]
    assert [one.finish_reason for one in answers(ours)] == [one.finish_reason for one in answers(theirs)]


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    for package in ("fastapi", "uvicorn", "prometheus_client", "llguidance", "openai", "httpx"):
        pytest.importorskip(package)
    from tests.serve.servers import running

    with running(checkpoint, chat_format="chatml") as server:
        yield f"{server.url}/v1"


def test_an_endpoint_agrees(url: str, checkpoint: Path, ours: EngineModel) -> None:
    theirs = EndpointModel(url, tokenizer=Tokenizer.load(checkpoint))
    assert same_likelihoods(judged(ours), judged(theirs), slice(0, 7))
    assert [one.text for one in answers(ours)] == [one.text for one in answers(theirs)]
    assert theirs.decode(theirs.encode("你好")) == "你好"
    [first] = answers(theirs, [Prompt(messages=PROMPTS[0].messages, max_new_tokens=1, top_logprobs=3)])
    [own] = answers(ours, [Prompt(messages=PROMPTS[0].messages, max_new_tokens=1, top_logprobs=3)])
    assert sorted(first.top_logprobs.values()) == pytest.approx(sorted(own.top_logprobs.values()), abs=1e-3)
    theirs.close()


def test_an_endpoint_says_what_is_wrong(url: str) -> None:
    with pytest.raises(GenerationError, match="status 404"):
        answers(EndpointModel(url, "no-such-model"), PROMPTS[:1])
    with pytest.raises(GenerationError, match="counts tokens: name the model's tokenizer"):
        EndpointModel(url).encode("a")
    with pytest.raises(GenerationError, match=r"not answer in JSON|status 40[45]"):
        EndpointModel(url.removesuffix("/v1") + "/metrics")


def test_a_busy_endpoint_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    httpx = pytest.importorskip("httpx")
    waits: list[float] = []
    monkeypatch.setattr("puyulm.eval.endpoint_model.time.sleep", waits.append)
    replies = [
        httpx.Response(503, json={"error": {"message": "busy"}}),
        httpx.Response(200, json={"data": [{"id": "m"}]}),
    ]
    monkeypatch.setattr(httpx.Client, "request", lambda *_, **__: replies.pop(0))
    assert EndpointModel("http://localhost:1/v1").name == "m" and waits == [0.5]
    monkeypatch.setattr(
        httpx.Client, "request", lambda *_, **__: httpx.Response(503, json={"error": {"message": "busy"}})
    )
    with pytest.raises(GenerationError, match="status 503: busy"):
        EndpointModel("http://localhost:1/v1")


def test_an_endpoint_that_is_interrupted_does_not_wait_for_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    httpx = pytest.importorskip("httpx")
    forever = threading.Event()

    def answer(client: object, method: str, url: str, json: dict[str, object]) -> object:
        if json["prompt"] != "first":
            forever.wait()
        return httpx.Response(200, json={"choices": [{"text": "yes"}]})

    monkeypatch.setattr(httpx.Client, "request", answer)

    def interrupt(index: int, output: Output) -> None:
        assert (index, output.text) == (0, "yes")
        raise KeyboardInterrupt

    model = EndpointModel("http://localhost:1/v1", "m", concurrency=4)
    with pytest.raises(KeyboardInterrupt):
        model.generate([Prompt(text=text) for text in ("first", *"abcdefgh")], interrupt)
    forever.set()


def test_what_an_endpoint_refuses_is_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    httpx = pytest.importorskip("httpx")

    def answer(client: object, method: str, url: str, json: dict[str, object]) -> object:
        if json["prompt"] == "b":
            return httpx.Response(400, json={"error": {"message": "too long"}})
        return httpx.Response(200, json={"choices": [{"text": "yes"}]})

    monkeypatch.setattr(httpx.Client, "request", answer)
    with pytest.raises(PromptError, match="status 400: too long") as caught:
        answers(EndpointModel("http://localhost:1/v1", "m"), [Prompt(text=text) for text in "aba"])
    assert caught.value.index == 1


def test_draws_are_the_same_whatever_else_is_asked(ours: EngineModel) -> None:
    drawn = [
        Prompt(messages=PROMPTS[0].messages, max_new_tokens=12, sampling=Sampling(temperature=1.0, seed=seed))
        for seed in range(6)
    ]
    texts = [one.text for one in answers(ours, drawn)]
    assert texts[2] == answers(ours, [drawn[2]])[0].text and len(set(texts)) > 1


def test_too_long_prompts_are_refused(ours: EngineModel) -> None:
    with pytest.raises(PromptError, match="context is 512") as caught:
        answers(ours, [Prompt(text="a"), Prompt(text="a b c d " * 500)])
    assert caught.value.index == 1
    with pytest.raises(PromptError, match="context is 512") as caught:
        ours.judge([Continuation("a", " b"), Continuation("a", " b c d" * 500)], lambda index, judged: None)
    assert caught.value.index == 1


def test_a_fingerprint_follows_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        save_model(tiny_decoder(seed), tmp_path / name)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "a")


def test_a_fingerprint_follows_the_way_a_model_is_used(checkpoint: Path, ours: EngineModel) -> None:
    chat, config = load_chat_model(str(checkpoint), device="cpu", chat_format="internlm"), EngineConfig(memory=4 << 20)
    others = [EngineModel(chat, "tiny", config), EngineModel(chat, "tiny", config, own_template=True),
              EngineModel(chat, "tiny", config, loaded="int4")]  # fmt: skip
    assert len({one.fingerprint for one in (ours, *others)}) == 4
    assert engine_model(checkpoint).fingerprint == ours.fingerprint


@pytest.mark.slow
def test_ray_agrees(checkpoint: Path, ours: EngineModel) -> None:
    pytest.importorskip("ray")
    from puyulm.eval.ray_model import RayModel

    theirs = RayModel(partial(engine_model, checkpoint), 2)
    try:
        assert (theirs.name, theirs.fingerprint) == (ours.name, ours.fingerprint)
        assert same_likelihoods(judged(ours), judged(theirs))
        assert [one.text for one in answers(ours)] == [one.text for one in answers(theirs)]
        assert theirs.decode(theirs.encode("你好")) == "你好"
        with pytest.raises(PromptError, match="context is 512") as caught:
            answers(theirs, [*[Prompt(text="a", max_new_tokens=1)] * 20, Prompt(text="a b c d " * 500)])
        assert caught.value.index == 20
    finally:
        theirs.close()


ITEMS = [{"prompt": f"What is {n}?", "answer": str(n), "kind": "even" if n % 2 == 0 else "odd"} for n in range(11)]


def command(checkpoint: Path, items: Path, out: Path, *words: str) -> list[str]:
    return [
        *words, "-m", "puyulm", "eval", str(checkpoint), "--items", str(items), "--chat-format", "chatml",
        "--device", "cpu", "--memory", "4MiB", "--max-new-tokens", "6", "--out", str(out),
    ]  # fmt: skip


def scores(out: Path) -> object:
    return json.loads((out / "results.json").read_text())["results"][0]["scores"]


def test_two_processes_make_the_same_results_as_one(checkpoint: Path, tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    one = [sys.executable, *command(checkpoint, items, tmp_path / "one")]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
           *command(checkpoint, items, tmp_path / "two")]  # fmt: skip
    for words in (one, two):
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report:") == 1
    assert len(list((tmp_path / "two" / "finished").iterdir())) == 2
    assert scores(tmp_path / "one") == scores(tmp_path / "two")
