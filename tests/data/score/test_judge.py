"""The judge, against an endpoint on this machine that fails in all the ways endpoints do."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.score.judge import Judge, read_rating
from puyulm.data.score.settings import JudgeSettings
from puyulm.errors import DataError

Reply = tuple[int, str]


@dataclass
class Endpoint:
    """A server whose answers a test decides; it remembers what it was asked."""

    url: str = ""
    reply: Callable[[str, int], Reply] = lambda text, times: (200, "3")
    asked: Counter[str] = field(default_factory=Counter)
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state, lock = Endpoint(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][0]["content"].partition("TEXT:")[2]
            with lock:
                state.asked[text] += 1
                times = state.asked[text]
                state.requests.append((self.path, body, dict(self.headers)))
            status, content = state.reply(text, times)
            if status == 0:  # no answer until the test is over
                state.released.wait(20)
                return
            raw = content if status != 200 else json.dumps({"choices": [{"message": {"content": content}}]})
            if content == "no json":
                raw = "<html>"
            self.send_response(status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw.encode())))
            self.end_headers()
            self.wfile.write(raw.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    state.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def settings(endpoint: Endpoint, tmp_path: Path) -> JudgeSettings:
    cache = str(tmp_path / "cache" / "judge.sqlite")
    prompt = "Rate {}. TEXT:{text}"
    return JudgeSettings(endpoint.url, "m", cache, "TEST_JUDGE_KEY", prompt, timeout=5, retries=3, threads=4)


class Waits(list[float]):
    """Stands for waiting, and remembers how long it would have been."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def test_ratings_come_in_order_and_are_asked_for_once(
    endpoint: Endpoint, settings: JudgeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    endpoint.reply = lambda text, times: (200, str(len(text) % 6))
    texts = ["a" * n for n in range(20)] + ["aa", "aa"]
    expected = [len(text) % 6 / 5 for text in texts]
    assert Judge(settings).score(texts).tolist() == expected
    assert sum(endpoint.asked.values()) == 20
    path, body, headers = endpoint.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert (
        body["model"] == "m"
        and body["temperature"] == 0
        and body["messages"][0]["content"].startswith("Rate {}. TEXT:")
    )
    endpoint.reply = lambda text, times: (500, "must not be asked")
    assert Judge(settings).score(texts[::-1]).tolist() == expected[::-1]
    assert sum(endpoint.asked.values()) == 20


def test_another_prompt_or_model_asks_anew(endpoint: Endpoint, settings: JudgeSettings) -> None:
    Judge(settings).score(["a"])
    Judge(replace(settings, model="other")).score(["a"])
    Judge(replace(settings, prompt="Again. TEXT:{text}")).score(["a"])
    Judge(replace(settings, timeout=9, threads=1)).score(["a"])
    assert endpoint.asked["a"] == 3
    assert "Authorization" not in endpoint.requests[0][2]


def test_failures_are_tried_again_after_longer_and_longer_waits(endpoint: Endpoint, settings: JudgeSettings) -> None:
    endpoint.reply = lambda text, times: [(429, "slow down"), (500, "oops"), (503, "later"), (200, "4")][times - 1]
    waits = Waits()
    assert Judge(settings, waits).score(["x"]).tolist() == [0.8]
    assert waits == [1.0, 2.0, 4.0]
    endpoint.headers = {"Retry-After": "7"}
    waits.clear()
    assert Judge(settings, waits).score(["y"]).tolist() == [0.8]
    assert waits == [7.0, 7.0, 7.0]
    endpoint.headers = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert Judge(settings, waits).score(["z"]).tolist() == [0.8]


def test_a_time_out_and_half_an_answer_are_failures(endpoint: Endpoint, settings: JudgeSettings) -> None:
    endpoint.reply = lambda text, times: [(0, ""), (200, "no json"), (200, "1")][times - 1]
    assert Judge(replace(settings, timeout=0.2), Waits()).score(["x"]).tolist() == [0.2]
    assert endpoint.asked["x"] == 3


