"""Thoughts that use up their budget are closed, and the answer proper begins after them."""

from __future__ import annotations

import json

import pytest
import torch

from puyulm.engine.grammar import Grammar, GrammarCompiler
from puyulm.engine.params import SamplingParams
from puyulm.engine.sampler import RowSampler, probabilities, sample
from puyulm.engine.thinking import GRACE, THINKING_BUDGET, ThinkingBudget
from puyulm.text.formats import BASE, INTERNLM3
from puyulm.text.parse import parse_answer
from puyulm.text.tokenizer import Tokenizer
from tests.text.small_tokenizers import ACTIONS, CHATML, small_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def with_ids(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("ids"), [*CHATML, *ACTIONS, "<think>", "</think>"])


@pytest.fixture(scope="module")
def with_text(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("text"), [*CHATML, *ACTIONS])


@pytest.fixture(params=["ids", "text"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """With tags that are tokens of their own, and with tags that are plain text."""
    return request.getfixturevalue(f"with_{request.param}")  # type: ignore[no-any-return]


def run(thinking: ThinkingBudget, wished: list[int]) -> list[int]:
    """An answer in which the model writes what it wishes wherever nothing is forced."""
    answer, wishes = [], iter(wished)
    while True:
        token = thinking.forced()
        if token is None:
            token = next(wishes, None)
        if token is None:
            return answer
        answer.append(token)
        thinking.observe(token)


def written(tokenizer: Tokenizer, text: str) -> list[int]:
    """Text of an answer, with tags as this tokenizer has them."""
    return tokenizer.encode_markup(text)


def test_thoughts_within_their_budget_are_left_alone(tokenizer: Tokenizer) -> None:
    ids = written(tokenizer, "Let me see.\n</think>\n\nIt is 4.")
    thinking = ThinkingBudget(tokenizer, INTERNLM3, 100, in_reasoning=True)
    assert thinking.inside
    assert run(thinking, ids) == ids
    assert not thinking.inside


def test_thoughts_beyond_their_budget_are_closed_as_the_renderer_closes_them(tokenizer: Tokenizer) -> None:
    thoughts = written(tokenizer, "a b c d e f g h i j k l m n o p q r")[:12]
    answer = written(tokenizer, "It is 4.")
    thinking = ThinkingBudget(tokenizer, INTERNLM3, 12, in_reasoning=True)
    ids = run(thinking, thoughts + answer)
    assert ids == [*thoughts, *written(tokenizer, "\n</think>\n\n"), *answer]
    message = parse_answer(ids, tokenizer, INTERNLM3, in_reasoning=True)
    assert (message.reasoning, message.content) == (tokenizer.decode(thoughts), "It is 4.")
    assert not thinking.inside and thinking.forced() is None


def test_thoughts_that_the_model_begins_itself_count_too(tokenizer: Tokenizer) -> None:
    opening = written(tokenizer, "\n<think>\n")
    thoughts = tokenizer.encode("one two three four five six")
    thinking = ThinkingBudget(tokenizer, INTERNLM3, 6, in_reasoning=False)
    assert not thinking.inside
    ids = run(thinking, [*opening, *thoughts])
    message = parse_answer(ids, tokenizer, INTERNLM3)
    inside = len(tokenizer.encode(message.reasoning or ""))
    assert 3 <= inside <= 6 and message.content


def test_an_answer_without_thoughts_and_a_format_without_them(tokenizer: Tokenizer) -> None:
    for text, chat_format in (("Hello <think> no", INTERNLM3), ("<think>a b c d", BASE)):
        ids = written(tokenizer, text)
        assert run(ThinkingBudget(tokenizer, chat_format, 1), ids) == ids


def test_no_budget_at_all(tokenizer: Tokenizer) -> None:
    thinking = ThinkingBudget(tokenizer, INTERNLM3, 0, in_reasoning=True)
    ids = run(thinking, tokenizer.encode("4."))
    assert ids == [*written(tokenizer, "</think>\n\n"), *tokenizer.encode("4.")]


def test_the_default_budget_is_the_familys(with_ids: Tokenizer) -> None:
    thinking = ThinkingBudget(with_ids, INTERNLM3, in_reasoning=True)
    token = with_ids.encode("a")[0]
    ids = run(thinking, [token] * (THINKING_BUDGET + 5))
    assert ids.index(written(with_ids, "</think>")[0]) in (THINKING_BUDGET, THINKING_BUDGET + 1)


def test_a_line_break_before_the_end_is_not_doubled(tokenizer: Tokenizer) -> None:
    thoughts = tokenizer.encode("ab\n")
    ids = run(ThinkingBudget(tokenizer, INTERNLM3, len(thoughts), in_reasoning=True), thoughts)
    assert ids == [*thoughts, *written(tokenizer, "</think>\n\n")]


def test_a_character_is_finished_first(with_ids: Tokenizer) -> None:
    # spelled byte by byte
    thoughts = [id for byte in "🙂x".encode() for id in byte_ids(with_ids, bytes([byte]))]
    assert len(thoughts) == 5
    for budget in (1, 2, 3, 4):
        ids = run(ThinkingBudget(with_ids, INTERNLM3, budget, in_reasoning=True), thoughts)
        assert ids[:4] == thoughts[:4] and with_ids.decode(ids).startswith("🙂\n</think>")


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    return [
        id for id in range(tokenizer.vocab_size) if not tokenizer.is_special(id) and tokenizer.token_bytes(id) == data
    ][:1]


def test_a_tag_that_has_begun_is_finished_first(with_text: Tokenizer) -> None:
    tag = [id for byte in b"</think>" for id in byte_ids(with_text, bytes([byte]))]
    answer = with_text.encode("4")
    ids = run(ThinkingBudget(with_text, INTERNLM3, 3, in_reasoning=True), [*with_text.encode("x"), *tag, *answer])
    assert ids == [*with_text.encode("x"), *tag, *answer]


def test_grace_comes_to_an_end(with_text: Tokenizer) -> None:
    less = byte_ids(with_text, b"<")
    ids = run(ThinkingBudget(with_text, INTERNLM3, 2, in_reasoning=True), less * 30)
    assert ids[: 2 + GRACE] == less * (2 + GRACE)
    assert with_text.decode(ids[2 + GRACE :]).startswith("\n</think>\n\n")


def test_forks_go_their_own_ways(tokenizer: Tokenizer) -> None:
    token = tokenizer.encode("a")[0]
    thinking = ThinkingBudget(tokenizer, INTERNLM3, 2, in_reasoning=True)
    thinking.observe(token)
    fork = thinking.fork()
    fork.observe(token)
    assert fork.forced() is not None and thinking.forced() is None
    run(fork, [])
    assert not fork.inside and thinking.inside


def row(
    tokenizer: Tokenizer, budget: int, *, grammar: Grammar | None = None, in_reasoning: bool = True, **wishes: object
) -> RowSampler:
    params = SamplingParams(grammar=grammar, thinking_budget=budget, **wishes)  # type: ignore[arg-type]
    matcher = None if grammar is None else GrammarCompiler(tokenizer).matcher(grammar)
    thinking = ThinkingBudget(tokenizer, INTERNLM3, budget, in_reasoning, grammar=grammar is not None)
    stops = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
    return RowSampler(params, (), stops, tokenizer.vocab_size, CPU, matcher=matcher, thinking=thinking)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_tokens_win_whatever_the_model_says(tokenizer: Tokenizer, temperature: float) -> None:
    a, end = tokenizer.encode("a")[0], written(tokenizer, "\n</think>\n\n")
    logits = torch.full((1, tokenizer.vocab_size), -50.0)
    logits[0, a] = 50.0
    forced, free = (
        row(tokenizer, 3, temperature=temperature, seed=0),
        row(tokenizer, 50, temperature=temperature, seed=0),
    )
    both = [sample(logits.repeat(2, 1), [forced, free]) for _ in range(3 + len(end) + 2)]
    assert [sampled.tokens[0] for sampled in both] == [a] * 3 + end + [a] * 2
    assert {sampled.tokens[1] for sampled in both} == {a}
    assert both[3].logprobs[0] == pytest.approx(-100.0)  # the model's own, not 0
    again = row(tokenizer, 3, temperature=temperature, seed=0)
    for _ in range(3):
        again.record(a)
    assert probabilities(logits, [again])[0][0].argmax() == end[0]
    assert [ahead.forced for ahead in row(tokenizer, 3).ahead([a, a, a, *end, a])] == [None] * 3 + end + [None] * 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("in_reasoning", [True, False])
def test_a_grammar_begins_after_the_thoughts(tokenizer: Tokenizer, seed: int, in_reasoning: bool) -> None:
    """Noise thinks, ends by itself or by force, and then writes JSON. It does not end the answer before."""
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"x": {"enum": [1, 22, "上海"]}}, "required": ["x"]}
    grammar = Grammar.json_schema({**schema, "additionalProperties": False})
    sampler = row(tokenizer, 30, grammar=grammar, in_reasoning=in_reasoning, seed=seed)
    dice = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while len(ids) < 300:
        logits = torch.randn(1, tokenizer.vocab_size, generator=dice)
        if "<think>" in tokenizer.special_tokens:
            logits[0, tokenizer.special_tokens["</think>"]] += 20 * (len(ids) == 10 + seed) - 10 * (len(ids) < 10)
            logits[0, tokenizer.special_tokens["<think>"]] += 5 * seed * (not ids)
        sampled = sample(logits, [sampler])
        assert not sampled.errors
        if sampled.tokens[0] == tokenizer.eos_id:
            break
        ids += sampled.tokens
    message = parse_answer(ids, tokenizer, INTERNLM3, in_reasoning=in_reasoning)
    assert json.loads(message.content)["x"] in (1, 22, "上海")
    assert message.content.startswith("{") and (message.reasoning or not in_reasoning)
    if message.reasoning is not None:
        assert "</think>\n\n{" in tokenizer.decode(ids, mid_text=True)
    else:
        assert tokenizer.decode(ids) == message.content


