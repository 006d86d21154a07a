"""A run's folder is read as it is: what is missing or damaged is left out, and no run is a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puyulm.data.report.facts import document_shards, find_setting, load_run
from puyulm.data.report.page import render
from puyulm.data.report.plans import corpus_tokens
from puyulm.errors import DataError
from tests.data.report.fake_run import make_run, write_plan, write_stage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["clusters", "largest", "sample", "sizes", "members", "size", "text", "similarity", "phases",
                         "groups", "tokens", "patterns", "shard", "row", "name"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "corpus", 300, 2)


def test_a_whole_run(run_folder: Path) -> None:
    run = load_run(run_folder)
    assert (run.name, run.unfinished) == ("corpus", ())
    assert [stage.result.kind for stage in run.stages] == [
        "format", "clean", "dedup", "safe", "quality", "decontaminate", "tokenize", "mix",
    ]  # fmt: skip
    assert run.stages[2].clusters is not None
    assert run.stages[2].clusters.duplicates == run.stages[2].result.counts.dropped["dedup: near duplicate"][0]
    assert find_setting(run.stages[2].settings, "bands") == 25
    assert corpus_tokens(run) == run.stages[6].result.counts.bytes_out + run.stages[6].result.counts.documents_out
    found = document_shards(run)
    assert found is not None and found[0].result.label == "decontaminate" and len(found[1]) == 2
    assert [stage.result.label for stage in run.document_stages][-1] == "tokenize"


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"pipeline\.json is missing"):
        load_run(tmp_path)
    write_plan(tmp_path, ["01-format"])
    with pytest.raises(DataError, match=r"no stage .* is finished"):
        load_run(tmp_path)


def test_a_stage_is_no_run(run_folder: Path) -> None:
    with pytest.raises(DataError, match="one stage of a run: give the folder above"):
        load_run(run_folder / "02-clean")


def test_an_unfinished_run(tmp_path: Path) -> None:
    write_plan(tmp_path, ["01-format", "02-clean"])
    write_stage(tmp_path / "01-format", "format", [], {})
    run = load_run(tmp_path)
    assert run.unfinished == ("02-clean",)
    assert "Not finished yet: 02-clean" in render(run)


def test_a_damaged_stage_is_named(tmp_path: Path) -> None:
    write_plan(tmp_path, ["01-format"])
    write_stage(tmp_path / "01-format", "format", [], {})
    state = json.loads((tmp_path / "01-format" / "stage.json").read_text())
    del state["seconds"]
    (tmp_path / "01-format" / "stage.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"damaged stage\.json"):
        load_run(tmp_path)


def test_clusters_as_a_list(tmp_path: Path) -> None:
    write_plan(tmp_path, ["01-dedup"])
    write_stage(tmp_path / "01-dedup", "dedup", [], {})
    members = [{"id": f"d{i}", "text": "a b c", "shard": 2, "row": i, "similarity": 0.9} for i in range(3)]
    (tmp_path / "01-dedup" / "clusters.json").write_text(json.dumps([{"size": 3, "members": members}] * 5))
    clusters = load_run(tmp_path).stages[0].clusters
    assert clusters is not None
    assert (clusters.clusters, clusters.duplicates, clusters.sizes) == (5, 10, ((3, 4, 5),))
    assert [member.kept for member in clusters.shown[0].members] == [True, False, False]
    assert clusters.shown[0].members[1].place == "shard 2, row 1"


@given(st.sampled_from(["clusters.json", "mixture.json", "meta.json"]), JSON)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_json_gives_a_page(tmp_path: Path, name: str, content: object) -> None:
    write_plan(tmp_path, ["01-dedup"])
    write_stage(tmp_path / "01-dedup", "dedup", [], {"bands": 16, "rows": 8})
    for other in ("clusters.json", "mixture.json", "meta.json"):
        (tmp_path / "01-dedup" / other).unlink(missing_ok=True)
    (tmp_path / "01-dedup" / name).write_text(json.dumps(content))
    assert render(load_run(tmp_path)).endswith("</html>\n")
