"""What a checkpoint's json files say about its tokenizer, besides the vocabulary itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puyulm.errors import TokenizerError
from puyulm.text.vocabulary import AddedToken

# The files of a tokenizer in a published folder; remote code (tokenization_*.py) goes along when it is saved.
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt",
)  # fmt: skip

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Names and flags; None where the files say nothing.

    Attributes:
        bos_token, eos_token, pad_token, unk_token: Names of the tokens that begin, end and fill up a text.
        add_bos: A text begins with `bos_token`.
        chat_template: Jinja source.
        added: Added tokens by id.
    """

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    add_bos: bool | None = None
    chat_template: str | None = None
    added: Mapping[int, AddedToken] = field(default_factory=dict)


def parse_settings(files: Mapping[str, bytes], folder: Path, tokenizer_json: Mapping[str, Any]) -> TokenizerSettings:
    """Reads the json files of a tokenizer.

    Where files disagree, `tokenizer_config.json` wins over the others, and a `chat_template.jinja` over the template
    inside the configuration, as in the Hugging Face library.

    Args:
        files: Content of each file by name.
        folder: Where they lie, for error messages.
        tokenizer_json: The parsed `tokenizer.json`, or empty.

    Raises:
        TokenizerError: A file is not the json it should be.
    """
    config, named, added = (
        read_json(files[name], folder / name) if name in files else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    try:
        roles = {role: _content(config.get(role) or named.get(role)) for role in _ROLES}
        extra = (named.get("additional_special_tokens") or []) + (config.get("additional_special_tokens") or [])
        specials = {*roles.values(), *map(_content, extra)}
        tokens = {int(i): AddedToken(name, name in specials) for name, i in added.items()}
        tokens |= {int(token["id"]): _added_token(token) for token in tokenizer_json.get("added_tokens") or []}
        tokens |= {int(i): _added_token(token) for i, token in (config.get("added_tokens_decoder") or {}).items()}
        template = _chat_template(files, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(
            f"{folder}: a special token or chat template is not written as expected: {error!r}"
        ) from None
    return TokenizerSettings(**roles, add_bos=config.get("add_bos_token"), chat_template=template, added=tokens)


def read_json(content: bytes, path: Path) -> dict[str, Any]:
    """Parses a json object.

    Raises:
        TokenizerError: Not json, or not an object.
    """
    try:
        value = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read as json ({error}): damaged, or a file of another kind") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: should hold a json object, but holds a {type(value).__name__}")
    return value


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes these the tokenizer's files in a folder: written beside and renamed; those of another tokenizer removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f".{name}.partial").write_bytes(content)
    for name in files:
        os.replace(folder / f".{name}.partial", folder / name)
    for name in TOKENIZER_FILES:
        if name not in files:
            (folder / name).unlink(missing_ok=True)


def _content(token: str | Mapping[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, Mapping) else token


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    return AddedToken(token["content"], bool(token.get("special", False)))


def _chat_template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode()
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in template}
        return by_name.get("default", next(iter(by_name.values()), None))
    return template
