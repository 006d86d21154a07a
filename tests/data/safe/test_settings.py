"""The stage `safe`: what is dropped for which reason, what is masked, and what settings are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from puyulm.data.documents import Document, read_documents, write_documents
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome
from puyulm.data.pipeline.executor import ProcessExecutor, SerialExecutor
from puyulm.data.pipeline.stage import StageRun, map_documents
from puyulm.data.safe.settings import SafeSettings, WordListSettings
from puyulm.data.score.settings import ScorerSettings
from puyulm.errors import DataError, RecipeError
from puyulm.recipe import load_recipe


def document(text: str = "A text about nothing much.", url: str = "https://good.org/", **more: object) -> Document:
    values = {"id": "d", "text": text, "language": "en", "source": "web", "url": url, **more}
    return Document(**values)  # type: ignore[arg-type]


def said(outcome: Outcome) -> str:
    return outcome.reason if isinstance(outcome, Dropped) else "kept"


@pytest.fixture
def settings(tmp_path: Path) -> SafeSettings:
    (tmp_path / "domains").write_text("bad.com\n")
    (tmp_path / "urls").write_text("mixed.net/bad\n")
    (tmp_path / "tokens").write_text("casino\nslots\n")
    (tmp_path / "rude.txt").write_text("".join(f"rude{i}\n" for i in range(9)) + "坏话\n")
    words = WordListSettings(tmp_path / "rude.txt")
    return SafeSettings((tmp_path / "domains",), (tmp_path / "urls",), (tmp_path / "tokens",), words=(words,))


def test_reasons_in_order(settings: SafeSettings) -> None:
    long = "word " * 1000
    cases = [
        (document(), "kept"),
        (document(url=""), "kept"),
        (document(url="https://a.bad.com/x"), "safe: domain"),
        (document(url="http://mixed.net/bad/page"), "safe: address"),
        (document(url="http://mixed.net/good"), "kept"),
        (document(url="http://free-casino.net/slots/"), "safe: words of the address"),
        (document(url="http://casino.net/"), "kept"),  # one word is not enough
        (document("rude1 rude2 rude3 rude4 rude5", "http://bad.com/casino-slots"), "safe: domain"),
        (document(long + "rude1 rude2 rude3 rude4 rude5"), "safe: words, rude"),
        (document(long + "rude1 rude2 rude3 rude4"), "kept"),
        (document("rude1 and rude1 again in few words"), "kept"),  # dense, but only two
        (document("rude1, rude1, and rude1 again"), "safe: words, rude"),
        (document(long + "坏话" * 20), "kept"),  # 4 per 1,000 characters
        (document(long + "坏话" * 30), "safe: words, rude"),
    ]
    assert [said(outcome) for outcome in settings.transform()([case for case, _ in cases])] == [
        reason for _, reason in cases
    ]
    dropped = next(iter(settings.transform()([document("a@gmail.com", "http://bad.com")])))
    assert isinstance(dropped, Dropped) and dropped.document.text == "a@gmail.com"  # as it came in


def test_word_lists_of_a_language(settings: SafeSettings) -> None:
    only = replace(settings, words=(replace(settings.words[0], languages=("zh",), name="chinese"),))
    documents = [document("坏话坏话坏话"), document("坏话坏话坏话", language="zh")]
    assert [said(outcome) for outcome in only.transform()(documents)] == ["kept", "safe: words, chinese"]


def test_masking_and_its_counts() -> None:
    text = "Call 13800138000 or mail a@gmail.com, b@gmail.com from 8.219.33.10."
    transform = SafeSettings(placeholders={"email": "[MAIL]"}).transform()
    [prose] = transform([document(text, metadata={"k": 1, "masked": {"email": 1, "ssn": 2}})])
    assert isinstance(prose, Document)
    assert prose.text == "Call <phone> or mail [MAIL], [MAIL] from <ip_address>."
    assert prose.metadata == {"k": 1, "masked": {"email": 3, "ssn": 2, "ip": 1, "phone": 1}}
    [code] = transform([document(text, language="code")])
    assert isinstance(code, Document) and code.text == "Call 13800138000 or mail [MAIL], [MAIL] from <ip_address>."
    clean = document(metadata={"k": 1})
    assert list(transform([clean])) == [clean]
    [bare] = SafeSettings(mask=(), mask_code=()).transform()([document(text)])
    assert isinstance(bare, Document) and bare.text == text


@pytest.mark.parametrize("earlier", [3, ["email"], "email", {"email": "one", "stars": 4}])
def test_a_field_of_the_input_that_is_called_as_ours(earlier: object) -> None:
    [outcome] = SafeSettings().transform()([document("Write to jane.roe@company.de.", metadata={"masked": earlier})])
    assert isinstance(outcome, Document)
    assert (outcome.text, outcome.metadata["masked"]) == ("Write to <email>.", {"email": 1})


def test_a_changed_list_is_read_again(settings: SafeSettings) -> None:
    page = document(url="https://late.com/")
    assert said(next(iter(settings.transform()([page])))) == "kept"
    settings.domains[0].write_text("bad.com\nlate.com\n")
    assert said(next(iter(settings.transform()([page])))) == "safe: domain"


def test_settings_in_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "safe.yaml"
    recipe.write_text(
        "domains: [d.txt]\nwords: [{path: w.txt, min_distinct: 3}]\nmask: [email]\nplaceholders: {email: X}\n"
    )
    settings = load_recipe(SafeSettings, recipe)
    assert settings.words[0].label == "w" and settings.mask == ("email",) and settings.placeholders == {"email": "X"}
    recipe.write_text("mask: [mail]\n")
    with pytest.raises(RecipeError, match="mask"):
        load_recipe(SafeSettings, recipe)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    words = WordListSettings(tmp_path / "a.txt")
    scorer = ScorerSettings("x", path=tmp_path)
    for bad, message in (
        (lambda: SafeSettings(placeholders={"mail": "X"}), "mail"),
        (lambda: SafeSettings(min_url_words=0), "min_url_words"),
        (lambda: SafeSettings(words=(words, words)), "called 'a'"),
        (lambda: SafeSettings(scorers=(scorer, scorer)), "called 'x'"),
        (lambda: WordListSettings(tmp_path, max_density=0), "max_density"),
        (lambda: SafeSettings(domains=(tmp_path / "no",)).transform(), "no block list"),
        (lambda: SafeSettings(words=(words,)).transform(), "word list"),
        (lambda: SafeSettings(scorers=(scorer,)).transform(), "no linear scorer"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            bad()
        assert "\n" not in str(caught.value)


def test_the_stage_in_a_run(settings: SafeSettings, tmp_path: Path) -> None:
    """Through the pipeline's own functions: the same files with one worker and with two."""
    inputs = []
    for number in range(2):
        documents = [
            replace(document(f"Number {i}: 13800138000", "http://bad.com" if i % 5 == 0 else ""), id=f"{number}-{i}")
            for i in range(600)
        ]
        inputs.append(tmp_path / "in" / f"{number:05d}.jsonl.gz")
        write_documents(inputs[-1], documents)
    written = []
    for workers in (1, 2):
        folder = tmp_path / f"out{workers}"
        executor = SerialExecutor() if workers == 1 else ProcessExecutor(2)
        map_documents(settings, StageRun("safe", folder, inputs, None, executor, "jsonl.gz", 1))
        executor.close()
        results = [json.loads(path.read_text()) for path in sorted((folder / "tasks").iterdir())]
        counts = Counts.merged(result["counts"] for result in results)
        assert counts.documents_in == 1200 and counts.documents_out == 960
        assert counts.dropped == {"safe: domain": [240, sum(dropped[1] for dropped in counts.dropped.values())]}
        written.append([path.read_bytes() for path in sorted(folder.rglob("*.gz"))])
    assert written[0] == written[1] and len(written[0]) == 4
    kept = next(read_documents(tmp_path / "out1" / "00000.jsonl.gz"))
    assert kept.text == "Number 1: <phone>" and kept.metadata == {"masked": {"phone": 1}}


def test_importing_is_cheap() -> None:
    modules = (
        "puyulm.data.pipeline.recipe, puyulm.data.safe.filters, puyulm.data.score.annotate, puyulm.cli.data_scorer"
    )
    heavy = "{'torch', 'transformers', 'fasttext', 'ahocorasick', 'safetensors', 'sqlite3'}"
    program = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
