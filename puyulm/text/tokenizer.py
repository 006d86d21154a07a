"""Text to token ids and back, for every tokenizer file of the family.

Three kinds of file, one `Tokenizer`: SentencePiece's `tokenizer.model`, the Hugging Face library's `tokenizer.json`,
and the tokenizer inside a GGUF file. In a folder that has both of the first two, the `.model` is taken: it is what the
family's models were trained with, while conversions differ from it in small ways.

Text is data: `encode` never gives a special token, whatever the text spells. `<|im_end|>` or `[UNUSED_TOKEN_145]`
typed by a user, or standing in a training document, are the ordinary pieces of those letters. Templates and other
trusted text go through `encode_markup`.

Nothing is lost: `decode(encode(text)) == text`. That holds even for "▁" (U+2581), which SentencePiece uses to stand
for a space and therefore cannot tell from one; here it is spelled with byte pieces. Apart from it and from typed
markup, ids are those of the published libraries. What cannot come back: half a surrogate pair, which is no character
(it becomes "�"); characters that a vocabulary has neither pieces nor bytes for; and whatever a file's own normaliser
changes (Qwen's: NFC).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from puyulm.errors import TokenizerError
from puyulm.text.gguf_tokenizer import read_gguf
from puyulm.text.sentencepiece_model import ModelProto, SentencePieceEncoder, model_vocabulary, parse_model
from puyulm.text.settings import TOKENIZER_FILES, TokenizerSettings, parse_settings, read_json, write_files
from puyulm.text.tokenizer_json import JsonEncoder, json_vocabulary, model_to_json, template_bos
from puyulm.text.vocabulary import REPLACEMENT, SPACE_MARK, TextEncoder, Vocabulary, is_spare, names_pattern


class Tokenizer:
    """Encodes and decodes. Made by `Tokenizer.load`.

    Attributes:
        vocab_size: Number of ids, special tokens included.
        bos_id, eos_id, pad_id: Ids that begin, end and fill up a text; None where the checkpoint has none.
        add_bos: Whether the checkpoint puts `bos_id` before a text.
        special_tokens: Id of each control token, marker and spare token, by name.
        chat_template: The checkpoint's own chat template (jinja source), or None.
    """

    def __init__(
        self, vocabulary: Vocabulary, encoder: TextEncoder, settings: TokenizerSettings, files: Mapping[str, bytes]
    ) -> None:
        self._vocabulary, self._encoder, self._settings = vocabulary, encoder, settings
        self._files = dict(files)
        self.vocab_size = len(vocabulary.names)
        self.special_tokens = {vocabulary.names[i]: i for i in sorted(vocabulary.special)}
        self.bos_id = self.token_to_id(settings.bos_token or "")
        self.eos_id = self.token_to_id(settings.eos_token or "")
        self.pad_id = self.token_to_id(settings.pad_token or "")
        self.add_bos = bool(settings.add_bos) and self.bos_id is not None
        self.chat_template = settings.chat_template

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Loads a tokenizer.

        Args:
            path: A folder with `tokenizer.model` or `tokenizer.json` and the json files beside it, or one `.model`,
                `.json` or `.gguf` file. Of a file alone, nothing beside it is read.

        Raises:
            TokenizerError: The path is missing, holds no tokenizer, or one that is damaged or of another kind.
        """
        path = Path(path)
        if path.is_dir():
            files = {name: (path / name).read_bytes() for name in TOKENIZER_FILES if (path / name).is_file()}
            files |= {code.name: code.read_bytes() for code in sorted(path.glob("tokenization_*.py"))}
            return load_from_files(files, path)
        if not path.is_file():
            raise TokenizerError(f"{path}: no such file or folder")
        if path.suffix == ".gguf":
            content, settings = read_gguf(path)
            return load_from_files(content, path, settings)
        if path.suffix not in (".model", ".json"):
            raise TokenizerError(f"{path}: not a tokenizer; give a folder, or a .model, tokenizer.json or .gguf file")
        return load_from_files({f"tokenizer{path.suffix}": path.read_bytes()}, path)

    def encode(self, text: str, *, bos: bool = False, mid_text: bool = False) -> list[int]:
        """Ids of a text, none of them special.

        Args:
            bos: Begin with `bos_id`, where the checkpoint does so (`add_bos`).
            mid_text: The text goes on from other text, as an answer does from its header. It matters only where the
                model puts a space before every text.
        """
        return self._start(bos) + self._encode_stretch(text, mid_text)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The same as `encode` for each text, on all cores."""
        prepared = [self._prepare(text) for text in texts]
        plain = iter(self._encoder.encode_batch([text for text in prepared if not self._needs_care(text)]))
        return [self._encode_prepared(text) if self._needs_care(text) else next(plain) for text in prepared]

    def encode_markup(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of trusted text, in which the literal names of special tokens become their ids."""
        ids, start = self._start(bos), 0
        for match in self._markup.finditer(text):
            ids += self._encode_stretch(text[start : match.start()])
            ids.append(self._vocabulary.ids[match.group()])
            start = match.end()
        return ids + self._encode_stretch(text[start:])

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, mid_text: bool = False) -> str:
        """The text of ids: the inverse of `encode` and `encode_markup`.

        Bytes that form no character, and ids outside the vocabulary (models have spare rows), become "�".

        Args:
            skip_special: Leave special tokens out; otherwise they appear by name.
            mid_text: The ids go on from other text, as an answer does from its prompt. It matters only where the
                model puts a space before every text, which is taken off again at the start of a text.
        """
        at_start, parts = not mid_text, []
        for token_id in ids:
            parts.append(self.visible_bytes(token_id, at_start, skip_special))
            at_start = token_id in self._vocabulary.special
        return b"".join(parts).decode("utf-8", "replace")

    def visible_bytes(self, token_id: int, starts_text: bool, skip_special: bool) -> bytes:
        """What one id adds to the decoded text, in UTF-8; see `decode`."""
        if not 0 <= token_id < self.vocab_size or not self._vocabulary.names[token_id]:
            return REPLACEMENT.encode()
        if token_id in self._vocabulary.special:
            return b"" if skip_special else self._vocabulary.data[token_id]
        data = self._vocabulary.data[token_id]
        return data.removeprefix(b" ") if starts_text and self._vocabulary.prefix_space else data

    def token_to_id(self, token: str) -> int | None:
        """Id of a piece or special token by its name in the files; None where there is none."""
        return self._vocabulary.ids.get(token)

    def id_to_token(self, token_id: int) -> str:
        """Name of an id in the files: `▁world`, `<0x0A>`, `<|im_end|>`; "" for an id that is not used."""
        return self._vocabulary.names[self._checked(token_id)]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that an id stands for in text: b" world", b"\\n"; a special token's name."""
        return self._vocabulary.data[self._checked(token_id)]

    def is_special(self, token_id: int) -> bool:
        """Whether an id is a control token, marker or spare token, which `encode` never gives."""
        return token_id in self._vocabulary.special

    def save(self, folder: str | Path, *, portable: bool = False) -> None:
        """Writes the tokenizer's files into a folder, made where missing.

        Files that it was loaded from are written byte for byte. A `tokenizer.json` and `tokenizer_config.json` are
        made where it came without, so that `transformers` loads the folder. Files of another tokenizer are removed.

        Args:
            portable: A tokenizer that needs code of its own (`auto_map`), or that has no `tokenizer.json`, gets a
                `tokenizer_config.json` with which `transformers` needs none; the code is left out.
        """
        folder = Path(folder)
        files = dict(self._files)
        if portable and self._needs_code():
            kept = ("tokenizer.model", "tokenizer.json", "chat_template.jinja")
            files = {name: content for name, content in files.items() if name in kept}
        if "tokenizer.json" not in files:
            proto = parse_model(files["tokenizer.model"], folder)
            bos = self._settings.bos_token if self.add_bos else None
            files["tokenizer.json"] = _dump(model_to_json(proto, self._vocabulary, bos))
        files.setdefault("tokenizer_config.json", _dump(_config_json(self._settings, self._vocabulary), indent=2))
        write_files(folder, files)

    @property
    def files(self) -> Mapping[str, bytes]:
        """Content of the files that it was loaded from, by name."""
        return self._files

    def _needs_code(self) -> bool:
        config = json.loads(self._files.get("tokenizer_config.json", b"{}"))
        return "tokenizer.json" not in self._files or "auto_map" in config

    @cached_property
    def _markup(self) -> re.Pattern[str]:
        return names_pattern([*self.special_tokens, *self._vocabulary.aliases])

    def _start(self, bos: bool) -> list[int]:
        return [self.bos_id] if bos and self.add_bos and self.bos_id is not None else []

    def _encode_stretch(self, text: str, mid_text: bool = False) -> list[int]:
        return self._encode_prepared(self._prepare(text, mid_text)) if text else []

    def _prepare(self, text: str, mid_text: bool = False) -> str:
        text = " " + text if self._vocabulary.prefix_space and text and not mid_text else text
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate, as json may hold
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text

    def _needs_care(self, prepared: str) -> bool:
        return bool(self._vocabulary.space_mark_ids) and SPACE_MARK in prepared

    def _encode_prepared(self, text: str) -> list[int]:
        if not self._needs_care(text):
            return self._encoder.encode(text)
        first, *others = text.split(SPACE_MARK)
        ids = self._encoder.encode(first)
        for part in others:
            ids += [*self._vocabulary.space_mark_ids, *self._encoder.encode(part)]
        return ids

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"id {token_id} is outside the vocabulary of {self.vocab_size:,}")
        return token_id


