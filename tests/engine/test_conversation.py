"""Engines from folders, text of answers, and conversations within a limited context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from puyulm.engine.conversation import Conversation, prompt_ids
from puyulm.engine.engine import Engine
from puyulm.engine.load import ChatModel, load_chat_model
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import TokenEvent
from puyulm.errors import ChatError, GenerationError
from puyulm.text.chat import Message, ToolCall, render
from tests.engine.checkpoints import write_checkpoint

GREEDY = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    return load_chat_model(str(write_checkpoint(tmp_path_factory.mktemp("engine"))), device="cpu")


def ids_of(chat: ChatModel, *messages: Message) -> list[int]:
    return render(messages, chat.tokenizer, chat.chat_format, add_generation_prompt=True).ids


class TestLoading:
    def test_defaults_come_from_the_chat_format(self, chat: ChatModel) -> None:
        end = chat.tokenizer.token_to_id("<|im_end|>")
        assert chat.chat_format.name == "internlm2"
        assert chat.params == SamplingParams(temperature=0.8, top_p=0.8, stop_ids=(1, end))

    def test_the_checkpoints_own_settings_win(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path, family="internlm3")
        settings = {"temperature": 0.5, "top_k": 9, "eos_token_id": [1, 77], "max_new_tokens": None}
        (folder / "generation_config.json").write_text(json.dumps(settings))
        params = load_chat_model(str(folder), device="cpu").params
        assert (params.temperature, params.top_k, params.top_p, params.max_new_tokens) == (0.5, 9, 0.8, 1024)
        assert 77 in params.stop_ids
        (folder / "generation_config.json").write_text('{"do_sample": false}')
        assert load_chat_model(str(folder), device="cpu").params.temperature == 0

    @pytest.mark.parametrize("damage", ["{", "[]", '{"top_p": 3}', '{"top_k": "many"}'])
    def test_damaged_settings_are_reported_with_their_file(self, tmp_path: Path, damage: str) -> None:
        folder = write_checkpoint(tmp_path)
        (folder / "generation_config.json").write_text(damage)
        with pytest.raises(GenerationError, match=r"generation_config\.json"):
            load_chat_model(str(folder), device="cpu")

    @pytest.mark.parametrize("device", ["gpu", "cuda:99"])
    def test_a_device_that_is_not_there_is_named(self, tmp_path: Path, device: str) -> None:
        with pytest.raises(GenerationError, match=f"device '?{device}'?: PyTorch"):
            load_chat_model(str(write_checkpoint(tmp_path)), device=device)


class TestText:
    def test_the_text_is_the_answer_without_its_ending(self, chat: ChatModel) -> None:
        prompt = ids_of(chat, Message("user", "hi"))
        (free,) = Engine(chat.model, chat.tokenizer).generate([prompt], GREEDY)
        assert free.text == chat.tokenizer.decode(free.ids, skip_special=True, mid_text=True)
        params = GREEDY.evolve(stop_ids=(free.ids[6],))
        (ended,) = Engine(chat.model, chat.tokenizer).generate([prompt], params)
        assert ended.text == chat.tokenizer.decode(ended.content_ids, skip_special=True, mid_text=True)

    def test_a_stop_text_cuts_the_text_wherever_tokens_end(self, chat: ChatModel) -> None:
        prompt, seen = ids_of(chat, Message("user", "hi")), []
        params = GREEDY.evolve(max_new_tokens=40)
        (free,) = Engine(chat.model, chat.tokenizer).generate([prompt], params)
        assert free.text is not None
        stop = free.text[4:7]  # of several tokens: the model's answers are letters thrown together
        params = params.evolve(stop=(stop, "never said"))
        (done,) = Engine(chat.model, chat.tokenizer).generate(
            [prompt], params, on_token=lambda event: seen.append(event.text)
        )
        assert done.text == free.text[: free.text.index(stop)] == "".join(seen)
        assert done.finish_reason == "stop" and done.stop_id is None
        assert done.ids == free.ids[: len(done.ids)] and len(done.ids) < len(free.ids)


class TestConversation:
    def test_each_answer_is_that_to_the_whole_history(self, chat: ChatModel) -> None:
        talk = Conversation(chat, GREEDY, system="Be brief.")
        history = [Message("system", "Be brief.")]
        for question in ("one", "two", "three"):
            answer = "".join(event.text for event in talk.ask(question))
            history.append(Message("user", question))
            (expected,) = Engine(chat.model, chat.tokenizer).generate([ids_of(chat, *history)], GREEDY)
            assert answer == expected.text
            history.append(Message("assistant", answer))
        assert talk.messages == history[1:] and talk.dropped == 0

    def test_a_partial_answer_stays_and_an_empty_one_takes_the_question_back(self, chat: ChatModel) -> None:
        talk = Conversation(chat, GREEDY)
        answer = talk.ask("one")
        said = ""
        while not said:
            said += next(answer).text
        answer.close()
        assert talk.messages == [Message("user", "one"), Message("assistant", said)]
        talk.ask("never begun").close()
        talk.params = GREEDY.evolve(stop_ids=tuple(range(chat.tokenizer.vocab_size)))
        assert [event.text for event in talk.ask("no answer")] == [""]
        assert [message.content for message in talk.messages] == ["one", said]

    def test_a_tool_call_stays_a_call_in_the_history(self, chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
        call = Message("assistant", "Let me see.", tool_calls=(ToolCall("get_weather", {"city": "上海"}),))
        question = Message("user", "What is the weather?")
        start, tokenizer = len(ids_of(chat, question)), chat.tokenizer
        said = render([question, call], tokenizer, chat.chat_format).ids[start:]
        said = said[: said.index(tokenizer.token_to_id("<|im_end|>")) + 1]  # type: ignore[arg-type]

        def write(*_: object, **__: object) -> Iterator[TokenEvent]:
            for index, token in enumerate(said):
                text = tokenizer.decode([token], skip_special=True, mid_text=True)
                yield TokenEvent(0, token, 0.0, text, "stop" if index + 1 == len(said) else None)

        monkeypatch.setattr(Engine, "stream", write)
        talk = Conversation(chat, GREEDY)
        assert "get_weather" in "".join(event.text for event in talk.ask(question.content))
        (answer,) = talk.messages[1:]
        assert answer.content == call.content
        assert [(made.name, made.arguments) for made in answer.tool_calls] == [("get_weather", {"city": "上海"})]
        prompt = ids_of(chat, *talk.messages, Message("user", "And tomorrow?"))
        assert prompt[start : start + len(said)] == said

    def test_the_oldest_turns_leave_a_full_context(self, chat: ChatModel) -> None:
        talk = Conversation(chat, GREEDY, system="Stay.")
        dropped = []
        for turn in range(8):
            list(talk.ask(f"{turn} " + "x" * 40))
            dropped.append(talk.dropped)
            assert talk.messages[-2].content.startswith(str(turn)) and talk.messages[0].role == "user"
            prompt = ids_of(chat, Message("system", "Stay."), *talk.messages[:-1])
            assert len(prompt) + GREEDY.max_new_tokens <= 256
            assert not talk.dropped or len(prompt) <= 256 * 3 / 4
        assert dropped[:2] == [0, 0] and any(dropped) and all(count % 2 == 0 for count in dropped)

    def test_a_question_beyond_the_context_is_refused_and_forgotten(self, chat: ChatModel) -> None:
        talk = Conversation(chat, GREEDY)
        list(talk.ask("short"))
        kept = list(talk.messages)
        with pytest.raises(GenerationError, match="but the model's context is 256: shorten it"):
            list(talk.ask("x" * 300))
        assert talk.messages == kept

    def test_a_question_that_leaves_little_room_gets_a_short_answer(self, chat: ChatModel) -> None:
        talk = Conversation(chat, GREEDY)
        overhead = len(ids_of(chat, Message("user", "x")))
        events = list(talk.ask("x" * (251 - overhead)))
        assert len(events) <= 7 and events[-1].finish_reason == "length"


class TestPrompts:
    def test_the_own_template_writes_the_prompt_where_asked(self, chat: ChatModel) -> None:
        with pytest.raises(ChatError, match="no chat template of its own"):
            prompt_ids(chat, [Message("user", "hi")], own_template=True)
        tokenizer = chat.tokenizer
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        own = chat._replace(
            tokenizer=type(
                "Own", (), {"chat_template": template, "__getattr__": lambda self, name: getattr(tokenizer, name)}
            )()
        )
        assert prompt_ids(own, [Message("user", "hi")], own_template=True) == tokenizer.encode("user: hi\n")

    def test_thinking_needs_a_format_that_has_it(self, chat: ChatModel) -> None:
        with pytest.raises(ChatError, match="no thinking mode"):
            prompt_ids(chat, [Message("user", "hi")], think=True)
