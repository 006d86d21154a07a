"""`puyu generate` and `puyu chat`, from their arguments to what they print."""

from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from puyulm.cli import chat as chat_module
from puyulm.cli import main
from puyulm.cli.generate import model_and_prompts
from puyulm.cli.terminal import PlainReader, PromptReader, history_path, is_open, joined, printable
from puyulm.engine.engine import Engine
from puyulm.errors import GenerationError
from puyulm.model.presets import DEFAULT_MODEL
from tests.engine.checkpoints import write_checkpoint

GREEDY = ("--temperature", "0", "--max-new-tokens", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("verbs")))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("thinker")
    return str(write_checkpoint(folder, family="internlm3", max_position_embeddings=4096))


def feed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


class TestWords:
    def test_the_number_of_words_tells_model_from_prompts(self) -> None:
        assert model_and_prompts(None, ["a question"]) == (DEFAULT_MODEL, ["a question"])
        assert model_and_prompts(None, ["folder", "one", "two"]) == ("folder", ["one", "two"])
        assert model_and_prompts("folder", ["one", "two"]) == ("folder", ["one", "two"])

    def test_a_model_without_a_prompt_is_noticed(self) -> None:
        with pytest.raises(GenerationError, match="write the prompt behind it"):
            model_and_prompts(None, ["internlm2-chat-7b"])


