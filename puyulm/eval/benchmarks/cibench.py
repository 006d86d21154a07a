"""CIBench (Zhang et al., 2024), template subset: data science in notebooks, step by step, with an interpreter.

Data: `cibench_dataset` as OpenCompass publishes it: notebooks `cibench_template/LIBRARY/*.ipynb` (Chinese:
`cibench_template_chinese`), and the files that they read in `datasources/data` (or `data`). A cell of Markdown is a
step, the cell of code behind it a solution with its output. A notebook's metadata say what each step is to be judged by
(`step_types`: exec, num, text, vis; else it follows from the output) and the packages to use (`modules`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Generation, Play, Question, Record, Sample, Verdict
from puyulm.eval.extract.code import code_blocks, without_thoughts
from puyulm.eval.model import Output, Prompt
from puyulm.eval.programs import answer_text, need_sandbox
from puyulm.eval.similarity import need_pillow, picture_similarity, rouge_1
from puyulm.eval.source import Made, SourceContext
from puyulm.sandbox import Cell, Limits, Session
from puyulm.text.formats import INTERPRETER
from puyulm.text.messages import Message

LIBRARIES = (
    "lightgbm", "matplotlib", "nltk", "opencv", "pandas", "pytorch", "scipy", "seaborn", "sklearn", "tensorflow",
)  # fmt: skip
PAGE = "https://github.com/open-compass/opencompass/releases/download/0.2.4.rc1/cibench_dataset.zip"
LIMITS = Limits(seconds=60.0, memory=8 << 30, processes=64, disk=512 << 20, output_bytes=16 << 10)
ATTEMPTS = 3  # calls of the interpreter in a step, until one runs
AT_ONCE = 8  # notebooks; each has an interpreter with its libraries in memory
PYTHON = ("python", "py", "python3", "ipython", "")
SHOWN = 4096  # characters of an output that the model sees
METRICS = ("score", "executable", "tool_rate", "correct", "text", "visual")
MEASURE = {"num": "correct", "general": "correct", "text": "text", "vis": "visual"}  # of a kind of step

INSTRUCTION = (
    "You have access to a stateful Jupyter notebook with Python. Solve each step by running code in it; variables of "
    "earlier steps are still there. Write the code of a step in one ```python block. End it with an expression or a "
    "print of what is asked for; draw figures with matplotlib. Files lie in the folder data."
)
INSTRUCTION_ZH = (
    "你可以使用一个有状态的 Jupyter 笔记本来运行 Python 代码。请通过运行代码完成每一步，之前步骤中的变量仍然可用。"
    "请把每一步的代码写在一个 ```python 代码块中，最后用表达式或 print 给出所求结果，用 matplotlib 画图。"
    "数据文件在 data 文件夹中。"
)


class DataFile:
    """A file that a notebook reads. As text it is its contents' hash: where it lies changes no question."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


# Rows