def test_answers_without_a_number_leave_a_text_unscored(endpoint: Endpoint, settings: JudgeSettings) -> None:
    endpoint.reply = lambda text, times: (200, "I like it" if text == "bad" or times == 1 else "2")
    waits = Waits()
    scores = Judge(settings, waits).score(["bad", "good"])
    assert np.isnan(scores[0]) and scores[1] == 0.4 and waits == []
    assert endpoint.asked == {"bad": 2, "good": 2}
    assert np.isnan(Judge(settings).score(["bad"])[0]) and endpoint.asked["bad"] == 2  # kept, too


def test_an_endpoint_that_never_answers(endpoint: Endpoint, settings: JudgeSettings) -> None:
    endpoint.reply = lambda text, times: (200, "5") if text == "first" else (502, "bad\ngateway")
    judge = Judge(settings, Waits())
    judge.score(["first"])
    with pytest.raises(DataError, match=r"does not answer after 4 attempts \(HTTP 502 \(bad gateway\)\)") as caught:
        judge.score(["first", "second", "third"])
    assert "\n" not in str(caught.value)
    endpoint.reply = lambda text, times: (200, "0")
    assert judge.score(["first", "second", "third"]).tolist() == [1.0, 0.0, 0.0]
    assert endpoint.asked["first"] == 1


def test_a_refusal_is_told_at_once(endpoint: Endpoint, settings: JudgeSettings) -> None:
    endpoint.reply = lambda text, times: (401, '{"error": "no key"}')
    with pytest.raises(DataError, match=r"refuses: HTTP 401 .*no key"):
        Judge(settings).score(["x"])
    assert endpoint.asked["x"] == 1


def test_no_endpoint_at_all(settings: JudgeSettings) -> None:
    waits = Waits()
    with pytest.raises(DataError, match="does not answer"):
        Judge(replace(settings, base_url="http://127.0.0.1:9/v1", retries=1), waits).score(["x"])
    assert waits == [1.0]


def test_answers_survive_a_failure_in_the_same_batch(endpoint: Endpoint, settings: JudgeSettings) -> None:
    endpoint.reply = lambda text, times: (200, "5") if text != "bad" else (500, "")
    one = replace(settings, threads=1)  # so that "good" is answered first
    with pytest.raises(DataError):
        Judge(one, Waits()).score(["good", "bad", "never asked"])
    stored = sqlite3.connect(settings.cache).execute("select value from ratings").fetchall()
    assert (5.0,) in stored
    endpoint.reply = lambda text, times: (200, "5")
    Judge(one).score(["good", "bad", "never asked"])
    assert endpoint.asked["good"] == 1


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("4", 4), (" 3.5\n", 3.5), ("Score: 2", 2), ("**5**", 5), ("4/5", 4), ("评分：3分", 3), ('{"score": 1}', 1),
        ('```json\n{"reason": "a {b}", "Score": "2.5"}\n```', 2.5), ("6", None),
        ("<think>maybe 5? 3?</think>\n0", 0),
        ("", None), ("between 3 and 4", None), ('{"score": true}', None), ('{"score": null}', None), ("{", None),
        ('{"rating": 3}', None), ("3 because it is clear", None), ('{"score": 1e400}', None), ("-1", None),
        ("NaN", None),
    ],
)  # fmt: skip
def test_reading_answers(answer: str, rating: float | None) -> None:
    assert read_rating(answer, 5) == rating


@given(st.text(max_size=40))
def test_any_answer_can_be_read(answer: str) -> None:
    rating = read_rating(answer, 5)
    assert rating is None or 0 <= rating <= 5


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for values in (
        {"base_url": "localhost"}, {"prompt": "no place"}, {"cache": ""}, {"threads": 0}, {"timeout": 0},
        {"retries": -1},
    ):  # fmt: skip
        with pytest.raises(DataError):
            JudgeSettings(**{"base_url": "http://h/v1", "model": "m", "cache": "c", **values})  # type: ignore[arg-type]
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cache"):
        Judge(JudgeSettings("http://h/v1", "m", str(tmp_path / "file" / "c.sqlite")))
