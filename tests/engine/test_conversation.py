"""Engines from folders, text of answers, and conversations within a limited context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from puyulm.engine.conversation import Conversation, prompt_ids
from puyulm.engine.generate import TokenEvent, generate
from puyulm.engine.load import Engine, load_engine
from puyulm.engine.params import SamplingParams
from puyulm.errors import ChatError, GenerationError
from puyulm.text.chat import Message, ToolCall, render
from tests.engine.checkpoints import write_checkpoint

GREEDY = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(str(write_checkpoint(tmp_path_factory.mktemp("engine"))), device="cpu")


def ids_of(engine: Engine, *messages: Message) -> list[int]:
    return render(messages, engine.tokenizer, engine.chat_format, add_generation_prompt=True).ids


class TestLoading:
    def test_defaults_come_from_the_chat_format(self, engine: Engine) -> None:
        end = engine.tokenizer.token_to_id("<|im_end|>")
        assert engine.chat_format.name == "internlm2"
        assert engine.params == SamplingParams(temperature=0.8, top_p=0.8, stop_ids=(1, end))

    def test_the_checkpoints_own_settings_win(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, family="internlm3")
        settings = {"temperature": 0.5, "top_k": 9, "eos_token_id": [1, 77], "max_new_tokens": None}
        (folder / "generation_config.json").write_text(json.dumps(settings))
        params = load_engine(str(folder), device="cpu").params
        assert (params.temperature, params.top_k, params.top_p, params.max_new_tokens) == (0.5, 9, 0.8, 1024)
        assert 77 in params.stop_ids
        (folder / "generation_config.json").write_text('{"do_sample": false}')
        assert load_engine(str(folder), device="cpu").params.temperature == 0

    @pytest.mark.parametrize("damage", ["{", "[]", '{"top_p": 3}', '{"top_k": "many"}'])
    def test_damaged_settings_are_reported_with_their_file(self, tmp_path: Path, damage: str) -> None:
        folder = write_checkpoint(tmp_path)
        (folder / "generation_config.json").write_text(damage)
        with pytest.raises(GenerationError, match=r"generation_config\.json"):
            load_engine(str(folder), device="cpu")

    @pytest.mark.parametrize("device", ["gpu", "cuda:99"])
    def test_a_device_that_is_not_there_is_named(self, tmp_path: Path, device: str) -> None:
        with pytest.raises(GenerationError, match=f"device '?{device}'?: PyTorch"):
            load_engine(str(write_checkpoint(tmp_path)), device=device)


class TestText:
    def test_the_text_is_the_answer_without_its_ending(self, engine: Engine) -> None:
        prompt = ids_of(engine, Message("user", "hi"))
        (free,) = generate(engine.model, [prompt], GREEDY, tokenizer=engine.tokenizer)
        assert free.text == engine.tokenizer.decode(free.ids, skip_special=True, mid_text=True)
        params = GREEDY.evolve(stop_ids=(free.ids[6],))
        (ended,) = generate(engine.model, [prompt], params, tokenizer=engine.tokenizer)
        assert ended.text == engine.tokenizer.decode(ended.content_ids, skip_special=True, mid_text=True)

    def test_a_stop_text_cuts_the_text_wherever_tokens_end(self, engine: Engine) -> None:
        prompt, seen = ids_of(engine, Message("user", "hi")), []
        params = GREEDY.evolve(max_new_tokens=40)
        (free,) = generate(engine.model, [prompt], params, tokenizer=engine.tokenizer)
        assert free.text is not None
        stop = free.text[4:7]  # of several tokens: the model's answers are letters thrown together
        params = params.evolve(stop=(stop, "never said"))
        (done,) = generate(
            engine.model, [prompt], params, tokenizer=engine.tokenizer, on_token=lambda event: seen.append(event.text)
        )
        assert done.text == free.text[: free.text.index(stop)] == "".join(seen)
        assert done.finish_reason == "stop" and done.stop_id is None
        assert done.ids == free.ids[: len(done.ids)] and len(done.ids) < len(free.ids)


class TestConversation:
    def test_each_answer_is_that_to_the_whole_history(self, engine: Engine) -> None:
        talk = Conversation(engine, GREEDY, system="Be brief.")
        history = [Message("system", "Be brief.")]
        for question in ("one", "two", "three"):
            answer = "".join(event.text for event in talk.ask(question))
            history.append(Message("user", question))
            (expected,) = generate(engine.model, [ids_of(engine, *history)], GREEDY, tokenizer=engine.tokenizer)
            assert answer == expected.text
            history.append(Message("assistant", answer))
        assert talk.messages == history[1:] and talk.dropped == 0

    def test_a_partial_answer_stays_and_an_empty_one_takes_the_question_back(self, engine: Engine) -> None:
        talk = Conversation(engine, GREEDY)
        answer = talk.ask("one")
        said = ""
        while not said:
            said += next(answer).text
        answer.close()
        assert talk.messages == [Message("user", "one"), Message("assistant", said)]
        talk.ask("never begun").close()
        talk.params = GREEDY.evolve(stop_ids=tuple(range(engine.tokenizer.vocab_size)))
        assert [event.text for event in talk.ask("no answer")] == [""]
        assert [message.content for message in talk.messages] == ["one", said]

    def test_a_tool_call_stays_a_call_in_the_history(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        call = Message("assistant", "Let me see.", tool_calls=(ToolCall("get_weather", {"city": "上海"}),))
        question = Message("user", "What is the weather?")
        start, tokenizer = len(ids_of(engine, question)), engine.tokenizer
        said = render([question, call], tokenizer, engine.chat_format).ids[start:]
        said = said[: said.index(tokenizer.token_to_id("<|im_end|>")) + 1]  # type: ignore[arg-type]

        def write(*_: object, **__: object) -> Iterator[TokenEvent]:
            for index, token in enumerate(said):
                text = tokenizer.decode([token], skip_special=True, mid_text=True)
                yield TokenEvent(0, token, 0.0, text, "stop" if index + 1 == len(said) else None)

        monkeypatch.setattr("puyulm.engine.conversation.events", write)
        talk = Conversation(engine, GREEDY)
        assert "get_weather" in "".join(event.text for event in talk.ask(question.content))
        (answer,) = talk.messages[1:]
        assert answer.content == call.content
        assert [(made.name, made.arguments) for made in answer.tool_calls] == [("get_weather", {"city": "上海"})]
        prompt = ids_of(engine, *talk.messages, Message("user", "And tomorrow?"))
        assert prompt[start : start + len(said)] == said

    def test_the_oldest_turns_leave_a_full_context(self, engine: Engine) -> None:
        talk = Conversation(engine, GREEDY, system="Stay.")
        dropped = []
        for turn in range(8):
            list(talk.ask(f"{turn} " + "x" * 40))
            dropped.append(talk.dropped)
            assert talk.messages[-2].content.startswith(str(turn)) and talk.messages[0].role == "user"
            prompt = ids_of(engine, Message("system", "Stay."), *talk.messages[:-1])
            assert len(prompt) + GREEDY.max_new_tokens <= 256
            assert not talk.dropped or len(prompt) <= 256 * 3 / 4
        assert dropped[:2] == [0, 0] and any(dropped) and all(count % 2 == 0 for count in dropped)

    def test_a_question_beyond_the_context_is_refused_and_forgotten(self, engine: Engine) -> None:
        talk = Conversation(engine, GREEDY)
        list(talk.ask("short"))
        kept = list(talk.messages)
        with pytest.raises(GenerationError, match="but the model's context is 256: shorten it"):
            list(talk.ask("x" * 300))
        assert talk.messages == kept

    def test_a_question_that_leaves_little_room_gets_a_short_answer(self, engine: Engine) -> None:
        talk = Conversation(engine, GREEDY)
        overhead = len(ids_of(engine, Message("user", "x")))
        events = list(talk.ask("x" * (251 - overhead)))
        assert len(events) <= 7 and events[-1].finish_reason == "length"


class TestPrompts:
    def test_the_own_template_writes_the_prompt_where_asked(self, engine: Engine) -> None:
        with pytest.raises(ChatError, match="no chat template of its own"):
            prompt_ids(engine, [Message("user", "hi")], own_template=True)
        tokenizer = engine.tokenizer
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        own = engine._replace(
            tokenizer=type(
                "Own", (), {"chat_template": template, "__getattr__": lambda self, name: getattr(tokenizer, name)}
            )()
        )
        assert prompt_ids(own, [Message("user", "hi")], own_template=True) == tokenizer.encode("user: hi\n")

    def test_thinking_needs_a_format_that_has_it(self, engine: Engine) -> None:
        with pytest.raises(ChatError, match="no thinking mode"):
            prompt_ids(engine, [Message("user", "hi")], think=True)