class TestGenerate:
    def test_one_prompt_streams_what_a_batch_returns(self, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", folder, "one", *GREEDY]) == 0
        streamed = capsys.readouterr().out
        assert main(["generate", "--model", folder, "one", "two", "--json", *GREEDY]) == 0
        first, second = json.loads(capsys.readouterr().out)
        assert streamed == first["text"] + "\n"
        assert (second["prompt"], second["finish_reason"], second["new_tokens"]) == ("two", "length", 8)

    def test_raw_text_from_standard_input(
        self, folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        main(["generate", folder, "What is", "--raw", *GREEDY])
        given = capsys.readouterr().out
        feed(monkeypatch, "What is\n")
        main(["generate", folder, "-", "--raw", *GREEDY])
        assert capsys.readouterr().out == given
        main(["generate", folder, "What is", *GREEDY])
        assert capsys.readouterr().out != given

    def test_flags_reach_the_sampler(self, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
        def answer(*flags: str) -> str:
            assert main(["generate", folder, "hi", "--max-new-tokens", "8", *flags]) == 0
            return capsys.readouterr().out

        hot = ("--temperature", "9", "--top-p", "1")
        assert answer(*hot, "--seed", "1") == answer(*hot, "--seed", "1") != answer(*hot, "--seed", "2")
        greedy = answer("--temperature", "0")
        assert answer(*hot, "--top-k", "1") == answer(*hot, "--min-p", "1") == greedy
        assert answer("--temperature", "0", "--stop", greedy[2:4]) == greedy[: greedy.index(greedy[2:4])] + "\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["hi", "--top-p", "2"], "top_p must be above 0 and at most 1, not 2.0"),
            ([""], "a prompt is empty"),
            (["hi", "--raw", "--system", "x"], "--raw continues plain text"),
            (["hi", "--think"], "no thinking mode"),
            (["hi", "--chat-template"], "no chat template of its own"),
            (["hi", "--chat-format", "internlm4"], "did you mean"),
            (["x" * 300], "the model's context is 256"),
        ],
    )
    def test_bad_requests_are_one_line_and_exit_2(
        self, folder: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        assert main(["generate", "--model", folder, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    def test_several_words_without_a_model_explain_the_rule(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", "first question", "second question"]) == 2
        assert "of several words the first is the model" in capsys.readouterr().err

    def test_thinking_takes_its_longer_budget(
        self, thinker: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        monkeypatch.setattr(Engine, "stream", lambda engine, ids, params: asked.append((ids, params)) or [])
        main(["generate", thinker, "hi", "--device", "cpu"])
        main(["generate", thinker, "hi", "--device", "cpu", "--think"])
        (short, plain), (long, thinking) = asked
        assert plain.max_new_tokens == 1024 and len(long) > len(short) + 500
        assert thinking.max_new_tokens == 4096 - len(long)  # of 8192, what the context has


class TestChat:
    def chat(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str, *lines: str
    ) -> tuple[str, str]:
        feed(monkeypatch, "".join(line + "\n" for line in lines))
        assert main(["chat", model, *GREEDY]) == 0
        return capsys.readouterr()

    def test_piped_questions_are_answered_in_turn(
        self, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        file = tmp_path / "talk.json"
        out, err = self.chat(monkeypatch, capsys, folder, "one\\", "more", "", "/save " + str(file), "two")
        saved = json.loads(file.read_text())["messages"]
        assert [message["role"] for message in saved] == ["user", "assistant"]
        assert saved[0]["content"] == "one\nmore"
        assert out.startswith(saved[1]["content"] + "\n") and len(out) > len(saved[1]["content"]) + 2
        assert err.count("tokens/s") == 2 and "8 tokens" in err

    def test_commands(
        self, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        first, taken = tmp_path / "a.json", tmp_path / "b.json"
        taken.write_text("mine")
        lines = ["/system Be kind.", "one", f"/save {first}", "/reset", f"/save {first}", f"/save {taken}", "/save",
                 "/think on", "/think", "/nothing", "/help", "/system", "/exit", "not asked"]  # fmt: skip
        out, err = self.chat(monkeypatch, capsys, folder, *lines)
        assert [message["role"] for message in json.loads(first.read_text())["messages"]] == ["system"]
        assert taken.read_text() == "mine"
        assert out.count("\n") == 1 + out.removesuffix("\n").count("\n")
        for part in ("system message set", "3 messages in", "forgotten", "b.json exists", "needs the name of a file",
                     "no thinking mode", "thinking is off", "no command /nothing", "/save FILE"):  # fmt: skip
            assert part in err

    def test_a_path_is_not_a_command(
        self, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "no command" not in self.chat(monkeypatch, capsys, folder, "/usr/bin has what?").err

    def test_thinking_changes_prompt_and_budget(
        self, thinker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        feed(monkeypatch, "/think on\n/think off\n")
        main(["chat", thinker, "--device", "cpu"])
        err = capsys.readouterr().err
        assert "thinking is on, answers up to 8,192" in err and "thinking is off, answers up to 1,024" in err

    def test_ctrl_c_stops_the_answer_and_not_the_program(
        self, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        shown: list[str] = []

        def interrupted(text: str) -> str:
            shown.append(text)
            if len(shown) == 4:
                raise KeyboardInterrupt
            return text

        monkeypatch.setattr(chat_module, "printable", interrupted)
        file = tmp_path / "talk.json"
        err = self.chat(monkeypatch, capsys, folder, "one", "two", f"/save {file}")[1]
        assert "; stopped]" in err
        saved = json.loads(file.read_text())["messages"]
        assert [message["content"] for message in saved[:3]] == ["one", "".join(shown[:4]), "two"]

    def test_errors_do_not_end_the_chat(
        self, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, err = self.chat(monkeypatch, capsys, folder, "x" * 300, "two")
        assert "error: the prompt has" in err and out


class TestTerminal:
    def test_open_questions(self) -> None:
        assert [is_open(text) for text in ("a", "a\\", "```py", "```\nx", "```\nx\n```", "a\\\nb")] == [
            False, True, True, True, False, False,
        ]  # fmt: skip
        assert joined(" a\\\nb\n") == "a\nb"

    def test_plain_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        feed(monkeypatch, "one\n```\ntwo\n\n```\nlast\\")
        reader = PlainReader()
        assert [reader.read() for _ in range(3)] == ["one", "```\ntwo\n\n```", "last\\"]
        with pytest.raises(EOFError):
            reader.read()

    def test_the_line_editor(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
            reader = PromptReader()
            for typed, question in {
                "hi\r": "hi",
                "a\x1b\rb\r": "a\nb",  # Alt-Enter
                "a\\\rb\r": "a\nb",
                "```\rx\r```\r": "```\nx\n```",
            }.items():
                keys.send_text(typed)
                assert reader.read() == question
            keys.send_text("half\x03")
            with pytest.raises(KeyboardInterrupt):
                reader.read()
            keys.send_text("\x04")
            with pytest.raises(EOFError):
                reader.read()
        assert history_path().is_relative_to(tmp_path) and "hi" in history_path().read_text()
        assert stat.S_IMODE(history_path().stat().st_mode) == 0o600

    def test_a_model_cannot_steer_the_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert printable("\x1b[2J") == "\x1b[2J"  # a file gets what the model said
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert printable("a\x1b[2J\n\tb\x9b") == "a\ufffd[2J\n\tb\ufffd"
