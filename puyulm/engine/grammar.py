"""Structured output: what an answer must be, and which tokens it may therefore go on with.

The parsing is `llguidance`'s (extra `serve`). Its grammars work on bytes, so a token may span any border in the text;
special tokens are never text and come only where a grammar asks for them by id.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from puyulm.errors import GenerationError
from puyulm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Between the parts of JSON: a blank, or a line break with its indentation. More would let a model that has lost its
# thread write white space for ever.
WHITESPACE = r" |\n[ \t]{0,40}"

COMPILED_GRAMMARS = 16  # that a compiler remembers
MAX_CHOICES = 2000
MOST_STATES = 50_000  # of one grammar's lexer, which keeps them for all its answers: some 30 MB
MOST_REMAINDERS = 100_000  # of `multipleOf`: about 20 MB and a third of a second

_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([-+.\deE]+)')
_ESCAPE = re.compile(r"\\u00([\da-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be. Made by its constructors; `GrammarCompiler.check` says whether it can be had.

    Attributes:
        kind: How `text` is written.
        text: JSON schema, regular expression, Lark grammar, or EBNF as llama.cpp writes it (GBNF).
    """

    kind: Literal["json_schema", "regex", "lark", "ebnf"]
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that fits a schema (draft 2020-12). Properties come in the schema's order.

        Raises:
            GenerationError: It is not a JSON object.
        """
        try:
            data = json.loads(schema) if isinstance(schema, str) else dict(schema)
            text = json.dumps(data, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise GenerationError(f"the JSON schema is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise GenerationError(f"the JSON schema must be an object, not {text[:80]}")
        return cls("json_schema", text)

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls("json_schema", '{"type": "object"}')

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        r"""Text that a regular expression matches from beginning to end.

        The syntax is Rust's, without look-around; `\d` means the ten digits of ASCII.
        """
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts.

        Raises:
            GenerationError: There are none, more than `MAX_CHOICES`, or one is empty.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise GenerationError(f"choice: must be a list of non-empty texts, not {repr(texts)[:80]}")
        if len(texts) > MAX_CHOICES:
            raise GenerationError(f"choice: holds {len(texts):,} texts, but {MAX_CHOICES:,} is the most")
        # A terminal: of alternatives in a rule the parser would follow each by itself.
        return cls("lark", "start: CHOICE\nCHOICE: " + " | ".join(map(literal, texts)))

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Text of a context-free grammar in Lark's notation, from its rule `start`."""
        return cls("lark", text)

    @classmethod
    def ebnf(cls, text: str) -> Grammar:
        """Text of a context-free grammar in llama.cpp's notation (GBNF), from its rule `root`."""
        return cls("ebnf", text)


