"""Structured output: what is drawn under a grammar always fits it, on every kind of tokenizer."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from puyulm.engine.grammar import MAX_CHOICES, Grammar, GrammarCompiler, Matcher
from puyulm.engine.params import SamplingParams
from puyulm.engine.sampler import RowSampler, probabilities, sample
from puyulm.engine.tool_grammar import tool_call_grammar
from puyulm.errors import ChatError, GenerationError
from puyulm.text import formats
from puyulm.text.parse import parse_answer
from puyulm.text.tokenizer import Tokenizer
from puyulm.text.train import train_tokenizer
from tests.text.conftest import made_text
from tests.text.small_tokenizers import ACTIONS, CHATML, small_tokenizer

pytest.importorskip("llguidance")

CPU = torch.device("cpu")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["red", "green", "上海", None, 3]},
        "size": {"type": "integer", "minimum": -5, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "next": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "kind", "tags", "next"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}},
}
SCHEMA["$defs"]["place"]["additionalProperties"] = False  # type: ignore[index]


def fits(answer: object) -> bool:
    """Whether an answer fits SCHEMA, written out by hand."""
    return (
        isinstance(answer, dict)
        and list(answer) in (["name", "kind", "size", "tags", "next"], ["name", "kind", "tags", "next"])
        and isinstance(answer["name"], str)
        and len(answer["name"]) <= 8
        and answer["kind"] in ("red", "green", "上海", None, 3)
        and ("size" not in answer or (isinstance(answer["size"], int) and -5 <= answer["size"] <= 120))
        and 1 <= len(answer["tags"]) <= 3
        and all(isinstance(tag, bool) for tag in answer["tags"])
        and answer["next"] == {"x": 1}
    )


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "published"])
def compiler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    """For three kinds of vocabulary; the last is InternLM2's own, where it is at hand."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte-level":
        return GrammarCompiler(small_tokenizer(folder, [*CHATML, *ACTIONS, "<think>", "</think>"]))
    if request.param == "sentencepiece":
        train_tokenizer([made_text(300)], 1500, folder, "sentencepiece", spare_tokens=2)
        return GrammarCompiler(Tokenizer.load(folder))
    return GrammarCompiler(Tokenizer.load(request.getfixturevalue("shared_dir") / "tokenizers" / "internlm2.model"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    return GrammarCompiler(small_tokenizer(tmp_path_factory.mktemp("chat"), [*CHATML, *ACTIONS, "<think>", "</think>"]))


def stop_id(tokenizer: Tokenizer) -> int:
    assert tokenizer.eos_id is not None
    return tokenizer.eos_id


def row(compiler: GrammarCompiler, grammar: Grammar, *, width: int = 0, **wishes: object) -> RowSampler:
    vocab_size = compiler.tokenizer.vocab_size + width
    params = SamplingParams(grammar=grammar, **wishes)  # type: ignore[arg-type]
    stops = [stop_id(compiler.tokenizer)]
    return RowSampler(params, (), stops, vocab_size, CPU, matcher=compiler.matcher(grammar))


def random_answer(compiler: GrammarCompiler, grammar: Grammar, seed: int, longest: int = 600) -> list[int] | None:
    """What a model without sense writes: logits of nothing but noise, anew at every step."""
    dice = torch.Generator().manual_seed(seed)
    width = 5  # models have spare rows beyond the vocabulary
    sampler = row(compiler, grammar, width=width, seed=seed)
    ids: list[int] = []
    while len(ids) < longest:
        logits = torch.randn(1, compiler.tokenizer.vocab_size + width, generator=dice) * 2
        sampled = sample(logits, [sampler])
        assert not sampled.errors
        if sampled.tokens[0] == stop_id(compiler.tokenizer):
            return ids
        ids += sampled.tokens
    return None


@pytest.mark.parametrize("seed", range(12))
def test_noise_becomes_json_that_fits_the_schema(compiler: GrammarCompiler, seed: int) -> None:
    ids = random_answer(compiler, Grammar.json_schema(SCHEMA), seed)
    assert ids is not None
    answer = json.loads(compiler.tokenizer.decode(ids, mid_text=True))
    assert fits(answer)


def test_a_wrong_answer_does_not_fit() -> None:
    right = {"name": "a", "kind": 3, "tags": [True], "next": {"x": 1}}
    assert fits(right)
    for change in ({"kind": "blue"}, {"size": 121}, {"tags": []}, {"name": "a" * 9}, {"more": 1}):
        assert not fits({**right, **change})


def test_every_choice_is_reached_and_nothing_else(compiler: GrammarCompiler) -> None:
    choices = ["yes", "yes please", "no", "上海", 'a "b"\n', "🙂", "/x/"]
    seen = set()
    for seed in range(150):
        ids = random_answer(compiler, Grammar.choice(choices), seed)
        assert ids is not None
        seen.add(compiler.tokenizer.decode(ids, mid_text=True))
    assert seen == set(choices)


def test_regular_expressions_match_from_end_to_end(compiler: GrammarCompiler) -> None:
    pattern = r"(\+\d{1,3} )?\d{3}-\d{4}( ext\. [1-9])?"
    for seed in range(20):
        ids = random_answer(compiler, Grammar.regex(pattern), seed)
        assert ids is not None and re.fullmatch(pattern, compiler.tokenizer.decode(ids, mid_text=True))


@pytest.mark.parametrize("grammar", [
    Grammar.lark('start: "(" start ")" | NUMBER\nNUMBER: /[0-9]{1,2}/'),
    Grammar.ebnf('root ::= "(" root ")" | number\nnumber ::= [0-9] [0-9]?'),
], ids=["lark", "ebnf"])  # fmt: skip
def test_context_free_grammars(compiler: GrammarCompiler, grammar: Grammar) -> None:
    whole = 0
    for seed in range(20):
        if (ids := random_answer(compiler, grammar, seed)) is not None:
            match = re.fullmatch(r"(\(*)\d{1,2}(\)*)", compiler.tokenizer.decode(ids, mid_text=True))
            assert match and len(match[1]) == len(match[2])
            whole += 1
    assert whole > 10


def test_every_token_is_seen_with_its_exact_bytes(compiler: GrammarCompiler) -> None:
    tokenizer, vocabulary = compiler.tokenizer, compiler.vocabulary
    for id in range(tokenizer.vocab_size):
        assert vocabulary.is_special_token(id) == tokenizer.is_special(id)
        if not tokenizer.is_special(id) and tokenizer.token_bytes(id) != b"\xff":
            assert vocabulary.decode_bytes([id]) == (tokenizer.token_bytes(id) if tokenizer.id_to_token(id) else b"")


def test_text_can_be_had_in_any_of_its_tokenizations(compiler: GrammarCompiler) -> None:
    """Free text allows every ordinary token that is whole text, and no special one."""
    tokenizer = compiler.tokenizer
    mask = compiler.matcher(Grammar.lark("start: /(.|\\n)*/")).mask(tokenizer.vocab_size + 3)
    assert not mask[tokenizer.vocab_size :].any()
    for id in range(tokenizer.vocab_size):
        if tokenizer.is_special(id):
            assert not mask[id]
        elif tokenizer.id_to_token(id) and tokenizer.token_bytes(id).isascii():
            assert mask[id]


def test_every_spelling_of_a_text_is_followed(compiler: GrammarCompiler) -> None:
    """Whatever tokens a text comes in, byte pieces and characters over several tokens included."""
    tokenizer, text = compiler.tokenizer, '{"name": "天气 ok"}'
    spellings: dict[bytes, list[int]] = {}
    for id in range(tokenizer.vocab_size):
        if not tokenizer.is_special(id) and tokenizer.id_to_token(id):
            spellings.setdefault(tokenizer.token_bytes(id), []).append(id)
    dice = random.Random(0)
    for _ in range(20):
        matcher, left = compiler.matcher(Grammar.lark("start: /(.|\\n)*/")), text.encode()
        while left:
            size = dice.choice([n for n in range(1, len(left) + 1) if left[:n] in spellings])
            matcher.consume(dice.choice(spellings[left[:size]]))
            left = left[size:]
        assert matcher.may_end and not matcher.is_finished


def test_the_answer_ends_only_where_the_grammar_may_end(compiler: GrammarCompiler) -> None:
    tokenizer = compiler.tokenizer
    sampler = row(compiler, Grammar.regex("ab?"))
    eos = stop_id(tokenizer)
    a, b = tokenizer.encode("a", mid_text=True)[0], tokenizer.encode("b", mid_text=True)[0]
    assert tokenizer.token_bytes(a) == b"a" and tokenizer.token_bytes(b) == b"b"
    assert not sampler.allowed(tokenizer.vocab_size)[eos] and not sampler.finished
    sampler.record(a)
    after_a = sampler.allowed(tokenizer.vocab_size)
    assert after_a[eos] and after_a[b] and not sampler.finished
    sampler.record(b)
    assert sampler.allowed(tokenizer.vocab_size).nonzero()[0].tolist() == [eos] and sampler.finished
    sampler.record(eos)


def test_a_minimum_of_tokens_yields_to_a_complete_grammar(compiler: GrammarCompiler) -> None:
    tokenizer = compiler.tokenizer
    sampler = row(compiler, Grammar.regex("a|ab"), min_new_tokens=10)
    sampler.record(tokenizer.encode("a", mid_text=True)[0])
    assert not sampler.allowed(tokenizer.vocab_size)[stop_id(tokenizer)]
    sampler.record(tokenizer.encode("b", mid_text=True)[0])
    assert sampler.allowed(tokenizer.vocab_size)[stop_id(tokenizer)]


def test_forks_and_steps_back(compiler: GrammarCompiler) -> None:
    tokenizer = compiler.tokenizer
    matcher = compiler.matcher(Grammar.choice(["abc", "abd"]))
    before = matcher.mask(tokenizer.vocab_size)
    ids = [tokenizer.encode(letter, mid_text=True)[0] for letter in "abcd"]
    for id in ids[:2]:
        matcher.consume(id)
    fork = matcher.fork()
    fork.consume(ids[2])
    matcher.consume(ids[3])
    assert fork.is_finished and matcher.is_finished
    matcher.rollback(3)
    assert (matcher.mask(tokenizer.vocab_size) == before).all()
    assert fork.is_finished


def test_one_rows_failure_is_its_own(chat: GrammarCompiler) -> None:
    """A grammar that asks for what the vocabulary lacks, and one that the model's NaN breaks, among sound rows."""
    tokenizer = chat.tokenizer
    rows = [row(chat, Grammar.choice(["yes"]), temperature=0) for _ in range(4)]
    alone = row(chat, Grammar.regex("ab"), temperature=0)
    alone.matcher.consume(tokenizer.encode("a", mid_text=True)[0])  # type: ignore[union-attr]
    rows[1] = RowSampler(alone.params, (), [], tokenizer.vocab_size, CPU, matcher=alone.matcher)
    rows[1].record(tokenizer.encode("b", mid_text=True)[0])  # complete, and nothing may end it
    logits = torch.randn(4, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    logits[2] = math.nan
    drawn = [one.drawn for one in rows]
    sampled = sample(logits, rows)
    assert "no token may end the answer" in str(sampled.errors[1]) and "stop_ids" in str(sampled.errors[1])
    assert math.isnan(sampled.logprobs[2]) and list(sampled.errors) == [1]
    assert [one.drawn for one in rows] == [drawn[0] + 1, drawn[1], drawn[2], drawn[3] + 1]
    assert tokenizer.token_bytes(sampled.tokens[0]) in (b"y", b"ye", b"yes")


def test_a_grammar_that_grows_too_complex_fails_its_own_row(chat: GrammarCompiler) -> None:
    class Broken:
        is_finished = may_end = False

        def mask(self, vocab_size: int) -> None:
            raise GenerationError("too complex")

    logits = torch.randn(2, chat.tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    rows = [row(chat, Grammar.json_object()), row(chat, Grammar.json_object(), seed=1)]
    rows[0].matcher = Broken()  # type: ignore[assignment]
    sampled = sample(logits, rows)
    assert list(sampled.errors) == [0] and rows[0].drawn == 0 and rows[1].drawn == 1
    assert chat.tokenizer.token_bytes(sampled.tokens[1]).startswith(b"{")


def test_looking_ahead_ends_where_the_grammar_forbids_the_draft(chat: GrammarCompiler) -> None:
    tokenizer = chat.tokenizer
    sampler = row(chat, Grammar.regex("[ab]+c"), seed=4)
    a, b, x = (tokenizer.encode(letter, mid_text=True)[0] for letter in "abx")
    before = sampler.allowed(tokenizer.vocab_size)
    rows = sampler.ahead([a, b, x, a])
    assert len(rows) == 3 and sampler.drawn == 0
    c = tokenizer.encode("c", mid_text=True)[0]
    assert [bool(one.allowed(tokenizer.vocab_size)[c]) for one in rows] == [False, True, True]
    assert (sampler.allowed(tokenizer.vocab_size) == before).all()
    logits = torch.randn(3, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    shares, _ = probabilities(logits, sampler.ahead([a, b]))
    assert ((shares > 0).sum(-1) < 40).all() and torch.allclose(shares.sum(-1), torch.ones(3))
    single = row(chat, Grammar.regex("[ab]+c"), seed=4)
    first = sample(logits[:1], [single]).tokens
    assert sample(logits, sampler.ahead([a, b]), record=False).tokens[:1] == first


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Grammar.regex("a(b"), "unclosed group"),
        (lambda: Grammar.regex("(?=a)b"), "look-around"),
        (lambda: Grammar.json_schema({"type": "foo"}), "Invalid type: foo"),
        (lambda: Grammar.json_schema({"type": "string", "format": "foo"}), "Unknown format: foo"),
        (lambda: Grammar.json_schema({"$ref": "#/$defs/nowhere"}), "nowhere"),
        (lambda: Grammar.json_schema("{"), "is not JSON"),
        (lambda: Grammar.json_schema("[1]"), "must be an object"),
        (lambda: Grammar.json_schema({"const": object()}), "is not JSON"),
        (lambda: Grammar.lark("start: nowhere"), "nowhere"),
        (lambda: Grammar.lark("nonsense"), "grammar cannot be used"),
        (lambda: Grammar.json_schema({"multipleOf": 999_983}), "least common multiple"),
        (lambda: Grammar.json_schema({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}), "least common multiple"),
        (lambda: Grammar.json_schema({"allOf": [{"multipleOf": 0.01}, {"multipleOf": 99_991}]}), "least common"),
        (lambda: Grammar.json_schema({"multipleOf": 1e300}), "least common multiple"),
        (lambda: Grammar.json_schema({"multipleOf": 1e-300}), "least common multiple"),
        (lambda: Grammar.lark('start: %json {"mul\\u0074ipleOf": 999983}'), "least common multiple"),
        (lambda: Grammar.choice([f"word {number}" for number in range(2001)]), "2,000 is the most"),
        (lambda: Grammar.ebnf("rooot = "), "Expected ::="),
        (lambda: Grammar.choice([]), "list of non-empty texts"),
        (lambda: Grammar.choice(["a", ""]), "list of non-empty texts"),
    ],
)
def test_a_bad_grammar_is_told_at_once_in_one_line(chat: GrammarCompiler, make: object, reason: str) -> None:
    with pytest.raises(GenerationError) as caught:
        chat.check(make())  # type: ignore[operator]
    assert reason in str(caught.value) and "\n" not in str(caught.value) and "unknown>" not in str(caught.value)


@pytest.mark.parametrize("multiple", [7, 100, 0.01, 2.5, 1000, 1e-5, 1.0])
def test_usual_multiples_can_be_asked_for(chat: GrammarCompiler, multiple: float) -> None:
    chat.check(Grammar.json_schema({"type": "number", "multipleOf": multiple}))
    chat.check(Grammar.json_schema({"properties": {"multipleOf": {"type": "number"}}, "const": '"multipleOf": 999983'}))


def test_compiled_grammars_are_kept_and_stay_fresh(chat: GrammarCompiler) -> None:
    first = chat.matcher(Grammar.choice(["ab"]))
    first.consume(chat.tokenizer.encode("a", mid_text=True)[0])
    second = chat.matcher(Grammar.choice(["ab"]))
    mask = second.mask(chat.tokenizer.vocab_size)
    assert mask[chat.tokenizer.encode("ab", mid_text=True)[0]] and not second.may_end


def test_as_many_choices_as_allowed_can_be_followed(chat: GrammarCompiler) -> None:
    texts = [f"word number {number}" for number in range(MAX_CHOICES)]
    for text in ("word number 1", "word number 1999"):
        assert follows(chat, Grammar.choice(texts), text)
    assert not follows(chat, Grammar.choice(texts), "word number 2000")


def run_wild(matcher: Matcher, steps: int) -> None:
    """Goes on by any tokens that are allowed."""
    dice = random.Random(0)
    for _ in range(steps):
        matcher.consume(dice.choice(matcher.mask(1000).nonzero()[0].tolist()))


def test_a_grammar_that_fails_is_forgotten(chat: GrammarCompiler) -> None:
    compiler, grammar = GrammarCompiler(chat.tokenizer), Grammar.regex("(.{0,1000}a){0,1000}")
    matcher = compiler.matcher(grammar).fork()
    with pytest.raises(GenerationError, match="too many expressions"):
        run_wild(matcher, 3000)
    assert not compiler._compiled
    newer = compiler.matcher(grammar)
    with pytest.raises(GenerationError, match="too many expressions"):
        matcher.mask(1000)
    assert compiler._compiled  # an older failure leaves alone what was compiled after it
    assert newer.mask(1000).any()


def test_states_of_a_grammar_are_limited(chat: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puyulm.engine.grammar.MOST_STATES", 500)
    matcher = chat.matcher(Grammar.regex("[abc]*a[abc]{16}"))
    with pytest.raises(GenerationError, match="too many states: 500"):
        run_wild(matcher, 3000)


def test_few_compiled_grammars_are_kept(chat: GrammarCompiler) -> None:
    compiler = GrammarCompiler(chat.tokenizer)
    for number in range(20):
        compiler.check(Grammar.choice([f"number {number}"]))
    assert len(compiler._compiled) == 16


def test_a_missing_library_names_the_extra(chat: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GenerationError, match=r"pip install 'puyulm\[serve\]'"):
        GrammarCompiler(chat.tokenizer).check(Grammar.json_object())


# Tool calls

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "format": "int32"}},
                "required": ["city"],
                "$defs": {"city": {"enum": ["上海", "Wuhan"]}},
            },
        },
    },
    {"name": "get", "parameters": {"properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}},
    {"type": "function", "function": {"name": 'say "嗨"'}},
]


def tool_grammar(compiler: GrammarCompiler, choice: str, **options: bool) -> Grammar:
    grammar = tool_call_grammar(TOOLS, choice, formats.INTERNLM2, compiler.tokenizer, **options)
    assert grammar is not None
    return grammar


def check_calls(calls: Sequence[object]) -> None:
    for call in calls:
        name, arguments = call.name, call.arguments  # type: ignore[attr-defined]
        if name == "get_weather":
            assert arguments["city"] in ("上海", "Wuhan") and set(arguments) <= {"city", "days"}
            assert isinstance(arguments.get("days", 0), int)
        elif name == "get":
            assert list(arguments) == ["ok"] and isinstance(arguments["ok"], bool)
        else:
            assert name == 'say "嗨"' and arguments == {}


@pytest.mark.parametrize("seed", range(15))
def test_required_calls_are_calls_whose_arguments_fit(chat: GrammarCompiler, seed: int) -> None:
    ids = random_answer(chat, tool_grammar(chat, "required"), seed)
    assert ids is not None
    message = parse_answer(ids, chat.tokenizer, formats.INTERNLM2)
    assert message.tool_calls and message.content == "" and message.parse_error is None
    check_calls(message.tool_calls)


@pytest.mark.parametrize("name", ["get", "get_weather", 'say "嗨"'])
def test_a_named_tool_is_called_once(chat: GrammarCompiler, name: str) -> None:
    for seed in range(5):
        ids = random_answer(chat, tool_grammar(chat, name), seed)
        assert ids is not None
        message = parse_answer(ids, chat.tokenizer, formats.INTERNLM2)
        assert [call.name for call in message.tool_calls] == [name]
        check_calls(message.tool_calls)


def follows(compiler: GrammarCompiler, grammar: Grammar, text: str) -> bool:
    """Whether a whole answer, with markers by name, is allowed token by token."""
    matcher = compiler.matcher(grammar)
    for id in compiler.tokenizer.encode_markup(text):
        if not matcher.mask(compiler.tokenizer.vocab_size)[id]:
            return False
        matcher.consume(id)
    return matcher.may_end


CALL = '<|action_start|><|plugin|>\n{"name": "get", "parameters": {"ok": true}}<|action_end|>'
CODE = "<|action_start|><|interpreter|>\n```python\nprint(1)\n```<|action_end|>"


def test_free_text_may_call_or_not(chat: GrammarCompiler) -> None:
    auto = tool_grammar(chat, "auto")
    for text in ("", "Hello.\nNo call.", CALL, "Let me see." + CALL + CALL, CODE, "Run:" + CODE):
        assert follows(chat, auto, text)
    assert follows(chat, auto, CALL.replace("\n", ""))  # models leave the line break out
    for text in (CALL[:-14], CALL.replace("get", "got"), CALL.replace("true", "1"), "<think>", "a<|im_start|>b"):
        assert not follows(chat, auto, text)
    for choice, text in (("required", "x" + CALL), ("required", ""), ("get", CALL + CALL)):
        assert not follows(chat, tool_grammar(chat, choice), text)
    assert follows(chat, tool_grammar(chat, "required"), CALL + CALL)
    assert not follows(chat, tool_grammar(chat, "required", parallel=False), CALL + CALL)
    assert not follows(chat, tool_grammar(chat, "auto", parallel=False), CALL + CALL)


def test_markers_are_found_under_their_old_names(shared_dir: Path) -> None:
    compiler = GrammarCompiler(Tokenizer.load(shared_dir / "tokenizers" / "internlm2.model"))
    assert follows(compiler, tool_grammar(compiler, "auto"), "看看。" + CALL + CALL)


def test_tools_that_cannot_be_called(chat: GrammarCompiler) -> None:
    tokenizer = chat.tokenizer
    assert tool_call_grammar(TOOLS, "none", formats.INTERNLM2, tokenizer) is None
    with pytest.raises(GenerationError, match="there is no tool 'fly'"):
        tool_call_grammar(TOOLS, "fly", formats.INTERNLM2, tokenizer)
    with pytest.raises(GenerationError, match="'chatml' has no tools"):
        tool_call_grammar(TOOLS, "auto", formats.CHATML, tokenizer)
    with pytest.raises(ChatError, match=r"tools\[0\]"):
        tool_call_grammar([{"function": {}}], "auto", formats.INTERNLM2, tokenizer)
    strict = [{"name": "f", "strict": True, "parameters": {"properties": {"a": {"type": "string", "format": "int32"}}}}]
    grammar = tool_call_grammar(strict, "required", formats.INTERNLM2, tokenizer)
    assert grammar is not None
    with pytest.raises(GenerationError, match="int32"):
        chat.check(grammar)
