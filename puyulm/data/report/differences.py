"""Where two near-duplicates differ: runs of words (of characters in Chinese) that one has and the other has not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

MAX_TOKENS = 600  # of each text that are compared; what follows is shown without marks
_FREQUENT = 12  # a token that stands more often starts no match of its own, which bounds the work of difflib
_IDEOGRAPHS = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u30ff\u3105-\u312f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
_TOKEN = re.compile(f"[{_IDEOGRAPHS}]|[^\\W{_IDEOGRAPHS}]+|\\s+|.", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """A run of a text.

    Attributes:
        text: Its characters.
        kind: "same" as in the other text, "different", or "unknown" beyond what was compared.
    """

    text: str
    kind: str


def differences(left: str, right: str, beginnings: bool = False) -> tuple[list[Part], list[Part]]:
    """Both texts, cut into parts that are the same and parts that differ; joined, the parts are the texts.

    The cost is bounded whatever the texts: at most 600 words of each are compared, in milliseconds.

    Args:
        left, right: The texts.
        beginnings: They are the beginnings of longer texts, so that nothing is known of what only one of them has at
            its end.
    """
    a, b = (_TOKEN.findall(text) for text in (left, right))
    rest_a, rest_b = a[MAX_TOKENS:], b[MAX_TOKENS:]
    a, b = a[:MAX_TOKENS], b[:MAX_TOKENS]
    limit = min(len(a), len(b))
    start = next((i for i in range(limit) if a[i] != b[i]), limit)
    end = next((i for i in range(limit - start) if a[-1 - i] != b[-1 - i]), limit - start)
    open_end = bool(rest_a or rest_b) or beginnings
    if open_end:
        end = 0  # the ends of what is compared are no ends of the texts
    middle_a, middle_b = a[start : len(a) - end], b[start : len(b) - end]
    counts = Counter(middle_b)
    matcher = SequenceMatcher(lambda token: counts[token] > _FREQUENT, middle_a, middle_b, autojunk=False)
    lefts, rights = [("same", a[:start])], [("same", b[:start])]
    for operation, i, j, k, m in matcher.get_opcodes():
        # Text that only one of the two still had when the comparison stopped is not known to differ.
        cut = operation != "equal" and (j == len(middle_a) or m == len(middle_b)) and open_end
        kind = "same" if operation == "equal" else "unknown" if cut else "different"
        lefts.append((kind, middle_a[i:j]))
        rights.append((kind, middle_b[k:m]))
    lefts += [("same", a[len(a) - end :]), ("unknown", rest_a)]
    rights += [("same", b[len(b) - end :]), ("unknown", rest_b)]
    return _joined(lefts), _joined(rights)


def _joined(runs: Sequence[tuple[str, Sequence[str]]]) -> list[Part]:
    parts: list[Part] = []
    for kind, tokens in runs:
        text = "".join(tokens)
        if parts and (parts[-1].kind == kind or not text):
            parts[-1] = Part(parts[-1].text + text, parts[-1].kind)
        elif text:
            parts.append(Part(text, kind))
    return parts
