"""README and docs say what is so: every command parses, marked blocks run as written, links lead somewhere.

A block preceded by `<!-- run -->` is run, in an empty folder beside a link to `recipes/`, without a network.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from puyulm.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(
    r"^(?P<run> *<!-- run -->\n)?(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text("utf-8")))


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block["language"] in ("bash", "sh"):
                for line in block["code"].replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    names = [Path(word).name for word in words]  # also .venv/bin/puyu
                    if "puyu" in names:
                        words = words[names.index("puyu") + 1 :]
                        ends = [i for i, word in enumerate(words) if word in ("|", ">", "<", "&&")]
                        found.append((f"{page.name}: {line.strip()}", words[: ends[0]] if ends else words))
    return found


RUN = [
    pytest.param(block["language"], textwrap.dedent(block["code"]), id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page))
    if block["run"]
]


@pytest.mark.parametrize(("where", "words"), [pytest.param(*c, id=c[0]) for c in commands()])
def test_every_command_in_the_docs_parses(where: str, words: list[str]):
    assert _parser(words).parse_args(words).verb == words[0], where


@pytest.mark.parametrize(("language", "code"), RUN)
def test_marked_blocks_run_as_written(tmp_path: Path, language: str, code: str):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    command = ["bash", "-eo", "pipefail", "-c", code] if language in ("bash", "sh") else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_there_are_blocks_to_run():
    assert len(RUN) >= 6


def test_commands_are_found_in_the_readme_too():
    assert {where.split(":")[0] for where, _ in commands()} >= {"README.md", "data.md", "training.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
