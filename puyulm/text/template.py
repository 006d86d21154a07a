"""A checkpoint's own chat template: jinja source, rendered in a sandbox, with content that cannot become markup.

The names and settings a template may rely on are those of the Hugging Face library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from puyulm.errors import ChatError
from puyulm.text import formats
from puyulm.text.formats import INTERPRETER, PLUGIN, Marker
from puyulm.text.messages import Message, message_to_dict

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

_STRUCTURE_KEYS = ("role", "type")  # compared by templates, never shown as content
_PRIVATE_CHARACTERS = range(0xF0000, 0xFFFFE)


def render_template(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: str,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> list[int]:
    """Writes a conversation with a jinja chat template.

    Special tokens come from the template's own text alone. Before rendering, every special token spelled in content
    is broken by a character that is taken out again afterwards. A second rendering, with a break after every
    character of content, shows which special tokens the template itself writes. Where the first one has others
    (content and template text together spell one, or the template looks into the content), the second one is used:
    its structure is the template's, at the price of content that the template could not look into.

    Args:
        template: Jinja source; a checkpoint's own is `tokenizer.chat_template`.
        tools: OpenAI-style definitions, handed to the template as they are.

    Raises:
        ChatError: The template is damaged, forbidden things are tried in it, or it refuses these messages.
    """
    conversation = [_template_message(message, template) for message in messages]
    specials = _special_tokens(tokenizer)
    pattern = _any_of(specials)
    mark = _unused_character(json.dumps([conversation, tools], ensure_ascii=False, default=str) + template)

    def write(*, opaque: bool) -> list[str]:
        text = _render(
            template,
            messages=_guarded(conversation, pattern, mark, opaque),
            tools=_guarded(list(tools), pattern, mark, opaque) if tools else None,
            add_generation_prompt=add_generation_prompt,
            bos_token=_name(tokenizer, tokenizer.bos_id),
            eos_token=_name(tokenizer, tokenizer.eos_id),
            pad_token=_name(tokenizer, tokenizer.pad_id),
        )
        return [part for part in pattern.split(text) if part]

    parts, safe_parts = write(opaque=False), write(opaque=True)
    if [part for part in parts if part in specials] != [part for part in safe_parts if part in specials]:
        parts = safe_parts
    ids: list[int] = []
    for is_special, group in groupby(parts, key=specials.__contains__):
        if is_special:
            ids += [specials[part] for part in group]
        else:
            ids += tokenizer.encode("".join(group).replace(mark, ""))
    return ids


def _template_message(message: Message, template: str) -> dict[str, Any]:
    """The form that templates expect: arguments as objects, results under the role that the template knows."""
    knows_tool = re.search(r"""['"]tool['"]""", template) is not None
    data = message_to_dict(message, tool_role="tool" if knows_tool else "environment")
    if message.name in (str(PLUGIN), str(INTERPRETER)) and "name" in data:
        data["name"] = message.name.strip("<|>")
    if message.tool_calls:
        for call, shown in zip(message.tool_calls, data["tool_calls"], strict=True):
            shown["function"]["arguments"] = call.arguments
    data.pop("loss", None)
    return data


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens by every name that a published template may call them."""
    specials = {name: token_id for name, token_id in tokenizer.special_tokens.items() if len(name) > 1}
    for marker in vars(formats).values():
        for name in marker.names if isinstance(marker, Marker) else ():
            token_id = tokenizer.token_to_id(name)
            if token_id is not None and tokenizer.is_special(token_id):
                specials[name] = token_id
    return specials


def _any_of(names: Mapping[str, int]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if names else "(?!)")


def _unused_character(text: str) -> str:
    return next(chr(code) for code in _PRIVATE_CHARACTERS if chr(code) not in text)


def _guarded(value: Any, pattern: re.Pattern[str], mark: str, opaque: bool, key: str = "") -> Any:
    """`value` with its texts made harmless: broken special tokens, or (`opaque`) a break after every character."""
    if isinstance(value, str):
        # the names that the format itself defines are structure
        if opaque and key not in _STRUCTURE_KEYS and not (key == "name" and value in ("plugin", "interpreter")):
            inner = value.strip()
            start, end = value[: len(value) - len(value.lstrip())], value[len(value.rstrip()) :]
            return f"{start}{mark}{mark.join(inner)}{mark}{end}" if inner else value
        while pattern.search(value):
            value = pattern.sub(lambda found: found[0][0] + mark + found[0][1:], value)
        return value
    if isinstance(value, Mapping):
        return {_guarded(name, pattern, mark, False): _guarded(item, pattern, mark, opaque, name)
                for name, item in value.items()}  # fmt: skip
    if isinstance(value, Sequence):
        return [_guarded(item, pattern, mark, opaque, key) for item in value]
    return value


def _name(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.id_to_token(token_id)


def _render(template: str, **variables: Any) -> str:
    try:
        return _compiled(template).render(**variables)
    except jinja2.TemplateSyntaxError as error:
        raise ChatError(f"the chat template is damaged in line {error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:  # also what the sandbox forbids
        raise ChatError(f"the chat template refuses these messages: {error.message}") from None
    except Exception as error:  # a template is a foreign program: it may fail in any way
        raise ChatError(f"the chat template fails on these messages: {error}") from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks an answer for training libraries; here its body is simply written."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes <, > and & for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