def notebooks(folder: str, name: str) -> Callable[[str, SourceContext], Iterator[Record]]:
    """A source of the notebooks of a library, below `DATA_DIR/NAME/FOLDER`."""

    def make(subset: str, context: SourceContext) -> Iterator[Record]:
        root = None if context.data_dir is None else context.data_dir / name
        files = [] if root is None else sorted((root / folder / subset).rglob("*.ipynb"))
        if root is None or not files:
            where = f"FOLDER/{name} and give --data-dir FOLDER" if root is None else str(root)
            wanted = f"{folder}/{subset}/*.ipynb"
            raise DataError(f"{name}: no notebooks of '{subset}': place {wanted} in {where}; they are at {PAGE}")
        for file in files:
            try:
                content = json.loads(file.read_text("utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise DataError(f"cannot read {file}: {str(error).splitlines()[0]}") from None
            yield {"notebook": content, "name": file.relative_to(root / folder).as_posix(), "files": _data_files(root)}

    return make


def _data_files(root: Path) -> Mapping[str, Path]:
    for folder in (root / "datasources", root):
        if (folder / "data").is_dir():
            files = (file for file in sorted((folder / "data").rglob("*")) if file.is_file())
            return {file.relative_to(folder).as_posix(): file for file in files}
    return {}


def read(record: Record, subset: str, number: int) -> Question:
    """A notebook: its steps, and what each is compared with."""
    cells, metadata = record["notebook"]["cells"], record["notebook"].get("metadata", {})
    modules, kinds = list(metadata.get("modules", ())), list(metadata.get("step_types", ()))
    texts = [_source(cell) for cell in cells if cell["cell_type"] == "markdown"]
    solved = [cell for cell in cells if cell["cell_type"] == "code"]
    if not texts or len(texts) != len(solved):
        raise ValueError(f"{record['name']} has {len(texts)} steps and {len(solved)} solutions")
    if any(len(one) != len(texts) for one in (modules, kinds) if one):
        raise ValueError(f"{record['name']}: metadata are not of {len(texts)} steps")
    steps: list[dict[str, Any]] = []
    for place, (text, cell) in enumerate(zip(texts, solved, strict=True)):
        kind, wanted = _wanted(cell.get("outputs", ()))
        kind = str(kinds[place]) if kinds else kind
        if kind not in ("exec", *MEASURE):
            raise ValueError(f"{record['name']}: a step of the unknown kind '{kind}'")
        used = [one.strip() for one in str(modules[place]).split("&")] if modules else []
        steps.append({"text": text, "modules": used, "kind": kind, "wanted": wanted, "code": _source(cell)})
    everything = "\n".join(f"{step['text']}\n{step['code']}" for step in steps)
    used_files = {name: DataFile(path) for name, path in record["files"].items() if Path(name).name in everything}
    return Question(
        str(record["name"]), str(steps[0]["text"]), [step["wanted"] for step in steps], subset,
        extra={"steps": steps, "files": used_files},
    )  # fmt: skip


def _source(cell: Record) -> str:
    source = cell["source"]
    return (source if isinstance(source, str) else "".join(source)).strip()


def _wanted(outputs: Sequence[Record]) -> tuple[str, str | None]:
    """What a solution gave: a picture, or the value of its last line, or what it printed."""
    pictures = [one["data"]["image/png"] for one in outputs if "image/png" in one.get("data", {})]
    values = [one["data"]["text/plain"] for one in outputs if one["output_type"] == "execute_result"]
    printed = [one["text"] for one in outputs if one["output_type"] == "stream" and one.get("name") == "stdout"]
    for kind, found in (("vis", pictures), ("general", values), ("general", printed)):
        if found:
            return kind, found[-1] if isinstance(found[-1], str) else "".join(found[-1])
    return "exec", None


# Turns


def code_of(output: Output) -> str | None:
    """What is to be run: code for the interpreter in the chat format's own way, or the first Python block."""
    if output.message is not None and output.message.code is not None:
        return output.message.code
    blocks = code_blocks(without_thoughts(output.text))
    return next((block.text for block in blocks if block.language in PYTHON), None)


def play(question: Question, prompt: Prompt, *, chinese: bool = False, roles: bool = False) -> Play:
    """All steps of a notebook in one session.

    In a step the model may run code up to three times, until it works; then comes the next step.

    Args:
        roles: With the roles that InternLM2's chat format has for the interpreter, instead of user's messages.

    Returns:
        An output for each step: all that was written and shown in it, and as `message` how the last run ended (JSON:
        `called`, `status`, `output`, `picture` in base64).
    """
    name = str(INTERPRETER) if roles else None
    messages = [Message("system", INSTRUCTION_ZH if chinese else INSTRUCTION, name=name)]
    ends: list[Output] = []
    files = {name: file.path.read_bytes() for name, file in question.extra["files"].items()}
    with Session(limits=LIMITS, files=files) as session:
        for step in question.extra["steps"]:
            messages.append(Message("user", _step_text(step, chinese)))
            begin, tokens = len(messages), 0
            cell: Cell | None = None
            for _ in range(ATTEMPTS):
                output = yield replace(prompt, messages=_in_turns(messages))
                tokens += output.tokens
                messages.append(_answer(output, roles))
                code = code_of(output)
                if code is None:
                    break
                cell = _run(session, code)
                shown = Message("environment", _shown(cell), name=name) if roles else Message("user", _told(cell))
                messages.append(shown)
                if cell.status == "ok":
                    break
            text = "\n".join(f"{one.content}\n{one.code or ''}".strip() for one in messages[begin:])
            end = Message("assistant", json.dumps(_end(cell), ensure_ascii=False))
            ends.append(Output(text=text, message=end, tokens=tokens))
    return ends


def _in_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Neighbouring messages of the user as one: many chat templates know only turns."""
    turns: list[Message] = []
    for one in messages:
        if turns and turns[-1].role == one.role == "user":
            one = Message("user", f"{turns.pop().content}\n\n{one.content}")
        turns.append(one)
    return tuple(turns)


def _run(session: Session, code: str) -> Cell:
    if not session.alive:
        return Cell(status="dead", error="The session has ended.")
    return session.run(code)


def _step_text(step: Record, chinese: bool) -> str:
    if not step["modules"]:
        return str(step["text"])
    names = (" 和 " if chinese else " and ").join(step["modules"])
    return f"{step['text']}\n请用 {names} 模块。" if chinese else f"{step['text']}\nPlease use {names} modules."


def _answer(output: Output, roles: bool) -> Message:
    if roles and output.message is not None:
        return Message("assistant", output.text, code=output.message.code)
    return Message("assistant", answer_text(output))


def _shown(cell: Cell) -> str:
    parts = [cell.stdout, cell.result or "", f"[{len(cell.images)} figures]" if cell.images else "", cell.error or ""]
    return "\n".join(part[-SHOWN:].strip() for part in parts if part.strip()) or "(no output)"


def _told(cell: Cell) -> str:
    return f"Output:\n```\n{_shown(cell)}\n```"


def _end(cell: Cell | None) -> dict[str, Any]:
    if cell is None:
        return {"called": False, "status": "none", "output": "", "picture": None}
    picture = base64.b64encode(cell.images[-1]).decode() if cell.images else None
    return {"called": True, "status": cell.status, "output": cell.result or cell.stdout, "picture": picture}


# Verdicts


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Means over the notebook's steps, and how many steps each is of ("... steps")."""
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    notes = []
    for step, output in zip(question.extra["steps"], outputs, strict=True):
        assert output.message is not None
        end = json.loads(output.message.content)
        values["tool_rate"].append(float(end["called"]))
        values["executable"].append(float(end["status"] == "ok"))
        notes.append(end["status"])
        if step["kind"] in MEASURE and step["wanted"] is not None:
            value = _compare(step["kind"], end, step["wanted"])
            values[MEASURE[step["kind"]]].append(value)
            values["score"].append(value)
    means = {name: sum(own) / len(own) for name, own in values.items() if own}
    steps = {f"{name} steps": float(len(own)) for name, own in values.items() if own}
    return Verdict(means | steps, None, ", ".join(notes))


def _compare(kind: str, end: Mapping[str, Any], wanted: str) -> float:
    if kind == "vis":
        return picture_similarity(base64.b64decode(end["picture"]), _decoded(wanted)) if end["picture"] else 0.0
    if kind == "text":
        return rouge_1(end["output"], wanted)
    return float(end["status"] == "ok" and wanted.strip() in end["output"].strip())


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """Means over the steps of all notebooks."""
    found = {}
    for name in METRICS:
        scores = [(one.scores[name], one.scores[f"{name} steps"]) for one in samples if name in one.scores]
        if scores:
            found[name] = sum(mean * steps for mean, steps in scores) / sum(steps for _, steps in scores)
    return found


def need_tools() -> None:
    """Raises SandboxError or DataError where notebooks cannot be run or figures not be compared."""
    need_sandbox()
    need_pillow()


def _make(name: str, title: str, folder: str, *, chinese: bool) -> Benchmark:
    chat = Generation(
        prompt=lambda question: question.text,
        solution=lambda question: f"```python\n{question.extra['steps'][0]['code']}\n```",
        verdict=verdict,
        play=lambda question, prompt: play(question, prompt, chinese=chinese),
        at_once=AT_ONCE,
        max_new_tokens=512,
    )
    return Benchmark(
        name=name,
        title=title,
        dimension="tools",
        source=Made(notebooks(folder, name)),
        read=read,
        subsets=dict.fromkeys(LIBRARIES, ""),
        modes={
            "chat": chat,
            "interpreter": replace(chat, play=lambda one, prompt: play(one, prompt, chinese=chinese, roles=True)),
        },
        metrics=METRICS,
        summarise=summarise,
        needs=need_tools,
        follows="steps, rules and weights of CIBench in OpenCompass (three attempts a step, 512 tokens each, the last "
        "run counts; correct: the expected output is within the output; text: ROUGE-1; visual: SSIM), without its "
        'ReAct prompts; "score" is the mean over all steps with an expected output. lm-evaluation-harness has none',
    )


BENCHMARKS = (
    _make("cibench", "CIBench (English)", "cibench_template", chinese=False),
    _make("cibench_zh", "CIBench (Chinese)", "cibench_template_chinese", chinese=True),
)
