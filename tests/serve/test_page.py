"""The chat page, as a browser sees it. What the model says is the tests' own; all the rest is real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from puyulm.engine.config import EngineConfig
from puyulm.errors import QueueFull
from puyulm.serve import page as page_module
from puyulm.serve.settings import RateLimit, ServeSettings
from tests.engine.checkpoints import write_checkpoint
from tests.serve.scripted import PAUSE, Script
from tests.serve.servers import DEADLINE, Running, running
from tests.waiting import wait_until

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

Page = Any  # playwright's, which may be missing
WEATHER = '[{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]'
CALL = '<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "上海"}}<|action_end|>'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("page"), max_position_embeddings=4096)


@contextmanager
def serving(model: Path, script: Script, settings: ServeSettings | None = None) -> Iterator[Running]:
    config = EngineConfig(memory=16 << 20, max_running=4)
    with running(
        model, settings, config, chat_format="internlm3", prepare=script.prepare, page=True
    ) as server:  # fmt: skip
        yield server


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


@pytest.fixture(scope="module")
def server(model: Path, script: Script) -> Iterator[Running]:
    with serving(model, script) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


class Seen:
    """The page in a browser.

    Attributes:
        foreign: Addresses it asked for that are not the server's.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.foreign = page, []
        page.set_default_timeout(DEADLINE * 1000)
        playwright.expect.set_options(timeout=DEADLINE * 1000)
        page.on("request", lambda request: request.url.startswith(url) or self.foreign.append(request.url))
        page.goto(url)

    @property
    def box(self) -> Any:
        return self.page.locator("#question textarea")

    def ask(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def put(self, label: str, text: str) -> None:
        """Fills a field of the settings. What is typed while they open is lost: then it is typed again."""
        field = self.page.get_by_label(label)
        wait_until(lambda: self._filled(field, text))

    def _filled(self, field: Any, text: str) -> bool:
        if field.input_value() != text:
            field.fill(text)
        field.press("Tab")
        self.page.wait_for_function("() => new Promise(done => setTimeout(() => done(true), 100))")  # as it redraws
        return field.input_value() == text

    def exchange(self, text: str, answer: str) -> None:
        """Asks, and waits until this answer is there and the next question may come."""
        self.ask(text)
        playwright.expect(self.page.locator("#chat [data-testid=bot]").last).to_contain_text(answer)
        self.is_ready()

    def shows(self, role: str, *texts: str) -> None:
        """Waits until the bubbles of one side are these."""
        playwright.expect(self.page.locator(f"#chat [data-testid={role}]")).to_have_text(list(texts))

    def is_ready(self) -> None:
        playwright.expect(self.page.get_by_test_id("submit-button")).to_be_visible()
        playwright.expect(self.box).to_be_enabled()

    def stop(self) -> None:
        self.page.locator("#question").get_by_label("Stop").click()

    def warns(self, text: str) -> None:
        playwright.expect(self.page.locator(".toast-body")).to_have_count(1)
        playwright.expect(self.page.locator(".toast-body")).to_contain_text(text)

    def attach(self, name: str, content: bytes) -> None:
        files = [{"name": name, "mimeType": "text/plain", "buffer": content}]
        self.page.get_by_test_id("file-upload").set_input_files(files)
        playwright.expect(self.page.locator("#question .thumbnail-item")).to_be_visible()

    def settings(self) -> None:
        self.page.get_by_role("button", name="Settings").click()


@pytest.fixture
def seen(browser: Any, server: Running, script: Script) -> Iterator[Seen]:
    script.answers.clear()
    context = browser.new_context()
    yield Seen(context.new_page(), server.url)
    context.close()
    server.wait_until_free()


def last_turn(script: Script) -> str:
    return script.asked[-1].rsplit("<|im_start|>user\n", 1)[1]


@needs_browser
def test_an_answer_is_shown_while_it_comes(seen: Seen, script: Script) -> None:
    script.say("Hello" + PAUSE + " you.")
    seen.ask("Who is there?")
    seen.shows("bot", "Hello")
    seen.shows("user", "Who is there?")
    playwright.expect(seen.box).to_be_disabled()
    script.go_on()
    seen.shows("bot", "Hello you.")
    seen.is_ready()
    playwright.expect(seen.page.locator("#speed")).to_contain_text("a second")
    assert last_turn(script).startswith("Who is there?<|im_end|>")
    script.say("Fine.")
    seen.ask("And you?")
    seen.shows("bot", "Hello you.", "Fine.")
    assert "assistant\nHello you.<|im_end|>" in script.asked[-1]
    assert seen.foreign == []


@needs_browser
def test_text_is_rendered(seen: Seen, script: Script) -> None:
    script.say("*a* $x^2$ \\(y\\)\n\n```python\n    def f():\n        return 1\n```\n<script>alert(1)</script>")
    seen.exchange("?", "return 1")
    bot = seen.page.locator("#chat [data-testid=bot]")
    playwright.expect(bot.locator("em")).to_have_text("a")
    playwright.expect(bot.locator(".katex")).to_have_count(2)
    assert "    def f():\n        return 1" in bot.locator("pre").inner_text()
    assert bot.locator("script").count() == 0
    assert seen.foreign == []  # what the page needs for code and formulas is the server's own


@needs_browser
def test_stop_frees_the_request_at_once(seen: Seen, script: Script, server: Running) -> None:
    script.say("One" + PAUSE + " two")
    seen.ask("Count")
    seen.shows("bot", "One")
    assert server.engine.scheduler.pool.held > 0
    seen.stop()
    server.wait_until_free()
    seen.is_ready()
    seen.shows("bot", "One")
    script.say("three")
    seen.ask("Go on")
    seen.shows("bot", "One", "three")
    assert "assistant\nOne<|im_end|>" in script.asked[-1]


@needs_browser
def test_a_closed_tab_frees_the_request(browser: Any, server: Running, script: Script) -> None:
    script.say("One" + PAUSE + " two")
    tab = Seen(browser.new_page(), server.url)
    tab.ask("Count")
    tab.shows("bot", "One")
    assert server.engine.scheduler.pool.held > 0
    tab.page.close()
    server.wait_until_free()


@needs_browser
def test_an_answer_is_made_again(seen: Seen, script: Script) -> None:
    script.say("First.")
    seen.exchange("Name one", "First.")
    script.say("Second.")
    seen.page.get_by_label("Retry").click()
    seen.shows("bot", "Second.")
    seen.is_ready()
    assert "First." not in script.asked[-1] and last_turn(script).startswith("Name one<|im_end|>")


@needs_browser
def test_an_earlier_question_is_changed(seen: Seen, script: Script) -> None:
    for number in ("one", "two"):
        script.say(f"Answer {number}.")
        seen.exchange(f"Question {number}", f"Answer {number}.")
    seen.page.get_by_label("Edit").first.click()
    script.say("Another.")
    seen.page.locator("#chat textarea").fill("Question three")
    seen.page.locator("#chat").get_by_label("Submit").click()
    seen.shows("bot", "Another.")
    seen.shows("user", "Question three")
    assert "one" not in script.asked[-1].rsplit("<|im_start|>user", 1)[1] and "two" not in script.asked[-1]


@needs_browser
def test_thoughts_are_open_while_they_come_and_folded_then(seen: Seen, script: Script) -> None:
    seen.settings()
    seen.page.get_by_label("Deep thinking").check()
    script.say("<think>\nLet me see" + PAUSE + "</think>\n\nYes.")
    seen.ask("Is it?")
    thoughts = seen.page.get_by_text("Let me see", exact=True)
    playwright.expect(thoughts).to_be_visible()
    assert "mathematician" in script.asked[-1]
    script.go_on()
    seen.is_ready()
    playwright.expect(seen.page.get_by_text("Yes.")).to_be_visible()
    playwright.expect(thoughts).to_be_hidden()
    seen.page.get_by_text("Thoughts").click()
    playwright.expect(thoughts).to_be_visible()
    script.say("No.")
    seen.exchange("Sure?", "No.")
    assert "Let me see" not in script.asked[-1]


@needs_browser
def test_settings_reach_the_engine(seen: Seen, script: Script, server: Running) -> None:
    script.say("one", "two")
    seen.exchange("?", "one")
    usual, params = server.state.params, script.params[-1]
    assert (params.temperature, params.top_p, params.seed) == (usual.temperature, usual.top_p, None)
    seen.settings()
    seen.put("System message", "Speak like a pirate")
    seen.page.get_by_label("number input for Temperature").fill("0.3")
    seen.page.get_by_label("Longest answer").fill("17")
    seen.page.get_by_label("Seed").fill("5")
    seen.page.get_by_label("Seed").press("Tab")
    seen.exchange("!", "two")
    params = script.params[-1]
    assert (params.temperature, params.max_new_tokens, params.seed) == (0.3, 17, 5)
    assert "system\nSpeak like a pirate<|im_end|>" in script.asked[-1]


@needs_browser
def test_what_is_typed_after_a_call_is_its_result(seen: Seen, script: Script) -> None:
    seen.settings()
    seen.put("Tools", WEATHER)
    script.say("Wait." + CALL, "It is warm.")
    seen.ask("How is the weather?")
    playwright.expect(seen.page.get_by_text("Call of get_weather")).to_be_visible()
    playwright.expect(seen.box).to_have_attribute("placeholder", "Result of get_weather")
    assert '"name": "get_weather"' in script.asked[-1]
    seen.ask('{"degrees": 21}')
    playwright.expect(seen.page.get_by_text("It is warm.")).to_be_visible()
    playwright.expect(seen.page.get_by_text("Result of get_weather")).to_be_visible()
    seen.is_ready()
    assert script.asked[-1].endswith(
        f"Wait.{CALL}<|im_end|>\n"
        '<|im_start|>environment name=<|plugin|>\n{"degrees": 21}<|im_end|>\n<|im_start|>assistant\n'
    )


@needs_browser
def test_a_file_goes_into_the_question(seen: Seen, script: Script) -> None:
    script.say("Short.")
    seen.attach("notes.md", "# Notes: 你好".encode())
    seen.exchange("Sum up", "Short.")
    assert last_turn(script).startswith("notes.md:\n```\n# Notes: 你好\n```\n\nSum up<|im_end|>")
    playwright.expect(seen.page.locator("summary")).to_have_text("notes.md")


@needs_browser
def test_an_image_is_refused_in_words(seen: Seen, script: Script) -> None:
    seen.attach("cat.png", b"\x89PNG\r\n\x1a\n")
    seen.ask("What is this?")
    seen.warns("cat.png: this model reads text alone, no images")
    seen.shows("user")
    playwright.expect(seen.box).to_have_value("What is this?")


@needs_browser
def test_an_error_is_told_and_changes_nothing(seen: Seen, script: Script, server: Running) -> None:
    script.say("Fine.")
    seen.exchange("How are you?", "Fine.")
    seen.ask("long " * 3000)
    seen.warns("but the context has room for 4,096")
    seen.shows("user", "How are you?")
    playwright.expect(seen.box).to_have_value("long " * 3000)
    seen.page.locator(".toast-close").click()
    seen.settings()
    seen.put("Tools", "{")
    seen.ask("And now?")
    seen.warns("tools: not JSON")
    seen.page.locator(".toast-close").click()
    seen.page.get_by_label("Seed").fill("x")
    seen.put("Tools", "")
    seen.box.press("Enter")
    seen.warns("Seed: must be a whole number, not 'x'")
    seen.shows("bot", "Fine.")


@needs_browser
def test_a_failing_engine_is_told_without_its_inside(
    seen: Seen, script: Script, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(error: Exception) -> Any:
        async def open(*args: Any, **options: Any) -> None:
            raise error

        return open

    monkeypatch.setattr(server.state.engine, "open", broken(QueueFull("7 requests are waiting already")))
    seen.ask("?")
    seen.warns("7 requests are waiting already")
    seen.page.locator(".toast-close").click()
    monkeypatch.setattr(server.state.engine, "open", broken(KeyError("secret")))
    seen.is_ready()
    seen.ask("?")
    seen.warns("the server failed at this request; its log says more")
    assert "secret" not in seen.page.content()


@needs_browser
def test_a_key_opens_the_page_and_limits_count_its_questions(browser: Any, model: Path) -> None:
    script = Script()
    settings = ServeSettings(api_keys=("right", "other"), rate_limit=RateLimit(4, 3600.0))
    with serving(model, script, settings) as server, server.http() as http:
        assert http.get("/config").status_code == 401
        assert http.get("/gradio_api/info").status_code == 401
        assert http.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}).status_code == 401
        assert http.get("/v1/models").status_code == 401 and http.get("/docs").status_code == 401
        assert http.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
        context = browser.new_context()
        tab = Seen(context.new_page(), server.url)
        tab.page.get_by_label("username").fill("me")
        tab.page.get_by_label("password").fill("other")
        tab.page.get_by_role("button", name="Login").click()
        for answer in ("one", "two", "three", "four"):
            script.say(answer)
            tab.exchange("?", answer)
        tab.ask("?")
        tab.warns("more than 4 requests in 3600 seconds")
        # A session of the page is no key.
        session = "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in context.cookies())
        assert session and http.get("/v1/models", headers={"Cookie": session}).status_code == 401
        statuses = [http.post("/login", data={"username": "me", "password": "wrong"}).status_code for _ in range(4)]
        assert statuses == [400, 400, 429, 429]  # with the two before
        context.close()


