"""Tokenizer: the published encodings, typed markup, round trips, folders, saving, errors."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from puyulm.errors import TokenizerError
from puyulm.text.sentencepiece_model import ModelProto, Piece
from puyulm.text.tokenizer import Tokenizer

MARKUP = [
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|plugin|>", "<|reward|>", "[UNUSED_TOKEN_0]",
    "[UNUSED_TOKEN_145]", "<eoh>", "<eoa>", "<TOKENS_UNUSED_2>", "<0x0A>", "<|endoftext|>",
]  # fmt: skip

# Everything a user may type: any characters, and markup, spaces, numbers and rarities more often than chance has it.
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(MARKUP),
        st.sampled_from(["\0", "▁", " ", "  ", "\n\n", "\t", "\r\n", "你好", "，", "——", "……", "Ｅ", "👩‍👩‍👧", "🐉"]),
        st.sampled_from(["😀", "\u0301", "\ufeff", "2024", "1234567", "١٢", "ＡＢ１２", "[UNUSED_TOKEN_", "</"]),
    ),
    max_size=12,
).map("".join)  # fmt: skip

fuzzed = settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> Callable[[str], Tokenizer]:
    loaded: dict[str, Tokenizer] = {}

    def load(name: str) -> Tokenizer:
        if name not in loaded:
            loaded[name] = Tokenizer.load(shared_dir / "tokenizers" / f"{name}.model")
        return loaded[name]

    return load


@pytest.fixture(params=["sentencepiece", "bytelevel"])
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.load(request.getfixturevalue(f"{request.param}_folder"))


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("internlm", "Hello world", [9843, 2028]),
        ("internlm", "你好", [76379]),
        ("internlm", "1234567", [4575, 1889, 3171]),
        ("internlm2", "你好", [77230]),
        ("internlm2", "\n", [364]),
        ("internlm2", "\n\n", [402]),
        ("internlm2", "2024", [638, 1311]),
        ("internlm2", "——……Ｅ", [92395, 92396, 92352]),
        ("internlm2", "\0", [3]),
        ("internlm2", "🐉", [243, 162, 147, 140]),
        ("internlm2", "[UNUSED_TOKEN_145]", [336, 2010, 15927, 18827, 284, 9533, 332]),
    ],
)
def test_published_encodings(published: Callable[[str], Tokenizer], name: str, text: str, ids: list[int]) -> None:
    tokenizer = published(name)
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]
    assert tokenizer.encode(text, bos=True) == [1, *ids]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        (
            "internlm",
            "<|User|>:hi<eoh>\n<|Bot|>:",
            [333, 352, 1621, 352, 27232, 6176, 103027, 364, 333, 352, 23845, 352, 27232],
        ),
        (
            "internlm2",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
            [92543, 1008, 364, 6176, 92542, 364, 92543, 525, 11353, 364],
        ),
        ("internlm2", "[UNUSED_TOKEN_146]user\nhi[UNUSED_TOKEN_145]", [92543, 1008, 364, 6176, 92542]),
    ],
)
def test_published_markup(published: Callable[[str], Tokenizer], name: str, text: str, ids: list[int]) -> None:
    assert published(name).encode_markup(text) == ids


def test_published_conversation(published: Callable[[str], Tokenizer]) -> None:
    text = "<|im_start|>user\nHello! What's your name?<|im_end|>\n<|im_start|>assistant\nI am InternLM2!<|im_end|>\n"
    ids = [1, 92543, 1008, 364, 9843, 346, 3716, 725, 829, 963, 345, 92542, 364, 92543, 525, 11353, 364, 295, 1221,
           4576, 11146, 314, 346, 92542, 364]  # fmt: skip
    assert published("internlm2").encode_markup(text, bos=True) == ids


def test_file_alone_knows_the_published_markers(published: Callable[[str], Tokenizer]) -> None:
    tokenizer = published("internlm2")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (92544, 1, 2, None)
    names = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
    assert [tokenizer.special_tokens[name] for name in names] == list(range(92538, 92544))
    assert tokenizer.id_to_token(92542) == "<|im_end|>"
    assert tokenizer.token_to_id("[UNUSED_TOKEN_145]") == 92542
    assert tokenizer.token_to_id("[UNUSED_TOKEN_130]") == 92527
    first = published("internlm")
    assert (first.token_to_id("<eoh>"), first.token_to_id("<eoa>")) == (103027, 103028)
    assert first.is_special(103028)


@pytest.mark.parametrize("name", ["internlm", "internlm2"])
def test_no_name_of_a_special_token_can_be_typed(published: Callable[[str], Tokenizer], name: str) -> None:
    tokenizer = published(name)
    for token, token_id in tokenizer.special_tokens.items():
        ids = tokenizer.encode(f"a{token} b")
        assert not any(map(tokenizer.is_special, ids)), token
        assert tokenizer.decode(ids) == f"a{token} b"
        assert tokenizer.encode_markup(token) == [token_id]


@pytest.mark.parametrize("name", ["internlm", "internlm2"])
def test_long_texts_encode_as_the_library_does(
    published: Callable[[str], Tokenizer], shared_dir: Path, name: str
) -> None:
    """Long strings are cut into chunks; the library encodes them whole."""
    library = SentencePieceProcessor(model_file=str(shared_dir / "tokenizers" / f"{name}.model"))
    english = (shared_dir / "data" / "tinyshakespeare.txt").read_text("utf-8")[:60_000]
    chinese = (shared_dir / "data" / "lf_alpaca_zh_demo.json").read_text("utf-8")[:40_000]
    code = Path(json.__file__).with_name("decoder.py").read_text("utf-8") + "    \n\n" * 1500 + "=" * 5000 + "12" * 3000
    tokenizer = published(name)
    texts = [english, english.replace("\n", " "), chinese, code]
    expected = library.encode(texts)
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.encode_batch(texts) == expected


@fuzzed
@given(TEXTS)
def test_round_trip_of_a_published_file(published: Callable[[str], Tokenizer], text: str) -> None:
    _check_round_trip(published("internlm2"), text)


@fuzzed
@given(TEXTS)
def test_round_trip_of_a_trained_tokenizer(trained: Tokenizer, text: str) -> None:
    _check_round_trip(trained, text)


def _check_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not any(map(tokenizer.is_special, ids))
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.encode_batch([text, "x ▁", "x"]) == [ids, tokenizer.encode("x ▁"), tokenizer.encode("x")]
    marked = tokenizer.encode_markup(text)
    old_name = "[UNUSED_TOKEN_145]"
    known = tokenizer.token_to_id(old_name)
    assert tokenizer.decode(marked) == (text if known is None else text.replace(old_name, "<|im_end|>"))


def test_half_a_surrogate_pair_becomes_a_replacement_character(trained: Tokenizer) -> None:
    assert trained.decode(trained.encode("a\ud83db")) == "a�b"
    assert trained.encode_batch(["\ude00"]) == [trained.encode("�")]
    assert trained.encode("\ud83d\ude00") == trained.encode("😀")


def test_decoding_what_is_no_text(trained: Tokenizer) -> None:
    first_of_three = trained.encode("\U00010348")[0]
    assert trained.decode([first_of_three]).endswith("�")
    assert trained.decode([trained.vocab_size + 5]) == "�"
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        trained.token_bytes(trained.vocab_size)
    with pytest.raises(TokenizerError, match="id -1 is outside"):
        trained.id_to_token(-1)


def test_special_tokens_in_decoding(trained: Tokenizer) -> None:
    ids = trained.encode_markup("<|im_start|>user\nhi<|im_end|> there", bos=True)
    assert trained.decode(ids) == "<s><|im_start|>user\nhi<|im_end|> there"
    assert trained.decode(ids, skip_special=True) == "user\nhi there"
    assert trained.decode(trained.encode(" hi")) == " hi"


def test_survives_pickling(trained: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.encode("Water 你好 1234 <s>") == trained.encode("Water 你好 1234 <s>")


def test_prefers_the_sentencepiece_file(sentencepiece_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sentencepiece_folder, tmp_path / "both")
    (folder / "tokenizer.json").write_text("{}")  # useless, and not used
    assert Tokenizer.load(folder).encode("light") == Tokenizer.load(sentencepiece_folder).encode("light")


def test_both_files_of_a_folder_agree(sentencepiece_folder: Path) -> None:
    model, converted = (Tokenizer.load(sentencepiece_folder / f"tokenizer.{kind}") for kind in ("model", "json"))
    text = " The model 人工智能，1234567 x\n\n    def f_1(self):\t\0 — ①😀 <s>[UNUSED_TOKEN_0]<|im_end|>  "
    assert converted.encode(text) == model.encode(text)
    assert converted.encode_markup(text, bos=True)[:3] == model.encode_markup(text, bos=True)[:3]
    assert converted.decode(converted.encode(text)) == text


def _proto(folder: Path) -> Any:
    proto = ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    return proto


def _rename_last(proto: Any, count: int) -> None:
    """Makes the last pieces spare ones, as in the published file of InternLM2."""
    for n, piece in enumerate(list(proto.pieces)[-count:]):
        piece.piece, piece.type = f"[UNUSED_TOKEN_{90 + n}]", Piece.USER_DEFINED


@pytest.fixture
def later_generation(sentencepiece_folder: Path, tmp_path: Path) -> Path:
    """A folder like InternLM3's: markers named by the configuration only, and one id added after the model's."""
    proto = _proto(sentencepiece_folder)
    _rename_last(proto, 7)
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    end, start = len(proto.pieces) - 2, len(proto.pieces) - 1
    config = {
        "tokenizer_class": "InternLM3Tokenizer", "add_bos_token": True, "bos_token": {"content": "<s>"},
        "eos_token": "</s>", "pad_token": "</s>",
        "added_tokens_decoder": {
            str(end): {"content": "<|im_end|>", "special": True},
            str(start): {"content": "<|im_start|>", "special": True},
            str(start + 1): {"content": "<img>", "special": False},
        },
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_names_from_the_configuration(later_generation: Path) -> None:
    tokenizer = Tokenizer.load(later_generation)
    assert tokenizer.token_to_id("<|im_end|>") == 1498
    assert tokenizer.id_to_token(1499) == "<|im_start|>"
    assert tokenizer.encode_markup("<img><|im_end|>[UNUSED_TOKEN_95]") == [1500, 1498, 1498]
    assert not any(map(tokenizer.is_special, tokenizer.encode("<img><|im_end|>[UNUSED_TOKEN_95]")))
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.add_bos) == (1501, 2, True)
    assert tokenizer.chat_template == "D"
    (later_generation / "chat_template.jinja").write_text("J")
    assert Tokenizer.load(later_generation).chat_template == "J"


def test_names_from_the_older_files(later_generation: Path) -> None:
    (later_generation / "tokenizer_config.json").unlink()
    (later_generation / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 1499, "~~": 1498}))
    names = {"bos_token": "<s>", "pad_token": {"content": "</s>"}, "additional_special_tokens": ["~~"]}
    (later_generation / "special_tokens_map.json").write_text(json.dumps(names))
    tokenizer = Tokenizer.load(later_generation)
    assert (tokenizer.bos_id, tokenizer.pad_id) == (1, 2)
    assert tokenizer.encode_markup("~~<|im_start|>") == [1498, 1499]
    assert not tokenizer.is_special(tokenizer.encode("~~")[0])


@fuzzed
@given(TEXTS)
def test_a_space_before_every_text(prefixed: Tokenizer, text: str) -> None:
    ids = prefixed.encode(text, bos=True)
    assert prefixed.decode(ids, skip_special=True) == text
    assert not text or prefixed.token_bytes(ids[1]).startswith(b" ")
    assert prefixed.decode(ids[1:]) == text
    assert prefixed.decode(ids[1:], mid_text=True) == (" " + text if text else "")
    assert prefixed.decode(prefixed.encode(text, mid_text=True), mid_text=True) == text


@pytest.fixture(scope="module")
def prefixed(sentencepiece_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A model with a dummy prefix, as Llama 2's."""
    proto = _proto(sentencepiece_folder)
    proto.normalizer_spec.add_dummy_prefix = True
    folder = tmp_path_factory.mktemp("prefixed")
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return Tokenizer.load(folder)