def load_from_files(files: Mapping[str, bytes], path: Path, settings: TokenizerSettings | None = None) -> Tokenizer:
    """A tokenizer from the content of its files, by name.

    Args:
        path: Where they come from, for error messages.
        settings: What to take instead of the json files.

    Raises:
        TokenizerError: There is no tokenizer among them, or it is damaged or of another kind.
    """
    if "tokenizer.model" not in files and "tokenizer.json" not in files:
        raise TokenizerError(f"{path}: no tokenizer.model or tokenizer.json in this folder")
    document = read_json(files["tokenizer.json"], _within(path, "tokenizer.json")) if "tokenizer.json" in files else {}
    settings = settings or parse_settings(files, path, document)
    encoder: TextEncoder
    if "tokenizer.model" in files:
        path = _within(path, "tokenizer.model")
        proto = parse_model(files["tokenizer.model"], path)
        settings = _model_defaults(settings, proto)
        vocabulary = model_vocabulary(proto, settings)
        encoder = SentencePieceEncoder(proto, vocabulary.special, path)
    else:
        path = _within(path, "tokenizer.json")
        settings = _json_defaults(settings, document)
        vocabulary = json_vocabulary(document, settings, path)
        encoder = JsonEncoder(document, vocabulary, settings, path)
    return Tokenizer(vocabulary, encoder, settings, files)


