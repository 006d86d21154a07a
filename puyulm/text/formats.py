"""The chat formats of the family, as values: what stands around a message, which tokens end an answer, how to sample.

A format is data; `puyulm.text.chat.render` writes it and `puyulm.text.parse` reads it back. Sources: the published
tokenizer configurations, model cards and format notes of InternLM, InternLM2, InternLM2.5 and InternLM3.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from puyulm.errors import ChatError

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant", "environment"]


@dataclass(frozen=True, slots=True)
class Marker:
    """A structure token, emitted by id and never found in content.

    Attributes:
        names: The names it has in published tokenizers; the first one that a tokenizer knows is meant.
    """

    names: tuple[str, ...]

    def __str__(self) -> str:
        return self.names[0]

    def find(self, tokenizer: Tokenizer) -> int | None:
        """The marker's id, or None where the tokenizer has no such token."""
        return next((found for name in self.names if (found := tokenizer.token_to_id(name)) is not None), None)

    def id(self, tokenizer: Tokenizer, chat_format: str) -> int:
        """The marker's id.

        Raises:
            ChatError: The tokenizer has no such token.
        """
        found = self.find(tokenizer)
        if found is None:
            raise ChatError(
                f"the tokenizer has no token {self}, which the chat format '{chat_format}' is made of; "
                f"choose another format ({', '.join(CHAT_FORMATS)})"
            )
        return found


Part = str | Marker

# In the first week of InternLM2 the spare pieces' own names stood in the files; a bare .model file has them still.
IM_START = Marker(("<|im_start|>", "[UNUSED_TOKEN_146]"))
IM_END = Marker(("<|im_end|>", "[UNUSED_TOKEN_145]"))
ACTION_START = Marker(("<|action_start|>", "[UNUSED_TOKEN_144]"))
ACTION_END = Marker(("<|action_end|>", "[UNUSED_TOKEN_143]"))
INTERPRETER = Marker(("<|interpreter|>", "[UNUSED_TOKEN_142]"))
PLUGIN = Marker(("<|plugin|>", "[UNUSED_TOKEN_141]"))
THINK_OPEN = Marker(("<think>",))
THINK_CLOSE = Marker(("</think>",))
END_OF_HUMAN = Marker(("<eoh>",))
END_OF_ANSWER = Marker(("<eoa>",))
END_OF_TEXT = Marker(("<|endoftext|>",))

REWARD_TOKEN_ID = 92527  # known by id only: published files do not agree on its name
PUBLISHED_IM_END_IDS = frozenset({92542, 128131})  # of InternLM2 / 2.5 and of InternLM3


@dataclass(frozen=True, slots=True)
class Turn:
    """What stands around the content of one role's messages.

    Attributes:
        head: Before the content; a message's name follows it as ` name=...` where the format has names.
        gap: Between head (with its name) and content.
        end: After the content. A marker at its start is what an assistant learns to produce; text after that is not.
    """

    head: tuple[Part, ...]
    gap: str = ""
    end: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How the published chat functions sample.

    Attributes:
        top_k: Most likely tokens kept; 0 keeps all.
        top_p: Probability mass kept; 1.0 keeps all.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.8
    repetition_penalty: float = 1.0
    max_new_tokens: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """One chat format.

    Attributes:
        name: Its name in `CHAT_FORMATS` and on the command line.
        system, user, assistant, environment: What stands around the messages of each role; None: role not known.
        bos: A conversation starts with the tokenizer's beginning-of-text token.
        bos_every_turn: Answered user turns start with one more, as in July 2023.
        eos_after_answer: The end-of-text token follows a conversation that ends with an answer (base models).
        names: Messages may carry a name in their header.
        actions: Tool calls and code stand between action markers; tool lists and results are named messages.
        reasoning: Thoughts stand between `<think>` and `</think>` at the start of an answer.
        default_system: System text of a conversation that has none.
        thinking_prompt: System text that asks for deep thinking.
        defaults, thinking_defaults: How to sample; the second one for deep thinking, where the format has it.
        stops: Markers that end an answer, besides the tokenizer's end-of-text token.
        reward_token_id: Token appended to a conversation that a reward model scores.
    """

    name: str
    user: Turn
    assistant: Turn
    system: Turn | None = None
    environment: Turn | None = None
    bos: bool = True
    bos_every_turn: bool = False
    eos_after_answer: bool = False
    names: bool = False
    actions: bool = False
    reasoning: bool = False
    default_system: str | None = None
    thinking_prompt: str | None = None
    stops: tuple[Marker, ...] = ()
    reward_token_id: int | None = None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    thinking_defaults: SamplingDefaults | None = None

    def turn(self, role: Role) -> Turn:
        """What stands around messages of `role`.

        Raises:
            ChatError: The format does not know the role.
        """
        turn: Turn | None = getattr(self, role)
        if turn is None:
            raise ChatError(f"the chat format '{self.name}' has no role '{role}'")
        return turn

    def stop_ids(self, tokenizer: Tokenizer) -> set[int]:
        """Ids that end an answer: the end-of-turn token and the tokenizer's end of text."""
        ids = {found for marker in self.stops if (found := marker.find(tokenizer)) is not None}
        return ids if tokenizer.eos_id is None else ids | {tokenizer.eos_id}