def literal(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


class GrammarCompiler:
    """Grammars for one tokenizer. May be used by several threads at once.

    Raises:
        GenerationError: `llguidance` is not installed (by any method).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def check(self, grammar: Grammar) -> None:
        """Compiles a grammar, so that a request's first step need not.

        Raises:
            GenerationError: It is faulty, or asks for what cannot be done; the message says what.
        """
        self._start(grammar)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher for one answer. Errors as in `check`."""
        start = self._start(grammar)
        return Matcher(start.deep_copy(), self.vocabulary, lambda: self._forget(grammar, start))

    @property
    def vocabulary(self) -> LLTokenizer:
        """The tokenizer as `llguidance` sees it; made at first use, in a fifth of a second for 100,000 tokens."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self.tokenizer)
            return self._vocabulary

    def _forget(self, grammar: Grammar, failed: LLMatcher) -> None:
        """Frees a grammar that grew too complex; the tables that it grew in are those of all its copies."""
        with self._lock:
            if self._compiled.get(grammar) is failed:
                del self._compiled[grammar]

    def _start(self, grammar: Grammar) -> LLMatcher:
        """The matcher before any token, not to be changed."""
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        compiled = _compile(grammar, self.vocabulary)  # without the lock: it may take a second
        with self._lock:
            self._compiled[grammar] = compiled
            if len(self._compiled) > COMPILED_GRAMMARS:
                self._compiled.popitem(last=False)
        return compiled


class Matcher:
    """Where one answer stands in its grammar.

    Args:
        on_failure: Called when the grammar cannot be followed any further.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: LLTokenizer, on_failure: Callable[[], None]) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._on_failure = on_failure

    @property
    def may_end(self) -> bool:
        """The text so far is complete; more may follow all the same."""
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """The text so far is complete, and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self, vocab_size: int) -> NDArray[np.bool_]:
        """Which tokens may come next, `[vocab_size]`; none of them if finished. Tokens that end an answer are not the
        grammar's business.

        Raises:
            GenerationError: The grammar grew too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._raise_error()
        own = self._vocabulary.vocab_size - 1  # the last one is `_vocabulary`'s end of text
        mask = np.zeros(vocab_size, dtype=np.bool_)
        known = min(own, vocab_size)
        mask[:known] = np.unpackbits(bits, count=known, bitorder="little")
        return mask

    def consume(self, token: int) -> None:
        """Goes on by a token.

        Raises:
            GenerationError: The grammar has no place for it. The matcher is of no use then.
        """
        # Asked first, for `consume_token` would write a warning of its own to stderr.
        if token >= self._vocabulary.vocab_size or self._matcher.validate_tokens([token]) != 1:
            raise GenerationError(f"the grammar does not allow the token {token} here")
        self._matcher.consume_token(token)
        self._raise_error()

    def consume_bytes(self, text: bytes) -> None:
        """Goes on by text, whatever tokens it came in. Errors as in `consume`."""
        for token in self._vocabulary.tokenize_bytes(text):
            self.consume(token)

    def rollback(self, count: int) -> None:
        """Takes the last tokens back."""
        if count and not self._matcher.rollback(count):
            raise GenerationError(f"the grammar cannot go back by {count} tokens")

    def fork(self) -> Matcher:
        """A copy that goes its own way."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary, self._on_failure)

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            self._on_failure()
            raise GenerationError(f"the grammar cannot be followed: {_one_line(self._matcher.get_error())}")


def _compile(grammar: Grammar, vocabulary: LLTokenizer) -> LLMatcher:
    library = _library()
    try:
        _check_multiples(grammar.text)
        source = _source(grammar)
        compiled = library.LLMatcher(
            vocabulary,
            source,
            log_level=0,
            limits=library.LLParserLimits(verbose_errors=False, max_lexer_states=MOST_STATES),
        )
        problem = compiled.get_error()
    except (ValueError, library.gbnf_to_lark.GbnfToLarkError) as error:
        problem = str(error)
    if problem:
        name = {"json_schema": "JSON schema", "regex": "regular expression"}.get(grammar.kind, "grammar")
        raise GenerationError(f"the {name} cannot be used: {_one_line(problem)}")
    return compiled


def _source(grammar: Grammar) -> str:
    matcher = _library().LLMatcher
    if grammar.kind == "json_schema":
        return matcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_pattern": WHITESPACE})
    if grammar.kind == "regex":
        pattern = _library().regex_to_lark(grammar.text, "d")
        return matcher.grammar_from_lark(f"start: /{pattern}/")
    text = grammar.text
    if grammar.kind == "ebnf":
        text = _library().gbnf_to_lark.gbnf_to_lark(text)
    return matcher.grammar_from_lark(text)


def _check_multiples(text: str) -> None:
    """Refuses what `llguidance` would work on for minutes and gigabytes without looking at its limits.

    It counts remainders one by one. A schema may ask for several multiples at once, so theirs in common is what counts,
    in steps of the last decimal place.

    Raises:
        ValueError: There are too many.
    """
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    try:
        numbers = {Decimal(number) for number in _MULTIPLE.findall(plain)} - {Decimal(0)}
    except InvalidOperation:
        return  # no JSON: the library says so
    place = min([number.as_tuple().exponent for number in numbers if number.is_finite()], default=0)
    wide = any(abs(number.adjusted()) > 12 for number in numbers) or abs(int(place)) > 12
    if wide or math.lcm(*(int(number.scaleb(-min(int(place), 0))) for number in numbers)) > MOST_REMAINDERS:
        raise ValueError(f"multipleOf: the least common multiple may have {MOST_REMAINDERS:,} steps at most")


def _one_line(problem: str) -> str:
    lines = (line.strip() for line in re.split("<state>|<backtrace>", problem)[0].splitlines())
    return "; ".join(line for line in lines if line.strip("^| "))


class _Vocabulary:
    """A tokenizer in the form that `llguidance.TokenizerWrapper` asks for.

    One more token, which no model has, ends the text: ours are as many as a request wants (`RowSampler` sees to them).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.vocab_size
        self.eos_token_id = size
        self.bos_token_id = None
        self.special_token_ids = [*(id for id in range(size) if tokenizer.is_special(id)), size]
        self.tokens = [*(_token_bytes(tokenizer, id) for id in range(size)), b"<end>"]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text is encoded, not bytes")
        return self._tokenizer.encode(text, mid_text=True)


def _token_bytes(tokenizer: Tokenizer, id: int) -> bytes:
    if not tokenizer.id_to_token(id):
        return b""
    data = tokenizer.token_bytes(id)
    # That byte marks special tokens in llguidance, and in UTF-8 it has no place.
    return b"" if data.startswith(b"\xff") else data


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    library = _library()
    return library.LLTokenizer(library.TokenizerWrapper(_Vocabulary(tokenizer)))


def _library() -> Any:
    try:
        import llguidance
        import llguidance.gbnf_to_lark
    except ModuleNotFoundError:
        raise GenerationError("structured output needs llguidance: pip install 'puyulm[serve]'") from None
    return llguidance
