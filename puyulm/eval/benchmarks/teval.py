"""T-Eval (Chen et al., 2023): using tools, in six abilities that are scored apart.

Data: the json files of lovesnowbest/T-Eval on the hub (instruct_v2.json, ...; Chinese with _zh), rows by id. Each has
the whole conversation in `origin_prompt`, `ground_truth`, and `meta_data` (`response_format`), or for plans `meta`
(`prompt_type`, `API_list`); "instruct" has the names or marks of its format in `template`.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from puyulm.eval.benchmark import Benchmark, Generation, Play, Question, Record, Sample, Verdict
from puyulm.eval.model import Output, Prompt
from puyulm.eval.similarity import lexical_similarity
from puyulm.eval.source import Dataset
from puyulm.text.messages import message_from_dict

Similarity = Callable[[str, str], float]
DIMENSIONS = ("instruct", "plan", "reason", "retrieve", "understand", "review")
SUBSETS = {
    "instruct": "instruct",
    "plan_json": "plan",
    "plan_str": "plan",
    "reason_retrieve_understand_json": "reason, retrieve, understand",
    "reason_str": "reason",
    "retrieve_str": "retrieve",
    "understand_str": "understand",
    "review_str": "review",
}
NAME_WEIGHT, ARGUMENTS_WEIGHT, ALIKE = 0.75, 0.25, 0.8  # of two steps of plans
FINISH = "FinishAction"
LONGEST = 100_000  # characters of an answer that are looked at


# Rows and prompts


def read(record: Record, subset: str, number: int) -> Question:
    given = record["origin_prompt"]
    messages = json.loads(given) if isinstance(given, str) else given
    for place, message in enumerate(messages):
        message_from_dict(message, place)
    meta = record.get("meta_data") or record.get("meta") or {}
    form = str(meta.get("response_format") or meta.get("prompt_type") or ("str" if subset.endswith("_str") else "json"))
    truth = record["ground_truth"]
    truth = _loads(truth) if isinstance(truth, str) else truth
    for name in _NEEDED[subset]:
        truth[name]
    if subset.startswith("plan") and not _plan(truth):
        raise ValueError("'ground_truth' is no plan")
    template = record["template"] if subset == "instruct" else {}
    if subset == "instruct":
        template = {name: str(template[name]) for name in (_MARKS if form != "json" else _FIELDS)}
    return Question(
        f"{subset}/{record.get('_key', number)}", str(messages[-1]["content"]), truth, subset,
        extra={"messages": messages, "format": form, "template": template, "apis": list(meta.get("API_list", ()))},
    )  # fmt: skip


_FIELDS = ("thought", "action", "args")
_MARKS = ("thought_start", "thought_end", "action_start", "action_end", "args_start", "args_end")
_NEEDED: Mapping[str, Sequence[str]] = {
    "instruct": ("action", "args"),
    "plan_json": (),
    "plan_str": (),
    "reason_retrieve_understand_json": ("thought", "name", "args"),
    "reason_str": ("thought",),
    "retrieve_str": ("name",),
    "understand_str": ("args",),
    "review_str": ("answer",),
}


def play(question: Question, prompt: Prompt, result_role: str = "user") -> Play:
    """The conversation as it is published, instead of its last message.

    Args:
        result_role: Of what a tool returned ("function" in the data): "user", which all models know, or "tool".
    """
    given = question.extra["messages"]
    renamed = [one | {"role": result_role} if one["role"] == "function" else one for one in given]
    messages = tuple(message_from_dict(one, place) for place, one in enumerate(renamed))
    return [(yield replace(prompt, messages=messages))]


def solution(question: Question) -> str:
    truth, form = question.target, question.extra["format"]
    match question.subset:
        case "instruct" if form == "json":
            names = question.extra["template"]
            values = {"thought": truth.get("thought", ""), "action": truth["action"], "args": truth["args"]}
            return json.dumps({names[name]: value for name, value in values.items()}, ensure_ascii=False)
        case "instruct":
            t, thought = question.extra["template"], truth.get("thought", "")
            return (
                f"{t['thought_start']}{thought}{t['thought_end']}{t['action_start']}{truth['action']}{t['action_end']}"
                f"{t['args_start']}{truth['args']}{t['args_end']}"
            )
        case "plan_str":
            return "\n".join(f"Use {step['name']} with {step['args']}" for step in truth)
        case "reason_str":
            return str(truth["thought"])
        case "retrieve_str":
            return str(truth["name"])
        case "understand_str":
            return str(truth["args"])
        case "review_str":
            return f"Answer: {truth['answer']}"
    return json.dumps(truth, ensure_ascii=False)


# Verdicts


def verdict(question: Question, outputs: Sequence[Output], similarity: Similarity = lexical_similarity) -> Verdict:
    """Scores of the abilities that the question asks for."""
    output, truth, form = outputs[-1], question.target, question.extra["format"]
    text = output.text[:LONGEST].strip()
    match question.subset:
        case "instruct":
            return _instruct(question, output, text)
        case "plan_json" | "plan_str":
            steps = _plan(_calls_as_plan(output) or _loads(text, "[]")) if form == "json" else _steps(question, text)
            answer = "\n".join(name for name, _ in steps)
            return Verdict({"plan": plan_f1(steps, _plan(truth), similarity)}, answer or None)
        case "reason_str":
            return Verdict({"reason": max(similarity(text, str(truth["thought"])), 0.0)}, text)
        case "retrieve_str":
            return Verdict({"retrieve": float(_names_only(text, str(truth["name"])))}, text)
        case "understand_str":
            return Verdict({"understand": max(similarity(text, str(truth["args"])), 0.0)}, text)
        case "review_str":
            choice = text[text.find(":") + 1 :].strip()[:1]
            found = choice if choice and choice in "ABCDE" else None
            return Verdict({"review": float(found == truth["answer"])}, found)
    action = _action(output, text)
    if action is None:
        return Verdict({"reason": 0.0, "retrieve": 0.0, "understand": 0.0}, None, "no JSON object")
    thought, name, arguments = action
    return Verdict(
        {
            "reason": max(similarity(thought, str(truth["thought"])), 0.0),
            "retrieve": float(name == truth["name"]),
            "understand": arguments_f1(arguments, truth["args"] if isinstance(truth["args"], dict) else {}),
        },
        f"{name}({arguments})",
    )


def _instruct(question: Question, output: Output, text: str) -> Verdict:
    """Half for the format, half for the name and the arguments."""
    template = question.extra["template"]
    found = _marked(template, text)
    if question.extra["format"] == "json":
        data = _loads(text)
        names = [template[name] for name in _FIELDS]
        fields = [data[name] for name in names] if _has(data, names) else None
        if output.message is not None and output.message.tool_calls:  # in the chat format's own way
            call = output.message.tool_calls[0]
            fields = [text, call.name, call.arguments]
        found = None if fields is None else (fields[1], fields[2] if isinstance(fields[2], dict) else {})
    if found is None:
        return Verdict({"instruct": 0.0, "format": 0.0}, None, "not in the format")
    name, arguments = found
    truth = question.target
    right = [name == truth["action"], *(arguments.get(key) == value for key, value in truth["args"].items())]
    return Verdict({"instruct": (1 + sum(right) / len(right)) / 2, "format": 1.0}, f"{name}({arguments})")


def _marked(template: Mapping[str, str], text: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments from between the marks of a format; marks are looked for from the end."""
    if not all(name in template for name in _MARKS):
        return None
    marks = [template["args_end"].rstrip(), template["action_end"] + template["args_start"],
             template["thought_end"] + template["action_start"], template["thought_start"].lstrip()]  # fmt: skip
    pieces, end = [], len(text)
    for mark in marks:
        place = text.rfind(mark, 0, end)
        if place < 0:
            return None
        pieces.append(text[place + len(mark) : end])
        end = place
    arguments = _loads(pieces[1].strip())
    return pieces[2].strip(), arguments if isinstance(arguments, dict) else {}