@needs_browser
def test_an_open_page_does_not_hold_up_the_end(browser: Any, model: Path) -> None:
    script = Script()
    with serving(model, script, ServeSettings(drain_seconds=1000)) as server:
        tab = Seen(browser.new_page(), server.url)
        script.say("One" + PAUSE + " two")
        tab.ask("Count")
        tab.shows("bot", "One")
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        server.state.drain()
        late = Seen(browser.new_page(), server.url)
        late.ask("Hello?")
        late.warns("the server is about to end")
        script.go_on()
        tab.shows("bot", "One two")
        server.thread.join(DEADLINE)
        assert not server.thread.is_alive()
        tab.page.close()
        late.page.close()
    assert not folder.exists()


def test_the_protocol_is_the_same_beside_the_page(server: Running, model: Path) -> None:
    with server.http() as http, running(model, chat_format="internlm3") as plain, plain.http() as other:
        for method, path in (
            ("GET", "/v1/nothing"),
            ("GET", "/v1/chat/completions"),
            ("GET", "/x"),
            ("PUT", "/health"),
        ):
            mine, theirs = http.request(method, path), other.request(method, path)
            assert (mine.status_code, mine.json()) == (theirs.status_code, theirs.json())
        assert http.get("/openapi.json").json() == other.get("/openapi.json").json()
        assert http.get("/docs").status_code == 200
        assert "gradio" not in other.get("/").text and "/v1" in other.get("/").text


