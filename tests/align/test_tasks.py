"""Tasks with checkable answers: right, disjoint, repeatable."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from puyulm.align import tasks
from puyulm.align.tasks import KINDS, Item, make_items, make_mixture, write_conversations, write_items
from puyulm.errors import DataError


def numbers_of(prompt: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", prompt)]


def test_answers_are_right() -> None:
    """Each kind solved a second time, from its prompt."""
    for item in make_mixture(dict.fromkeys(KINDS, 40), seed=5, split="train"):
        assert solve(item) == item.answer, item


def solve(item: Item) -> str:
    prompt, comma = item.prompt, ", " if item.language == "en" else "、"
    low = any(word in prompt for word in ("smaller", "lesser", "小？"))
    before = any(word in prompt for word in ("before", "前"))
    match item.kind:
        case "larger":
            return str((min if low else max)(numbers_of(prompt)))
        case "sort":
            return comma.join(map(str, sorted(numbers_of(prompt))))
        case "add":
            return str(sum(numbers_of(prompt)))
        case "successor":
            return str(numbers_of(prompt)[0] + (-1 if before else 1))
        case "parity":
            odd = numbers_of(prompt)[0] % 2
            return ("odd" if odd else "even") if item.language == "en" else ("奇数" if odd else "偶数")
        case "copy":
            return str(numbers_of(prompt)[0])
        case "backwards":
            return str(numbers_of(prompt)[0])[::-1]
        case "digit":
            ordinals = [*tasks.ORDINALS[item.language][:3], "last" if item.language == "en" else "最后一"]
            return str(numbers_of(prompt)[0])[next(i for i, ordinal in enumerate(ordinals) if ordinal in prompt)]
        case "colour" | "where":
            asked = next(name for name in tasks.NAMES[item.language] if prompt.count(name) == 2)
            known = (tasks.COLOURS if item.kind == "colour" else tasks.PLACES)[item.language]
            border = r"\b" if item.language == "en" else ""
            found = re.search(f"{border}(?:{'|'.join(known)})", prompt[prompt.index(asked) :])
            assert found is not None
            return f"the {found[0]}" if item.language == "en" and item.kind == "where" else found[0]
    words = _list_of(item)
    match item.kind:
        case "repeat":
            return comma.join(words)
        case "reverse":
            return comma.join(reversed(words))
        case "count":
            return str(len(words))
        case "place":
            ordinals = (*tasks.ORDINALS[item.language], "last" if item.language == "en" else "最后一")
            index = next(i for i, ordinal in enumerate(ordinals) if ordinal in prompt)
            return words[-1 if index == 5 else index]
        case "next":
            given = next(word for word in words if _asked(prompt, word))
            return words[words.index(given) + (-1 if before else 1)]
    raise AssertionError(item.kind)


def _list_of(item: Item) -> list[str]:
    separator = ", " if item.language == "en" else "、"
    known = "|".join(sorted(tasks.WORDS[item.language], key=len, reverse=True))
    found = re.search(rf"(?:{known})(?:{separator}(?:{known}))+", item.prompt)
    assert found is not None, item
    return found[0].split(separator)


def _asked(prompt: str, word: str) -> bool:
    """Whether a prompt asks about this word: it stands there once more than in the list."""
    return bool(re.search(rf"(?:after|before|follows) {word}\b|{word}的?[前后]", prompt))


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_held_out_items_share_no_content(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[tuple[object, ...]]] = {"train": set(), "held-out": set()}
    split = "train"
    really = tasks.is_held_out

    def spy(content: tuple[object, ...]) -> bool:
        held_out = really(content)
        if held_out == (split == "held-out"):
            seen[split].add(content)
        return held_out

    monkeypatch.setattr(tasks, "is_held_out", spy)
    train = make_items(kind, 300, seed=1, split="train")
    split = "held-out"
    held_out = make_items(kind, 100, seed=1, split="held-out")
    assert not {item.prompt for item in train} & {item.prompt for item in held_out}
    assert seen["train"] and seen["held-out"] and not seen["train"] & seen["held-out"]
    assert len({item.prompt for item in train}) == 300
    assert {item.language for item in held_out} == {"en", "zh"}


def test_the_same_seed_gives_the_same_items() -> None:
    counts = {"place": 20, "add": 10}
    assert make_mixture(counts, 3, "train") == make_mixture(counts, 3, "train")
    assert make_mixture(counts, 3, "train") != make_mixture(counts, 4, "train")


def test_too_many_items_and_unknown_kinds_are_errors() -> None:
    with pytest.raises(DataError, match="'successor' has no 5000 different items for held-out"):
        make_items("successor", 5000, 0, "held-out")
    with pytest.raises(DataError, match="unknown task 'juggle'; known: repeat, place"):
        make_items("juggle", 1, 0, "train")


def test_files_for_training_and_evaluation(tmp_path: Path) -> None:
    items = make_mixture({"place": 7}, 0, "train")
    write_items(items, tmp_path / "items.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [Item(**row) for row in rows] == items
    write_conversations(items, tmp_path / "deep" / "chat.jsonl", turns=3)
    chats = [json.loads(line)["messages"] for line in (tmp_path / "deep" / "chat.jsonl").read_text().splitlines()]
    assert [len(chat) // 2 for chat in chats] == [1, 2, 3, 1]
    said = [message["content"] for chat in chats for message in chat]
    assert said == [text for item in items for text in (item.prompt, item.answer)]


def test_a_number_held_out_for_one_kind_is_held_out_for_all() -> None:
    kinds = dict.fromkeys(("copy", "backwards", "digit", "parity"), 400)
    trained = {numbers_of(item.prompt)[0] for item in make_mixture(kinds, 0, "train")}
    held_out = {numbers_of(item.prompt)[0] for item in make_mixture(dict.fromkeys(kinds, 60), 0, "held-out")}
    assert not trained & held_out
