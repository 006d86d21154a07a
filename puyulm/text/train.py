"""Training a tokenizer with the family's conventions.

Both kinds begin with 0 `<unk>`, 1 `<s>`, 2 `</s>` and the 256 bytes as ids 3 to 258, end with the chat markers
(`<|im_start|>` is the last id), and cut numbers from the left into groups of at most three digits:

- "sentencepiece": BPE over characters as in InternLM2's published file: rare characters fall back to bytes, no
  normalisation, no space put before a text, no whitespace taken away, all numbers of one to three digits are pieces
  and no piece mixes digits with anything else. Unlike in the published file, whose numbers join by their frequency
  ("2024" is 20|24), all numbers of one length have one score, so that groups always count from the left (202|4).
- "bytelevel": byte-level BPE inside the words of GPT-4's regular expression. Denser on English and code, while
  Chinese words rarely cross its punctuation; only `tokenizer.json` is written.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puyulm.errors import TokenizerError
from puyulm.text.sample import Sample, Stratum, draw_sample, language_of
from puyulm.text.sentencepiece_model import ModelProto, Piece
from puyulm.text.settings import TokenizerSettings
from puyulm.text.tokenizer import Tokenizer, load_from_files
from puyulm.text.tokenizer_json import bos_template, byte_level_json
from puyulm.text.vocabulary import SPACE_MARK, AddedToken

Kind = Literal["sentencepiece", "bytelevel"]

FIRST_TOKENS = ("<unk>", "<s>", "</s>")
# InternLM2's markers, in the order of its ids; the reward token ends a conversation that a reward model scores.
LAST_TOKENS = (
    "<|reward|>", "<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_WORDS = (  # GPT-4's (cl100k), with the number of digits in a group left open
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,{digits}}}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_COVERAGE = 0.9999  # of all characters in the sample; the rest is spelled in bytes
_LEAST_LEARNED = 64


@dataclass(frozen=True)
class TrainingReport:
    """How a tokenizer was trained, and how densely it encodes.

    Attributes:
        sample_bytes, seen_bytes: Text it was trained on, out of how much.
        seconds: Spent on training, without reading and sampling.
        bytes_per_token: UTF-8 bytes per token by language ("zh", "en", "code", guessed by segment); higher is denser.
        held_out: Whether that was measured on text outside the sample, else on the sample itself.
        strata: What each stratum of the sample gave; empty where it had none.
    """

    kind: Kind
    vocab_size: int
    sample_bytes: int
    seen_bytes: int
    seconds: float
    bytes_per_token: dict[str, float]
    held_out: bool
    strata: tuple[Stratum, ...] = ()

    def __str__(self) -> str:
        density = ", ".join(f"{language} {ratio:.2f}" for language, ratio in self.bytes_per_token.items())
        shares = "".join(
            f"  {s.name}: {s.sample_bytes / 1e6:.2f} MB of {s.seen_bytes / 1e6:.2f} MB, "
            f"{s.sample_bytes / self.sample_bytes:.0%} of the sample ({s.share:.0%} wanted)\n" for s in self.strata
        )  # fmt: skip
        return (
            f"{self.kind} tokenizer of {self.vocab_size:,} ids, trained in {self.seconds:.1f} s on "
            f"{self.sample_bytes / 1e6:.2f} MB of {self.seen_bytes / 1e6:.2f} MB of text\n{shares}"
            f"bytes per token on {'held-out text' if self.held_out else 'the sample itself'}: {density}"
        )


def train_tokenizer(
    texts: Iterable[str] | Sample,
    vocab_size: int,
    folder: str | Path,
    kind: Kind = "sentencepiece",
    *,
    sample_bytes: int = 32_000_000,
    seed: int = 0,
    max_digits: int = 3,
    spare_tokens: int = 0,
) -> TrainingReport:
    """Trains a tokenizer and writes it as `Tokenizer.load` and `transformers` read it.

    The same texts and arguments give the same files.

    Args:
        texts: Documents, read once; or a sample of them, as `draw_strata` draws it.
        vocab_size: Number of ids, all included.
        folder: Where to write.
        sample_bytes: Train on at most so much text, drawn at random. More rarely changes the vocabulary.
        seed: Of that draw. A sample that is given is taken as it is.
        max_digits: Longest group of digits that is one token: 1, 2 or 3. One suits small models that calculate.
        spare_tokens: Unused ids before the markers, `[UNUSED_TOKEN_0]` and so on, for markers of later training.

    Raises:
        TokenizerError: The vocabulary is too small for what it must hold, or the text too little for the vocabulary.
    """
    if max_digits not in (1, 2, 3):
        raise TokenizerError(f"max_digits is {max_digits}, but numbers are cut into groups of 1, 2 or 3 digits")
    last = [*(f"[UNUSED_TOKEN_{n}]" for n in range(spare_tokens)), *LAST_TOKENS]
    numbers = _numbers(max_digits) if kind == "sentencepiece" else []
    learned = vocab_size - len(FIRST_TOKENS) - 256 - len(numbers) - len(last)
    if learned < _LEAST_LEARNED:
        raise TokenizerError(
            f"a vocabulary of {vocab_size:,} is too small: bytes, numbers and special tokens take "
            f"{vocab_size - learned:,}; ask for {vocab_size - learned + _LEAST_LEARNED:,} or more"
        )
    sample = texts if isinstance(texts, Sample) else draw_sample(texts, sample_bytes, seed)
    if not any(segment.strip() for segment in sample.segments):
        raise TokenizerError("there is no text to train a tokenizer on")
    print(f"training a tokenizer on a sample of {sample.sample_bytes / 1e6:.2f} MB, "
          f"out of {sample.seen_bytes / 1e6:.2f} MB", file=sys.stderr)  # fmt: skip
    started = time.monotonic()
    first_last = dict(enumerate(FIRST_TOKENS)) | dict(enumerate(last, start=vocab_size - len(last)))
    settings = TokenizerSettings(
        bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>", add_bos=True,
        chat_template=CHAT_TEMPLATE, added={i: AddedToken(name, True) for i, name in first_last.items()},
    )  # fmt: skip
    if kind == "sentencepiece":
        files = {"tokenizer.model": _train_sentencepiece(sample.segments, learned, numbers, last)}
    else:
        files = {"tokenizer.json": _train_byte_level(sample.segments, vocab_size - len(last), max_digits, settings)}
    tokenizer = load_from_files(files, Path(folder), settings)
    tokenizer.save(folder)
    seconds = time.monotonic() - started
    return TrainingReport(
        kind, tokenizer.vocab_size, sample.sample_bytes, sample.seen_bytes, seconds,
        bytes_per_token(tokenizer, sample.held_out or sample.segments), bool(sample.held_out),
        sample.strata,
    )  # fmt: skip


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """UTF-8 bytes per token of the texts of each language, the languages being guessed."""
    sizes, tokens = Counter[str](), Counter[str]()
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        language = language_of(text)
        sizes[language] += len(text.encode())
        tokens[language] += len(ids)
    return {language: sizes[language] / tokens[language] for language in ("zh", "en", "code") if tokens[language]}


def _numbers(max_digits: int) -> list[str]:
    """All numbers of one digit to `max_digits`."""
    return [f"{n:0{width}d}" for width in range(1, max_digits + 1) for n in range(10**width)]


def _train_sentencepiece(segments: Iterable[str], learned: int, numbers: Sequence[str], last: Sequence[str]) -> bytes:
    from sentencepiece import SentencePieceTrainer

    rare = _rare_characters(segments, learned // 2)
    to_nul = str.maketrans(dict.fromkeys([*rare, SPACE_MARK], "\0"))  # "▁" is the library's stand-in for the space
    segments = [part for segment in segments for part in segment.translate(to_nul).split("\0") if part]
    output = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(segments), model_writer=output, model_type="bpe",
            vocab_size=len(FIRST_TOKENS) + 256 + len(_numbers(1)) + learned,
            character_coverage=1.0, required_chars="0123456789",
            byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
            normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
            max_sentence_length=1 << 20, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        if limit is None:
            raise TokenizerError(f"SentencePiece could not train: {error}") from None
        found = int(limit[1]) - len(FIRST_TOKENS) - 256 - len(_numbers(1))
        raise _too_little(len(FIRST_TOKENS) + 256 + found + len(numbers) + len(last), found) from None
    proto = ModelProto()
    proto.ParseFromString(output.getvalue())
    trained = [piece for piece in proto.pieces if not piece.piece.isdigit() or not piece.piece.isascii()]
    del proto.pieces[:]
    proto.pieces.extend(trained)
    for number in numbers:  # more digits join first, and of equal scores the leftmost: groups count from the left
        proto.pieces.add(piece=number, score=-10.0 + len(number), type=Piece.NORMAL)
    for name in last:
        proto.pieces.add(piece=name, score=0.0, type=Piece.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.user_defined_symbols.extend(last)
    return bytes(proto.SerializeToString())


def _rare_characters(segments: Iterable[str], most_characters: int) -> list[str]:
    """Characters to leave to the byte pieces: the last ten-thousandth, or what the vocabulary has no room for."""
    counts = Counter[str]()
    for segment in segments:
        counts.update(segment)
    rare, covered, enough = [], 0, _COVERAGE * counts.total()
    for rank, (character, count) in enumerate(counts.most_common()):
        if rank >= most_characters or covered >= enough:
            rare.append(character)
        covered += count
    return rare


def _train_byte_level(segments: Iterable[str], size: int, max_digits: int, settings: TokenizerSettings) -> bytes:
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as LibraryTokenizer

    words = _WORDS.format(digits=max_digits)
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(FIRST_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    library.train_from_iterator(segments, trainer)
    model = json.loads(library.to_str())["model"]
    if len(model["vocab"]) < size:
        found = len(model["vocab"]) - len(FIRST_TOKENS) - 256
        raise _too_little(256 + found + len(settings.added), found)
    document = byte_level_json(model["vocab"], model["merges"], [words], settings.added)
    document["post_processor"] = bos_template(settings.bos_token, model["vocab"])
    return json.dumps(document, ensure_ascii=False).encode()


def _too_little(most: int, learned: int) -> TokenizerError:
    """The error for a text whose `learned` pieces, all there are to learn, make `most` ids."""
    if learned < _LEAST_LEARNED:
        return TokenizerError("this is too little text to train a tokenizer on; add text")
    return TokenizerError(f"the text is enough for {most:,} ids only; ask for so many or add text")