INTERNLM_SYSTEM = """You are an AI assistant whose name is InternLM (书生·浦语).
- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory (上海人工智能实验室). It is designed to be helpful, honest, and harmless.
- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as English and 中文."""  # noqa: E501

SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

THINKING_PROMPT = r"""You are a mathematician of long experience who solves the hardest problems by patient thought. Token budget for your thinking: [[8192]]. Work through every problem in this order.

1. Understand. Restate the problem for yourself. Write down what is given, what is asked, and which conditions are easy to overlook.
2. Look around. Recall theorems and problems that resemble this one. Think of at least two ways in, for instance algebra and geometry, small cases, symmetry, or working backwards from the goal, and say which looks best and why.
3. Plan. Cut the chosen way into steps that can each be settled alone. If a step resists, come back here and try another way.
4. Prove. Carry out each step in full. Name the fact that every inference rests on, keep all cases, and never replace an argument by a guess.
5. Check. Test the result on special values, repeat the calculation by another route, and ask whether it answers the question that was put. When a check fails, say so, find the mistake and repair it.

Think aloud for as long as the problem needs, within the budget. Finish with a short, clean solution and put the final answer in \boxed{}."""  # noqa: E501


def _chatml(role: str) -> Turn:
    return Turn(head=(IM_START, role), gap="\n", end=(IM_END, "\n"))


INTERNLM_2023_07 = ChatFormat(
    name="internlm-2023-07",
    system=Turn(head=("<|System|>:",), end=("\n",)),
    user=Turn(head=("<|User|>:",), end=(END_OF_HUMAN, "\n")),
    assistant=Turn(head=("<|Bot|>:",), end=(END_OF_ANSWER, "\n")),
    bos_every_turn=True,
    stops=(END_OF_ANSWER,),
)

INTERNLM_2023_09 = replace(
    INTERNLM_2023_07,
    name="internlm-2023-09",
    bos_every_turn=False,
    defaults=SamplingDefaults(repetition_penalty=1.05),
)

INTERNLM = replace(
    INTERNLM_2023_09,
    name="internlm",
    user=Turn(head=("<|User|>:",), end=("\n",)),
    defaults=SamplingDefaults(),
)

CHATML = ChatFormat(
    name="chatml",
    system=_chatml("system"),
    user=_chatml("user"),
    assistant=_chatml("assistant"),
    bos=False,
    reasoning=True,
    stops=(IM_END, END_OF_TEXT),
)

SMOLLM = replace(
    CHATML,
    name="smollm",
    default_system=SMOLLM_SYSTEM,
    defaults=SamplingDefaults(temperature=0.2, top_p=0.9, max_new_tokens=512),
)

INTERNLM2 = replace(
    CHATML,
    name="internlm2",
    environment=_chatml("environment"),
    bos=True,
    names=True,
    actions=True,
    default_system=INTERNLM_SYSTEM,
    stops=(IM_END,),
)

