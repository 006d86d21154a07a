"""Memory does not grow with the input: a process limited to less memory than its input takes gets through."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

RUN = """
    import resource, sys
    from pathlib import Path
    from puyulm.data.clean.settings import CleanSettings
    from puyulm.data.dedup.settings import DedupSettings
    from puyulm.data.format.settings import FormatSettings, InputSettings
    from puyulm.data.pipeline.executor import SerialExecutor
    from puyulm.data.pipeline.recipe import DataRecipe, Step
    from puyulm.data.pipeline.run import run_pipeline

    limit, name = int(sys.argv[1]), sys.argv[2]
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    own = CleanSettings(gopher=None, repetition=None, c4=None, refinedweb=None, fineweb=None, chinese=None)
    steps = (
        Step(format=FormatSettings((InputSettings((name,), language="en", source="s"),))),
        Step(clean=own),
        Step(dedup=DedupSettings(method="exact", memory_mb=4)),
    )
    results = run_pipeline(DataRecipe(Path(name + ".out"), steps, task_mb=4), SerialExecutor())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(results[-1].counts.documents_out, int(status["VmData"].split()[0]) * 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limit on private memory")
def test_an_input_larger_than_the_memory(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")

    def run(name: str, limit: int = 0) -> tuple[int, int]:
        root = str(Path(__file__).parents[3])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                       "MALLOC_ARENA_MAX": "1"}  # fmt: skip
        command = [sys.executable, "-c", textwrap.dedent(RUN), str(limit), name]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        documents, data = done.stdout.split()
        return int(documents), int(data)

    _, at_rest = run(_lines(tmp_path / "small.jsonl", 400))
    large = _lines(tmp_path / "large.jsonl", 16_000)
    headroom = 110_000_000  # batches of texts as arrays, tables of characters
    assert (tmp_path / large).stat().st_size > headroom
    assert run(large, at_rest + headroom)[0] == 16_000


def _lines(path: Path, count: int) -> str:
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghiklmnoprstuvw", k=generator.randint(2, 9))) for _ in range(3000)]
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            text = ". ".join(" ".join(generator.choices(words, k=12)) for _ in range(100))
            file.write(json.dumps({"id": f"d{i}", "text": text + "."}) + "\n")
    return path.name