def test_the_page_gives_no_files_away(server: Running, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with server.http() as http:
        assert http.get("/").status_code == 200
        for path in (secret, Path(__file__)):
            assert http.get(f"/gradio_api/file={path}").status_code in (403, 404)
        config = http.get("/config").json()
        for dependency in config["dependencies"]:
            data: list[Any] = [{"text": "?", "files": [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}]}]
            data += [None] * (len(dependency["inputs"]) - 1)
            body = {"data": data[: len(dependency["inputs"])], "fn_index": dependency["id"], "session_hash": "x"}
            http.post("/gradio_api/queue/join", json=body)
            answer = http.post("/gradio_api/run/predict", json=body)
            assert "secret" not in answer.text.replace("secret.txt", "")
    assert secret.exists()


def test_without_gradio_the_root_says_how_to_get_a_page(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "has_gradio", lambda: False)
    with running(model, ServeSettings(api_keys=("k",)), chat_format="internlm3", page=True) as server:
        answer = httpx.get(server.url)
        assert answer.status_code == 200 and "pip install 'puyulm[ui]'" in answer.text
        assert httpx.get(f"{server.url}/config").status_code == 401


def test_gradio_is_imported_when_somebody_looks() -> None:
    """In a process of its own, for here it is imported already."""
    code = (
        "import sys, puyulm.cli.serve, puyulm.serve.app, puyulm.serve.proxy\n"
        "from puyulm.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'gradio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