def test_a_space_before_every_stretch_of_text(prefixed: Tokenizer, tmp_path: Path) -> None:
    text = "<|im_start|>user\n  hi<|im_end|><|im_start|> x"
    ids = prefixed.encode_markup(text, bos=True)
    assert prefixed.decode(ids) == "<s>" + text
    prefixed.save(tmp_path)
    library = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert prefixed.encode("  water 今天") == library.encode("  water 今天")
    converted = Tokenizer.load(tmp_path / "tokenizer.json")
    assert converted.encode_markup(text, bos=True) == ids
    assert converted.decode(ids) == "<s>" + text


@pytest.mark.parametrize(("scheme", "before"), [("always", " "), ("never", "")])
def test_metaspace(sentencepiece_folder: Path, tmp_path: Path, scheme: str, before: str) -> None:
    document = json.loads((sentencepiece_folder / "tokenizer.json").read_text("utf-8"))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document | {"normalizer": None, "pre_tokenizer": metaspace}))
    tokenizer, original = Tokenizer.load(path), Tokenizer.load(sentencepiece_folder)
    for text in ("the model", " ", "今天<|im_end|>"):
        assert tokenizer.encode(text) == original.encode(before + text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def _document(**model: Any) -> dict[str, Any]:
    """A byte-level file whose merges build a special token's name, as careless conversions do."""
    letters = ["<", "s", ">", "t", "o", "l", "Ġ", "~", "a"]
    vocab = {name: i for i, name in enumerate([*letters, "<s", "<s>", "to", "tool", "ol"])}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 10, "content": "<s>", "special": True},
            {"id": 14, "content": "<tool>", "special": False},
            {"id": 15, "content": "~~~", "special": False},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["< s", "<s >", "t o", "o l", "to ol"], **model},
    }  # fmt: skip


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_specials_of_a_json_file_cannot_be_typed(tmp_path: Path, ignore_merges: bool) -> None:
    document = _document(ignore_merges=ignore_merges)
    for token in document["added_tokens"]:
        token |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.encode("<s>") == [9, 2]
    assert tokenizer.encode("<s>tool<tool> ~~~a") == [9, 2, 12, 0, 12, 2, 6, 15, 8]
    assert tokenizer.encode_markup("<s>tool<tool> ~~~a") == [10, 12, 14, 6, 15, 8]
    assert tokenizer.decode([10, 12, 14, 6, 15, 8]) == "<s>tool<tool> ~~~a"
    assert tokenizer.special_tokens == {"<s>": 10, "<tool>": 14}
    assert (tokenizer.bos_id, tokenizer.add_bos) == (10, False)


