"""A language model as a scorer: it is asked over HTTP for a number, and every answer is kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from puyulm.data.score.linear import Floats
from puyulm.data.score.settings import JudgeSettings
from puyulm.errors import DataError

UNREADABLE_ANSWERS = 2  # after so many a text is left without a score: at temperature 0 the next will be alike
MAX_WAIT = 60.0  # seconds between two attempts, at most
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_NUMBER = re.compile(
    r"(?:score|rating|评分|得分|分数)?\s*[:：=]?\s*\**([0-9]+(?:\.[0-9]+)?)\**\s*(?:/\s*[0-9]+|分)?\s*\.?"
)


class Judge:
    """Asks a model behind an endpoint of OpenAI's protocol (`POST /chat/completions`).

    Answers are cached by model, prompt and text in an SQLite file that several processes may use at once; also that an
    answer could not be read, so that a resumed run gives the same result.

    Args:
        settings: Whom to ask, and what.
        wait: Waits for a number of seconds before another attempt; for tests.

    Raises:
        DataError: The cache cannot be opened.
    """

    def __init__(self, settings: JudgeSettings, wait: Callable[[float], object] | None = None) -> None:
        self._settings = settings
        self._stop = threading.Event()  # set when one question failed for good: the others then end soon
        self._wait = self._stop.wait if wait is None else wait
        self._cache = _Cache(Path(settings.cache).expanduser())

    def score(self, texts: Sequence[str]) -> Floats:
        """The model's ratings, divided by the highest one, `[N]`; NaN where no answer could be read.

        Raises:
            DataError: The endpoint refuses, or gives no answer after all attempts. What was answered is kept.
        """
        texts = [text.encode("utf-8", "replace").decode() for text in texts]  # half surrogates cannot be sent
        keys = [self._key(text) for text in texts]
        known = self._cache.get(keys)
        asked = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        self._stop.clear()
        problem: DataError | None = None
        with ThreadPoolExecutor(self._settings.threads) as pool:
            waiting = {pool.submit(self._ask, text): key for key, text in asked.items()}
            try:
                for future in as_completed(waiting):
                    try:
                        known[waiting[future]] = value = future.result()
                        self._cache.put(waiting[future], value)
                    except CancelledError:
                        continue
                    except DataError as error:
                        problem = problem or error
                        self._stop.set()
                        for other in waiting:
                            other.cancel()
            except BaseException:  # Ctrl-C: let no question wait for its next attempt
                self._stop.set()
                for other in waiting:
                    other.cancel()
                raise
        if problem is not None:
            raise problem
        values = [known[key] for key in keys]
        return np.array([math.nan if v is None else v / self._settings.highest for v in values], dtype=np.float64)

    def _key(self, text: str) -> bytes:
        settings = self._settings
        asked = json.dumps([settings.model, settings.prompt, settings.highest, settings.max_tokens, text])
        return hashlib.blake2b(asked.encode(), digest_size=16).digest()

    def _ask(self, text: str) -> float | None:
        """One text's rating; None if the model answers, but never with a number."""
        settings = self._settings
        body = {"model": settings.model, "temperature": 0, "max_tokens": settings.max_tokens,
                "messages": [{"role": "user", "content": settings.prompt.replace("{text}", text)}]}  # fmt: skip
        problem, unreadable = "", 0
        for attempt in range(settings.retries + 1):
            pause = 2.0**attempt
            try:
                rating = read_rating(self._post(body), settings.highest)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}{_detail(error)}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise DataError(f"the judge at {settings.base_url} refuses: {problem}") from None
                pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except (OSError, HTTPException, ValueError) as error:  # no connection, a time-out, half an answer, no JSON
                problem = str(getattr(error, "reason", "") or error) or type(error).__name__
            else:
                unreadable += rating is None
                if rating is not None or unreadable == UNREADABLE_ANSWERS:
                    return rating
                continue
            if self._stop.is_set():
                break
            if attempt < settings.retries:
                self._wait(min(MAX_WAIT, pause))
        if unreadable:
            return None
        raise DataError(f"the judge at {settings.base_url} does not answer after {settings.retries + 1} attempts "
                        f"({problem}): run the same command again later; answers so far are kept")  # fmt: skip

    def _post(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._settings.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        url = self._settings.base_url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self._settings.timeout) as response:
            reply = json.loads(response.read())
        try:
            return str(reply["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError):
            raise ValueError("an answer without choices[0].message.content") from None


def read_rating(answer: str, highest: float) -> float | None:
    """The number in an answer: a number alone, perhaps as `Score: 4/5`, or JSON with a number under "score".

    Returns:
        The rating, from 0 to `highest`; None if there is none, or it is outside.
    """
    answer = _THOUGHTS.sub("", answer).strip()
    value: Any = None
    if match := _NUMBER.fullmatch(answer.lower()):
        value = float(match.group(1))
    elif (start := answer.find("{")) >= 0:
        try:
            record = json.JSONDecoder().raw_decode(answer[start:])[0]
        except ValueError:
            return None
        value = next((v for k, v in record.items() if k.lower() == "score"), None)
        if isinstance(value, str):
            value = read_rating(value, highest)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= highest else None


class _Cache:
    """Ratings by key, in SQLite; used by one thread of a process, and by any number of processes."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = normal")
            self._database.execute("create table if not exists ratings (key blob primary key, value real)")
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"the judge's cache {path} cannot be used ({error}): choose another file") from None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float | None]:
        found: dict[bytes, float | None] = {}
        for key in keys:
            row = self._database.execute("select value from ratings where key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = row[0]
        return found

    def put(self, key: bytes, value: float | None) -> None:
        self._database.execute("insert or replace into ratings values (?, ?)", (key, value))


def _detail(error: urllib.error.HTTPError) -> str:
    """What a refusal says, in one line."""
    try:
        text = " ".join(error.read(500).decode("utf-8", "replace").split())
    except (OSError, HTTPException):
        text = ""
    return f" ({text[:200]})" if text else ""


def _seconds(value: str | None) -> float:
    try:
        return max(0.0, float(value or 0))
    except ValueError:  # a date
        return 0.0
