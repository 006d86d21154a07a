"""The demo from beginning to end: a published model answers, then one of our own is made."""

from __future__ import annotations

import sys
from pathlib import Path

from puyulm.demo.recipe import DemoRecipe
from puyulm.demo.report import summary, write_report
from puyulm.demo.stages import Demo, run_stages
from puyulm.errors import PuyuError


def demo(recipe: DemoRecipe, folder: Path, *, published: bool = True) -> None:
    """Runs all stages that are not done yet, prints a summary and writes `report.html`."""
    if published and recipe.questions:
        answer_with_published_model(recipe.questions)
    results = run_stages(Demo(recipe, folder))
    page = write_report(folder, results)
    model = folder / "sft" / "model"
    command = sys.argv[0] if Path(sys.argv[0]).name == "puyu" else "puyu"  # .venv/bin/puyu, where it is not on the path
    print(f"\n{summary(folder, results)}\n\nreport: {page}\nmodel:  {model}\nchat:   {command} chat {model}")


def answer_with_published_model(questions: tuple[str, ...]) -> None:
    """Lets the default model answer; without a network there is a line that says so, and the demo goes on."""
    from dataclasses import replace

    from puyulm.engine.engine import Engine
    from puyulm.engine.load import load_chat_model
    from puyulm.model.presets import DEFAULT_MODEL
    from puyulm.text.chat import Message, render

    print(f"[0] {DEFAULT_MODEL}, a published model, answers", flush=True)
    try:
        chat = load_chat_model(DEFAULT_MODEL)
    except PuyuError as error:
        print(f"left out: {error}", file=sys.stderr)
        return
    params = replace(chat.params, temperature=0.0, max_new_tokens=60)
    prompts = [
        render([Message("user", question)], chat.tokenizer, chat.chat_format, add_generation_prompt=True).ids
        for question in questions
    ]
    for question, answer in zip(questions, Engine(chat.model, chat.tokenizer).generate(prompts, params),
                                strict=True):  # fmt: skip
        print(f"  you: {question}\n  it:  {(answer.text or '').strip()}", flush=True)