def arguments_f1(found: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """F1 of arguments that have the right name and, as text, the right value; 1 where there are none on both sides."""
    if not found and not right:
        return 1.0
    shared = sum(key in found and str(found[key]) == str(value) for key, value in right.items())
    return 2 * shared / (len(found) + len(right))


def plan_f1(found: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]], similarity: Similarity) -> float:
    """F1 of the steps of a plan that are alike, in the right order.

    Steps are paired so that the sum of similarities above the threshold is largest; of the pairs, the longest run in
    increasing order counts. As in the official scorer a plan has at least one step right, whatever it says.

    Args:
        found, right: Name and arguments of each step.
    """
    import networkx as nx  # type: ignore[import-untyped,unused-ignore]  # torch brings it

    found, right = _without_finish(found), _without_finish(right)
    if not found or not right:
        return 0.0
    graph = nx.Graph()
    for i, (name, arguments) in enumerate(found):
        for j, (right_name, right_arguments) in enumerate(right):
            alike = NAME_WEIGHT * max(similarity(name, right_name), 0.0)
            alike += ARGUMENTS_WEIGHT * max(similarity(arguments, right_arguments), 0.0)
            if alike > ALIKE:
                graph.add_edge((0, i), (1, j), weight=alike)
    pairs = sorted((one[1], other[1]) for one, other in map(sorted, nx.max_weight_matching(graph)))
    lengths: list[int] = []
    for place, (_, j) in enumerate(pairs):
        lengths.append(1 + max((lengths[k] for k in range(place) if pairs[k][1] < j), default=0))
    return 2 * max(lengths, default=1) / (len(found) + len(right))


