"""Jinja chat templates written from our chat formats, for saving with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

from puyulm.text.formats import ChatFormat, Part, Role, Turn

_TOOL_LIST = """
{%- set ns = namespace(shown=[]) -%}
{%- for tool in tools or [] -%}
  {%- set tool = tool['function'] or tool -%}
  {%- set entry = {'name': tool['name']} -%}
  {%- if tool['description'] -%}{%- set entry = dict(entry, description=tool['description']) -%}{%- endif -%}
  {%- if tool['parameters'] -%}{%- set entry = dict(entry, parameters=tool['parameters']) -%}{%- endif -%}
  {%- set ns.shown = ns.shown + [entry] -%}
{%- endfor -%}
{%- set tool_list = SYSTEM_HEAD ~ ' name=<|plugin|>\\n' ~ ns.shown | tojson ~ SYSTEM_END if tools else '' -%}
"""

_NAME = """
  {%- if message['role'] == 'tool' -%}{%- set name = ' name=<|plugin|>' -%}
  {%- elif role in ['system', 'environment'] and message['name'] in ['plugin', 'interpreter'] -%}
    {%- set name = ' name=<|' ~ message['name'] ~ '|>' -%}
  {%- elif message['name'] -%}{%- set name = ' name=' ~ message['name'] -%}
  {%- else -%}{%- set name = '' -%}{%- endif -%}
"""

_REASONING = """
    {%- if message['reasoning_content'] is string -%}
      {{- '<think>\\n' ~ message['reasoning_content'] ~ '\\n</think>\\n\\n' -}}
    {%- endif -%}
"""

_ACTIONS = """
    {%- for call in message['tool_calls'] or [] -%}
      {%- set call = call['function'] or call -%}
      {%- set given = call['arguments'] if call['arguments'] is string else call['arguments'] | tojson -%}
      {{- '<|action_start|><|plugin|>\\n{"name": ' ~ call['name'] | tojson ~ ', "parameters": ' ~ given -}}
      {{- '}<|action_end|>' -}}
    {%- endfor -%}
    {%- if message['code'] is string -%}
      {{- '<|action_start|><|interpreter|>\\n```python\\n' ~ message['code'] ~ '\\n```<|action_end|>' -}}
    {%- endif -%}
"""

_BOS_OF_TURN = """
    {%- set earlier = messages[:loop.index0] | selectattr('role', 'equalto', 'user') | list -%}
    {%- if not earlier or (loop.nextitem is defined and loop.nextitem['role'] == 'assistant') -%}
      {{- bos_token -}}
    {%- endif -%}
"""


def template_source(chat_format: ChatFormat) -> str | None:
    """A jinja chat template that writes what `puyulm.text.chat.render` writes; None for base models.

    Tools, calls, `role: tool`, `reasoning_content` and `code` are understood where the format has a place for them.
    One difference stays: rendered as one string, an answer that starts with a line break may share a token with the
    header before it.
    """
    if not (chat_format.user.head or chat_format.user.end):
        return None
    source = [_constants(chat_format)]
    if chat_format.actions:
        source.append(_TOOL_LIST)
    if chat_format.bos:
        source.append("{{- bos_token -}}\n")
    source.append("{%- set plain = messages[0]['role'] == 'system' and not messages[0]['name'] -%}\n")
    if chat_format.default_system:
        block = f"SYSTEM_HEAD ~ SYSTEM_GAP ~ {_literal(chat_format.default_system)} ~ SYSTEM_END"
        source.append(f"{{%- if not plain -%}}{{{{- {block} -}}}}{{%- endif -%}}\n")
    if chat_format.actions:
        source.append("{%- if not plain -%}{{- tool_list -}}{%- endif -%}\n")
    source.append("{%- for message in messages -%}\n")
    source.append("  {%- set role = 'environment' if message['role'] == 'tool' else message['role'] -%}\n")
    source.append(_NAME if chat_format.names else "  {%- set name = '' -%}\n")
    source += _roles(chat_format)
    if chat_format.actions:
        source.append("  {%- if loop.first and plain -%}{{- tool_list -}}{%- endif -%}\n")
    source.append("{%- endfor -%}\n")
    source.append("{%- if add_generation_prompt -%}{{- ASSISTANT_HEAD ~ ASSISTANT_GAP -}}{%- endif -%}\n")
    return "".join(source)


def _turns(chat_format: ChatFormat) -> Iterable[tuple[Role, Turn]]:
    roles: tuple[Role, ...] = ("system", "user", "assistant", "environment")
    return [(role, turn) for role in roles if (turn := getattr(chat_format, role)) is not None]


def _constants(chat_format: ChatFormat) -> str:
    lines = []
    for role, turn in _turns(chat_format):
        for name, text in (("HEAD", _text(turn.head)), ("GAP", turn.gap), ("END", _text(turn.end))):
            lines.append(f"{{%- set {role.upper()}_{name} = {_literal(text)} -%}}\n")
    return "".join(lines)


def _roles(chat_format: ChatFormat) -> Iterable[str]:
    for number, (role, _) in enumerate(_turns(chat_format)):
        upper = role.upper()
        yield f"  {{%- {'elif' if number else 'if'} role == '{role}' -%}}\n"
        if role == "user" and chat_format.bos_every_turn:
            yield _BOS_OF_TURN
        yield f"    {{{{- {upper}_HEAD ~ name ~ {upper}_GAP -}}}}\n"
        if role == "assistant" and chat_format.reasoning:
            yield _REASONING
        yield "    {{- message['content'] or '' -}}\n"
        if role == "assistant" and chat_format.actions:
            yield _ACTIONS
        yield f"    {{{{- {upper}_END -}}}}\n"
    yield "  {%- else -%}{{- raise_exception('the chat format has no role ' ~ message['role']) -}}\n  {%- endif -%}\n"


def _text(parts: Iterable[Part]) -> str:
    return "".join(map(str, parts))


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