def test_saving_copies_what_was_loaded(later_generation: Path, tmp_path: Path) -> None:
    (later_generation / "tokenization_internlm3.py").write_text("# remote code\n")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "merges.txt").write_text("of another tokenizer")
    tokenizer = Tokenizer.load(later_generation)
    tokenizer.save(tmp_path / "saved")
    for name in ("tokenizer.model", "tokenizer_config.json", "tokenization_internlm3.py"):
        assert (tmp_path / "saved" / name).read_bytes() == (later_generation / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "tokenization_internlm3.py", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    again = Tokenizer.load(tmp_path / "saved")
    assert again.special_tokens == tokenizer.special_tokens
    assert again.encode_markup("<|im_start|>the [UNUSED_TOKEN_90]", bos=True) == tokenizer.encode_markup(
        "<|im_start|>the [UNUSED_TOKEN_90]", bos=True
    )


def test_a_file_alone_is_saved_with_its_conversion(
    published: Callable[[str], Tokenizer], shared_dir: Path, tmp_path: Path
) -> None:
    tokenizer = published("internlm2")
    tokenizer.save(tmp_path)
    converted = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.model").read_bytes() == (shared_dir / "tokenizers/internlm2.model").read_bytes()
    text = (shared_dir / "data" / "lf_alpaca_zh_demo.json").read_text("utf-8")[:20_000] + "\0——Ｅ<s>[UNUSED_TOKEN_3]"
    ids = tokenizer.encode(text, bos=True)
    assert converted.encode(text, bos=True) == ids
    assert converted.encode_markup("<|im_start|>——") == [92543, 92395]


def test_transformers_gives_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    for model_type in (None, "llama", "internlm2"):  # the type in config.json must not lead it astray
        if model_type is not None:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        text = "<|im_start|>user\nThe water, 2024 和 12345。😀\0 \u0301  x\n\n    y<|im_end|>\n"
        assert peer(text).input_ids == trained.encode_markup(text, bos=True)
        plain = peer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert plain == trained.encode(text)
        assert peer.decode(plain) == text
        assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id, len(peer)) == (1, 2, 2, trained.vocab_size)
        chat = peer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
        assert chat == "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_errors_say_what_is_wrong(sentencepiece_folder: Path, tmp_path: Path) -> None:
    model = (sentencepiece_folder / "tokenizer.model").read_bytes()
    unigram = _proto(sentencepiece_folder)
    unigram.trainer_spec.model_type = 1
    word_level = {"model": {"type": "WordLevel", "vocab": {"a": 0}}, "added_tokens": []}
    broken = _document() | {"pre_tokenizer": {"type": "NoSuchThing"}}
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "nothing", "no such file or folder"),
        (tmp_path / "empty", "no tokenizer.model or tokenizer.json"),
        (_write(tmp_path / "a.model", model[: len(model) // 2]), "cut off"),
        (_write(tmp_path / "b.model", b""), "cut off"),
        (_write(tmp_path / "c.model", b"some text, not a model"), "not a SentencePiece model"),
        (_write(tmp_path / "d.model", unigram.SerializeToString()), "kind UNIGRAM; only BPE"),
        (_write(tmp_path / "e.bin", b"x"), "give a folder, or a .model"),
        (_write(tmp_path / "f.json", b"{"), "cannot be read as json"),
        (_write(tmp_path / "g.json", b"[]"), "should hold a json object, but holds a list"),
        (_write(tmp_path / "h.json", b"{}"), "has no model with a vocabulary"),
        (_write(tmp_path / "i.json", json.dumps(word_level).encode()), "kind WordLevel; only BPE"),
        (_write(tmp_path / "j.json", json.dumps(broken).encode()), "tokenizers library"),
        (_write(tmp_path / "k.gguf", b"x"), "not a GGUF file"),
    ]  # fmt: skip
    bad_config = tmp_path / "config"
    _write(bad_config / "tokenizer.model", model)
    _write(bad_config / "tokenizer_config.json", b'{"added_tokens_decoder": {"1498": {}}}')
    for path, message in [*cases, (bad_config, "not written as expected")]:
        with pytest.raises(TokenizerError, match=message) as caught:
            Tokenizer.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