INTERNLM2_MATH = replace(INTERNLM2, name="internlm2-math", default_system=None)

INTERNLM2_REWARD = replace(INTERNLM2_MATH, name="internlm2-reward", reward_token_id=REWARD_TOKEN_ID)

_V3_SAMPLING = SamplingDefaults(temperature=1.0, top_k=40, top_p=0.8, repetition_penalty=1.005, max_new_tokens=1024)

INTERNLM3 = replace(
    INTERNLM2,
    name="internlm3",
    thinking_prompt=THINKING_PROMPT,
    defaults=_V3_SAMPLING,
    thinking_defaults=replace(_V3_SAMPLING, max_new_tokens=8192),
)

BASE = ChatFormat(
    name="base",
    system=Turn(head=()),
    user=Turn(head=()),
    assistant=Turn(head=()),
    eos_after_answer=True,
    stops=(END_OF_TEXT,),
    defaults=SamplingDefaults(max_new_tokens=256),
)

CHAT_FORMATS: dict[str, ChatFormat] = {
    chat_format.name: chat_format
    for chat_format in (
        INTERNLM_2023_07,
        INTERNLM_2023_09,
        INTERNLM,
        INTERNLM2,
        INTERNLM2_MATH,
        INTERNLM2_REWARD,
        INTERNLM3,
        SMOLLM,
        CHATML,
        BASE,
    )
}


def find_chat_format(name: str) -> ChatFormat:
    """The named format, for `--chat-format NAME`.

    Raises:
        ChatError: No format has this name; the message gives the nearest one and all names.
    """
    if name in CHAT_FORMATS:
        return CHAT_FORMATS[name]
    near = difflib.get_close_matches(name, CHAT_FORMATS, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ChatError(f"unknown chat format '{name}': {hint}known: {', '.join(CHAT_FORMATS)}")


def with_thinking_prompt(chat_format: ChatFormat, path: Path) -> ChatFormat:
    """The format with another prompt for deep thinking, such as the text that InternLM3 was published with.

    Raises:
        ChatError: The file cannot be read as text, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ChatError(f"{path}: cannot be read as text ({error})") from None
    if not text:
        raise ChatError(f"{path}: holds no text")
    return replace(chat_format, thinking_prompt=text)


def chat_format_for(family: str, tokenizer: Tokenizer, *, reward_token_id: int | None = None) -> ChatFormat:
    """The format of a checkpoint, from its family and the tokens that its tokenizer really has.

    Names and paths are not looked at. What cannot be told apart has to be chosen by name (`find_chat_format`): the
    earlier eras of the first generation, InternLM-Math, and base models, whose tokenizers equal the chat models'.
    InternLM's own system text is the default only with the published vocabularies: a model of another tokenizer was
    not made by that laboratory, and would be told a wrong name.

    Args:
        family: `ModelConfig.family`.
        reward_token_id: `ModelConfig.reward_token_id` of a reward model.

    Raises:
        ChatError: The checkpoint brings a chat template of another kind.
    """
    if family == "internlm" and END_OF_ANSWER.find(tokenizer) is not None:
        return INTERNLM
    im_end, template = IM_END.find(tokenizer), tokenizer.chat_template
    if im_end is None or IM_START.find(tokenizer) is None:
        if template is not None:
            raise ChatError(
                "the checkpoint's chat template is of none of the known formats; "
                "use the template itself (--chat-template), or continue plain text (--chat-format base)"
            )
        return BASE
    if family in ("internlm2", "internlm3"):
        chat_format = INTERNLM3 if family == "internlm3" else INTERNLM2
        if reward_token_id is not None:
            return replace(INTERNLM2_REWARD, reward_token_id=reward_token_id)
        if im_end not in PUBLISHED_IM_END_IDS:
            chat_format = replace(chat_format, default_system=None)
        has_actions = all(marker.find(tokenizer) is not None for marker in (ACTION_START, ACTION_END, PLUGIN))
        return replace(chat_format, actions=has_actions)
    if template is None:
        return BASE
    if SMOLLM_SYSTEM in template:
        return SMOLLM
    return replace(CHATML, bos="bos_token" in template)