def test_a_call_ends_thoughts(with_ids: Tokenizer) -> None:
    call = '<|action_start|><|plugin|>\n{"name": "f", "parameters": {"a": "long enough for any budget"}}<|action_end|>'
    ids = with_ids.encode_markup("I shall call." + call)
    assert run(ThinkingBudget(with_ids, INTERNLM3, 20, in_reasoning=True), ids) == ids


class Letters:
    """A stand-in whose tokens are any texts."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def token_to_id(self, token: str) -> None:
        return None

    def is_special(self, id: int) -> bool:
        return False

    def visible_bytes(self, id: int, starts_text: bool, skip_special: bool) -> bytes:
        return self.texts[id].encode()

    def encode(self, text: str, mid_text: bool = False) -> list[int]:
        return [1000 + ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("texts", "rest", "forced"),
    [
        (["x</think>"], b"", [1010, 1010]),
        (["x</thi", "nk>\n\n"], b"", []),
        (['x</think>\n\n{"a'], b'{"a', []),
        (["x</think>\n\n\n"], b"\n", []),
    ],
)
def test_what_a_token_holds_beyond_the_tag_is_handed_on(texts: list[str], rest: bytes, forced: list[int]) -> None:
    thinking = ThinkingBudget(Letters(texts), INTERNLM3, in_reasoning=True, grammar=True)  # type: ignore[arg-type]
    for id in range(len(texts)):
        assert thinking.forced() is None
        thinking.observe(id)
    assert thinking.take_rest() == rest and thinking.take_rest() == b""
    for id in forced:
        assert thinking.forced() == id and thinking.inside
        thinking.observe(id)
    assert thinking.forced() is None and not thinking.inside