def _within(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _model_defaults(settings: TokenizerSettings, proto: ModelProto) -> TokenizerSettings:
    """Fills in what the json files left open, from the model file."""
    spec = proto.trainer_spec
    bos, eos, pad, unk = (
        proto.pieces[i].piece if 0 <= i < len(proto.pieces) else None
        for i in (spec.bos_id, spec.eos_id, spec.pad_id, spec.unk_id)
    )
    return replace(
        settings,
        bos_token=settings.bos_token or bos,
        eos_token=settings.eos_token or eos,
        pad_token=settings.pad_token or pad,
        unk_token=settings.unk_token or unk,
        add_bos=settings.add_bos is not False,
    )


def _json_defaults(settings: TokenizerSettings, document: Mapping[str, Any]) -> TokenizerSettings:
    """Fills in what the json files left open: the post-processor tells whether a text begins with bos."""
    bos, known = template_bos(document), {token.content for token in settings.added.values()}
    return replace(
        settings,
        bos_token=settings.bos_token or bos or ("<s>" if "<s>" in known else None),
        eos_token=settings.eos_token or ("</s>" if "</s>" in known else None),
        add_bos=bos is not None if settings.add_bos is None else settings.add_bos,
    )


def _config_json(settings: TokenizerSettings, vocabulary: Vocabulary) -> dict[str, Any]:
    named = [i for i in sorted(vocabulary.special) if not is_spare(vocabulary.names[i])]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": settings.bos_token, "eos_token": settings.eos_token,
        "pad_token": settings.pad_token, "unk_token": settings.unk_token,
        "add_bos_token": settings.add_bos, "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): {"content": vocabulary.names[i], **flags} for i in named},
        "chat_template": settings.chat_template,
    }  # fmt: skip
    return {key: value for key, value in values.items() if value is not None}


def _dump(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()