def _without_finish(steps: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    return steps[:-1] if steps and steps[-1][0] == FINISH else steps


def _plan(data: Any) -> list[tuple[str, str]]:
    """Names and arguments in the order of ids; nothing where a step lacks one of them."""
    try:
        steps = [(int(step["id"]), str(step["name"]), str(step["args"])) for step in data]
    except (TypeError, KeyError, ValueError):
        return []
    return [(name, arguments) for _, name, arguments in sorted(steps, key=lambda step: step[0])]


def _steps(question: Question, text: str) -> list[tuple[str, str]]:
    """Of a plan in words: the first tool that each sentence or line names."""
    steps = []
    for line in text.replace(". ", "\n").split("\n"):
        places = {name: place for name in question.extra["apis"] if (place := line.find(name)) >= 0}
        if places:
            steps.append((min(places, key=places.__getitem__), line))
    return steps


def _calls_as_plan(output: Output) -> list[dict[str, Any]]:
    calls = output.message.tool_calls if output.message is not None else ()
    return [{"id": place, "name": call.name, "args": call.arguments} for place, call in enumerate(calls)]


def _action(output: Output, text: str) -> tuple[str, str, dict[str, Any]] | None:
    """Thought, name and arguments: of a call in the chat format's own way, or of a JSON object in the text."""
    if output.message is not None and output.message.tool_calls:
        call = output.message.tool_calls[0]
        return text, call.name, call.arguments
    data = _loads(text, "{}")
    if not isinstance(data, dict):
        return None
    arguments = data.get("args")
    return str(data.get("thought", "")), str(data.get("name", "")), arguments if isinstance(arguments, dict) else {}


def _names_only(text: str, name: str) -> bool:
    """Whether a tool is named and no other one."""
    return name in text and all(one == name for one in re.findall(rf"\w+\.\w+|{FINISH}", text))


def _has(data: Any, names: Sequence[str]) -> bool:
    return isinstance(data, dict) and all(name in data for name in names)


def _loads(text: str, brackets: str = "") -> Any:
    """JSON, a Python literal, or JSON with single quotes; None: none of them.

    Args:
        brackets: What stands outside of the first and the last of these is passed over.
    """
    if "```json" in text:
        text = text.split("```json", 1)[1].strip().strip("`")
    if brackets:
        text = text[max(text.find(brackets[0]), 0) : text.rfind(brackets[1]) + 1]
    for load in (ast.literal_eval, json.loads, lambda one: json.loads(one.replace("'", '"'))):
        try:
            return load(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """Each ability: the mean of its formats' means; "score": the mean of the abilities."""
    values: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        for name in DIMENSIONS:
            if name in sample.scores:
                values[name][sample.subset, str(sample.extra.get("format"))].append(sample.scores[name])
    found = {}
    for name, formats in values.items():
        means = [sum(own) / len(own) for own in formats.values()]
        found[name] = sum(means) / len(means)
    return {"score": sum(found.values()) / len(found), **found} if found else {}


def make(name: str, title: str, suffix: str, similarity: Similarity = lexical_similarity) -> Benchmark:
    """The benchmark in a language, with a similarity of texts of one's own (say, of embeddings)."""
    chat = Generation(
        prompt=lambda question: question.text,
        solution=solution,
        verdict=lambda question, outputs: verdict(question, outputs, similarity),
        play=play,
        max_new_tokens=1024,
    )
    return Benchmark(
        name=name,
        title=title,
        dimension="tools",
        source=Dataset(
            files={"test": [f"{{subset}}_v2{suffix}.json", f"data/{{subset}}_v2{suffix}.json"]},
            page="https://huggingface.co/datasets/lovesnowbest/T-Eval",
        ),
        read=read,
        subsets=SUBSETS,
        modes={
            "chat": chat,
            "tools": replace(chat, play=lambda question, prompt: play(question, prompt, "tool")),  # InternLM2's format
        },
        metrics=("score", *DIMENSIONS),
        summarise=summarise,
        keep=("format",),
        follows="conversations and rules of T-Eval v2 as OpenCompass runs them; but thoughts, steps and arguments in "
        "words are compared by neighbouring characters instead of all-mpnet-base-v2's embeddings (reason and plan are "
        "not comparable with published ones), and JSON arguments by exact key and value. lm-evaluation-harness has "
        "none",
    )


BENCHMARKS = (make("teval", "T-Eval (English)", ""), make("teval_zh", "T-Eval (Chinese)", "_zh"))
