"""Token shards: what goes in comes out, and damaged files are refused with the file's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from puyulm.data.documents import Document
from puyulm.data.shards import TokenShards, tokenize_documents, tokenizer_fingerprint
from puyulm.errors import DataError

LENGTHS = [5, 1, 300, 17, 64, 2, 90]


@pytest.mark.parametrize("shard_tokens", [1, 70, 1 << 20])
@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (True, True), (False, False)])
def test_documents_come_back(make_shards, shard_tokens: int, bos: bool, eos: bool) -> None:
    documents, made = make_shards(LENGTHS, bos=bos, eos=eos, shard_tokens=shard_tokens)
    shards = TokenShards.open(made.folder)
    assert len(list(shards.folder.glob("*.bin"))) == {1: 7, 70: 3, 1 << 20: 1}[shard_tokens]
    assert shards.num_documents == len(LENGTHS)
    assert shards.num_bytes == sum(LENGTHS)
    assert shards.num_tokens == sum(LENGTHS) + (bos + eos) * len(LENGTHS)
    for i, document in enumerate(documents):
        expected = [1] * bos + [byte + 3 for byte in document.text.encode()] + [2] * eos
        assert shards.document(i).tolist() == expected
        source = shards.sources[shards.document_source[i]]
        assert (source.source, source.language) == (document.source, document.language)
        assert shards.byte_starts[i + 1] - shards.byte_starts[i] == document.num_bytes
    assert sum(s.tokens for s in shards.sources) == shards.num_tokens
    assert sum(s.bytes for s in shards.sources) == shards.num_bytes
    assert sum(s.documents for s in shards.sources) == shards.num_documents
    shards.verify()


def test_dtype_follows_the_vocabulary(tmp_path: Path, byte_tokenizer) -> None:
    for vocab_size, dtype in ((65_536, np.uint16), (65_537, np.uint32)):
        byte_tokenizer.vocab_size = vocab_size
        shards = tokenize_documents([Document("a", "text", "en", "s")], byte_tokenizer, tmp_path / str(vocab_size))
        assert shards.document(0).dtype == dtype
        assert shards.document(0).tolist() == [1, 119, 104, 123, 119]


def test_bytes_are_counted_in_utf8(tmp_path: Path, byte_tokenizer) -> None:
    shards = tokenize_documents([Document("a", "浦语🙂", "zh", "s")], byte_tokenizer, tmp_path / "d")
    assert shards.num_bytes == 10


def test_texts_are_encoded_in_batches(tmp_path: Path, byte_tokenizer) -> None:
    documents = [Document(f"d{i}", "x" * 100_000, "en", "s") for i in range(90)]
    tokenize_documents(documents, byte_tokenizer, tmp_path / "d")
    assert byte_tokenizer.calls == [40, 40, 10, 1]  # the last is the fingerprint's probe


def test_fingerprint_tells_tokenizers_apart(make_shards, byte_tokenizer) -> None:
    _, shards = make_shards([5])
    shards.check_tokenizer(byte_tokenizer)
    assert len(tokenizer_fingerprint(byte_tokenizer)) == 32
    byte_tokenizer.vocab_size = 300
    with pytest.raises(DataError, match="another tokenizer"):
        shards.check_tokenizer(byte_tokenizer)
    byte_tokenizer.vocab_size = 259
    byte_tokenizer.special_tokens = {"<pad>": 0, "<s>": 2, "</s>": 1}
    with pytest.raises(DataError, match="another tokenizer"):
        shards.check_tokenizer(byte_tokenizer)


@pytest.mark.parametrize("name", ["00000.bin", "00001.idx", "00002.bin"])
@pytest.mark.parametrize("damage", ["cut", "longer", "missing"])
def test_damaged_files_are_named(make_shards, name: str, damage: str) -> None:
    _, shards = make_shards(LENGTHS, shard_tokens=70)
    path = shards.folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-2] if damage == "cut" else content + b"\0\0")
    with pytest.raises(DataError, match=rf"{name} (is missing|has \d+ bytes, expected \d+)"):
        TokenShards.open(shards.folder)


def test_index_of_other_tokens_is_refused(make_shards) -> None:
    _, a = make_shards([5, 20], name="a")
    _, b = make_shards([20, 6], name="b")
    (a.folder / "00000.idx").write_bytes((b.folder / "00000.idx").read_bytes())
    with pytest.raises(DataError, match=r"00000\.idx does not fit"):
        TokenShards.open(a.folder)


def test_flipped_bits_are_found_by_verify(make_shards) -> None:
    _, shards = make_shards(LENGTHS)
    path = shards.folder / "00000.bin"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        TokenShards.open(shards.folder).verify()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 99}', '{"version": 1, "shards": []}'])
def test_damaged_meta(make_shards, text: str) -> None:
    _, shards = make_shards([5])
    (shards.folder / "meta.json").write_text(text)
    with pytest.raises(DataError, match=r"meta\.json"):
        TokenShards.open(shards.folder)


def test_failure_leaves_earlier_shards(make_shards, tmp_path: Path, byte_tokenizer) -> None:
    _, shards = make_shards([5])
    before = json.loads((shards.folder / "meta.json").read_text())

    def failing():
        yield Document("a", "text", "en", "s")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_documents(failing(), byte_tokenizer, shards.folder)
    assert json.loads((TokenShards.open(shards.folder).folder / "meta.json").read_text()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_shards_are_replaced_but_other_files_are_not(make_shards, tmp_path: Path, byte_tokenizer) -> None:
    make_shards(LENGTHS, shard_tokens=70)
    _, shards = make_shards([5, 5])
    assert shards.num_documents == 2 and len(list(shards.folder.iterdir())) == 3
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="holds other files"):
        tokenize_documents([Document("a", "text", "en", "s")], byte_tokenizer, tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_same_documents_give_the_same_files(make_shards) -> None:
    _, a = make_shards(LENGTHS, name="a", shard_tokens=70)
    _, b = make_shards(LENGTHS, name="b", shard_tokens=70)
    assert {p.name: p.read_bytes() for p in a.folder.iterdir()} == {p.name: p.read_bytes() for p in b.folder.iterdir()}


def test_bad_input_is_refused(tmp_path: Path, byte_tokenizer) -> None:
    with pytest.raises(DataError, match="no documents"):
        tokenize_documents([], byte_tokenizer, tmp_path / "d")
    with pytest.raises(DataError, match="document empty has no tokens"):
        tokenize_documents([Document("empty", "", "en", "s")], byte_tokenizer, tmp_path / "d", bos=False)
    byte_tokenizer.bos_id = None
    with pytest.raises(DataError, match="no bos token"):
        tokenize_documents([Document("a", "t", "en", "s")], byte_tokenizer, tmp_path / "d")
    byte_tokenizer.vocab_size = 100
    with pytest.raises(DataError, match="outside its vocabulary"):
        tokenize_documents([Document("a", "zzz", "en", "s")], byte_tokenizer, tmp_path / "d", bos=False)
    assert list(tmp_path.iterdir()) == []


def test_opening_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="puyu data tokenize"):
        TokenShards.open(tmp_path)


def test_errors_name_the_right_document_of_a_batch(tmp_path: Path, byte_tokenizer) -> None:
    documents = [Document(name, text, "en", "s") for name, text in (("a", "ab"), ("b", "c"), ("c", "dz"), ("d", "e"))]
    byte_tokenizer.vocab_size = 110
    with pytest.raises(DataError, match="document c: the tokenizer gave an id outside its vocabulary of 110"):
        tokenize_documents(documents, byte_tokenizer, tmp_path / "d")
    byte_tokenizer.vocab_size = 259
    documents[1:1] = [Document("none", "", "en", "s")]
    with pytest.raises(DataError, match="document none has no tokens"):
        tokenize_documents(documents, byte_tokenizer, tmp_path / "d", bos=False)
    shards = tokenize_documents(documents, byte_tokenizer, tmp_path / "d", eos=True)  # bos and eos are its tokens
    assert shards.document(1).tolist() == [1, 2]
